"""SRe2L, stage after stage: squeeze -> recover -> relabel -> validate.

Teacher, recovered images and labels have folders of their own in the runs' `stages/`. The name of a stage's folder is a
hash of everything that the stage depends on, so a finished stage is not repeated, by this run or another. Students are
trained on the stored labels (`validate`, --protocol own), and the teacher is evaluated beside them.

Under torchrun the same command uses all processes: in squeeze and validate they share each batch, in recover and
relabel they share the units of work.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.data import ImageSet
from distill.data.pictures import digest_of_pictures, read_pictures
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.models import build
from distill.runs.foreign import brief
from distill.runs.named_files import path_of, unchanged
from distill.runs.own_files import companion_path
from distill.runs.run import Run
from distill.training.crop_labels import Labels, digest
from distill.training.protocol import Protocol
from robust import Normalize
from sre2l.precision import Compute
from sre2l.recover import BatchNormMatch, Recover, recover
from sre2l.relabel import Relabel, label_missing_epochs, relabel
from sre2l.relabel import check as check_relabel
from sre2l.squeeze import Squeeze, squeeze
from sre2l.squeeze import check as check_squeeze
from sre2l.stages import finished_set
from sre2l.units import read_units
from sre2l.validate import Validate, train
from sre2l.weights import load_teacher

__all__ = ["Config", "check", "distill", "is_incomplete", "protocol"]


@dataclass(frozen=True)
class Config:
    """The settings of all stages.

    Raises:
        ValueError: a field of a stage is out of its range.
    """

    squeeze: Squeeze = field(default_factory=Squeeze)
    """training of the teacher"""
    recover: Recover = field(default_factory=Recover)
    """recovery of images from the teacher"""
    relabel: Relabel = field(default_factory=Relabel)
    """labels by the teacher"""
    validate: Validate = field(default_factory=Validate)
    """training of students"""
    compute: Compute = field(default_factory=Compute)
    """how the arithmetic of all stages runs"""
    backbone: str = "timm:resnet18"
    """network of the teacher and of the students; `recover` needs BatchNorm"""
    pictures: bool = True
    """whether the images are also written as PNG files, pictures/CLASS/*.png"""


def distill(real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Run the first three stages; each continues where it was interrupted.

    Args:
        real: the training set, on the device of the run.
        ipc: images per class.
        config: the settings.
        run: has the generators, stages and progress.

    Returns:
        `ipc` images of each class, sorted by class, in pixels.

    Raises:
        InputError: a stage refuses its input.
    """
    source = config.recover.images
    images = read_pictures(path_of(source), real.classes, ipc, real.image_shape) if source else None
    teacher, squeezed = squeeze(real, config.backbone, config.squeeze, config.compute, run)
    if images is None:
        images = read_units(recover(teacher, squeezed, real, ipc, config.recover, config.compute, run))
    normalize = Normalize(real.mean, real.std).to(run.device)
    store = relabel(teacher, squeezed, images.to(run.device), normalize, config.relabel, config.compute, run)
    return finished_set(real, images, squeezed, store, config, run)


def check(real: ImageSet, ipc: int, config: Config, processes: int) -> None:
    """Refuse before any work what a stage would refuse later.

    Args:
        real: the training set, on the device of the run.
        ipc: images per class.
        config: the settings.
        processes: number of processes.

    Raises:
        InputError: there are too few images for a batch, the last batch has one image, the network has no BatchNorm to
            match, or the weights of the teacher or the pictures do not exist or have changed.
    """
    source = unchanged(config.recover.images, "recover.images", digest_of_pictures) if config.recover.images else None
    if source is not None and not source.is_dir():
        raise InputError(f"recover.images is {source}: no such folder")
    network = build(config.backbone, like=real, generator=torch.Generator())
    if source is None:
        BatchNormMatch(network, config.recover.first_bn, required=config.recover.r_bn > 0)
    check_relabel(network, ipc * real.num_classes, real.image_shape, config.relabel)
    check_squeeze(network, real, config.backbone, config.squeeze, processes)


def is_incomplete(path: Path) -> bool:
    """Return whether the teacher or the labels of a set are missing, so that `distill` has to make them again.

    Args:
        path: of the set's file.
    """
    training = DistilledSet.load(path).training
    files = [
        path.parent / named / within
        for named, within in ((training.teacher, ""), (training.labels, "labels.json"))
        if named is not None
    ]
    return not all(file.exists() for file in files)


def protocol(distilled: DistilledSet, folder: Path, run: Run) -> Protocol:
    """Return how students are trained on the stored labels of a teacher: of a set of `distill`, or of FKD.

    Args:
        distilled: the set, on the device of the run.
        folder: of its file.
        run: of the evaluation.

    Raises:
        InputError: the set has no labels; the labels or the teacher are missing, or belong to other images.
    """
    training = distilled.training
    if training.labels is None:
        raise InputError(
            "the set has no labels of a teacher: give --fkd FOLDER where it was published with them, or "
            "take --protocol standard"
        )
    store = companion_path(folder, training.labels, "labels")
    normalize = Normalize(distilled.mean, distilled.std).to(run.device)
    teacher = None
    if training.teacher is not None:  # published sets have no teacher file
        network = build(training.teacher_backbone or "", like=distilled, generator=torch.Generator())
        path = companion_path(folder, training.teacher, "teacher")
        if not path.exists():
            Labels(store, digest(distilled.images))  # raises an error about the labels if they are missing too
        load_teacher(network, path)
        teacher = nn.Sequential(normalize, network.to(run.device)).eval()
        label_missing_epochs(store, network, distilled.images, normalize, run)
    labels = Labels(store, digest(distilled.images), len(distilled.classes))
    # Before `decay` was a field, SGD decayed all parameters of students, and AdamW only their kernels.
    try:
        if training.validate is None or training.compute is None:
            raise ValueError("validate or compute is missing")
        before: dict[str, Any] = {"decay": "all" if training.validate.get("optimizer") == "sgd" else "kernels"}
        config, compute = Validate(**before | training.validate), Compute(**training.compute)
    except (TypeError, ValueError) as error:
        raise InputError(f"the set in {folder} does not say how its students are trained ({brief(error)})") from None

    def train_one(network: nn.Module, name: str) -> None:
        train(network, distilled.images, labels, normalize, config, compute, run, name)

    return Protocol(train_one, labels.epochs, teacher, averages=True, labels_of_teacher=True)
