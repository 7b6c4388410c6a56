"""Which numbers of a student to doubt; those that cannot be are refused: `robust.checks` over the table's columns."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from distill.data import ImageSet
from distill.judging.columns import Column
from robust import PGD, Threat
from robust.checks import Judged, check_report, suspect_results, verdict
from robust.suspicion import suspect_model, unbounded

__all__ = ["verdicts"]

ATTACKED = ("white", "single_step", "black", "noise", "ensemble")
EXAMINED = 200
"""test images, at most, that `robust.checks.suspect_model` takes, evenly spread"""
UNBOUNDED = 100
"""test images on which an attack without bounds must succeed"""


def verdicts(
    bools: Mapping[str, Tensor], asked: Sequence[Column], model: nn.Module, test: ImageSet, generator: torch.Generator
) -> dict[str, str]:
    """Return by column "ok" or "suspicious: reasons"; columns that nobody attacked are not in it.

    Args:
        bools: by column, who is classified right (images,).
        asked: the columns.
        model: the student, pixels to logits.
        test: the images.
        generator: CPU generator of the checks' randomness.

    Raises:
        robust.checks.ImpossibleResult: results that contradict each other.
    """
    attacked = [column for column in asked if column.kind in ATTACKED]
    _refuse_impossible(bools, attacked)
    with_ball = [(column, column.threat) for column in attacked if column.threat is not None and column.threat.eps > 0]
    if not with_ball:
        return {}
    largest = max((threat for _, threat in with_ball), key=lambda threat: threat.eps)
    few = slice(0, UNBOUNDED)
    # Images in files are decoded for what is looked at: as many, and the same, as suspect_model takes of all.
    taken = slice(None, None, 1 if isinstance(test.images, Tensor) else -(-len(test) // EXAMINED))
    of_model = suspect_model(model, test.images[taken], test.labels[taken], threat=largest, generator=generator)
    of_model += unbounded(model, test.images[few], test.labels[few], generator=generator)
    once = {(column.base, threat): (column, threat) for column, threat in with_ball}
    results = [_judged(column, threat, bools[column.name]) for column, threat in once.values()]
    of_results = suspect_results(bools["clean"], results)  # by base: a curve with a fault is in doubt as a whole
    return {column.name: verdict((*of_results[column.base], *of_model)) for column, _ in with_ball}


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
