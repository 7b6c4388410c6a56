"""Shared by all commands: options for folders and devices, and checks before any work is done."""

import hashlib
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from distill.data import FILES, ImageSet, facts_of, label, load
from distill.errors import InputError
from distill.evaluation.columns import columns
from distill.experiment import Evaluation
from distill.models import build
from distill.reports.tracking import Tracker
from distill.runs.run import difference
from distill.runs.threads import cores
from robust import loss_named
from robust.ranges import Count, NonNegative, Range, check_ranges, shown
from robust.threat import family_of

__all__ = [
    "RunOptions",
    "check_before_running",
    "check_data",
    "check_student_flags",
    "identity_of",
    "real_data",
    "real_data_at",
]

MOST_WORKERS = 8
"""default limit of worker processes: more rarely speed up a GPU, and each takes memory"""
MOST_NAMES = 20
"""largest number of classes whose names experiment.json lists"""


@dataclass(frozen=True)
class RunOptions:
    """Folders, device and reading of files. No result depends on these options, except on which files are damaged.

    Raises:
        ValueError: a field is out of its range.
    """

    data_dir: Path = Path(os.environ.get("DATA_DIR", "data"))
    """folder of the real data sets (environment: DATA_DIR); for `folder` the folder that contains train/ and val/"""
    runs: Path = Path("runs")
    """folder of all runs"""
    stages: Path | None = None
    """folder of what runs share (experts, teachers), DIR/stages; None: the subfolder stages/ of --runs"""
    device: str = "auto"
    """cpu, cuda, cuda:1 or mps; auto uses a GPU if there is one"""
    checkpoint_seconds: NonNegative = 30.0
    """seconds between checkpoints of a distillation: a killed run loses at most this time, or one longer iteration"""
    damaged: Literal["refuse", "skip"] = "refuse"
    """unreadable image files: refuse ends with an error at the first; skip checks all files first and omits these"""
    workers: Annotated[int, Range(least=0, most=1024)] = min(MOST_WORKERS, cores())
    """processes that decode image files in advance if a set is too large for memory; 0 decodes on demand"""

    processes: Count | None = None
    """processes on this machine; None: the environment variable NPROC, else one for each core, or for each GPU"""
    track: Tracker = "none"
    """experiment tracker that gets the run when it ends: its settings, scalars and accuracies"""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.stages is not None and self.stages.name != "stages":  # `companion_path` knows stages by this name
            raise ValueError(f"stages is {shown(str(self.stages))}; take a folder of the name stages: DIR/stages")


def real_data(
    dataset: str, data_dir: Path, image_size: int | None, split: str, damaged: str = "refuse", blur: float = 0.0
) -> tuple[ImageSet, ImageSet]:
    """Return the images to distil and the images for evaluation, on the CPU.

    Args:
        dataset: name of the data set.
        data_dir: folder of the real data sets.
        image_size: side in pixels; None for the size of the set.
        split: images for evaluation: "test", or "validation" for a held-out tenth of the training set.
        damaged: "refuse" or "skip": what happens to unreadable image files.
        blur: standard deviation in pixels of the blur of the images to distil; 0 for none.

    Raises:
        InputError: as `distill.data.load`, or the blur is too wide for the images.
    """
    train, test = load(dataset, data_dir, image_size, damaged)
    if split == "validation":
        # The same split for all seeds, so that hyperparameters are selected on the same images.
        train, test = train.split(0.1, torch.Generator().manual_seed(0))
    return train.blurred(blur), test


def identity_of(train: ImageSet, test: ImageSet) -> dict[str, Any]:
    """Return the identity of a run's data, which with the config identifies the run.

    Args:
        train: the training set.
        test: the test set, or the validation split of the training set.
    """
    names: Any = list(train.classes)
    if len(names) > MOST_NAMES:
        names = f"{len(names)} names, {hashlib.sha256(repr(names).encode()).hexdigest()[:16]}"
    return {"train": train.summary, "test": test.summary, "classes": names}


def real_data_at(dataset: str, options: RunOptions, size: int) -> tuple[tuple[ImageSet, ImageSet], str]:
    """Return the training and the test images at a size, and the name of the data in tables (cifar10, cifar10-16px).

    Args:
        dataset: name of the data set.
        options: folder of the data, and what happens to unreadable files.
        size: side in pixels, as of the images of a distilled set.

    Raises:
        InputError: as of `distill.data.load`.
    """
    name = label(dataset, options.data_dir)
    if dataset in FILES:
        usual = FILES[dataset] or facts_of(dataset, options.data_dir).size
        data = load(dataset, options.data_dir, size, options.damaged)
        return data, name if size == usual else f"{name}-{size}px"
    train, test = load(dataset, options.data_dir)
    if test.image_shape[1] == size:
        return (train, test), name
    return (train.resized(size), test.resized(size)), f"{name}-{size}px"


def check_data(recorded: dict[str, Any] | None, found: dict[str, Any]) -> None:
    """Refuse data that differ from the data of the repeated run.

    Args:
        recorded: `identity_of` the run's data, from its experiment.json; None if nothing is recorded.
        found: `identity_of` the data on this machine.

    Raises:
        InputError: the two differ; the message has the difference.
    """
    if recorded not in (None, found):
        raise InputError(
            f"the data here differ from those of the recorded run: {difference(recorded, found)} (--data-dir)"
        )


def check_student_flags(evaluation: Evaluation, default: Evaluation) -> None:
    """Refuse settings of the standard protocol's students for a run whose students are trained as the authors do.

    Args:
        evaluation: after the flags.
        default: of the recipe, before the flags.

    Raises:
        InputError: the protocol is "own", and a setting of `student` is not the recipe's.
    """
    ours, theirs = evaluation.student, default.student
    names = [each.name for each in fields(ours) if getattr(ours, each.name) != getattr(theirs, each.name)]
    if evaluation.protocol == "own" and names:
        given = ", ".join(f"--student.{name.replace('_', '-')}" for name in names)
        raise InputError(
            f"{given} has no effect with --protocol own, which trains students as the method's authors do; take "
            "--protocol standard, or the method's own flags (--help)"
        )


def check_before_running(backbone: str, evaluation: Evaluation, images: ImageSet) -> None:
    """Refuse an impossible network, attack or loss before any work is done and any file is written.

    Raises:
        InputError: one of them is impossible.
    """
    channels, size, _ = images.image_shape
    for spec in (backbone, *([evaluation.transfer_backbone] if "transfer_student" in evaluation.attacks else [])):
        build(spec, like=images, generator=torch.Generator())
    columns(evaluation, channels, size)
    try:
        loss_named(evaluation.student.loss, family_of(channels, size))
    except ValueError as error:
        raise InputError(f"--student.loss: {error}") from None
