"""The images of a method with the labels of a robust teacher, as a method of its own.

`relabelled` makes it of any method. Three kinds of teachers have names: METHOD_robust_labels (adversarial training),
METHOD_guard_labels (GUARD's curvature-regularised loss) and METHOD_plain_labels (cross-entropy, the control that tells
the effect of soft labels from that of robust ones). `--teacher` selects any other loss, or a file.

The images are those of the method with the same seed, to the bit; they are a stage that all three kinds share.

Students have two protocols. standard: each image has one label. own: the teacher labels every view of an image that a
student sees (crops, mirror images, CutMix), as in RDED and SRe2L, whose stages `relabel` and `validate` these are.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import torch
import tyro

from baselines.robust_labels.labels import (
    MeanTeacher,
    RobustLabels,
    check_teachers,
    labels_of,
    labels_recipe,
    squeezes,
    teachers_of,
)
from distill.data import Facts, ImageSet
from distill.distilled import DistilledSet
from distill.experiment import Recipe
from distill.method_training import MethodTraining
from distill.methods.method import Method
from distill.models import build
from distill.runs.description import describe
from distill.runs.locks import locked
from distill.runs.ranks import barrier, is_main_process
from distill.runs.run import Run
from distill.training.work import Work
from robust import CrossEntropy, Normalize, RobustTeacher
from sre2l.pipeline import is_incomplete, protocol
from sre2l.precision import Compute
from sre2l.rded_recipes import VALIDATE, students
from sre2l.relabel import Relabel, relabel
from sre2l.relabel import check as check_relabel
from sre2l.validate import Validate
from sre2l.work import labels_work, squeeze_work, student_work

__all__ = ["TEACHERS", "Config", "relabelled", "with_labels"]

FILE = "distilled.safetensors"
TEACHERS: dict[str, tuple[str, str]] = {
    "robust": ("pgd_at:steps=3@4/255", "an adversarially trained teacher"),
    "guard": ("guard:weight=1,h=3", "a teacher trained by the curvature-regularised loss"),
    "plain": ("cross_entropy", "a plainly trained teacher, the control of robust labels"),
}
"""kind of labels -> loss of the teacher, and how the summary names it"""
STRENGTHS = {
    "robust": "--teacher pgd_at:steps=3@{1/255,2/255,4/255,8/255}",
    "guard": "--teacher guard:weight={0.3,1,3},h=3",
    "plain": "",
}
"""kind of labels -> flags that set how robust the teacher is (`Method.strength`)"""


@dataclass(frozen=True)
class Config:
    """The settings of the images, and those of their labels."""

    images: Annotated[Any, tyro.conf.arg(name="")]
    """settings of the method that makes the images"""
    labels: Annotated[RobustLabels, tyro.conf.arg(name="")]
    """teachers"""
    relabel: Relabel = field(default_factory=Relabel)
    """views of the images that the teachers label, for students of --protocol own"""
    validate: Validate = field(default_factory=Validate)
    """training of the students of --protocol own"""

    @property
    def compute(self) -> Compute:
        """How the arithmetic of the teachers and of these students runs."""
        return Compute()

    @property
    def backbone(self) -> str:
        """Network of the images, and by default of teachers and students."""
        return self.images.backbone


def distill(base: Method, real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Make the images of a method, or load them from their stage, and label them.

    Args:
        base: the method of the images.
        real: the training set, on the device to work on.
        ipc: images per class.
        config: the settings.
        run: supplies stages.

    Returns:
        the set with soft labels, on the device of `real`.

    Raises:
        InputError: as of the method, or a teacher cannot be trained or read.
    """
    made = _images(base, real, ipc, config.images, run).to(real.labels.device)
    return with_labels(made, real, config.labels, config.relabel, config.validate, run)


def _images(base: Method, real: ImageSet, ipc: int, config: Any, run: Run) -> DistilledSet:
    """Return the set of a method, which runs with other labels share."""
    settings = {"method": base.name, "data": real.identity(), "ipc": ipc, "config": describe(config)}
    stage = run.stage("images", settings)
    path = stage.folder / FILE
    with locked(stage.folder, wait=True):
        barrier()
        missing = not path.exists() or (base.incomplete is not None and base.incomplete(path))
        barrier()  # until all processes have looked
        if missing:
            made = base.distill(real, ipc, config, stage)
            if is_main_process():
                made.save(path)
            barrier()
            stage.finish()
    return DistilledSet.load(path)


