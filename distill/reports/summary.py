"""Means over students, one per cell of a table, and the headings of the columns."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, stdev

from distill.errors import InputError
from distill.evaluation.rows import ColumnKey, LineKey, Row, ShareOfValues, threat_text

__all__ = ["Summary", "headings", "summary"]


@dataclass(frozen=True)
class Summary:
    """The students of one line of a table in one column. Accuracies are percent."""

    line: LineKey
    column: ColumnKey
    seed: int | None
    """None where students of several seeds and sets are joined"""
    set: str | None
    """hash of the distilled set's file; None as `seed`"""
    mean: float
    """accuracy"""
    std: float | None
    """sample standard deviation of the accuracy over students; None for one student"""
    n: int
    """students"""
    verdict: str
    """"ok", or all that is suspicious of any student"""
    advised: str
    """the attacks that verdicts advise; "" for none"""
    advised_mean: float | None
    """mean accuracy under the advised attack too, of the students that it was run on, and the others' own accuracy"""
    epoch_seconds: float
    """mean time of an epoch of the students' training"""
    version: str = ""
    """versions of the program that evaluated the students, joined; "" where no row has one"""
    images: int = 0
    """test images, the fewest of any student"""

    @property
    def ok(self) -> bool:
        """Whether no check doubts the accuracy."""
        return self.verdict == "ok"


def summary(rows: Iterable[Row], by_seed: bool = True) -> list[Summary]:
    """Return a summary per line and column, in order of first appearance.

    Args:
        rows: one per student and column.
        by_seed: one summary per seed and distilled set; else students of all of them together.

    Raises:
        InputError: a student is in one column twice.
    """
    groups: dict[tuple[LineKey, ColumnKey, int | None, str | None], list[Row]] = {}
    for row in rows:
        seed, distilled = (row.seed, row.set) if by_seed else (None, None)
        groups.setdefault((row.line, row.column, seed, distilled), []).append(row)
    return [_summary(*key, members) for key, members in groups.items()]


def _summary(line: LineKey, column: ColumnKey, seed: int | None, distilled: str | None, members: list[Row]) -> Summary:
    times = Counter(row.student_key for row in members)
    twice = next((student for student, count in times.items() if count > 1), None)
    if twice is not None:
        raise InputError(
            f"{line.method} on {line.dataset}: seed {twice.seed}, set {twice.set}, student {twice.student}, "
            f"column {column.attack} is there more than once; name folders that hold each run once"
        )
    values = [row.accuracy for row in members]
    doubts = dict.fromkeys(row.verdict for row in members if row.verdict != "ok")
    advised = dict.fromkeys(row.advised for row in members if row.advised)
    after = [row.accuracy if row.advised_accuracy is None else row.advised_accuracy for row in members]
    return Summary(
        line,
        column,
        seed,
        distilled,
        mean=fmean(values),
        std=stdev(values) if len(values) > 1 else None,
        n=len(values),
        verdict="; ".join(doubts) or "ok",
        advised=", ".join(advised),
        advised_mean=fmean(after) if advised else None,
        epoch_seconds=fmean(row.epoch_seconds for row in members),
        version=", ".join(dict.fromkeys(row.version for row in members if row.version)),
        images=min(row.images for row in members),
    )


def headings(columns: Iterable[ColumnKey]) -> dict[ColumnKey, str]:
    """Return the heading of each column: the attack and its threat, and its settings where nothing else differs.

    No two columns have equal headings.

    Args:
        columns: in any order; equal ones count once.

    >>> from robust import Threat
    >>> box, sphere = Threat("linf", 8 / 255), Threat("l2", 0.5)
    >>> keys = [ColumnKey("clean", None, ""), ColumnKey("linf", box, ""), ColumnKey("l2", sphere, "")]
    >>> list(headings([*keys, ColumnKey("pgd", sphere, ""), ColumnKey("pgd@8/255", box, "")]).values())
    ['clean', 'linf 8/255', 'l2 0.5', 'pgd l2:0.5', 'pgd@8/255']
    >>> list(headings([ColumnKey("worst@0.1", None, "of pgd"), ColumnKey("worst@0.1", None, "of fgsm")]).values())
    ['worst@0.1 of pgd', 'worst@0.1 of fgsm']
    """
    found = {column: _short(column) for column in columns}
    for longer in (_with_settings, _in_full):
        count = Counter(found.values())
        found = {column: longer(column) if count[text] > 1 else text for column, text in found.items()}
    return found


def _short(column: ColumnKey) -> str:
    """Return the attack with its threat; the norm is left out where the attack's name has it."""
    if "@" in column.attack or column.threat is None:
        return column.attack
    if isinstance(column.threat, ShareOfValues):
        return f"{column.attack} {column.threat.named}"
    written = column.threat.written
    return f"{column.attack} {written.removeprefix('l2:') if column.threat.norm in column.attack else written}"


def _with_settings(column: ColumnKey) -> str:
    return f"{_short(column)} {column.how}".strip()


def _in_full(column: ColumnKey) -> str:
    return " ".join(filter(None, (column.attack, threat_text(column.threat), column.how)))
