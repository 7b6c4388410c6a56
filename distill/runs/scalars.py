"""Scalars of a run, step by step: metrics.jsonl, and the same as TensorBoard events."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from distill.errors import InputError
from distill.runs.files import write_error, write_text
from distill.runs.foreign import read_text
from distill.runs.ranks import shows_progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["EVENTS", "METRICS", "Scalars", "read_scalars"]

METRICS = "metrics.jsonl"
EVENTS = "tensorboard"


class Scalars:
    """Writes the scalars of a run into its folder.

    Args:
        folder: of the run; made if needed.
        main_only: whether only the main process writes them; else each process that has some.
    """

    def __init__(self, folder: Path, *, main_only: bool = True):
        self.folder, self.main_only = folder, main_only
        self._events: SummaryWriter | None = None

    def log(self, step: int, **scalars: float | Tensor) -> None:
        """Append the scalars of a step.

        Raises:
            InputError: they cannot be written.
        """
        if self.main_only and not shows_progress():
            return
        numbers = {name: float(value) for name, value in scalars.items()}
        with self._writing(METRICS):
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step} | numbers) + "\n")
        with self._writing(EVENTS):
            if self._events is None:
                from torch.utils.tensorboard import SummaryWriter  # slow to import, and only needed here

                self._events = SummaryWriter(str(self.folder / EVENTS), purge_step=step)
            for name, value in numbers.items():
                self._events.add_scalar(name, value, step)

    def forget(self, step: int) -> None:
        """Remove the scalars of a step and of later ones from metrics.jsonl, and damaged lines such as a cut one.

        Raises:
            InputError: the file cannot be read or written.
        """
        path = self.folder / METRICS
        if (self.main_only and not shows_progress()) or not path.exists():
            return
        try:
            lines = read_text(path).splitlines(keepends=True)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); delete it: it has scalars alone") from None
        write_text(path, "".join(line for line in lines if line.endswith("\n") and -1 < _step_of(line) < step))

    def close(self) -> None:
        """Write what TensorBoard still holds in memory.

        Raises:
            InputError: it cannot be written.
        """
        if self._events is not None:
            with self._writing(EVENTS):
                self._events.close()

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise write_error(self.folder / name, error) from None


def read_scalars(path: Path) -> list[dict[str, float]]:
    """Return the scalars of each step of metrics.jsonl, the step among them.

    Lines that a killed run cut and numbers that are not finite are left out; without a readable file there are none.
    """
    found: list[dict[str, float]] = []
    try:
        lines = read_text(path).splitlines() if path.exists() else []
    except (OSError, ValueError):  # a run lives without its curves
        return found
    for line in lines:
        try:
            step = json.loads(line)
        except ValueError:
            continue
        if isinstance(step, dict):
            kept: dict[str, float] = {
                k: v for k, v in step.items() if isinstance(v, (int, float)) and v == v and abs(v) < 1e300
            }
            if "step" in kept:
                found.append(kept)
    return found


def _step_of(line: str) -> float:
    """Return the step of a line of metrics.jsonl; -1 where the line has none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return -1
