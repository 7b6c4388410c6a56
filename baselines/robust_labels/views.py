"""The images of a method with the labels of a robust teacher for every view of an image that a student sees.

A view is a crop of an image, mirrored or not, mixed with another image by CutMix. Teachers label each view of each
epoch, and students train on these labels: the stages `relabel` and `validate` of SRe2L, with the settings of RDED (Sun
et al., CVPR 2024, arXiv 2312.03526). `labelled_views` makes METHOD_robust_views, METHOD_guard_views and
METHOD_plain_views of any method; the teachers are those of METHOD_robust_labels.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from baselines.robust_labels import method
from baselines.robust_labels.labels import MeanTeacher, RobustLabels, labels_recipe, teachers_of
from baselines.robust_labels.method import STRENGTHS, TEACHERS, images_of, relabelled, with_labels
from distill.data import Facts, ImageSet
from distill.distilled import DistilledSet
from distill.experiment import Recipe
from distill.methods.flags import nested
from distill.methods.method import Method
from distill.models import build
from distill.runs.run import Run
from distill.training.work import Work
from robust import CrossEntropy, Normalize, RobustTeacher
from sre2l.pipeline import is_incomplete, protocol
from sre2l.precision import Compute
from sre2l.rded_recipes import VALIDATE, students
from sre2l.recipes import EPOCHS
from sre2l.relabel import Relabel, relabel
from sre2l.relabel import check as check_relabel
from sre2l.squeeze import FILE
from sre2l.validate import Validate
from sre2l.work import labels_work, student_work

__all__ = ["Config", "labelled_views", "with_views"]

WHOLE = 20
"""epochs of views of a whole training set, whose files would be large"""


@dataclass(frozen=True)
class Config(method.Config):
    """The settings of the images, of their labels, and of the students.

    `temperature` and `hard` of the labels are of whole images, for students of --protocol standard.
    """

    relabel: Relabel = field(default_factory=Relabel)
    """views that the teachers label"""
    validate: Validate = field(default_factory=Validate)
    """training of students"""

    @property
    def compute(self) -> Compute:
        """How the arithmetic runs."""
        return Compute()


def distill(base: Method, real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Make the images of a method, or load them from their stage, and label their views.

    Args:
        base: the method of the images.
        real: the training set, on the device to work on.
        ipc: images per class.
        config: the settings.
        run: supplies stages.

    Returns:
        the set, on the device of `real`; its own labels are those of whole images.

    Raises:
        InputError: as of the method, or a teacher cannot be trained or read.
    """
    made = images_of(base, real, ipc, config.images, run).to(real.labels.device)
    return with_views(made, real, config.labels, config.relabel, config.validate, run)


def with_views(
    distilled: DistilledSet, real: ImageSet, config: RobustLabels, views: Relabel, validate: Validate, run: Run
) -> DistilledSet:
    """Return a set with the labels of teachers for its images, and for their views.

    Args:
        distilled: the set.
        real: its training set, on the device to work on.
        config: the teachers.
        views: of the images.
        validate: how students are trained on the views.
        run: supplies stages, and the folder that the set will be in; every process of the run calls this.

    Raises:
        InputError: a teacher cannot be trained or read, or there are fewer images than a batch has.
    """
    teachers = teachers_of(real, distilled.backbone, config, run)
    made = with_labels(distilled, real, teachers, config, run)
    network = teachers[0].network if len(teachers) == 1 else MeanTeacher(teachers)
    stages, normalize = "+".join(teacher.stage for teacher in teachers), Normalize(real.mean, real.std).to(run.device)
    images = distilled.images.to(run.device)
    store = relabel(RobustTeacher(network, CrossEntropy()), stages, images, normalize, views, Compute(), run)
    of_students = {"validate": vars(validate), "compute": vars(Compute())}
    training = replace(made.training, labels=os.path.relpath(store, run.folder), **of_students)
    same = (made.mean, made.std) == (real.mean, real.std)  # published sets have constants of their own
    if len(teachers) == 1 and same:  # who evaluates the students evaluates their teacher too
        path = os.path.relpath(run.stages / teachers[0].stage / FILE, run.folder)
        training = replace(training, teacher=path, teacher_backbone=teachers[0].backbone)
    return replace(made, training=training)


def check(base: Method, real: ImageSet, ipc: int, config: Config, processes: int) -> None:
    """Refuse before any work what a stage would refuse later; arguments as of `Method.check`.

    Raises:
        InputError: the settings are impossible.
    """
    method.check(base, real, ipc, config, processes)
    network = build(config.backbone, like=real, generator=torch.Generator())
    check_relabel(network, ipc * real.num_classes, real.image_shape, config.relabel)


def work(base: Method, config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return the work of the images, of the teachers, and of the labels; arguments as of `Method.work`."""
    return [*method.work(base, config, ipc, num_classes, examples), labels_work(config, ipc, num_classes)]


def labelled_views(base: Method, kind: str) -> Method:
    """Return the method that gives every view of the images of another method the labels of a teacher.

    Args:
        base: the method of the images.
        kind: a key of TEACHERS.

    >>> from baselines.coreset import METHODS
    >>> labelled_views(METHODS[0], "robust").name
    'random_robust_views'
    """
    teacher, described = TEACHERS[kind]
    recipe = partial(_recipe, whole_class=base.whole_class)
    recipes = {name: partial(recipe, name, of_images, teacher) for name, of_images in base.recipes.items()}
    return replace(
        relabelled(base, kind),
        name=f"{base.name}_{kind}_views",
        summary=f"the images of {base.name}; {described} labels every view of them",
        recipes=recipes,
        distill=partial(distill, base),
        work=partial(work, base),
        protocol=protocol,
        student_work=student_work,
        check=partial(check, base),
        incomplete=is_incomplete,
        strength=STRENGTHS[kind] or EPOCHS,
    )


def _recipe(
    name: str, of_images: Callable[[Facts, int], Recipe], teacher: str, facts: Facts, ipc: int, *, whole_class: bool
) -> Recipe:
    images, views = of_images(facts, ipc), students(facts, ipc)
    if name == "smoke":
        views = replace(views, epochs=3, batch_size=min(4, views.batch_size))
    elif whole_class:
        views = replace(views, epochs=WHOLE)
    evaluation = replace(images.evaluation, protocol="own")
    config = Config(images.config, labels_recipe(name, facts, teacher), views, VALIDATE)
    return Recipe(nested(config, "images"), evaluation)
