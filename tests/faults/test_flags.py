"""The matrix of flags and bad values, made from the list of flags: nonsense is refused, before anything is written."""

import random
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from distill.app.benchmark import BenchmarkCommand
from distill.app.curvature import CurvatureCommand
from distill.app.distil import resolve_flags
from distill.app.evaluate import Judgement
from distill.app.registry import find_methods
from distill.app.start import RunOptions, check_before_running
from distill.data import FACTS
from distill.errors import LONGEST, InputError, one_line
from distill.experiment import Evaluation, Experiment
from distill.published.reading import Reading
from distill.training.students import Training
from tests.toy import toy

NUMBERS = ["nan", "inf", "-inf", "1e400", "-1e400", "1e308", "9" * 20, "-1", "9" * 5000, "x", "", "0x10", "1,5"]
NEVER = NUMBERS[:6] + NUMBERS[8:]
"""values that no number of ours may have; a few may be -1 or have twenty digits"""
TEXTS = ["", "x" * 5000, "a\nb", "\x1b[2J", "é" * 50, "../..", "%s{0}", ":", "@", ",", "-", "[" * 3000]
TEXTS += ["convnet:width=1e99", "convnet:width=99999999999999999999", "pgd:steps=nan", "l2:1e400", "linf:nan", "0,inf"]
IN_CI = 120
"""of the pairs of a flag and a value; all of them with -m slow"""


def listed(program: str, capsys: pytest.CaptureFixture[str], words: list[str]) -> list[tuple[str, str]]:
    """Return (flag, what its help says that it takes), of `METHOD DATASET --help`."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        resolve_flags(find_methods()[words[0]], words[1], ["--help-all"])
    text = capsys.readouterr().out
    found = re.findall(r"^[│ ] +(?:-\w, )?(--[\w.-]+)(?:, --[\w.-]+)? +([A-Z{][^ ]*)", text, re.M)
    assert len(found) > 20, program
    return found


def tried(method: str, flag: str, value: str | None = None) -> str | None:
    """Return the line with which a value is refused, None where it is taken."""
    try:
        experiment, _ = resolve_flags(find_methods()[method], "digits", [flag if value is None else f"{flag}={value}"])
        check_before_running(experiment.config.backbone, experiment.evaluation, toy())
    except InputError as error:
        line = one_line(error)
        assert line
        assert len(line) <= LONGEST
        return line
    return None


def matrix(method: str, capsys: pytest.CaptureFixture[str]) -> Iterator[tuple[str, str, bool]]:
    """Yield (flag, value, whether it must be refused)."""
    for flag, takes in listed(method, capsys, [method, "digits"]):
        if "INT" in takes or "FLOAT" in takes:
            yield from ((flag, value, value in NEVER) for value in NUMBERS)
        else:
            yield from ((flag, value, False) for value in TEXTS)


@pytest.mark.parametrize(
    "method", ["guard_dc", *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(find_methods()))]
)
def test_flags_refuse_nonsense(method: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = list(matrix(method, capsys))
    few = not request.node.get_closest_marker("slow")
    for flag, value, never in random.Random(0).sample(pairs, IN_CI) if few else pairs:
        line = tried(method, flag, value)
        assert line or not never, f"{flag} takes {value[:20]!r}"


# --- the same for each field of each config, without the command line


def configs() -> Iterator[Any]:
    """Yield every dataclass that flags fill, the configs of all recipes among them."""
    yield from (Training(), Evaluation(), RunOptions(), Reading(), CurvatureCommand((Path(),)), BenchmarkCommand())
    yield Judgement("", "digits", "convnet", Evaluation(), "quick")
    for name, module in find_methods().items():
        for recipe in module.recipes.values():
            for ipc in (1, 10):
                found = recipe(FACTS["cifar10"], ipc)
                yield found.evaluation
                yield Experiment(name, "cifar10", found.config, found.evaluation)
                yield from nested(found.config)


def nested(config: Any) -> Iterator[Any]:
    """Yield a dataclass and those in its fields."""
    yield config
    for field in fields(config):
        if is_dataclass(value := getattr(config, field.name)):
            yield from nested(value)


def test_every_number_of_every_config_is_checked() -> None:
    seen = set()
    for config in configs():
        hints = get_type_hints(type(config))
        for field in fields(config):
            key, kind = (type(config), field.name), str(hints[field.name])
            if key in seen or "tuple" in kind or not re.search(r"\b(int|float)\b", kind):
                continue
            seen.add(key)
            for bad in (float("nan"), float("inf"), -float("inf"), 1e308, 10**400, "x", True):
                with pytest.raises(ValueError, match=rf"{field.name} is .*; it must be"):
                    replace(config, **{field.name: bad})
    assert len(seen) > 120


def test_a_number_that_is_too_small_or_too_large_is_refused() -> None:
    for name, value in {"momentum": 1.0, "lr": 0.0, "weight_decay": -1.0, "epochs": 0}.items():
        with pytest.raises(ValueError, match=f"{name} is"):
            replace(Training(), **{name: value})


def test_a_refused_flag_names_the_flags_that_are_near(capsys: pytest.CaptureFixture[str]) -> None:
    assert tried("dc", "--lr") == (
        "Unrecognized options: --lr; did you mean --lr-img, --lr-net, --student.lr; see bash run.sh dc digits --help"
    )
