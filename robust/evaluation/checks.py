"""Distrust of results: rows that cannot be (errors), and rows that look masked (reasons in words).

Models are looked at in `robust.suspicion`, whose functions are here too. Deviation from AutoAttack, which compares
accuracies: attacks are compared example by example with a sign test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Literal, get_args

import torch
from torch import Tensor

from robust.evaluation.sign_test import FEW, LEVEL, sign_test
from robust.evaluation.suspicion import suspect_model, unbounded
from robust.ranges import Whole, check_ranges
from robust.threat import Threat

__all__ = [
    "ImpossibleResult",
    "Judged",
    "check_adversarial",
    "check_report",
    "sign_test",
    "suspect_model",
    "suspect_results",
    "unbounded",
    "verdict",
]

Kind = Literal["white", "black", "noise", "single_step", "ensemble"]

TOLERANCE = 1e-5
"""how far outside its ball or [0, 1] rounding may put a pixel or an image"""
MANY = 20
"""examples: of so many some must fall when eps doubles"""
POINTS = 0.1
"""share of the images that several attacks together break more than the strongest of them: a sign of masking"""


class ImpossibleResult(ValueError):
    """A result that no model and no attack can have: the evaluation is wrong."""


def check_report(
    clean: Tensor,
    attacks: Mapping[str, Tensor],
    *,
    ensembles: Mapping[str, Sequence[str]] | None = None,
    curves: Mapping[str, Sequence[tuple[float, Tensor]]] | None = None,
) -> None:
    """Refuse results that contradict each other on any example.

    Args:
        clean: bools (N,), who is classified right.
        attacks: by name, bools (N,): who withstands.
        ensembles: by name, the names of the attacks an ensemble consists of, all in `attacks`.
        curves: by name, (eps, bools (N,)) of one attack in one norm, in any order. An adversarial image of a smaller
            ball is one of every larger ball: who runs an attack ball by ball counts only who withstood the smaller.

    Raises:
        ImpossibleResult: an example robust but misclassified clean, above a member of its ensemble, robust in a larger
            ball but not in a smaller, or misclassified at eps 0 only.
        ValueError: not bools of one length, an eps given twice, or an unknown member.

    >>> clean, pgd = torch.tensor([True, False]), torch.tensor([True, True])
    >>> check_report(clean, {"pgd": pgd})
    Traceback (most recent call last):
    robust.checks.ImpossibleResult: pgd: 1 of 2 examples withstand it but are misclassified clean, first index 1
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
    """Refuse adversarial images that the attacker may not choose, with a tolerance of 1e-5.

    Args:
        name: of the attack, for the error.
        images: (N, ...) pixels in [0, 1].
        adversarial: (N, ...), of these images.
        threat: the ball; None where only [0, 1] bounds the attack.

    Raises:
        ImpossibleResult: a pixel outside [0, 1] or not a number, or an image outside the ball.
        ValueError: another number or size of images.
    """
    if adversarial.shape != images.shape:
        raise ValueError(f"{name}: gives images {tuple(adversarial.shape)}; it took {tuple(images.shape)}")
    inside = (adversarial >= -TOLERANCE) & (adversarial <= 1 + TOLERANCE)
    _refuse(name, ~inside.flatten(1).all(1), "are outside [0, 1]")
    if threat is not None:
        distance = threat.distance(adversarial, images)
        what = f"are outside {_written(threat)}, up to {max(distance.tolist(), default=0.0):.6g} far"
        _refuse(name, ~(distance <= threat.eps + TOLERANCE), what)


def _refuse(name: str, wrong: Tensor, what: str) -> None:
    if wrong.any():
        first = int(wrong.nonzero()[0, 0])
        raise ImpossibleResult(f"{name}: {_share(wrong)} examples {what}, first index {first}")


def _check_bools(name: str, bools: Tensor, clean: Tensor) -> None:
    if bools.dtype != torch.bool or bools.ndim != 1 or len(bools) != len(clean):
        raise ValueError(f"{name}: {bools.dtype} {tuple(bools.shape)}; results are torch.bool ({len(clean)},)")


@dataclass(frozen=True, eq=False)
class Judged:
    """What one attack left standing, and what kind of attack it is.

    Raises:
        ValueError: an unknown kind.
    """

    name: str
    """of the attack; the same at every threat"""
    bools: Tensor
    """(N,), who withstands; the same examples for every attack"""
    threat: Threat
    """the ball"""
    kind: Kind
    """"white" many gradient steps, "single_step" one; "black" queries or transfer; "noise"; "ensemble" of attacks"""
    family: str = ""
    """attacks of one family and threat that differ in strength only; empty for an attack that has no variants"""
    strength: Whole = 0
    """within the family: steps times restarts, or queries"""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.kind not in get_args(Kind):
            raise ValueError(f"{self.name}: kind is {self.kind!r}; choose from {', '.join(get_args(Kind))}")


