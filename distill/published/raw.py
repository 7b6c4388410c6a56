"""A set as its file has it, and checks of images and labels that all formats share."""

from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.data.facts import Constants
from distill.data.images import Images
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.published.unpickled import as_tensor
from distill.runs.foreign import brief

__all__ = [
    "SPACES",
    "Raw",
    "checked_constants",
    "checked_labels",
    "checked_rate",
    "read_pair",
    "single_file",
    "unsorted_warning",
]

NAMES = ("images", "labels")
"""names of the two tensors of a pair"""
SPACES = ("pixels", "normalised", "whitened")
"""coordinates that published images can have"""


@dataclass(frozen=True)
class Raw:
    """A set as its file has it."""

    images: Images
    """(N, C, H, W)"""
    labels: Tensor
    """(N,) int64, or (N, K) float32"""
    method: str
    """name of the method, "" if unknown"""
    space: str
    """"pixels", "normalised", "whitened", "by data set" (FRePo), or "unsaid" """
    description: str
    """what the file is, for a message"""
    augment: str = ""
    """augmentation of students; "dsa" and "dc" stand for that of DSA's or DC's code on the data set"""
    backbone: str = ""
    """network of students; "" for the ConvNet of the image size"""
    training: MethodTraining = field(default_factory=MethodTraining)
    """of `DistilledSet`"""
    training_tensors: dict[str, Tensor] = field(default_factory=dict)
    """of `DistilledSet`"""
    names: tuple[str, ...] | None = None
    """names of the classes in the order of the labels; None for the classes of the data set"""
    warnings: tuple[str, ...] = ()
    """messages about oddities of the file"""
    constants: Constants | None = None
    """mean and std of students, if the file contains them"""
    code: str = ""
    """key of CODES whose constants the images are normalised with; "" for that of the source"""
    made_for: tuple[int, ...] = ()
    """class that each image was made for, in the order of `names`; of `DistilledSet`"""
    teacher: str = ""
    """of `DistilledSet`"""
    dataset: str = ""
    """the data set, if the name of the file contains it"""
    spaces: tuple[str, ...] = SPACES
    """coordinates of SPACES that the images may have"""


def read_pair(path: Path, parts: Any, which: str = "") -> tuple[Tensor, Tensor]:
    """Return images (N, C, H, W) float32 and labels of the same length, from a list or tuple of both.

    Raises:
        InputError: the parts are no numbers, or do not fit each other.
    """
    if not isinstance(parts, (list, tuple)) or len(parts) != 2:
        raise InputError(f"{path}: {which or 'it'} is no pair of images and labels")
    images, labels = (
        as_tensor(each, f"{path}: {name} {which}".rstrip()) for each, name in zip(parts, NAMES, strict=True)
    )
    if images.ndim != 4:
        raise InputError(f"{path}: images {which}{' ' * bool(which)}are {tuple(images.shape)}; expected (N, C, H, W)")
    return images.float(), checked_labels(path, labels, len(images), which)


def checked_labels(path: Path, labels: Tensor, count: int, which: str = "") -> Tensor:
    """Return labels as classes (N,) int64 or rows (N, K) float32; a column (N, 1) of classes as (N,).

    Args:
        path: of the set, for the error.
        labels: of any shape and type.
        count: N.
        which: of several sets in a file, for the error.

    Raises:
        InputError: the labels have another shape, there are none, or classes are no whole numbers.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2) or len(labels) != count or labels.numel() == 0:
        place = f"{path}: {which}" if which else f"{path}"
        found = f"{count} images and labels of {tuple(labels.shape)}"
        raise InputError(f"{place} has {found}; expected (N,) classes or (N, K) probabilities, N >= 1")
    if labels.ndim == 2:
        return labels.float()
    if labels.is_floating_point() and not torch.equal(labels, labels.round()):
        raise InputError(f"{path}: labels {which}{' ' * bool(which)}are no whole numbers")
    return labels.long()


def checked_rate(value: Any) -> float:
    """Return a learning rate from a file.

    Raises:
        ValueError: the value is no finite number > 0.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ValueError(f"the learning rate is {value!r}")
    return float(value)


def checked_constants(mean: Any, std: Any, channels: int) -> Constants:
    """Return mean and std from a file.

    Raises:
        ValueError, TypeError: mean and std are no finite numbers, one per channel, std > 0.
    """
    constants = tuple(map(float, mean)), tuple(map(float, std))
    if not all(len(each) == channels and all(map(isfinite, each)) for each in constants) or min(constants[1]) <= 0:
        raise ValueError(f"mean and std are {constants}")
    return constants


def single_file(folder: Path, found: list[Path]) -> Path:
    """Return the only file of a set in a folder.

    Raises:
        InputError: the folder has several.
    """
    if len(found) > 1:
        more = f" and {len(found) - 6} more" if len(found) > 6 else ""
        names = brief(", ".join(each.name for each in found[:6]), 200)
        raise InputError(f"{folder} has several sets: give one file of {names}{more}")
    return found[0]


def unsorted_warning(labels: Tensor) -> tuple[str, ...]:
    """Return a warning if classes are not sorted, else nothing."""
    if labels.ndim == 1 and not torch.equal(labels, labels.sort().values):
        return ("labels are not sorted by class, as the official code has them: do they belong to these images?",)
    return ()
