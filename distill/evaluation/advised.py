"""Where a verdict doubts an accuracy and advises another attack, this attack is run too."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from distill.errors import InputError
from distill.evaluation.column_kinds import Column, MeasuredColumn
from distill.evaluation.columns import columns
from distill.experiment import Evaluation
from robust.evaluation.advice import advised

__all__ = ["advised_columns"]

CHEAPER = {"square": "square:queries=500", "autoattack:version=rand": "pgd_ce_margin:eot=20"}
"""cheaper forms of the attacks that a verdict advises"""


def advised_columns(
    verdicts: Mapping[str, str], table: Sequence[Column], evaluation: Evaluation, channels: int, size: int
) -> dict[str, MeasuredColumn]:
    """Return the columns of the attacks that verdicts advise, by the name of the column in doubt.

    Args:
        verdicts: by column.
        table: all columns.
        evaluation: the other settings of the attacks.
        channels: of the images.
        size: height and width in pixels.
    """
    found = {}
    for column in table:
        spec = advised(verdicts.get(column.name, "ok"))
        if spec is None or column.threat is None:
            continue
        spec = f"{CHEAPER.get(spec, spec)}@{column.threat.written}"
        try:
            (other,) = columns(replace(evaluation, attacks=spec, eps=""), channels, size)
        except InputError:  # Square does not take every size of image in l2
            continue
        if isinstance(other, MeasuredColumn):
            found[column.name] = other
    return found
