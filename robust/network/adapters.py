"""Models that do not map a tensor to logits, as models that do: tuples, dicts and dataclasses out, named arguments in.

With Hugging Face's Transformers, for pixels and for embedded tokens (whole numbers have no gradient):

    loss(logits_of(model), pixel_values, labels)
    embedded = model.get_input_embeddings()(input_ids)
    loss(logits_of(model, argument="inputs_embeds", attention_mask=mask), embedded, labels)
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from robust.network.modes import inside

__all__ = ["LogitsOf", "logits_of"]


class LogitsOf(nn.Module):
    """A model seen through its logits. It has no mode, parameters or buffers but the model's: make one where needed."""

    def __init__(self, model: Callable[..., Any], key: str | int | None, argument: str | None, others: dict[str, Any]):
        super().__init__()
        self.model: Callable[..., Any] = model
        self.key: str | int | None = key
        self.argument: str | None = argument
        self.others: dict[str, Any] = others
        self.training: bool = False

    def train(self, mode: bool = True) -> "LogitsOf":
        """Put the model in training or evaluation mode."""
        super().train(mode)
        self.training = False
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the model's logits, (N, ...) -> (N, K)."""
        if self.argument is None:
            return _part(self.model(inputs, **self.others), self.key)
        return _part(self.model(**{self.argument: inputs}, **self.others), self.key)

    def around_inside(self) -> "LogitsOf":
        """Return the same around the network inside a DistributedDataParallel or a compiled model."""
        network = inside(self.model)
        return self if network is self.model else LogitsOf(network, self.key, self.argument, self.others)


def logits_of(
    model: Callable[..., Any], key: str | int | None = None, *, argument: str | None = None, **others: Any
) -> LogitsOf:
    """Return the model as every loss and attack here takes it: one tensor in, logits out.

    Args:
        model: a module, DistributedDataParallel and compiled ones too, or a function.
        key: where the logits are in what it returns: an attribute, a key or a position; None for `logits`, or the first
            of a tuple or list, or the tensor itself.
        argument: name of the argument that takes the inputs; None for the first.
        others: further arguments of each call, such as a mask. They go with the whole batch: leave `fraction` of
            `CurvatureRegularizedLoss` and the chunks of `RobustTeacher` at 1 and None with arguments of each example.

    Raises:
        ValueError: when called, an output that has no such part.

    >>> import torch
    >>> twins = lambda x: {"logits": x + 1, "features": x}
    >>> logits_of(twins)(torch.zeros(1)), logits_of(twins, "features")(torch.zeros(1))
    (tensor([1.]), tensor([0.]))
    """
    return LogitsOf(model, key, argument, others)


def _part(outputs: Any, key: str | int | None) -> Tensor:
    if key is None and isinstance(outputs, Tensor):
        return outputs
    key = _usual(outputs) if key is None else key
    try:
        return getattr(outputs, key) if isinstance(key, str) and not isinstance(outputs, Mapping) else outputs[key]
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError(f"the model's output has no {key!r}; choose from {_parts(outputs)}") from None


def _usual(outputs: Any) -> str | int:
    return 0 if isinstance(outputs, (tuple, list)) and not hasattr(outputs, "logits") else "logits"


def _parts(outputs: Any) -> str:
    """Name what an output consists of, in words."""
    if isinstance(outputs, Mapping):
        return ", ".join(map(repr, outputs)) or "nothing: it is empty"
    if isinstance(outputs, (tuple, list)):
        names = getattr(outputs, "_fields", ())
        return ", ".join(map(repr, names)) or f"positions 0 to {len(outputs) - 1}"
    return f"the attributes of {type(outputs).__name__}"
