"""The kinds of columns: one class for each way of evaluating a student, with an `evaluate` of its own.

    AttackColumn        an attack within a threat: white-box, black-box, noise, ensembles
    TransferColumn      an attack made on another network
    MinimumNormColumn   an attack that measures how far the nearest adversarial image is, cut at the threat
    CertifiedColumn     randomised smoothing
    CorruptionsColumn   fifteen kinds of damage
    WorstColumn         the images right under every attack within a threat: it follows from the other columns

All but the last are evaluated part by part of the test images.

An image that is fooled within a ball is fooled within every larger ball of that norm. So only images that are right
so far are attacked, and `enforce_nesting` carries failures over to larger balls that were evaluated before.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor, nn

from distill.evaluation.rows import RowThreat, ShareOfValues
from distill.evaluation.student_results import PartResults, StudentResults
from distill.runs.run import Run
from robust import JSMA, Threat, Transfer, certified, certify, correct, least_distances, withstands
from robust.evaluation.accuracy import radius
from robust.evaluation.corruptions import COMMON, SEVERITIES, corrupt
from robust.ranges import Count, Inside01, Positive, check_ranges
from robust.spec import split_spec

__all__ = [
    "AttackColumn",
    "AttackKind",
    "Certification",
    "CertifiedColumn",
    "Column",
    "CorruptionsColumn",
    "MeasuredColumn",
    "MinimumNormColumn",
    "Student",
    "Surrogate",
    "TransferColumn",
    "WorstColumn",
    "contains",
    "enforce_nesting",
    "evaluate_clean",
    "size_of_ball",
]

Attack = Callable[..., Tensor]
"""a dataclass of `robust.attacks`: (model, images, targets, *, generator) -> images"""
AttackKind = Literal["white", "single_step", "black", "noise", "ensemble"]
"""what an attack can show, for `robust.evaluation.checks`"""
Surrogate = Literal["transfer", "transfer_student"]
"""networks that transfer attacks are made on: see `distill.evaluation.trained`"""
Kind = AttackKind | Literal["corruptions", "certified"]
"""what a column can show"""


@dataclass(frozen=True)
class Certification:
    """How `certified` smooths: see `robust.certify`."""

    sigma: Positive = 0.25
    """of the noise, in pixels of [0, 1]; that of the students' training (--student.loss noise:sigma=...)"""
    n0: Count = 100
    """draws that select the class"""
    n: Count = 1000
    """draws that bound its probability"""
    alpha: Inside01 = 0.001
    """probability that a certificate is wrong"""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def largest(self) -> float:
        """The radius where all draws agree: none is larger."""
        return self.sigma * NormalDist().inv_cdf(max(0.5, self.alpha ** (1 / self.n)))


@dataclass(frozen=True)
class Student:
    """One trained network, a part of the test images, and what its columns are evaluated with."""

    model: nn.Module
    """pixels in [0, 1] to logits"""
    images: Tensor
    """the test images of the part (N, C, H, W), on the device to work on"""
    labels: Tensor
    """their classes (N,)"""
    results: PartResults
    """of this network on these images"""
    run: Run
    """its random generators"""
    columns: "Sequence[Column]" = ()
    """of the table; results of smaller balls are used"""
    surrogates: Mapping[str, nn.Module] = field(default_factory=dict)
    """networks of transfer attacks, by "transfer" and "transfer_student" """


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column beside `clean`."""

    name: str
    """as tables show it: the attack with its fields, @ and the threat; the paper's three have no @"""
    base: str
    """the name without its threat: columns of one base are one attack at several strengths"""
    kind: Kind
    """what the column can show"""
    threat: Threat | None = None
    """the ball; None for corruptions, and for attacks that count something else"""
    how: str = ""
    """the attack's settings, as far as they are not its defaults: two columns of one name and another `how` differ"""

    @property
    def limit(self) -> RowThreat:
        """What the attack may change, as rows have it; JSMA's is a share of the values."""
        return self.threat


@dataclass(frozen=True, kw_only=True)
class MeasuredColumn(Column, ABC):
    """A column for which each part of the test images is given to the student."""

    @abstractmethod
    def evaluate(self, student: Student) -> Tensor:
        """Return which images of a part are classified right in spite of the attack or damage; results are saved.

        Args:
            student: the network and the images; its results so far are used and added to.

        Returns:
            bools (N,), for corruptions (kinds x severities, N).
        """

    def generator(self, student: Student) -> torch.Generator:
        """Return the generator of a part of the test images; its address has no text that a user writes."""
        attack = split_spec(self.base)[0]  # its fields draw nothing: pgd and pgd:steps=10 are one attack
        results = student.results
        return student.run.generator("attack", results.whole.student, attack, *filter(None, [results.number]))


@dataclass(frozen=True, kw_only=True)
class AttackColumn(MeasuredColumn):
    """An attack on the student itself. Only images that are right in all smaller balls of the attack are attacked."""

    kind: AttackKind
    """what the attack can show"""
    attack: Attack
    """the attack"""

    @property
    def limit(self) -> RowThreat:
        """What the attack may change, as rows have it; JSMA's is a share of the values."""
        return ShareOfValues(self.attack.gamma) if isinstance(self.attack, JSMA) else self.threat

    def attack_on(self, student: Student) -> Attack:
        """Return the attack that a student is evaluated under."""
        return self.attack

    def evaluate(self, student: Student) -> Tensor:
        """Return which images withstand the attack, bools (N,)."""
        known = student.results.bools
        smaller = [c for c in student.columns if c.name in known and c is not self and contains(self.threat, c.threat)]
        before = [known["clean"], *(known[c.name] for c in smaller if c.base == self.base)]

        def attacked() -> Tensor:
            standing, generator = torch.stack(before).all(0).to(student.images.device), self.generator(student)
            x, y, attack = student.images, student.labels, self.attack_on(student)
            return withstands(student.model, x, y, attack, standing=standing, generator=generator)

        return student.results.fill(self.name, attacked)


