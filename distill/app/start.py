"""What every command shares: where things are, and what it refuses before it works."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from distill.data import ImageSet, load
from distill.data.image_files import cores
from distill.errors import InputError
from distill.evaluation.columns import columns
from distill.experiment import Evaluation
from distill.models import build
from robust import loss_named
from robust.ranges import NonNegative, Range, check_ranges
from robust.threat import family_of

__all__ = ["RunOptions", "check_before_running", "identity_of", "real_data", "spare_threads"]

MOST_WORKERS = 8
"""beyond it a GPU is rarely faster fed, and each takes memory"""
MOST_NAMES = 20
"""classes whose names a run's experiment.json has in full"""


@dataclass(frozen=True)
class RunOptions:
    """Where things are, and how they are read: no result depends on it but by which files are damaged.

    Raises:
        ValueError: a field is out of its range.
    """

    data_dir: Path = Path(os.environ.get("DATA_DIR", "data"))
    """folder of the real data sets (environment: DATA_DIR); for `folder` the one that holds train/ and val/"""
    runs: Path = Path("runs")
    """folder of all runs"""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, ...; auto takes a GPU where there is one"""
    checkpoint_seconds: NonNegative = 30.0
    """how often the state of a distillation is saved: what a killed run loses at most, or a longer iteration"""
    damaged: Literal["refuse", "skip"] = "refuse"
    """image files that cannot be read: end when one is met, or look for them first and leave them out"""
    workers: Annotated[int, Range(least=0, most=1024)] = min(MOST_WORKERS, cores())
    """processes that decode image files ahead, where a set is too large for memory; 0 decodes when asked"""

    def __post_init__(self) -> None:
        check_ranges(self)


def real_data(
    dataset: str, data_dir: Path, image_size: int | None, split: str, damaged: str = "refuse"
) -> tuple[ImageSet, ImageSet]:
    """Return what is distilled and what is evaluated on, on the CPU.

    Args:
        dataset: its name.
        data_dir: folder of the real data sets.
        image_size: side in pixels; None for the set's own.
        split: "test", or "validation" for a tenth of the training set held out of it.
        damaged: what to do with image files that cannot be read.

    Raises:
        InputError: as `distill.data.load`.
    """
    train, test = load(dataset, data_dir, image_size, damaged)
    if split == "validation":
        # One split for all seeds, so that what is chosen on it is chosen on the same images.
        train, test = train.split(0.1, torch.Generator().manual_seed(0))
    return train, test


def identity_of(train: ImageSet, test: ImageSet) -> dict[str, Any]:
    """Return what a run is told by beside its config: the data that it is made from and evaluated on.

    Args:
        train: the training set.
        test: the test set, or the part of the training set that stands for it.
    """
    names: Any = list(train.classes)
    if len(names) > MOST_NAMES:
        names = f"{len(names)} names, {hashlib.sha256(repr(names).encode()).hexdigest()[:16]}"
    return {"train": train.summary, "test": test.summary, "classes": names}


def check_before_running(backbone: str, evaluation: Evaluation, images: ImageSet) -> None:
    """Refuse an impossible network, attack or loss before hours of work, and before anything is written.

    Raises:
        InputError: with what is wrong.
    """
    channels, size, _ = images.image_shape
    for spec in (backbone, *([evaluation.transfer_backbone] if "transfer_student" in evaluation.attacks else [])):
        build(spec, like=images, generator=torch.Generator())
    columns(evaluation, channels, size)
    try:
        loss_named(evaluation.student.loss, family_of(channels, size))
    except ValueError as error:
        raise InputError(f"--student.loss: {error}") from None


def spare_threads(images: ImageSet, device: torch.device) -> None:
    """Take one thread on a CPU for small images, whose layers cost less than sharing them out does."""
    if device.type == "cpu" and images.image_shape[1] <= 16 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
