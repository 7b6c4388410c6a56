"""A result is a typed row: one student under one attack, with the threat. `row_files` writes and reads rows.

`Row` has the fields of a line of results.jsonl in the order in which they are written.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

from robust import Threat
from robust.ranges import Range, check_ranges
from robust.spec import number_in

__all__ = [
    "ColumnKey",
    "LineKey",
    "Row",
    "RowThreat",
    "RunDescription",
    "ShareOfValues",
    "StudentDescription",
    "StudentKey",
    "parse_threat",
    "threat_text",
]


@dataclass(frozen=True)
class ShareOfValues:
    """What JSMA may change: this share of an image's values, by any amount.

    Raises:
        ValueError: the share is not in [0, 1].
    """

    share: Annotated[float, Range(least=0, most=1)]
    """of the values"""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def named(self) -> str:
        """The share as rows have it.

        >>> ShareOfValues(0.1).named
        'l0:0.1'
        """
        short = f"{self.share:g}"
        return f"l0:{short if float(short) == self.share else repr(self.share)}"


RowThreat = Threat | ShareOfValues | None
"""what an attack may change; None for clean accuracy, corruptions and numbers that join several attacks"""


def parse_threat(text: str) -> RowThreat:
    """Return the threat of a row from its text.

    Raises:
        ValueError: the text is no threat.

    >>> parse_threat("linf:8/255") == Threat("linf", 8 / 255), parse_threat("l0:0.1"), parse_threat("")
    (True, ShareOfValues(share=0.1), None)
    """
    if not text:
        return None
    norm, _, size = text.partition(":")
    number = number_in(size)
    if number is None:
        raise ValueError(f"threat is {text!r}; it is a norm and a size, such as linf:8/255")
    if norm == "l0":
        return ShareOfValues(number)
    if norm == "linf" or norm == "l2":
        return Threat(norm, number)
    raise ValueError(f"threat is {text!r}; norms are linf, l2 and l0")


def threat_text(threat: RowThreat) -> str:
    """Return the text of a threat, as rows have it; "" for None."""
    return "" if threat is None else threat.named


@dataclass(frozen=True)
class ColumnKey:
    """What tells two columns of a table apart: equal attacks with other settings, or at another threat, are two."""

    attack: str
    """the name"""
    threat: RowThreat
    how: str
    """the attack's settings"""


@dataclass(frozen=True)
class LineKey:
    """What tells two lines of a table apart; students of all seeds and sets are one line."""

    method: str
    dataset: str
    ipc: int
    backbone: str
    loss: str
    labels: str
    """the regime of labels, as `Row.regime`"""
    recipe: str
    config: str


@dataclass(frozen=True)
class StudentKey:
    """What tells the students of one line apart."""

    seed: int
    set: str
    student: int | None


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """What all rows of a run share."""

    method: str
    dataset: str
    """as tables name it: cifar10, cifar10-16px, folder-pets-1f3a9c"""
    ipc: int
    """images per class"""
    seed: int
    backbone: str
    """network of the students"""
    loss: str
    """of the students; "own" where the protocol is the method's own"""
    recipe: str
    config: str
    """hash of the data and of all settings but the seed and the attacks"""
    set: str = ""
    """hash of the distilled set's file; "" before the set is there"""

    def describes(self, row: "Row") -> bool:
        """Return whether a row has these values; a set that is not known yet is not compared."""
        names = [each.name for each in fields(RunDescription) if each.name != "set" or self.set]
        return all(getattr(self, name) == getattr(row, name) for name in names)


@dataclass(frozen=True, kw_only=True)
class StudentDescription(RunDescription):
    """What all rows of a student share."""

    test: str
    """hash of the test images"""
    chance: float | None = None
    """share of the largest class among the test images, percent; None in rows of earlier versions"""
    student: int | None = None
    """number of the student; None for a teacher"""
    protocol: Literal["standard", "own", ""] = ""
    """how the student was trained; "" in rows of earlier versions, where `loss` is "own" or not"""
    labels: Literal["hard", "soft", "teacher", ""] = ""
    """that the student was trained on. hard: a class for each image; soft: other probabilities, such as learned ones;
    teacher: what a network trained on the real data says of the images, or of their crops (`--protocol own` of sre2l).
    "" in rows of earlier versions"""
    teacher: str = ""
    """losses of the teachers, as `DistilledSet.teacher`, where `labels` is "teacher" and they are known; else """ ""
    version: str = ""
    """of the program that evaluated the student; "" in rows of versions that did not record it"""


@dataclass(frozen=True, kw_only=True)
class Row(StudentDescription):
    """One student under one attack, or without one. Accuracies are percent of the test images."""

    attack: str
    """name of the column: "clean", or the attack"""
    threat: RowThreat
    how: str
    """the attack's settings that are not its defaults"""
    accuracy: float
    low: float | None
    """lower end of the accuracy's 95 % interval (Wilson's, over images); None for corruptions"""
    high: float | None
    """upper end of the interval"""
    images: int
    """of the test set"""
    median_distance: float | None
    """of a minimum-norm attack, in its norm, over the images classified right; None for other attacks"""
    seconds: float
    """that the attack took"""
    epoch_seconds: float
    """that an epoch of the student's training took"""
    verdict: str
    """"ok", or why the accuracy is in doubt"""
    advised: str
    """name of the attack that the verdict advises; "" where it advises none"""
    advised_accuracy: float | None
    """under both attacks"""
    folder: Path | None = field(default=None, compare=False)
    """of the run that the row was read from; it is not written"""

    @property
    def column(self) -> ColumnKey:
        """The column of a table."""
        return ColumnKey(self.attack, self.threat, self.how)

    @property
    def line(self) -> LineKey:
        """The line of a table."""
        students = self.backbone, self.loss, self.regime
        return LineKey(self.method, self.dataset, self.ipc, *students, self.recipe, self.config)

    @property
    def regime(self) -> str:
        """The labels of the students as tables name them: hard, soft, teacher pgd_at@4/255; "" where unknown."""
        return f"{self.labels} {self.teacher}".rstrip()

    @property
    def student_key(self) -> StudentKey:
        """The student among those of the line."""
        return StudentKey(self.seed, self.set, self.student)

    @property
    def attack_kind(self) -> str:
        """The attack's name without fields and threat: "pgd" of "pgd:steps=50@8/255"."""
        return self.attack.partition("@")[0].partition(":")[0]
