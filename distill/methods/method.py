"""The interface of a method: `Method`, a record whose fields are all that the rest of the program knows of a method.

A module exports METHODS, a tuple of `Method` records. Modules in `distill.methods`, `baselines` and `sre2l` are found
automatically; methods of other packages are named as `package.module:name` (see `distill.app.registry`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from distill.data import Facts, ImageSet
from distill.distilled import DistilledSet
from distill.experiment import Evaluation, Recipe, RecipeOf
from distill.runs.run import Run
from distill.training.protocol import ProtocolOf
from distill.training.students import Training
from distill.training.work import Work

__all__ = ["Check", "Distill", "Method", "StudentWorkOf", "WorkOf", "presets", "wrapped"]

Distill = Callable[[ImageSet, int, Any, Run], DistilledSet]
"""(training set on the compute device, images per class, config, run) -> the distilled set. The function resumes from
the run's checkpoint, draws random numbers only from `run.generator(...)`, and imports nothing from evaluation, reports,
published or app"""
WorkOf = Callable[[Any, int, int, int], list[Work]]
"""(config, images per class, number of classes, size of the training set) -> the steps of a distillation"""
StudentWorkOf = Callable[[Any, int, int], list[Work]]
"""(config, images per class, number of classes) -> the steps of training one student with the method's protocol"""
Check = Callable[[ImageSet, int, Any, int], None]
"""(training set, images per class, config, number of processes) -> None; raises InputError for unusable settings"""


SMOKE = Evaluation(1, "linf", test_images=100, student=Training(epochs=3))
"""evaluation of the "smoke" recipes"""


@dataclass(frozen=True)
class Method:
    """A method of distillation.

    Raises:
        ValueError: a field is malformed, or a required recipe is missing.
    """

    name: str
    """name on the command line, in folders and in tables: lower-case letters, digits and underscores; for a method of
    another package, `package.module:name`"""
    summary: str
    """one line without a full stop, for `list`, `--help` and the docs"""
    paper: str
    """authors, venue and identifier of the paper"""
    page: str
    """name of the method's page in docs/methods"""
    recipes: Mapping[str, RecipeOf]
    """name of a recipe -> (facts of the data set, images per class) -> the recipe. Every method has "paper" (the
    paper's settings), "quick" (minutes on two cores) and "smoke" (seconds; only tests that the method runs, the
    accuracies are meaningless)"""
    distill: Distill
    work: WorkOf
    protocol: ProtocolOf | None = None
    """the authors' protocol for training students, for `--protocol own`; None: the standard protocol"""
    student_work: StudentWorkOf | None = None
    """the steps of `protocol`, for the time estimate; None: about as many as for the standard protocol"""
    check: Check | None = None
    """rejects unusable settings before any work; None: the ranges of the config suffice"""
    incomplete: Callable[[Path], bool] | None = None
    """whether files beside a finished set are missing, so that `distill` must create them again"""
    processes: Literal["one", "divided", "averaged"] = "one"
    """what several processes do in `distill`. divided: each has units of the work, such as classes, and the set is the
    same to the bit for any number (`distill.runs.divided`, `distill.runs.tasks`); averaged: each has a part of a batch,
    so that the set depends on their number in its last bits, and only processes that the user requests take part; one:
    the main process distils with all cores, and the others only train and attack students"""
    why_one: str = ""
    """why processes do not divide the work of `distill`: a clause for a message"""
    more_than_class: bool = False
    """whether a set may have more images per class than the smallest class has real images"""
    whole_class: bool = False
    """whether the set is the whole training set, whatever the images per class"""
    in_benchmark: bool = True
    """whether `benchmark` without --methods includes this method"""
    strength: str = ""
    """flags that set how strongly the method trades clean for robust accuracy, with its values in braces, as a shell
    expands them: "--real-loss guard:weight={0.3,1,3,10},h=3". `frontier` runs the method at each. "": the method has no
    such flag, and `frontier` varies the length of the students' training"""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*|[\w.]+:\w+", self.name):
            raise ValueError(f"name is {self.name!r}; it takes lower-case letters, digits and underscores")
        if not self.summary or "\n" in self.summary or self.summary.endswith("."):
            raise ValueError(f"summary of {self.name} is {self.summary!r}; it is one line without a full stop")
        if missing := {"paper", "quick", "smoke"} - set(self.recipes):
            raise ValueError(f"{self.name} has no recipe {', '.join(sorted(missing))}")


def wrapped(base: Method, why_one: str, **fields: Any) -> Method:
    """Return a method that does something around another: with the standard protocol, and not in the benchmark.

    Args:
        base: the other method.
        why_one: why one process does what is around it, where that is all that keeps it from dividing the work.
        fields: of the method, name and recipes at least.
    """
    return replace(
        base,
        protocol=None,
        student_work=None,
        incomplete=None,
        processes="divided" if base.processes == "divided" else "one",
        why_one=base.why_one or why_one,
        in_benchmark=False,
        **fields,
    )


def presets(
    recipe: Callable[..., Recipe],
    *fixed: str,
    smoke: Callable[[Any], Any],
    names: tuple[str, ...] = ("paper", "quick"),
) -> dict[str, RecipeOf]:
    """Return the recipes of a method by name: `names`, and "smoke", which is derived from "quick".

    Args:
        recipe: (name of the recipe, *fixed, facts of the data set, images per class) -> the recipe.
        fixed: arguments between the recipe's name and the facts, such as the name of the method.
        smoke: turns the "quick" config into a config that takes seconds on 8 px images, such as
            `partial(replace, iterations=3)`.
        names: the recipes that `recipe` can make.
    """
    made: dict[str, RecipeOf] = {name: partial(recipe, name, *fixed) for name in names}

    def smoke_of(facts: Facts, ipc: int) -> Recipe:
        quick = made["quick"](facts, ipc)
        protocol = quick.evaluation.protocol
        return Recipe(smoke(quick.config), replace(SMOKE, protocol=protocol))

    return made | {"smoke": smoke_of}
