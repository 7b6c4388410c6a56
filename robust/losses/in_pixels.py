"""Apply a loss whose numbers are in pixels to a network that takes normalised or whitened images.

No other module does this conversion.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from robust.losses.traits import Loss, Traits, drawing_from
from robust.network.modes import Model

__all__ = ["InPixels", "Preprocessing", "on_inputs"]


class Preprocessing(Protocol):
    """An invertible layer from pixels to the inputs of a network, such as `robust.Normalize`."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the network's inputs for pixels (N, C, H, W)."""
        ...

    def inverse(self, images: Tensor, /) -> Tensor:
        """Return the pixels for the network's inputs, not clamped."""
        ...


@dataclass(frozen=True)
class InPixels(Loss):
    """A loss in pixels for a network that takes preprocessed images: eps, sigma and h stay in pixels of [0, 1].

    The inputs are converted back to pixels, and the preprocessing becomes the first layer of the network.

    >>> from robust import AdversarialTraining, Normalize, Threat
    >>> normalize = Normalize([0.5], [0.25])
    >>> loss = InPixels(AdversarialTraining(Threat("linf", 0.1), steps=3, random_start=False), normalize)
    >>> network = lambda x: torch.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], 1)  # of normalised images
    >>> x, y = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
    >>> worst = torch.nn.functional.cross_entropy(network(normalize(x - 0.1)), y)
    >>> bool(torch.isclose(loss(network, normalize(x), y), worst))
    True
    """

    loss: Loss
    """the loss, called with pixels and a model of pixels"""
    preprocess: Preprocessing
    """from pixels to the inputs of the network"""

    @property
    def traits(self) -> Traits:  # pyright: ignore[reportIncompatibleVariableOverride]  # here of an object, not of a class
        """The traits of the loss, with units "inputs"."""
        return replace(self.loss.traits, units="inputs")

    @property
    def passes(self) -> float:
        """The passes of the loss."""
        return self.loss.passes

    @property
    def scheduled(self) -> bool:
        """Whether the loss is scheduled."""
        return self.loss.scheduled

    @property
    def only_in_training(self) -> str:
        """The fields of the loss that have an effect only in training."""
        return self.loss.only_in_training

    def at(self, epoch: int) -> "InPixels":
        """Return the adapted loss of a training epoch."""
        return replace(self, loss=self.loss.at(epoch))

    def __call__(
        self, model: Model, inputs: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the mean loss, a scalar.

        Args:
            model: maps preprocessed images to logits (N, K).
            inputs: (N, C, H, W), preprocessed.
            targets: (N,) class indices or (N, K) probabilities.
            generator: CPU generator of a random loss; None is torch's default.
        """
        return self.of_pixels(model, self.preprocess.inverse(inputs), targets, generator=generator)

    def of_pixels(
        self, model: Model, pixels: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the mean loss of pixels (N, C, H, W); the other arguments are those of `__call__`."""
        loss = self.loss if generator is None else drawing_from(self.loss, generator)
        return loss(_behind(self.preprocess, model), pixels, targets)


def on_inputs(loss: Loss, preprocess: Preprocessing) -> Loss:
    """Return a loss for a network that takes preprocessed images: adapted if the loss is in pixels, else unchanged."""
    return InPixels(loss, preprocess) if loss.traits.units == "pixels" else loss


def _behind(preprocess: Preprocessing, model: Model) -> Callable[[Tensor], Tensor]:
    """Return the model after the preprocessing; a module stays a module, so that a loss can set the modes."""
    return _Behind(preprocess, model) if isinstance(model, nn.Module) else lambda pixels: model(preprocess(pixels))


class _Behind(nn.Module):
    """A network after the preprocessing. It has no train/eval mode of its own."""

    def __init__(self, preprocess: Preprocessing, model: Model):
        super().__init__()
        self.model: Model = model
        self.before = (preprocess,)  # in a tuple, so that its mode does not count as that of the network
        self.training: bool = False

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(self.before[0](pixels))

    def rebuilt_around(self, unwrapped: Callable[[Model], Model]) -> "_Behind":
        network = unwrapped(self.model)
        return self if network is self.model else _Behind(self.before[0], network)
