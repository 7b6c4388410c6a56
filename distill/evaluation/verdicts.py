"""Which numbers of a student to doubt; those that cannot be are refused: `robust.verdicts` over the table's columns."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from distill.data import ImageSet
from distill.evaluation.columns import Column
from distill.evaluation.judge import members_of
from robust import PGD, Threat, Transfer
from robust.evaluation.advice import MARGIN, remedy
from robust.evaluation.checks import Judged, check_report, suspect_results, verdict
from robust.evaluation.suspicion import EXAMINED, not_finite
from robust.evaluation.verdicts import doubts_of, examine
from robust.network.expectation import is_random

__all__ = ["verdicts"]

ATTACKED = ("white", "single_step", "black", "noise", "ensemble")


def verdicts(
    bools: Mapping[str, Tensor], asked: Sequence[Column], model: nn.Module, test: ImageSet, generator: torch.Generator
) -> dict[str, str]:
    """Return by column "ok" or "suspicious: reasons", and by "clean"; those without a figure to doubt are not in it.

    A column is not in doubt for what its attack does not use, or does as the reason advises (`robust.advice.concerns`).
    `worst` is in doubt for what any of its members is, except for a weak cross-entropy if another member ascends the
    margin at the same threat.

    Args:
        bools: by column, who is classified right (images,).
        asked: the columns.
        model: the student, pixels to logits; as it is, also where its answers are random.
        test: the images.
        generator: CPU generator of the checks' randomness.

    Raises:
        robust.checks.ImpossibleResult: results that contradict each other.
    """
    attacked = [column for column in asked if column.kind in ATTACKED]
    _refuse_impossible(bools, attacked)
    images = test.images[:: -(-len(test) // EXAMINED)]  # those that `examine` takes; of files no others are decoded
    undefined = not_finite(model, images)
    if undefined:
        return {name: verdict(undefined) for name in ("clean", *(column.name for column in asked))}
    with_ball = [(column, column.threat) for column in attacked if column.threat is not None and column.threat.eps > 0]
    if not with_ball:
        return {"clean": "ok"}
    largest = max((threat for _, threat in with_ball), key=lambda threat: threat.eps)
    of_model = examine(model, test.images, test.labels, largest, generator=generator)
    single = [(column, threat) for column, threat in with_ball if column.base != "worst"]
    once = {(column.base, threat): (column, threat) for column, threat in single}
    results = [_judged(column, threat, bools[column.name]) for column, threat in once.values()]
    random = is_random(model, images)
    # by base: a curve with a fault is in doubt as a whole
    of_results = suspect_results(bools["clean"], results, random=random)
    reasons = {column.name: (*of_results[column.base], *_doubts(column, model, of_model)) for column, _ in single}
    for column, threat in with_ball:
        if column.base == "worst":
            reasons[column.name] = _of_worst(column, threat, [member for member, _ in single], reasons)
    return {"clean": "ok"} | {column.name: verdict(reasons[column.name]) for column, _ in with_ball}


def _doubts(column: Column, model: nn.Module, of_model: Sequence[str]) -> tuple[str, ...]:
    is_transfer = column.base.startswith("transfer")  # its attack never sees the model's gradient
    return doubts_of(Transfer(model, column.attack) if is_transfer else column.attack, of_model)


def _of_worst(
    worst: Column, threat: Threat, single: Sequence[Column], reasons: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """Return the reasons of the members: the attacks at this threat and smaller ones of its norm."""
    members = members_of(worst, single)
    found = dict.fromkeys(reason for column in members for reason in reasons[column.name])
    strong = [column for column in members if column.threat == threat and column.kind in ("white", "ensemble")]
    heeded = any(all(remedy(reason) != MARGIN for reason in reasons[column.name]) for column in strong)
    return tuple(reason for reason in found if not (heeded and remedy(reason) == MARGIN))


def _judged(column: Column, threat: Threat, bools: Tensor) -> Judged:
    attack = column.attack
    same_kind = isinstance(attack, PGD) and column.kind == "white"
    strength = attack.steps * attack.restarts if same_kind else 0
    kind = column.kind if column.kind in ATTACKED else "white"
    return Judged(column.base, bools, threat, kind, "pgd" if same_kind else "", strength)


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
