"""Every number of every dataclass of robust, and what a text says of them: nonsense is refused where it is made."""

import importlib
import pkgutil
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import torch

import robust
from distill.evaluation.column_kinds import Certification
from robust import (
    APGD,
    CW,
    FAB,
    JSMA,
    PGD,
    TRADES,
    VMIFGSM,
    AdversarialTraining,
    CrossEntropy,
    CurvatureRegularizedLoss,
    DeepFool,
    Expected,
    GaussianNoise,
    GradientNorm,
    Jitter,
    Noise,
    RobustTeacher,
    Square,
    Threat,
    attack_named,
    certify,
    loss_named,
    threat_named,
)
from robust.evaluation.checks import AttackResult
from robust.ranges import Range
from robust.theory.bounds import BoundTerms

BALL, ROUND = Threat("linf", 0.1), Threat("l2", 0.5)
ONE = torch.zeros(1)
EXAMPLES = [
    BALL,
    ROUND,
    PGD(BALL),
    APGD(BALL),
    FAB(BALL),
    Square(BALL),
    CW(ROUND),
    DeepFool(ROUND),
    JSMA(),
    Noise(BALL),
    VMIFGSM(BALL),
    Jitter(BALL),
    CrossEntropy(),
    TRADES(BALL),
    AdversarialTraining(BALL),
    CurvatureRegularizedLoss(),
    GaussianNoise(),
    GradientNorm(),
    RobustTeacher(torch.nn.Identity()),
    BoundTerms(0.1, ONE, ONE, ONE, ONE, ONE, ONE),
    AttackResult("pgd", ONE.bool(), BALL, "white"),
    Certification(),
]
NAN, INF = float("nan"), float("inf")


def numbers_of(kind: type) -> dict[str, Any]:
    """Return the fields that hold numbers, with their types, those inside tuples too."""
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: hints[f.name] for f in fields(kind) if {int, float} & leaves(hints[f.name])}


def leaves(hint: Any) -> set[Any]:
    parts = [part for part in get_args(hint) if not isinstance(part, (Range, list))]
    return {hint} if not parts or get_origin(hint) is None else set().union(*map(leaves, parts))


def ranges_in(hint: Any) -> list[Range]:
    return [r for part in get_args(hint) for r in ([part] if isinstance(part, Range) else ranges_in(part))]


def test_every_dataclass_of_robust_with_numbers_is_in_the_list() -> None:
    found = set()
    for module in pkgutil.walk_packages(robust.__path__, "robust."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and is_dataclass(value) and value.__module__.startswith("robust."):
                found.add(value)
    assert {kind for kind in found if numbers_of(kind)} - {type(made) for made in EXAMPLES} == {Range}


@pytest.mark.parametrize("made", EXAMPLES, ids=lambda made: type(made).__name__)
def test_every_number_refuses_what_is_none_and_what_is_out_of_its_range(made: Any) -> None:
    for name, hint in numbers_of(type(made)).items():
        wrong = [NAN, INF, -INF, float("1e400"), 10**400] + [10**20] * (int in leaves(hint))
        for limits in ranges_in(hint):
            wrong += [bound for bound in (limits.above, limits.below) if bound is not None]
            wrong += [bound - 1 for bound in [limits.least] if bound is not None]
            wrong += [bound + 1 for bound in [limits.most] if bound is not None]
        for value in wrong:
            value = (value,) if get_origin(hint) is tuple else value
            with pytest.raises(ValueError, match=name) as caught:
                replace(made, **{name: value})
            assert "must be" in str(caught.value) or "pixels are in" in str(caught.value)
            assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "spec",
    [
        "pgd:steps=99999999999999999999",
        "pgd:steps=" + "9" * 5000,
        "pgd:steps=0",
        "pgd:restarts=0",
        "pgd:step_size=nan",
        "pgd:step_size=inf",
        "pgd:step_size=1e400",
        "pgd:step_size=1/0",
        "pgd:step_size=" + "9" * 5000 + "/1",
        "pgd:momentum=-1",
        "pgd:momentum=nan",
        "pgd:" + "x" * 5000 + "=1",
        "apgd_ce:eot=0",
        "square:queries=-1",
        "jsma:theta=nan",
        "jsma:theta=0",
        "jsma:gamma=2",
        "vmifgsm:neighbours=-1",
        "vmifgsm:radius=nan",
        "jitter:scale=0",
        "jitter:std=-1",
    ],
    ids=lambda spec: spec[:30],
)
def test_attacks_written_with_nonsense_are_refused_in_one_short_line(spec: str) -> None:
    with pytest.raises(ValueError, match=r"must be|it takes|has no field") as caught:
        attack_named(spec, BALL)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "spec",
    [
        "trades:beta=nan",
        "trades:beta=-1",
        "trades:steps=0",
        "guard:weight=inf",
        "guard:h=0",
        "guard:h=-1",
        "guard:h=1e400",
        "guard:fraction=0",
        "guard:h_warmup=nan",
        "noise:sigma=1e39",
        "gradient_norm:weight=nan",
        "pgd_at@8",
        "pgd_at@1e400",
        "pgd_at@l2:99999999999999999999",
    ],
)
def test_losses_written_with_nonsense_are_refused(spec: str) -> None:
    with pytest.raises(ValueError, match=r"must be|no field|write 8/255"):
        loss_named(spec)


@pytest.mark.parametrize("eps", [8, 1.001, 255])
def test_a_linf_ball_larger_than_all_pixels_is_refused_with_what_was_meant(eps: float) -> None:
    with pytest.raises(ValueError, match=rf"write {eps:g}/255$"):
        Threat("linf", eps)
    assert Threat("linf", 1).eps == 1


TEXTS = ["1e400", "9" * 20, "9" * 5000, "9" * 5000 + "/1", "1/" + "9" * 5000, "-1", "nan", "inf", "8", "1e999999999"]


@pytest.mark.parametrize("norm", ["", "linf:", "l2:", "l1:"])
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:12])
def test_threats_of_impossible_size_are_refused_in_one_short_line(norm: str, text: str) -> None:
    if (norm, text) == ("l2:", "8"):
        assert threat_named("l2:8").eps == 8
        return
    with pytest.raises(ValueError, match=r"^threat is ") as caught:
        threat_named(norm + text)
    assert len(str(caught.value)) < 300


def test_numbers_are_read_as_before() -> None:
    assert threat_named("8/255").eps == 8 / 255
    assert threat_named("0.03").eps == 0.03
    assert threat_named("l2:1e-1").eps == 0.1
    assert threat_named(" 1/3 ").eps == 1 / 3


def test_functions_check_what_their_dataclasses_check() -> None:
    x, model = torch.rand(2, 3, generator=torch.Generator()), torch.nn.Identity()
    for options in ({"sigma": NAN}, {"sigma": INF}, {"sigma": 0.5, "n": 10**20}, {"sigma": 0.5, "alpha": NAN}):
        with pytest.raises(ValueError, match="must be"):
            certify(model, x, **options)
    with pytest.raises(ValueError, match="passes is 0"):
        Expected(model, 0)
