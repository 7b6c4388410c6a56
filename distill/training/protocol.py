"""How students of a method are trained where its authors do it in another way than the standard protocol.

By default students on all sets are trained by the standard protocol (`distill.training.students.Training`). A method
with a protocol of its own has a function

    protocol(distilled: DistilledSet, folder: Path, run: Run) -> Protocol

and writes what that function needs into `DistilledSet.training` and `DistilledSet.training_tensors`, which are stored
in the set's file. `folder` holds that file, for methods that need more files than this one. The flag `--protocol own`
selects it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.runs.run import Run

__all__ = ["Protocol", "ProtocolOf", "selected_protocol"]


@dataclass(frozen=True)
class Protocol:
    """How students are trained on one distilled set."""

    train: Callable[[nn.Module, str], None]
    """(network, its name): trains an untrained network in place. It takes what `preprocess` gives, (N, C, H, W), to
    logits and is on the set's device; all randomness comes from `run.generator("student", name, ...)`"""
    epochs: int
    """passes over the images, by which the seconds of an epoch are told"""
    teacher: nn.Module | None = None
    """a network trained on the real data, pixels in [0, 1] to logits, which is judged beside the students"""
    preprocess: nn.Module | None = None
    """first layer of a student, pixels in [0, 1] to what its network takes; None for the set's normalisation"""


ProtocolOf = Callable[[DistilledSet, Path, Run], Protocol]
"""what a method module exports as `protocol`"""


def selected_protocol(protocol: str, method: str, own: ProtocolOf | None) -> ProtocolOf | None:
    """Return a method's own way of training students where it is asked for, None for the standard one.

    Args:
        protocol: what is asked for: "standard" or "own".
        method: whose.
        own: what its module exports; None where it exports nothing.

    Raises:
        InputError: it has none.
    """
    if protocol == "standard":
        return None
    if own is None:
        raise InputError(f"{method} has no own way of training students; take --protocol standard")
    return own
