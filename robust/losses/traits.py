"""The properties that a loss declares, so that training loops, flags and time estimates need not know its class."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from robust.threat import Threat

__all__ = ["Loss", "Named", "Traits", "Units", "at_epoch", "drawing_from"]

Units = Literal["pixels", "inputs"]
"""pixels: the model takes pixels in [0, 1], normalisation inside; inputs: the model may take anything"""


@dataclass(frozen=True)
class Traits:
    """The traits of a class of losses, equal for all objects of the class."""

    units: Units = "inputs"
    """units of the numbers of the loss (eps, sigma, h): a loss in "pixels" needs a model that takes pixels;
    `robust.losses.in_pixels` adapts it to other models"""
    random: bool = False
    """whether the loss is random and a call takes `generator=`, a CPU generator"""
    threat: bool = False
    """whether the loss has a field `threat`, the ball of its attack; `@THREAT` in the text of a loss sets it"""
    strength: str = ""
    """the field that sets the distance from plain cross-entropy, to be reduced if training diverges; "" for plain
    cross-entropy"""


@runtime_checkable
class Loss(Protocol):
    """A loss of `robust.losses`: a frozen dataclass, called as `loss(model, inputs, targets) -> scalar`.

    A loss outside this package subclasses `Loss` (or has the same members) and declares `traits`; the other members
    have defaults. A loss with `traits.random` also takes `generator=`.
    """

    traits: ClassVar[Traits]

    @property
    def passes(self) -> float:
        """Time of a training step relative to plain cross-entropy; forward and backward passes count 1 and 2."""
        return 1.0

    @property
    def scheduled(self) -> bool:
        """Whether `at` returns another loss in the first epochs."""
        return False

    @property
    def only_in_training(self) -> str:
        """Names of the set fields that have an effect only while a network is trained; "" if there are none."""
        return ""

    def at(self, epoch: int) -> "Loss":
        """Return the loss of a training epoch, 0 for the first."""
        return self

    def __call__(self, model: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss, a scalar.

        Args:
            model: maps inputs to logits (N, K).
            inputs: (N, ...), in the units of the loss.
            targets: (N,) class indices or (N, K) probabilities.
        """
        ...


Called = Callable[[Any, Tensor, Tensor], Tensor]
"""(network or other function of inputs, inputs, targets) -> scalar: a loss, if random with a bound generator"""
Named = dict[str, Callable[[Threat], Loss]]
"""name -> loss at a threat: the NAMED that a file of `robust/losses` exports"""


def drawing_from(loss: Loss, generator: torch.Generator) -> Called:
    """Return the loss with a CPU generator bound to it if the loss is random."""
    called: Any = loss
    return partial(called, generator=generator) if loss.traits.random else loss


def at_epoch(loss: Loss | Called, epoch: int) -> Loss | Called:
    """Return a loss at a training epoch (0 for the first); plain functions are returned unchanged."""
    return loss.at(epoch) if isinstance(loss, Loss) else loss