def suspect_results(clean: Tensor, results: Sequence[Judged], *, random: bool = False) -> dict[str, tuple[str, ...]]:
    """Return by name of the attack why its figures look too good; empty where nothing is seen.

    At one threat and by more than chance: a black box, a single step or a weaker variant breaks more than white-box
    attack, a single attack more than an ensemble; noise breaks as many. Over the threats of one norm: a larger ball
    breaks no more although a smaller breaks many, or leaves most where every image can be made grey (linf 0.5). Attacks
    of one threat break different images: together a tenth of all images more than the strongest one.

    Args:
        clean: bools (N,), who is classified right.
        results: one for each attack and threat.
        random: the model's answers are; then attacks break different images by chance, and nothing is said of that.

    Raises:
        ValueError: results that are not bools (N,), or two of the same name and threat.

    >>> clean, box = torch.ones(100, dtype=torch.bool), Threat("linf", 0.1)
    >>> pgd = Judged("pgd", torch.arange(100) < 80, box, "white")
    >>> suspect_results(clean, [pgd, Judged("square", torch.arange(100) < 60, box, "black")])
    {'pgd': ('black-box square beats it, 20 to 0',), 'square': ()}
    """
    for row in results:
        _check_bools(row.name, row.bools, clean)
        if [(r.name, r.threat) for r in results].count((row.name, row.threat)) > 1:
            raise ValueError(f"{row.name} at {_written(row.threat)} is given twice; give it once")
    reasons: dict[str, list[str]] = {row.name: [] for row in results}
    several = len({row.threat for row in results}) > 1
    for row, other in product(results, repeat=2):
        if row.threat == other.threat and (found := _beaten(clean, row, other)):
            reasons[row.name].append(found + f" at {_written(row.threat)}" * several)
    for threat in () if random else dict.fromkeys(row.threat for row in results):
        rows = [row for row in results if row.threat == threat and row.kind != "noise"]
        if found := _apart(rows):
            for row in rows:
                reasons[row.name].append(found + f" at {_written(threat)}" * several)
    for name, norm in dict.fromkeys((r.name, r.threat.norm) for r in results if r.kind in ("white", "ensemble")):
        rows = [row for row in results if (row.name, row.threat.norm) == (name, norm)]
        reasons[name] += _flat(clean, sorted(rows, key=lambda row: row.threat.eps))
    return {name: tuple(found) for name, found in reasons.items()}


def _beaten(clean: Tensor, row: Judged, other: Judged) -> str:
    """Return why another attack at the same threat discredits this one, or nothing."""
    if other.kind == "noise":
        by_noise, broken = (int((clean & ~r.bools).sum()) for r in (other, row))
        much = row.kind != "noise" and by_noise >= max(FEW, 0.9 * broken) and row.bools.any()
        return f"{other.name} breaks as many, {by_noise} to {broken}" if much else ""
    if row.kind == "white" and other.kind in ("black", "single_step"):
        who = f"{'black-box' if other.kind == 'black' else 'single-step'} {other.name}"
    elif row.family and (row.kind, row.family) == (other.kind, other.family) and row.strength > other.strength:
        who = f"weaker {other.name}"
    elif row.kind == "ensemble" and other.kind != "ensemble":
        who = f"single attack {other.name}"
    else:
        return ""
    wins, losses = _breaks(other, row), _breaks(row, other)
    return f"{who} beats it, {wins} to {losses}" if sign_test(wins, losses) < LEVEL else ""


def _apart(rows: Sequence[Judged]) -> str:
    """Return why attacks at one threat that break different images discredit each other, or nothing.

    Weak attacks may differ; so one of many steps must be among them.
    """
    if len(rows) < 2 or not any(row.kind in ("white", "ensemble") for row in rows):
        return ""
    stands = [int(row.bools.sum()) for row in rows]
    together, n = int(torch.stack([row.bools for row in rows]).all(0).sum()), len(rows[0].bools)
    more = min(stands) - together
    if more < max(FEW, POINTS * n):
        return ""
    return f"attacks break different images: {together} of {n} withstand all of them, {min(stands)} the strongest"


def _flat(clean: Tensor, rows: Sequence[Judged]) -> list[str]:
    """Return what is wrong with one attack's results, sorted by eps, in one norm."""
    reasons = []
    for small, large in pairwise(rows):
        if sign_test(_breaks(small, large), _breaks(large, small)) < LEVEL:
            reasons.append(f"breaks fewer at {_written(large.threat)} than at {_written(small.threat)}")
    first, last = rows[0], rows[-1]
    broken, stands = int((clean & ~first.bools).sum()), int((clean & last.bools).sum())
    at = _written(last.threat)
    more, much = _breaks(last, first) - _breaks(first, last), last.threat.eps >= 2 * first.threat.eps
    if much and more < FEW and min(broken, stands) >= MANY:
        reasons.append(f"breaks no more at {at} than at {_written(first.threat)}")
    if last.threat.norm == "linf" and last.threat.eps >= 0.5 and stands >= FEW and 2 * stands > clean.sum():
        reasons.append(f"{stands} of {int(clean.sum())} stand at {at}, where every image can be made grey")
    return reasons


def _breaks(row: Judged, other: Judged) -> int:
    """Return how many examples one attack breaks and the other does not."""
    return int((~row.bools & other.bools).sum())


def verdict(reasons: Sequence[str]) -> str:
    """Return a table's cell: "ok", or "suspicious:" and the reasons."""
    return f"suspicious: {'; '.join(reasons)}" if reasons else "ok"


def _share(who: Tensor) -> str:
    return f"{int(who.sum())} of {len(who)}"


def _written(threat: Threat) -> str:
    return f"{threat.norm} {threat.eps:.4g}"
