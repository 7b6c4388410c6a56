"""Checkpoints of a stage: each stores its owner, and a state that is not finite is refused."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.errors import InputError
from distill.runs.divergence import diverged, is_finite
from distill.runs.files import Checkpoint

__all__ = ["DivergenceMonitor", "OwnedCheckpoint"]


class OwnedCheckpoint(Checkpoint):
    """A checkpoint that stores its owner, so that another owner's file in its place is refused.

    Args:
        path: of the file.
        owner: name of the work that it belongs to, unique among all checkpoints.
        seconds: age from which a new checkpoint is due.
        main_only: whether only the main process writes it; else each process that has one.
    """

    def __init__(self, path: Path, owner: str, seconds: float, *, main_only: bool = False):
        super().__init__(path, seconds, main_only=main_only)
        self.owner = owner

    def restore(self) -> dict | None:
        """Return the last state, or None where there is none.

        Raises:
            InputError: the file is damaged, or has another owner.
        """
        state = super().restore()
        if state is not None and (not isinstance(state, dict) or state.get("whose") != self.owner):
            raise InputError(f"checkpoint {self.path} belongs to another run; delete it to restart this stage")
        return state

    def save(self, state: dict) -> None:
        """Write a state atomically."""
        super().save(state | {"whose": self.owner})


class DivergenceMonitor:
    """Finds the first iteration whose loss is not finite, without synchronising with the device in every iteration.

    `last` is the last recorded iteration.

    Args:
        what: name of the computation, for the error.
        flag: the flag to lower, for the error.
        device: of the losses.
    """

    def __init__(self, what: str, flag: str, device: torch.device):
        self.what, self.flag = what, flag
        self.found, self.last = torch.full((), -1, device=device), -1

    def record(self, iteration: int, loss: Tensor) -> None:
        """Record the loss of an iteration, a scalar on the device."""
        self.last = iteration
        self.found = torch.where((self.found < 0) & ~loss.isfinite(), iteration, self.found)

    def check(self, *states: Any) -> None:
        """Refuse to continue after a loss, or with a state, that is not finite.

        Args:
            states: tensors, or containers of tensors, to check.

        Raises:
            InputError: the computation diverged; the message has the iteration and the flag to lower.
        """
        iteration, why = int(self.found), "the loss is not finite"
        if iteration < 0 and not is_finite(states):
            iteration, why = self.last, "not all values are finite"
        if iteration >= 0:
            raise diverged(self.what, iteration, why, self.flag)
