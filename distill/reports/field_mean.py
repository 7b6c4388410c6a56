"""The mean over DD-RobustBench's attacks and its drop rate: columns of every table that has these attacks.

The mean is over the five attacks FGSM, PGD, PGD on the margin, VMI-FGSM and Jitter at one threat (`ddrb`), as are the
published means that we compare with (C2R's, as far as its numbers show). AutoAttack, stronger than the five, has a
column of its own. Both numbers follow from the columns, so `results.jsonl` has neither.
"""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from distill.evaluation.ddrb import FIVE, ddrb
from distill.evaluation.rows import Row
from distill.reports.indices import drop_rate, index_row
from robust import Threat

__all__ = ["DROP_RATE", "LEGEND", "MEAN", "field_means"]

MEAN, DROP_RATE = "ddrb mean", "ddrb drop rate"
"""names of the columns, without their threat"""
LEGEND = (
    "ddrb mean: over FGSM, PGD, PGD on the margin, VMI-FGSM and Jitter. "
    "ddrb drop rate: 100 (clean - mean) / clean, which a low clean accuracy makes small."
)
"""what the columns are, in a line below a printed table"""


def field_means(rows: Sequence[Row]) -> list[Row]:
    """Return the mean and the drop rate of each student that has the five attacks at a threat, for each such threat.

    Args:
        rows: of results.jsonl.

    Returns:
        rows with the number as `accuracy`, "ddrb mean@THREAT" or "ddrb drop rate@THREAT" as `attack`, and as verdict
        "ok" or all that is suspicious of the five; no drop rate where the clean accuracy is 0 (it is 0 / 0).
    """
    students: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        students.setdefault((row.line, row.student_key, row.test), {})[row.attack] = row
    found: list[Row] = []
    for mine in students.values():
        clean, threats = mine.get("clean"), dict.fromkeys(row.threat for row in mine.values())
        for threat in threats:
            if clean is None or not isinstance(threat, Threat) or threat.norm != "linf":
                continue
            names = ddrb(threat)[:FIVE]
            if not all(name in mine for name in names):
                continue
            attacked = [mine[name] for name in names]
            mean = fmean(row.accuracy for row in attacked)
            numbers = {MEAN: mean}
            if 0 < clean.accuracy >= mean:
                numbers[DROP_RATE] = drop_rate(clean.accuracy, mean)
            like = replace(attacked[0], how="", seconds=sum(row.seconds for row in attacked))
            found += [
                index_row(like, f"{name}@{threat.written}", number, [clean, *attacked])
                for name, number in numbers.items()
            ]
    return found
