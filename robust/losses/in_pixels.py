"""Where a loss that is stated in pixels meets a network that takes normalised or whitened images: the only place."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from robust.losses.traits import Loss, Traits, drawing_from
from robust.network.modes import Model, is_training

__all__ = ["InPixels", "Preprocessing", "on_inputs"]


class Preprocessing(Protocol):
    """The first layer of a model of pixels, with the way back: `robust.Normalize`, or any other invertible one."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return what the network takes, of pixels (N, C, H, W)."""
        ...

    def inverse(self, images: Tensor, /) -> Tensor:
        """Return the pixels of what the network takes, not clamped."""
        ...


@dataclass(frozen=True)
class InPixels(Loss):
    """A loss of pixels for a network of preprocessed images: its numbers stay in pixels of [0, 1].

    The inputs are turned back into pixels, and the network gets the preprocessing as its first layer.

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
    """from pixels to what the network takes"""

    @property
    def traits(self) -> Traits:  # pyright: ignore[reportIncompatibleVariableOverride]  # those of an object here
        """Those of the loss, whose inputs are now what the network takes."""
        return replace(self.loss.traits, units="inputs")

    @property
    def passes(self) -> float:
        """Those of the loss."""
        return self.loss.passes

    @property
    def scheduled(self) -> bool:
        """Whether the loss is."""
        return self.loss.scheduled

    @property
    def only_in_training(self) -> str:
        """Those of the loss."""
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
            generator: CPU generator of the draws of the loss, if it has any; None is torch's default.
        """
        return self.of_pixels(model, self.preprocess.inverse(inputs), targets, generator=generator)

    def of_pixels(
        self, model: Model, pixels: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the mean loss of images that are pixels already, (N, C, H, W); the rest as in a call."""
        loss = self.loss if generator is None else drawing_from(self.loss, generator)
        return loss(_behind(self.preprocess, model), pixels, targets)


def on_inputs(loss: Loss, preprocess: Preprocessing) -> Loss:
    """Return a loss for a network that takes preprocessed images: adapted if it is stated in pixels, else as it is."""
    return InPixels(loss, preprocess) if loss.traits.units == "pixels" else loss


def _behind(preprocess: Preprocessing, model: Model) -> Callable[[Tensor], Tensor]:
    """Return the model with the preprocessing before it; a module stays a module, so that a loss sees its modes."""
    layers: list[Any] = [preprocess, model]
    if isinstance(model, nn.Module) and isinstance(preprocess, nn.Module):
        whole = nn.Sequential(*layers)
        whole.training = is_training(model)  # of the container alone: a new one is in training mode
        return whole
    return lambda pixels: model(preprocess(pixels))