def with_labels(
    distilled: DistilledSet, real: ImageSet, config: RobustLabels, views: Relabel, validate: Validate, run: Run
) -> DistilledSet:
    """Return a set with the labels of teachers instead of its own.

    Args:
        distilled: the set.
        real: its training set, on the device to work on.
        config: the teachers.
        views: of the images, which the teachers label for students of --protocol own.
        validate: how these students are trained.
        run: supplies stages, and the folder that the set will be in; every process of the run calls this.

    Returns:
        the set, whose own protocol is that of labelled views instead of that of its method.

    Raises:
        InputError: a teacher cannot be trained or read.
    """
    old = distilled.labels
    classes = old if old.ndim == 1 else old.argmax(1)
    teachers = teachers_of(real, distilled.backbone, config, run)
    labels = labels_of(teachers, real, distilled.images, classes, config)
    same = int((labels.argmax(1) == classes).sum())
    run.notify(f"the teacher gives {same} of {len(classes)} images the class that they were made for")
    network = teachers[0].network if len(teachers) == 1 else MeanTeacher(teachers)
    stages, normalize = "+".join(teacher.stage for teacher in teachers), Normalize(real.mean, real.std).to(run.device)
    images = distilled.images.to(run.device)
    store = relabel(RobustTeacher(network, CrossEntropy()), stages, images, normalize, views, Compute(), run)
    training = MethodTraining(
        labels=os.path.relpath(store, run.folder),
        validate=vars(validate),
        compute=vars(Compute()),
        factor=distilled.training.factor,
    )
    return replace(distilled, labels=labels.float(), teacher=config.written, training=training, training_tensors={})


def _check(base: Method, real: ImageSet, ipc: int, config: Config, processes: int) -> None:
    if base.check is not None:
        base.check(real, ipc, config.images, processes)
    check_teachers(real, config.backbone, config.labels)
    network = build(config.backbone, like=real, generator=torch.Generator())
    check_relabel(network, ipc * real.num_classes, real.image_shape, config.relabel)


def _work(base: Method, config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return the work of the images, of the teachers, and of the labels."""
    teachers = [squeeze_work(each, Compute(), examples) for each in squeezes(config.labels) if each.epochs]
    return [*base.work(config.images, ipc, num_classes, examples), *teachers, labels_work(config, ipc, num_classes)]


def relabelled(base: Method, kind: str) -> Method:
    """Return the method that gives the images of another one the labels of a teacher.

    Args:
        base: the method of the images.
        kind: a key of TEACHERS.

    >>> from baselines.coreset import METHODS
    >>> relabelled(METHODS[0], "robust").name
    'random_robust_labels'
    """
    teacher, described = TEACHERS[kind]
    recipes = {name: partial(_recipe, name, recipe, teacher) for name, recipe in base.recipes.items()}
    return replace(
        base,
        name=f"{base.name}_{kind}_labels",
        summary=f"images of {base.name} with labels of {described}",
        paper="no paper; labels as in RSLAD, Zi et al., ICCV 2021, arXiv 2108.07969",
        page="robust_labels",
        recipes=recipes,
        distill=partial(distill, base),
        work=partial(_work, base),
        protocol=protocol,
        student_work=student_work,
        check=partial(_check, base),
        incomplete=is_incomplete,
        processes="divided" if base.processes == "divided" else "one",
        why_one=base.why_one or "a teacher is trained by one process",
        in_benchmark=False,
        strength=STRENGTHS[kind],
    )


def _recipe(name: str, recipe: Callable[[Facts, int], Recipe], teacher: str, facts: Facts, ipc: int) -> Recipe:
    images = recipe(facts, ipc)
    labels = labels_recipe(name, facts, teacher)
    views = students(facts, ipc)
    views = replace(views, epochs=3, batch_size=min(4, views.batch_size)) if name == "smoke" else views
    evaluation = replace(images.evaluation, protocol="standard")
    return Recipe(Config(images.config, labels, views, VALIDATE), evaluation)
