"""The stages that all methods of this package share, and the set that they end with."""

import os
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from distill.data import ImageSet
from distill.data.images import Images
from distill.data.pictures import write_pictures
from distill.distilled import DistilledSet
from distill.method_training import MethodTraining
from distill.runs.ranks import is_main_process
from distill.runs.run import Run
from sre2l.precision import Compute
from sre2l.relabel import Relabel
from sre2l.squeeze import FILE, Squeeze
from sre2l.validate import Validate

__all__ = ["Stages", "Students", "finished_set"]


class Students(Protocol):
    """The settings of a method whose students train on a teacher's labels of the views that they see."""

    @property
    def relabel(self) -> Relabel:
        """Labels by the teacher."""
        ...

    @property
    def validate(self) -> Validate:
        """Training of students."""
        ...

    @property
    def compute(self) -> Compute:
        """How the arithmetic of all stages runs."""
        ...


class Stages(Students, Protocol):
    """The settings of a method that also trains the teacher."""

    @property
    def squeeze(self) -> Squeeze:
        """Training of the teacher."""
        ...

    @property
    def backbone(self) -> str:
        """Network of the teacher and of the students."""
        ...

    @property
    def pictures(self) -> bool:
        """Whether the images are also written as PNG files."""
        ...


def finished_set(
    real: ImageSet,
    images: Images,
    squeezed: str,
    store: Path,
    config: Stages,
    run: Run,
    probabilities: Tensor | None = None,
) -> DistilledSet:
    """Return the set whose students are trained on a store of labels; write its pictures.

    Args:
        real: the training set.
        images: (classes * ipc, C, H, W) pixels, sorted by class.
        squeezed: name of the teacher's stage.
        store: folder of the labels.
        config: the settings.
        run: of the method.
        probabilities: (classes * ipc, classes) of the teacher, the set's own labels; None for the classes.
    """
    classes = torch.arange(real.num_classes).repeat_interleave(len(images) // real.num_classes)
    if config.pictures and is_main_process():
        write_pictures(images, classes, real.classes, run.folder / "pictures")
    return DistilledSet.of(
        real,
        images,
        classes if probabilities is None else probabilities,
        backbone=config.backbone,
        teacher="" if probabilities is None else config.squeeze.loss,
        training=MethodTraining(
            labels=os.path.relpath(store, run.folder),
            teacher=os.path.relpath(run.stages / squeezed / FILE, run.folder),
            teacher_backbone=config.backbone,
            validate=vars(config.validate),
            compute=vars(config.compute),
        ),
        classes=classes,
    )
