"""What a loss declares about itself, so that training loops, flags and estimates of time need not know its class."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from robust.threat import Threat

__all__ = ["Loss", "Named", "Traits", "Units", "at_epoch", "drawing_from"]

Units = Literal["pixels", "inputs"]
"""pixels: the model takes pixels in [0, 1], normalisation inside; inputs: whatever the model takes"""


@dataclass(frozen=True)
class Traits:
    """The traits of a class of losses, which no field of an object changes."""

    units: Units = "inputs"
    """what the numbers of the loss (eps, sigma, h) are stated in: a loss in "pixels" needs a model of pixels, and
    `robust.losses.in_pixels` adapts other models to it"""
    random: bool = False
    """whether a call takes `generator=`, the CPU generator of its draws"""
    threat: bool = False
    """whether the loss has a field `threat`, the ball of its attack; `@THREAT` in the text of a loss sets it"""
    strength: str = ""
    """the field that says how far the loss is from plain cross-entropy: the one to make smaller where training
    diverges; "" of plain cross-entropy itself"""


@runtime_checkable
class Loss(Protocol):
    """A loss of `robust.losses`: a frozen dataclass, called as `loss(model, inputs, targets) -> scalar`.

    A loss outside this package subclasses it (or has the same members) and declares `traits`; the other members have
    defaults. A loss with `traits.random` takes `generator=` too.
    """

    traits: ClassVar[Traits]

    @property
    def passes(self) -> float:
        """Time of a training step, in times of a step with plain cross-entropy; forward and backward count 1 and 2."""
        return 1.0

    @property
    def scheduled(self) -> bool:
        """Whether `at` gives another loss in the first epochs."""
        return False

    @property
    def only_in_training(self) -> str:
        """Fields, as they are set, that mean something only where a network is trained; "" where there are none."""
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
"""(network or other function of inputs, inputs, targets) -> scalar: a loss whose draws, if any, have a generator"""
Named = dict[str, Callable[[Threat], Loss]]
"""name -> loss at a threat: the NAMED that a file of `robust/losses` exports"""


def drawing_from(loss: Loss, generator: torch.Generator) -> Called:
    """Return the loss with its randomness, if it has any, drawn from a CPU generator."""
    called: Any = loss
    return partial(called, generator=generator) if loss.traits.random else loss


def at_epoch(loss: Loss | Called, epoch: int) -> Loss | Called:
    """Return a loss at a training epoch (0 for the first); a plain function has no schedule, and stays as it is."""
    return loss.at(epoch) if isinstance(loss, Loss) else loss
