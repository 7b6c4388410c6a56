"""Objects come back from the JSON that describes them; what does not fit is refused with the path of the field."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from distill.app.registry import find_methods
from distill.app.rerun import loss_classes
from distill.data import DATASETS, facts_named
from distill.experiment import Experiment
from distill.runs.from_json import Known, MismatchError, from_json, types_of
from distill.runs.run import describe
from robust import LOSSES, CrossEntropy, CurvatureRegularizedLoss, Loss, loss_named
from robust.ranges import Count, check_ranges

METHODS = find_methods()


@dataclass(frozen=True)
class Inner:
    steps: Count = 3
    where: Path | None = None

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    loss: CrossEntropy | CurvatureRegularizedLoss = field(default_factory=CrossEntropy)
    pair: tuple[int, float] = (1, 2.0)
    many: tuple[Inner, ...] = ()
    names: list[str] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    init: Literal["noise", "real", 3] = "noise"
    rate: Annotated[float, "a unit"] | None = None
    number: int | float = 1
    flag: bool = False
    anything: Any = None


def back(value: Outer) -> Outer:
    return from_json(Outer, json.loads(json.dumps(describe(value))))


FULL = Outer(
    Inner(5, Path("a/b")),
    CurvatureRegularizedLoss(weight=2.0, h_warmup=(0.1, 0.2)),
    (4, 0.5),
    (Inner(1), Inner(2)),
    ["x", ""],
    {"a": 1.5},
    3,
    1e-3,
    2.5,
    True,
    {"b": [1]},
)


@pytest.mark.parametrize("value", [Outer(), FULL], ids=["defaults", "full"])
def test_an_object_comes_back(value: Outer) -> None:
    assert back(value) == value
    assert describe(back(value)) == describe(value)


@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_of_every_method_comes_back(method: str) -> None:
    for name, recipe_of in METHODS[method].recipes.items():
        for dataset in DATASETS:
            recipe = recipe_of(facts_named(dataset), 10)
            experiment = Experiment(method, dataset, recipe.config, recipe.evaluation, name, 10, image_size=32)
            content = json.loads(json.dumps(describe(experiment)))
            content["evaluation"] |= recipe.evaluation.columns
            known = Known(types_of(recipe.config, "config"), loss_classes())
            assert from_json(Experiment, content, known=known) == experiment


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("inner.steps", 1.5, "inner.steps is 1.5; it must be int"),
        ("inner.steps", True, "inner.steps is True; it must be int"),
        ("inner.steps", 0, "inner: steps is 0; it must be >= 1"),
        ("inner.stepz", 1, "inner.stepz is unknown"),
        ("inner.where", 3, "inner.where is 3; it must be Path or None"),
        ("inner", 3, "inner is 3; it must be a Inner"),
        ("inner", {"class": "Other"}, "inner is {'class': 'Other'}; it must be a Inner"),
        ("inner", {"class": "Inner", "steps": 1}, "inner.where is missing"),
        ("loss", {"class": "Another"}, "loss is {'class': 'Another'}; it must be CrossEntropy or Curvature"),
        ("loss", {"class": "CurvatureRegularizedLoss", "weight": "1"}, "loss.weight is '1'; it must be float"),
        ("loss", {"class": "CurvatureRegularizedLoss"}, "loss.weight is missing"),
        ("pair", [1], "pair is [1]; it must be a list of 2"),
        ("pair", [1, "a"], "pair[1] is 'a'; it must be float"),
        ("many", [3], "many[0] is 3; it must be a Inner"),
        ("names", "x", "names is 'x'; it must be list"),
        ("rates", {"a": None}, "rates.a is None; it must be float"),
        ("init", "other", "init is 'other'; it must be 'noise' or 'real' or 3"),
        ("init", True, "init is True; it must be 'noise' or 'real' or 3"),
        ("rate", "x" * 1000, "it must be float or None"),
        ("flag", 1, "flag is 1; it must be bool"),
        ("flag", "a\nb", r"flag is 'a\nb'; it must be bool"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_path(path: str, value: object, line: str) -> None:
    content = describe(FULL)
    *parents, last = path.split(".")
    place = content
    for parent in parents:
        place = place[parent]
    place[last] = value
    with pytest.raises(MismatchError) as caught:
        from_json(Outer, content)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@dataclass(frozen=True)
class WithLoss:
    loss: Loss


@pytest.mark.parametrize("name", LOSSES)
def test_every_named_loss_comes_back(name: str) -> None:
    value = WithLoss(loss_named(f"{name}@2/255" if "at" in name or name == "trades" else name))
    content = json.loads(json.dumps(describe(value)))
    assert from_json(WithLoss, content, known=Known(classes=loss_classes())) == value


def test_a_loss_of_another_package_is_found_by_its_place() -> None:
    kind = CurvatureRegularizedLoss
    content = describe(WithLoss(kind(weight=2.0)))
    content["loss"]["class"] = f"{kind.__module__}:{kind.__qualname__}"
    assert from_json(WithLoss, content) == WithLoss(kind(weight=2.0))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Unknown", "it must be a Loss"),
        ("no.such.module:Loss", "loss.class: class 'no.such.module:Loss' cannot be imported"),
        ("json.decoder:JSONDecoder", "it must be a Loss"),
        (None, "it must be a Loss"),
    ],
)
def test_an_unknown_loss_is_refused(name: object, line: str) -> None:
    with pytest.raises(MismatchError, match=re.escape(line)):
        from_json(WithLoss, {"class": "WithLoss", "loss": {"class": name}}, known=Known(classes=loss_classes()))


def test_whole_numbers_stay_whole() -> None:
    assert type(back(Outer(number=1)).number) is int
    assert type(back(Outer(number=1.0)).number) is float
    assert type(from_json(float, 1)) is float
