"""The images of a method with the labels of a robust teacher, as a method of its own.

`relabelled` makes it of any method. Three kinds of teachers have names: METHOD_robust_labels (adversarial training),
METHOD_guard_labels (GUARD's curvature-regularised loss) and METHOD_plain_labels (cross-entropy, the control that tells
the effect of soft labels from that of robust ones). `--teacher` selects any other loss, or a file.

The images are those of the method with the same seed, to the bit; they are a stage that all kinds share. Each image has
one label; `baselines.robust_labels.views` has a label for each view of an image.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from baselines.robust_labels.labels import (
    RobustLabels,
    Teacher,
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
from distill.methods.flags import nested
from distill.methods.method import Method, wrapped
from distill.runs.description import describe
from distill.runs.locks import locked
from distill.runs.ranks import barrier, is_main_process
from distill.runs.run import Run
from distill.training.work import Work
from sre2l.precision import Compute
from sre2l.work import squeeze_work

__all__ = ["PAPER", "STRENGTHS", "TEACHERS", "Config", "check", "images_of", "relabelled", "with_labels", "work"]

FILE = "distilled.safetensors"
PAPER = "no paper; labels as in RSLAD, Zi et al., ICCV 2021, arXiv 2108.07969"
TEACHERS: dict[str, tuple[str, str]] = {
    "robust": ("pgd_at:steps=3@4/255", "an adversarially trained teacher"),
    "guard": ("guard:weight=1,h=3", "a teacher trained by the curvature-regularised loss"),
    "plain": ("cross_entropy", "a plainly trained teacher (the control)"),
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
    made = images_of(base, real, ipc, config.images, run).to(real.labels.device)
    return with_labels(made, real, teachers_of(real, made.backbone, config.labels, run), config.labels, run)


def images_of(base: Method, real: ImageSet, ipc: int, config: Any, run: Run) -> DistilledSet:
    """Return the set of a method, which runs with other labels share; arguments as of `distill`.

    The set of a finished run of the method alone, beside this run, is taken if all settings are the same.
    """
    settings = {"method": base.name, "data": real.identity(), "ipc": ipc, "config": describe(config)}
    stage = run.stage("images", settings)
    path = stage.folder / FILE
    with locked(stage.folder, wait=True):
        barrier()
        missing = not path.exists() or (base.incomplete is not None and base.incomplete(path))
        barrier()  # until all processes have looked
        if missing:
            finished = None if base.incomplete is not None else _finished(base, config, run)
            made = finished or base.distill(real, ipc, config, stage)
            if is_main_process():
                made.save(path)
            barrier()
            stage.finish()
    return DistilledSet.load(path)


def _finished(base: Method, config: Any, run: Run) -> DistilledSet | None:
    """Return the set that a run of the method alone made, in its folder among all runs; None without such a run.

    Args:
        base: the method.
        config: its settings.
        run: of the method around it, with the same data, seed and images per class.
    """
    alone = base.name.replace(":", ".")
    path = Path(os.path.normpath(run.folder.joinpath(*[".."] * 4, alone, *run.folder.parts[-3:], FILE)))
    found = DistilledSet.load(path) if path.exists() else None
    if found is None or found.run != run.fingerprint(method=base.name, config=describe(config), evaluation=None):
        return None
    run.notify(f"the images are those of {path}")
    return found


def with_labels(
    distilled: DistilledSet, real: ImageSet, teachers: Sequence[Teacher], config: RobustLabels, run: Run
) -> DistilledSet:
    """Return a set with the labels of teachers instead of its own, and print how many images they recognise.

    Args:
        distilled: the set.
        real: its training set, on the device to work on.
        teachers: from `teachers_of`.
        config: temperature and weight of the classes.
        run: prints messages.

    Returns:
        the set, without what the own protocol of its method needs, since that protocol belongs to the old labels.
    """
    classes = distilled.image_classes
    labels = labels_of(teachers, real, distilled.images, classes, config)
    same = int((labels.argmax(1) == classes).sum())
    run.notify(f"the teacher gives {same} of {len(classes)} images the class that they were made for")
    training = MethodTraining(factor=distilled.training.factor)
    new = {"labels": labels.float(), "made_for": tuple(classes.tolist()), "teacher": config.written}
    return replace(distilled, **new, training=training, training_tensors={})


def check(base: Method, real: ImageSet, ipc: int, config: Config, processes: int) -> None:
    """Refuse before any work what the method of the images or a teacher would refuse; arguments as of `Method.check`.

    Raises:
        InputError: the settings are impossible.
    """
    if base.check is not None:
        base.check(real, ipc, config.images, processes)
    check_teachers(real, config.backbone, config.labels)


def work(base: Method, config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return the work of the images and of the teachers; arguments as of `Method.work`."""
    teachers = [squeeze_work(each, Compute(), examples) for each in squeezes(config.labels) if each.epochs]
    return [*base.work(config.images, ipc, num_classes, examples), *teachers]


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
    return wrapped(
        base,
        "a teacher is trained by one process",
        name=f"{base.name}_{kind}_labels",
        summary=f"the images of {base.name} with labels of {described}",
        paper=PAPER,
        page="robust_labels",
        recipes=recipes,
        distill=partial(distill, base),
        work=partial(work, base),
        check=partial(check, base),
        strength=STRENGTHS[kind],
    )


def _recipe(name: str, recipe: Callable[[Facts, int], Recipe], teacher: str, facts: Facts, ipc: int) -> Recipe:
    images = recipe(facts, ipc)
    evaluation = replace(images.evaluation, protocol="standard")
    return Recipe(nested(Config(images.config, labels_recipe(name, facts, teacher)), "images"), evaluation)
