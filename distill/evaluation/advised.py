"""Where a verdict doubts an accuracy and advises another attack, this attack is run too."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from distill.errors import InputError
from distill.evaluation.column_kinds import Student
from distill.evaluation.columns import columns
from distill.experiment import Evaluation
from robust.evaluation.advice import advised

__all__ = ["run_advised_attacks"]

CHEAPER = {"square": "square:queries=500", "autoattack:version=rand": "pgd_ce_margin:eot=20"}
"""cheaper forms of the attacks that a verdict advises"""


def run_advised_attacks(
    verdicts: Mapping[str, str], evaluation: Evaluation, student: Student
) -> dict[str, tuple[str, Tensor]]:
    """Run the attacks that verdicts advise.

    Args:
        verdicts: by column.
        evaluation: the other settings of the attacks.
        student: the network, with all columns evaluated.

    Returns:
        by column in doubt the name of the advised attack, and which images withstand both attacks, bools (images,).
    """
    found = {}
    for column in student.columns:
        spec = advised(verdicts.get(column.name, "ok"))
        if spec is None or column.threat is None:
            continue
        spec = f"{CHEAPER.get(spec, spec)}@{column.threat.written}"
        try:
            (other,) = columns(replace(evaluation, attacks=spec, eps=""), *student.test.image_shape[:2])
        except InputError:  # Square does not take every size of image in l2
            continue
        withstanding = other.evaluate(student)
        found[column.name] = other.name, student.results.bools[column.name] & withstanding
    return found