@dataclass(frozen=True, kw_only=True)
class TransferColumn(AttackColumn):
    """An attack made on another network; `attack` is the attack on that network."""

    surrogate: Surrogate
    """which network: see `distill.evaluation.trained`"""

    def attack_on(self, student: Student) -> Attack:
        """Return the attack by way of the surrogate."""
        return Transfer(student.surrogates[self.surrogate], self.attack)


@dataclass(frozen=True, kw_only=True)
class MinimumNormColumn(AttackColumn):
    """An attack that looks for the nearest adversarial image. Distances are measured once for all threats."""

    def evaluate(self, student: Student) -> Tensor:
        """Return which images have no adversarial image within the threat, bools (N,)."""

        def measured() -> Tensor:
            right, generator = student.results.bools["clean"].to(student.images.device), self.generator(student)
            x, y = student.images, student.labels
            return least_distances(student.model, x, y, self.attack, standing=right, generator=generator)

        distances = student.results.fill(self.base, measured, "distances")
        return student.results.fill(self.name, lambda: distances > radius(self.attack))


@dataclass(frozen=True, kw_only=True)
class CertifiedColumn(MeasuredColumn):
    """Certified accuracy of the smoothed student (Cohen et al. 2019), which may exceed the student's own accuracy."""

    kind: Kind = "certified"
    certification: Certification
    """how the student is smoothed"""

    def evaluate(self, student: Student) -> Tensor:
        """Return which images are certified right within the threat, bools (N,)."""
        how, eps = self.certification, self.threat.eps if self.threat else 0.0

        def smoothed() -> Tensor:
            options = {"sigma": how.sigma, "n0": how.n0, "n": how.n, "alpha": how.alpha}
            found = certify(student.model, student.images, **options, generator=self.generator(student))
            return certified(found, student.labels, eps)  # the student itself may be wrong there

        return student.results.fill(self.name, smoothed)


@dataclass(frozen=True, kw_only=True)
class CorruptionsColumn(MeasuredColumn):
    """Fifteen kinds of damage at five severities each."""

    kind: Kind = "corruptions"

    def evaluate(self, student: Student) -> Tensor:
        """Return which damaged images are classified right, bools (kinds x severities, N)."""

        def of_damaged() -> Tensor:
            x, generator = student.images, self.generator(student)
            damaged = (corrupt(x, kind, severity, generator) for kind in COMMON for severity in SEVERITIES)
            return torch.stack([correct(student.model, images, student.labels) for images in damaged])

        return student.results.fill(self.name, of_damaged)


@dataclass(frozen=True, kw_only=True)
class WorstColumn(Column):
    """Images that are right under every attack within the threat; evaluated after all other columns."""

    kind: Kind = "ensemble"

    def members(self, columns: Sequence[Column]) -> list[AttackColumn]:
        """Return the columns that are joined: every attack at the threat or a smaller one of that norm.

        Certificates and corruptions are no members: an abstention is no adversarial image.
        """
        return [c for c in columns if isinstance(c, AttackColumn) and contains(self.threat, c.threat)]

    def put(self, results: StudentResults, columns: Sequence[Column]) -> None:
        """Set the column of a student: which images withstand all members, bools (images,).

        Args:
            results: of the student, with all other columns.
            columns: of the table.
        """
        found = results.bools
        members = [found[column.name] for column in self.members(columns)]
        results.put(self.name, torch.stack([found["clean"], *members]).all(0))


def evaluate_clean(student: Student) -> Tensor:
    """Return which images of a part are classified right without an attack, bools (N,); the results are saved."""
    return student.results.fill("clean", lambda: correct(student.model, student.images, student.labels))


def enforce_nesting(results: StudentResults, columns: Sequence[Column]) -> None:
    """Count an image that an attack fools as fooled by the same attack in every larger ball of that norm.

    This holds already where the smaller ball was attacked first, since only images that withstood are attacked in the
    larger one; a smaller ball may also be added later.

    Args:
        results: of a student, with all columns but `worst`.
        columns: all columns.
    """
    attacks = [column for column in columns if isinstance(column, AttackColumn) and column.threat]
    for column in sorted(attacks, key=size_of_ball):
        smaller = [c for c in attacks if c.base == column.base and contains(column.threat, c.threat)]
        results.put(column.name, torch.stack([results.bools[c.name] for c in smaller]).all(0))


def size_of_ball(column: Column) -> float:
    """Return the size by which columns are ordered, smaller balls first; 0 for columns without a ball."""
    return column.threat.eps if column.threat else 0.0


def contains(large: Threat | None, small: Threat | None) -> bool:
    """Return whether every point of one ball is in the other; balls of two norms are not compared."""
    return large is not None and small is not None and large.norm == small.norm and large.eps >= small.eps
