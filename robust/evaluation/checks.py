"""Checks of results: rows that are impossible (errors), and rows that suggest masked gradients (reasons in words).

Checks of a model itself are in `robust.evaluation.suspicion`. Deviation from AutoAttack, which compares accuracies:
attacks are compared example by example with a sign test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Literal, get_args

import torch
from torch import Tensor

from robust.evaluation.phrases import ball, count_of
from robust.evaluation.sign_test import FEW, LEVEL, sign_test
from robust.ranges import Whole, check_ranges
from robust.threat import Threat

__all__ = [
    "AttackResult",
    "ImpossibleResult",
    "check_adversarial",
    "check_report",
    "suspect_results",
    "verdict",
]

Kind = Literal["white", "black", "noise", "single_step", "ensemble"]

TOLERANCE = 1e-5
"""distance by which rounding may move a pixel out of [0, 1], or an image out of its ball"""
MANY = 20
"""least number of broken and of withstanding examples from which a doubled eps must break further examples"""
POINTS = 0.1
"""share of the images that several attacks together break more than the strongest of them, a sign of masking"""


class ImpossibleResult(ValueError):
    """A result that is impossible for any model and attack, so that the evaluation has an error."""


def check_report(
    clean: Tensor,
    attacks: Mapping[str, Tensor],
    *,
    ensembles: Mapping[str, Sequence[str]] | None = None,
    curves: Mapping[str, Sequence[tuple[float, Tensor]]] | None = None,
) -> None:
    """Refuse results that contradict each other on any example.

    Args:
        clean: bools (N,), the examples that are classified correctly.
        attacks: by name, bools (N,): the examples that withstand the attack.
        ensembles: by name, the names of the attacks an ensemble consists of, all in `attacks`.
        curves: by name, (eps, bools (N,)) of one attack in one norm, in any order. An adversarial image of a smaller
            ball lies in every larger ball, so an example must count as broken at every larger eps.

    Raises:
        ImpossibleResult: an example is misclassified clean but robust; withstands an ensemble but not its member; is
            robust in a larger ball but not in a smaller; or is misclassified at eps 0 only.
        ValueError: results are not bools of one length, an eps occurs twice, or a member is unknown.

    >>> clean, pgd = torch.tensor([True, False]), torch.tensor([True, True])
    >>> check_report(clean, {"pgd": pgd})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    robust.evaluation.checks.ImpossibleResult: pgd: 1 of 2 examples withstand it but are misclassified clean, ...
    """
    rows = [(f"{name} at eps {eps:.4g}", bools) for name, curve in (curves or {}).items() for eps, bools in curve]
    for name, bools in (("clean", clean), *attacks.items(), *rows):
        _check_bools(name, bools, clean)
        _refuse(name, bools & ~clean, "withstand it but are misclassified clean")
    for name, members in (ensembles or {}).items():
        for member in (name, *members):
            if member not in attacks:
                raise ValueError(f"ensemble {name}: no results of {member!r}; choose from {', '.join(attacks)}")
            _refuse(name, attacks[name] & ~attacks[member], f"withstand it but not its member {member}")
    for name, curve in (curves or {}).items():
        points = sorted(curve, key=lambda point: point[0])
        for eps, bools in points:
            if eps <= 0:
                _refuse(f"{name} at eps {eps:.4g}", clean & ~bools, "are misclassified, but not clean")
        for (small, inner), (large, outer) in pairwise(points):
            if small == large:
                raise ValueError(f"{name}: eps {small:.4g} is given twice; give it once")
            _refuse(f"{name} at eps {large:.4g}", outer & ~inner, f"withstand it but not eps {small:.4g}")


def check_adversarial(name: str, images: Tensor, adversarial: Tensor, threat: Threat | None) -> None:
    """Refuse adversarial images that the threat does not allow, with a tolerance of 1e-5.

    Args:
        name: of the attack, for the error.
        images: (N, ...) pixels in [0, 1].
        adversarial: (N, ...), the adversarial images for them.
        threat: the ball; None where only [0, 1] bounds the attack.

    Raises:
        ImpossibleResult: a pixel outside [0, 1] or not a number, or an image outside the ball.
        ValueError: the number or size of the adversarial images differs.
    """
    if adversarial.shape != images.shape:
        raise ValueError(f"{name}: returned images {tuple(adversarial.shape)} for images {tuple(images.shape)}")
    inside = (adversarial >= -TOLERANCE) & (adversarial <= 1 + TOLERANCE)
    _refuse(name, ~inside.flatten(1).all(1), "are outside [0, 1]")
    if threat is not None:
        distance = threat.distance(adversarial, images)
        what = f"are outside {ball(threat)}, up to {max(distance.tolist(), default=0.0):.6g} far"
        _refuse(name, ~(distance <= threat.eps + TOLERANCE), what)


def _refuse(name: str, wrong: Tensor, what: str) -> None:
    if wrong.any():
        first = int(wrong.nonzero()[0, 0])
        raise ImpossibleResult(f"{name}: {count_of(wrong)} examples {what}, first index {first}")


def _check_bools(name: str, bools: Tensor, clean: Tensor) -> None:
    if bools.dtype != torch.bool or bools.ndim != 1 or len(bools) != len(clean):
        raise ValueError(f"{name}: {bools.dtype} {tuple(bools.shape)}; results are torch.bool ({len(clean)},)")


@dataclass(frozen=True, eq=False)
class AttackResult:
    """The examples that withstand one attack, and the kind of attack.

    Raises:
        ValueError: an unknown kind.
    """

    name: str
    """of the attack; the same at every threat"""
    bools: Tensor
    """(N,), whether each example withstands; the same examples for every attack"""
    threat: Threat
    """the ball"""
    kind: Kind
    """"white" with many gradient steps, "single_step"; "black" queries or transfer; "noise"; "ensemble" of attacks"""
    family: str = ""
    """name of the attacks that differ from this attack in strength only; empty for an attack without variants"""
    strength: Whole = 0
    """within the family: steps times restarts, or queries"""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.kind not in get_args(Kind):
            raise ValueError(f"{self.name}: kind is {self.kind!r}; choose from {', '.join(get_args(Kind))}")


def suspect_results(
    clean: Tensor, results: Sequence[AttackResult], *, random: bool = False
) -> dict[str, tuple[str, ...]]:
    """Return by name of the attack why its robust accuracy looks too high; empty without a reason.

    At one threat, by more than chance: a black box, a single step or a weaker variant breaks more images than a
    white-box attack; a single attack breaks more than an ensemble; noise breaks as many. Over the threats of one norm:
    a larger ball breaks no more although a smaller ball breaks many, or most images withstand where every image can be
    made grey (linf 0.5). Attacks of one threat break different images: together a tenth of all images more than the
    strongest attack.

    Args:
        clean: bools (N,), the examples that are classified correctly.
        results: one for each attack and threat.
        random: whether the model's answers are random. Attacks then break different images by chance, which is no
            reason.

    Raises:
        ValueError: results that are not bools (N,), or two results of the same name and threat.

    >>> clean, box = torch.ones(100, dtype=torch.bool), Threat("linf", 0.1)
    >>> pgd = AttackResult("pgd", torch.arange(100) < 80, box, "white")
    >>> suspect_results(clean, [pgd, AttackResult("square", torch.arange(100) < 60, box, "black")])
    {'pgd': ('black-box square beats it, 20 to 0',), 'square': ()}
    """
    for row in results:
        _check_bools(row.name, row.bools, clean)
        if [(r.name, r.threat) for r in results].count((row.name, row.threat)) > 1:
            raise ValueError(f"{row.name} at {ball(row.threat)} is given twice; give it once")
    reasons: dict[str, list[str]] = {row.name: [] for row in results}
    several = len({row.threat for row in results}) > 1
    for row, other in product(results, repeat=2):
        if row.threat == other.threat and (found := _beaten(clean, row, other)):
            reasons[row.name].append(found + f" at {ball(row.threat)}" * several)
    for threat in () if random else dict.fromkeys(row.threat for row in results):
        rows = [row for row in results if row.threat == threat and row.kind != "noise"]
        if found := _break_different_images(rows):
            for row in rows:
                reasons[row.name].append(found + f" at {ball(threat)}" * several)
    for name, norm in dict.fromkeys((r.name, r.threat.norm) for r in results if r.kind in ("white", "ensemble")):
        rows = [row for row in results if (row.name, row.threat.norm) == (name, norm)]
        reasons[name] += _does_not_grow(clean, sorted(rows, key=lambda row: row.threat.eps))
    return {name: tuple(found) for name, found in reasons.items()}


def _beaten(clean: Tensor, row: AttackResult, other: AttackResult) -> str:
    """Return why another attack at the same threat makes the result `row` doubtful, or an empty text."""
    if other.kind == "noise":
        by_noise, broken = (int((clean & ~r.bools).sum()) for r in (other, row))
        as_many = row.kind != "noise" and by_noise >= max(FEW, 0.9 * broken) and row.bools.any()
        return f"{other.name} breaks as many, {by_noise} to {broken}" if as_many else ""
    if row.kind == "white" and other.kind in ("black", "single_step"):
        rival = f"{'black-box' if other.kind == 'black' else 'single-step'} {other.name}"
    elif row.family and (row.kind, row.family) == (other.kind, other.family) and row.strength > other.strength:
        rival = f"weaker {other.name}"
    elif row.kind == "ensemble" and other.kind != "ensemble":
        rival = f"single attack {other.name}"
    else:
        return ""
    wins, losses = _breaks(other, row), _breaks(row, other)
    return f"{rival} beats it, {wins} to {losses}" if sign_test(wins, losses) < LEVEL else ""


def _break_different_images(rows: Sequence[AttackResult]) -> str:
    """Return why attacks at one threat are doubtful because they break different images, or an empty text.

    Weak attacks may differ, so at least one attack of many steps must be among them.
    """
    if len(rows) < 2 or not any(row.kind in ("white", "ensemble") for row in rows):
        return ""
    stands = [int(row.bools.sum()) for row in rows]
    together, n = int(torch.stack([row.bools for row in rows]).all(0).sum()), len(rows[0].bools)
    more = min(stands) - together
    if more < max(FEW, POINTS * n):
        return ""
    return f"attacks break different images: {together} of {n} withstand all of them, {min(stands)} the strongest"


def _does_not_grow(clean: Tensor, rows: Sequence[AttackResult]) -> list[str]:
    """Return why the results of one attack in one norm are doubtful; `rows` are sorted by eps."""
    reasons = []
    for small, large in pairwise(rows):
        if sign_test(_breaks(small, large), _breaks(large, small)) < LEVEL:
            reasons.append(f"breaks fewer at {ball(large.threat)} than at {ball(small.threat)}")
    first, last = rows[0], rows[-1]
    broken, stands = int((clean & ~first.bools).sum()), int((clean & last.bools).sum())
    at = ball(last.threat)
    more, doubled = _breaks(last, first) - _breaks(first, last), last.threat.eps >= 2 * first.threat.eps
    if doubled and more < FEW and min(broken, stands) >= MANY:
        reasons.append(f"breaks no more at {at} than at {ball(first.threat)}")
    if last.threat.norm == "linf" and last.threat.eps >= 0.5 and stands >= FEW and 2 * stands > clean.sum():
        reasons.append(f"{stands} of {int(clean.sum())} stand at {at}, where every image can be made grey")
    return reasons


def _breaks(row: AttackResult, other: AttackResult) -> int:
    """Return how many examples the attack of `row` breaks and the attack of `other` does not."""
    return int((~row.bools & other.bools).sum())


def verdict(reasons: Sequence[str]) -> str:
    """Return the text of a verdict: "ok", or "suspicious:" and the reasons."""
    return f"suspicious: {'; '.join(reasons)}" if reasons else "ok"
