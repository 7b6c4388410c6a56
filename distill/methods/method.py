"""The contract of a method: one record, whose fields are all that the rest of the program knows of a method.

A module exports METHODS, a tuple of these. It is found where it lies (`distill.methods`, `baselines`, `sre2l`), or is
named from outside as `package.module:name` (see `distill.app.registry`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from distill.data import Facts, ImageSet
from distill.distilled import DistilledSet
from distill.experiment import Evaluation, Recipe, RecipeOf
from distill.runs.run import Run
from distill.training.protocol import ProtocolOf
from distill.training.students import Training
from distill.training.work import Work

__all__ = ["Check", "Distill", "Method", "StudentWorkOf", "WorkOf", "presets"]

Distill = Callable[[ImageSet, int, Any, Run], DistilledSet]
"""(training set on the device to work on, images per class, config, run) -> the distilled set. It continues from the
run's checkpoint, draws from `run.generator(...)` alone, and imports nothing of evaluation, reports, published or app"""
WorkOf = Callable[[Any, int, int, int], list[Work]]
"""(config, images per class, number of classes, size of the training set) -> the steps of a distillation"""
StudentWorkOf = Callable[[Any, int, int], list[Work]]
"""(config, images per class, number of classes) -> the steps of training one student by the method's own protocol"""
Check = Callable[[ImageSet, int, Any, int], None]
"""(training set, images per class, config, number of processes) -> nothing: raises InputError before any work"""


SMOKE = Evaluation(1, "linf", test_images=100, student=Training(epochs=3))
"""students and attack of the recipes "smoke\""""


@dataclass(frozen=True)
class Method:
    """A method of distillation.

    Raises:
        ValueError: a field cannot be what it is.
    """

    name: str
    """on the command line, in folders and in tables: lower-case letters, digits and underscores; a method of another
    package is called `package.module:name` there"""
    summary: str
    """one line without a full stop, for `list`, `--help`, the README and the docs"""
    paper: str
    """authors, venue and identifier of the paper"""
    page: str
    """name of its page in docs/methods"""
    recipes: Mapping[str, RecipeOf]
    """name of a preset -> (facts of the data set, images per class) -> the preset. Every method has "paper" (the
    paper's settings), "quick" (minutes on two cores) and "smoke" (seconds; shows that the method runs, its numbers mean
    nothing)"""
    distill: Distill
    work: WorkOf
    protocol: ProtocolOf | None = None
    """the authors' own way of training students, for `--protocol own`; None where it is the standard one"""
    student_work: StudentWorkOf | None = None
    """the steps of `protocol`, for the estimate; None where they are about those of the standard protocol"""
    check: Check | None = None
    """refuses what it can before any work; None where the config's ranges are enough"""
    incomplete: Callable[[Path], bool] | None = None
    """tells whether files beside a finished set are missing, so that `distill` has to make them again"""
    parallel: bool = False
    """whether `distill` shares its work out to several processes"""
    more_than_class: bool = False
    """whether a set may have more images per class than the smallest class has real ones"""
    whole_class: bool = False
    """whether the set is the whole training set, whatever the images per class"""
    in_benchmark: bool = True
    """whether `benchmark` without --methods has it"""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*|[\w.]+:\w+", self.name):
            raise ValueError(f"name is {self.name!r}; it takes lower-case letters, digits and underscores")
        if not self.summary or "\n" in self.summary or self.summary.endswith("."):
            raise ValueError(f"summary of {self.name} is {self.summary!r}; it is one line without a full stop")
        if missing := {"paper", "quick", "smoke"} - set(self.recipes):
            raise ValueError(f"{self.name} has no recipe {', '.join(sorted(missing))}")


def presets(
    recipe: Callable[..., Recipe],
    *fixed: str,
    smoke: Callable[[Any], Any],
    names: tuple[str, ...] = ("paper", "quick"),
) -> dict[str, RecipeOf]:
    """Return the recipes of a method by name: `names`, and "smoke", made of "quick".

    Args:
        recipe: (name of the recipe, *fixed, facts of the data set, images per class) -> the recipe.
        fixed: what stands between them, such as the name of the method.
        smoke: the config of "quick" -> one that ends in seconds on images of 8 px: `partial(replace, iterations=3)`.
        names: of the recipes that `recipe` makes.
    """
    made: dict[str, RecipeOf] = {name: partial(recipe, name, *fixed) for name in names}

    def smoke_of(facts: Facts, ipc: int) -> Recipe:
        quick = made["quick"](facts, ipc)
        protocol = quick.evaluation.protocol
        return Recipe(smoke(quick.config), replace(SMOKE, protocol=protocol))

    return made | {"smoke": smoke_of}
