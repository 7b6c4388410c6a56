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
    """(network, its name): trains an untrained network in place, which is on the set's device and takes the output of
    `preprocess`, (N, C, H, W), to logits; all randomness comes from `run.generator("student", name, ...)`"""
    epochs: int
    """passes over the images, to report the seconds per epoch"""
    teacher: nn.Module | None = None
    """a network trained on the real data, pixels in [0, 1] to logits, which is evaluated beside the students"""
    averages: bool = False
    """whether all processes of a run can train one student together, each with a part of each batch"""
    preprocess: nn.Module | None = None
    """first layer of a student, from pixels in [0, 1] to the input of its network; None for the set's normalisation"""
    labels_of_teacher: bool = False
    """whether students are trained on what a teacher says of crops of the images, instead of the labels of the set"""


ProtocolOf = Callable[[DistilledSet, Path, Run], Protocol]
"""(set, folder of its file, run of the evaluation) -> its protocol"""


def selected_protocol(protocol: str, method: str, own: ProtocolOf | None) -> ProtocolOf | None:
    """Return the protocol of a method if `protocol` is "own", None for the standard protocol.

    Args:
        protocol: the requested protocol, "standard" or "own".
        method: name of the method, for the error.
        own: the protocol of the method; None for a method without its own protocol.

    Raises:
        InputError: the method has no protocol of its own.
    """
    if protocol == "standard":
        return None
    if own is None:
        raise InputError(
            f"{method} has no own way of training students, or its set lacks labels for it: take --protocol standard"
        )
    return own
