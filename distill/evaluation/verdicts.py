"""Which results of a student are in doubt: `robust.evaluation.verdicts` over the table's columns.

Results that cannot be are refused.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from distill.data import ImageSet
from distill.evaluation.column_kinds import AttackColumn, Column, TransferColumn, WorstColumn
from robust import PGD, Threat, Transfer
from robust.evaluation.advice import MARGIN, remedy
from robust.evaluation.checks import AttackResult, check_report, suspect_results, verdict
from robust.evaluation.suspicion import EXAMINED, not_finite
from robust.evaluation.verdicts import doubts_about, examine
from robust.network.expectation import is_random

__all__ = ["doubts_of", "verdicts"]


def doubts_of(model: nn.Module, columns: Sequence[Column], test: ImageSet, generator: torch.Generator) -> Sequence[str]:
    """Return the doubts of a student's gradients at the largest threat, which need no result of an attack.

    Args:
        model: the student, pixels to logits; as it is, also where its answers are random.
        columns: the columns.
        test: the images.
        generator: CPU generator of the checks' randomness.
    """
    threats = [threat for _, threat in _with_ball(columns)]
    if not threats or not_finite(model, _examined(test)):
        return ()
    whole = cast(Tensor, test.images)  # ImageFiles give tensors when indexed, which is all that `examine` does
    return examine(model, whole, test.labels, max(threats, key=lambda threat: threat.eps), generator=generator)


def verdicts(
    bools: Mapping[str, Tensor], columns: Sequence[Column], model: nn.Module, test: ImageSet, of_model: Sequence[str]
) -> dict[str, str]:
    """Return by column "ok" or "suspicious: reasons", and by "clean"; columns that no check is about have no entry.

    A column is not in doubt for a reason that its attack does not depend on, or whose advice it follows
    (`robust.evaluation.advice.concerns`). `worst` is in doubt for every reason of its members, except for a weak
    cross-entropy if another member ascends the margin at the same threat.

    Args:
        bools: by column, which images are classified right (images,).
        columns: the columns.
        model: the student, pixels to logits; as it is, also where its answers are random.
        test: the images.
        of_model: `doubts_of` the student.

    Raises:
        robust.evaluation.checks.ImpossibleResult: results that contradict each other.
    """
    _refuse_impossible(bools, [column for column in columns if isinstance(column, (AttackColumn, WorstColumn))])
    images = _examined(test)
    undefined = not_finite(model, images)
    if undefined:
        return {name: verdict(undefined) for name in ("clean", *(column.name for column in columns))}
    with_ball = _with_ball(columns)
    if not with_ball:
        return {"clean": "ok"}
    single = [(column, threat) for column, threat in with_ball if isinstance(column, AttackColumn)]
    once = {(column.base, threat): (column, threat) for column, threat in single}
    results = [_judged(column, threat, bools[column.name]) for column, threat in once.values()]
    # by base: a curve with a fault is in doubt as a whole
    of_results = suspect_results(bools["clean"], results, random=is_random(model, images))
    reasons = {column.name: (*of_results[column.base], *_doubts(column, model, of_model)) for column, _ in single}
    for column, threat in with_ball:
        if isinstance(column, WorstColumn):
            reasons[column.name] = _of_worst(column, threat, [member for member, _ in single], reasons)
    return {"clean": "ok"} | {column.name: verdict(reasons[column.name]) for column, _ in with_ball}


def _with_ball(columns: Sequence[Column]) -> list[tuple[AttackColumn | WorstColumn, Threat]]:
    """Return the attacks that may change an image, with their threats."""
    attacked = (column for column in columns if isinstance(column, (AttackColumn, WorstColumn)))
    return [(column, column.threat) for column in attacked if column.threat is not None and column.threat.eps > 0]


def _examined(test: ImageSet) -> Tensor:
    """Return the images that `examine` takes; no other files are decoded."""
    return test.images[:: -(-len(test) // EXAMINED)]


def _doubts(column: AttackColumn, model: nn.Module, of_model: Sequence[str]) -> tuple[str, ...]:
    """Return which doubts of a model concern a column; a transfer never uses the model's gradient."""
    is_transfer = isinstance(column, TransferColumn)
    return doubts_about(Transfer(model, column.attack) if is_transfer else column.attack, of_model)


def _of_worst(
    worst: WorstColumn, threat: Threat, single: Sequence[AttackColumn], reasons: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """Return the reasons of the members: the attacks at this threat and smaller ones of its norm."""
    members = worst.members(single)
    found = dict.fromkeys(reason for column in members for reason in reasons[column.name])
    strong = [column for column in members if column.threat == threat and column.kind in ("white", "ensemble")]
    has_margin = any(all(remedy(reason) != MARGIN for reason in reasons[column.name]) for column in strong)
    return tuple(reason for reason in found if not (has_margin and remedy(reason) == MARGIN))


def _judged(column: AttackColumn, threat: Threat, bools: Tensor) -> AttackResult:
    attack, strength = column.attack, 0
    if isinstance(attack, PGD) and column.kind == "white":  # attacks of this kind are compared by their strength
        strength = attack.steps * attack.restarts
    return AttackResult(column.base, bools, threat, column.kind, "pgd" if strength else "", strength)


def _refuse_impossible(bools: Mapping[str, Tensor], attacked: Sequence[Column]) -> None:
    curves: dict[str, dict[float, Tensor]] = {}
    for column in attacked:
        if column.threat is not None:
            name = f"{column.base} ({column.threat.norm})"
            curves.setdefault(name, {}).setdefault(column.threat.eps, bools[column.name])
    check_report(
        bools["clean"],
        {column.name: bools[column.name] for column in attacked},
        curves={name: list(points.items()) for name, points in curves.items()},
    )
