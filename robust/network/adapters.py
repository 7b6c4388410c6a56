"""Adapters for models that return tuples, dicts or dataclasses, or take named arguments: from one tensor to logits.

With Hugging Face's Transformers, for pixels and for embedded tokens (whole numbers have no gradient):

    loss(logits_of(model), pixel_values, labels)
    embedded = model.get_input_embeddings()(input_ids)
    loss(logits_of(model, argument="inputs_embeds", attention_mask=mask), embedded, labels)
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from robust.network.modes import Model

__all__ = ["LogitsOf", "logits_of"]


class LogitsOf(nn.Module):
    """A model reduced to its logits. It has no train/eval mode, parameters or buffers of its own."""

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
            return _entry(self.model(inputs, **self.others), self.key)
        return _entry(self.model(**{self.argument: inputs}, **self.others), self.key)

    def rebuilt_around(self, unwrapped: Callable[[Model], Model]) -> "LogitsOf":
        """Return the same adapter of the unwrapped network (see `network_inside`)."""
        network = unwrapped(self.model)
        return self if network is self.model else LogitsOf(network, self.key, self.argument, self.others)


def logits_of(
    model: Callable[..., Any], key: str | int | None = None, *, argument: str | None = None, **others: Any
) -> LogitsOf:
    """Return the model in the form that losses and attacks take: one tensor in, logits out.

    Args:
        model: a function or a module, also in DistributedDataParallel or compiled.
        key: attribute, key or position of the logits in the output; None for `logits`, the first entry of a tuple or
            list, or the tensor itself.
        argument: name of the argument that takes the inputs; None for the first.
        others: further arguments of each call, such as a mask. They are not split with the batch: if they hold a value
            for each example, leave `fraction` of `CurvatureRegularizedLoss` at 1 and `chunk` of `RobustTeacher` at
            None.

    Raises:
        ValueError: when the adapter is called, if the output has no such entry.

    >>> import torch
    >>> twins = lambda x: {"logits": x + 1, "features": x}
    >>> logits_of(twins)(torch.zeros(1)), logits_of(twins, "features")(torch.zeros(1))
    (tensor([1.]), tensor([0.]))
    """
    return LogitsOf(model, key, argument, others)


def _entry(outputs: Any, key: str | int | None) -> Tensor:
    if key is None and isinstance(outputs, Tensor):
        return outputs
    key = _default_key(outputs) if key is None else key
    try:
        return getattr(outputs, key) if isinstance(key, str) and not isinstance(outputs, Mapping) else outputs[key]
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError(f"the model's output has no {key!r}; choose from {_entries(outputs)}") from None


def _default_key(outputs: Any) -> str | int:
    return 0 if isinstance(outputs, (tuple, list)) and not hasattr(outputs, "logits") else "logits"


def _entries(outputs: Any) -> str:
    """Return the names or positions of the entries of an output, in words."""
    if isinstance(outputs, Mapping):
        return ", ".join(map(repr, outputs)) or "nothing: it is empty"
    if isinstance(outputs, (tuple, list)):
        names = getattr(outputs, "_fields", ())
        return ", ".join(map(repr, names)) or f"positions 0 to {len(outputs) - 1}"
    return f"the attributes of {type(outputs).__name__}"
