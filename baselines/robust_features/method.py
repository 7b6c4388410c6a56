"""A method on robust features: METHOD_robust_features distils, or selects from, the robust images of the training set.

The robust images (`baselines.robust_features.inversion`) take the place of the real ones in the method; the test set is
the real one. Any method has this form by its name. No paper distils robust features.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import torch
import tyro
from torch import nn

from baselines import coreset
from baselines.robust_features.inversion import RobustFeatures, inverted, robust_images
from baselines.robust_labels.labels import check_teachers, labels_recipe, squeezes
from distill.data import Facts, ImageSet
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.experiment import Recipe, RecipeOf
from distill.methods import dc_recipes
from distill.methods.flags import nested
from distill.methods.method import Method, wrapped
from distill.runs.run import Run
from distill.training.work import PROBE, Work
from robust import Normalize
from sre2l.precision import Compute
from sre2l.work import squeeze_work

__all__ = ["METHODS", "Config", "featured", "named"]

SUFFIX = "_robust_features"
PAPER = "no paper; features as in Ilyas et al., NeurIPS 2019, arXiv 1905.02175"


@dataclass(frozen=True)
class Config:
    """The settings of the method, and those of the robust images."""

    method: Annotated[Any, tyro.conf.arg(name="")]
    """settings of the method"""
    features: Annotated[RobustFeatures, tyro.conf.arg(name="")]
    """settings of the robust images"""

    @property
    def backbone(self) -> str:
        """Network of the method, and by default of the teacher and of students."""
        return self.method.backbone


def distill(base: Method, real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Make the robust images, or load them from their stage, and distil them.

    Args:
        base: the method.
        real: the training set, on the device to work on.
        ipc: images per class.
        config: the settings.
        run: supplies stages.

    Returns:
        the set of the method.

    Raises:
        InputError: as of the method and of `robust_images`.
    """
    return base.distill(robust_images(real, config.backbone, config.features, run), ipc, config.method, run)


def check(base: Method, real: ImageSet, ipc: int, config: Config, processes: int) -> None:
    """Refuse before any work what the method or the teacher would refuse; arguments as of `Method.check`.

    Raises:
        InputError: the settings are impossible, or fewer robust images are made than the method needs.
    """
    most = config.features.features_images
    if most is not None and most < ipc:
        raise InputError(f"--features-images is {most}, below ipc {ipc}; make at least as many of each class")
    if base.check is not None:
        base.check(real, ipc, config.method, processes)
        if most is not None:
            try:
                base.check(_fewer(real, most), ipc, config.method, processes)
            except InputError as error:
                raise InputError(f"--features-images is {most}: {error}") from None
    check_teachers(real, config.backbone, config.features.labels)


def _fewer(real: ImageSet, most: int) -> ImageSet:
    """Return a training set of at most `most` images of each class, without pixels."""
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(real.labels.bincount().clamp(max=most).tolist())])
    return replace(real, images=torch.zeros(()).expand(len(labels), *real.image_shape), labels=labels, source="none")


def work(base: Method, config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return the work of the teacher, of the robust images, and of the method; arguments as of `Method.work`."""
    teachers = [squeeze_work(each, Compute(), examples) for each in squeezes(config.features.labels) if each.epochs]
    most = config.features.features_images
    count = examples if most is None else min(examples, most * num_classes)
    probe = min(count, PROBE)

    def step(network: nn.Module, shape: tuple[int, ...]) -> None:
        same, x = Normalize((0.0,) * shape[0], (1.0,) * shape[0]), torch.rand(2, probe, *shape)
        inverted(network.eval(), x[0], x[1], same, 1, 0.1)

    steps = config.features.features_steps * count / probe
    return [*teachers, (steps, step), *base.work(config.method, ipc, num_classes, count)]


def featured(base: Method) -> Method:
    """Return the method that distils the robust images of a training set.

    Args:
        base: any method.

    >>> featured(coreset.METHODS[0]).name
    'random_robust_features'
    """
    return wrapped(
        base,
        "the robust images are made by one process",
        name=f"{base.name}{SUFFIX}",
        summary=f"{base.name} on the robust features of the real images",
        paper=PAPER,
        page="robust_features",
        recipes={name: partial(_recipe, name, recipe) for name, recipe in base.recipes.items()},
        distill=partial(distill, base),
        work=partial(work, base),
        check=partial(check, base),
        strength="--teacher pgd_at:steps=3@l2:{0.25,0.5,1}",
    )


def _recipe(name: str, recipe: RecipeOf, facts: Facts, ipc: int) -> Recipe:
    found = recipe(facts, ipc)
    teacher = labels_recipe(name, facts)
    fields: dict[str, Any] = {"teacher_epochs": teacher.teacher_epochs, "teacher_flip": teacher.teacher_flip}
    fields["teacher_batch_size"] = teacher.teacher_batch_size
    if name != "paper":
        needed = getattr(found.config, "factor", 1) ** 2 * ipc
        fields |= {"features_steps": 3 if name == "smoke" else 100}
        fields["features_images"] = max(8 if name == "smoke" else 200, needed)
    attacks = f"{found.evaluation.attacks},{'autoattack' if name == 'paper' else 'apgd_t:steps=20'}@linf"
    evaluation = found.evaluation if name == "smoke" else replace(found.evaluation, attacks=attacks)
    config = nested(Config(found.config, RobustFeatures(**fields)), "method")
    return Recipe(config, replace(evaluation, protocol="standard"))


def named(name: str, method_of: Callable[[str], Method | None]) -> Method | None:
    """Return METHOD_robust_features; None for other names.

    Args:
        name: of the method.
        method_of: name -> any method; None for an unknown name.
    """
    found = re.fullmatch(rf"(.+){SUFFIX}", name)
    base = method_of(found[1]) if found else None
    return base and featured(base)


METHODS = (featured(coreset.METHODS[0]), featured(dc_recipes.METHODS[0]))
"""the methods that lists and tests have"""
