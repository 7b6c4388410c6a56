"""Checkpoints of the parts of a run: they know whose they are, and nothing that is not finite gets into one."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.errors import InputError
from distill.runs.divergence import diverged, is_finite
from distill.runs.files import Checkpoint

__all__ = ["DivergenceMonitor", "OwnedCheckpoint"]


class OwnedCheckpoint(Checkpoint):
    """A checkpoint that another part's cannot stand for.

    Args:
        path: of the file.
        whose: tells the part from all others.
        seconds: a checkpoint this old is due for another.
        writes: whether this process is the one that writes it.
    """

    def __init__(self, path: Path, whose: str, seconds: float, *, writes: bool = True):
        super().__init__(path, seconds, writes=writes)
        self.whose = whose

    def restore(self) -> dict | None:
        """Return the last state, or None where there is none.

        Raises:
            InputError: the file is damaged, or another part's.
        """
        state = super().restore()
        if state is not None and (not isinstance(state, dict) or state.get("whose") != self.whose):
            raise InputError(f"checkpoint {self.path} belongs to another run; delete it to start this part anew")
        return state

    def save(self, state: dict) -> None:
        """Write a state atomically."""
        super().save(state | {"whose": self.whose})


class DivergenceMonitor:
    """The first iteration whose loss is not finite, found without waiting for the device in each.

    `seen` is the last iteration that was looked at.

    Args:
        what: diverges, for the error.
        flag: the flag to make smaller, for the error.
        device: of the losses.
    """

    def __init__(self, what: str, flag: str, device: torch.device):
        self.what, self.flag = what, flag
        self.found, self.seen = torch.full((), -1, device=device), -1

    def record(self, iteration: int, loss: Tensor) -> None:
        """Look at the loss of an iteration, a scalar on the device."""
        self.seen = iteration
        self.found = torch.where((self.found < 0) & ~loss.isfinite(), iteration, self.found)

    def check(self, *states: Any) -> None:
        """Refuse to go on after a loss, or with a state, that is not finite.

        Args:
            states: what would be kept, with tensors in it.

        Raises:
            InputError: the computation diverged; with the iteration, and the flag to make smaller.
        """
        iteration, why = int(self.found), "the loss is not finite"
        if iteration < 0 and not is_finite(states):
            iteration, why = self.seen, "not all values are finite"
        if iteration >= 0:
            raise diverged(self.what, iteration, why, self.flag)
