"""What was measured of the theory in section 5 of the GUARD paper, as a table, as CSV, and the numbers of figures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor

from distill.reports.tables import aligned, written_csv
from robust.theory.bounds import BoundTerms, TransferTerms, class_means
from robust.theory.quadratic import QuadraticModel

__all__ = ["MeasuredSide", "MeasuredStudent", "rank_correlation", "to_csv", "to_text"]

WIDTH = 100
"""characters of a line of text"""


@dataclass(frozen=True)
class MeasuredSide:
    """The training images or the distilled images, under one student."""

    images: Tensor
    """(N, C, H, W), pixels in [0, 1]"""
    classes: Tensor
    """(N,)"""
    around: QuadraticModel
    """of these images"""
    terms: BoundTerms
    """of bound (2) at the radius of the table"""


@dataclass(frozen=True)
class MeasuredStudent:
    """All measurements of one student."""

    clean: float
    """accuracy on the test images, percent"""
    robust: float
    """accuracy on them under PGD-10 at the paper's linf threat, percent"""
    test: QuadraticModel
    """of the test images"""
    finite: Tensor
    """(N,): the finite difference of equation 7 at the test images"""
    real: MeasuredSide
    """training images"""
    distilled: MeasuredSide
    """distilled images"""
    transfer: TransferTerms
    """of bound (3), from the training images to the distilled images"""
    gaps: Tensor
    """(P,): loss at the ends minus loss at the midpoint of pairs of training images of a class"""


Value = Callable[[MeasuredStudent], float]


def _mean(values: Tensor) -> float:
    return values.double().mean().item()


def _percent(bools: Tensor) -> float:
    return 100 * _mean(bools) if bools.numel() else float("nan")


def _bound_2(side: Callable[[MeasuredStudent], MeasuredSide]) -> dict[str, Value]:
    """Return the rows of bound (2): means over the images of a class, then over classes."""

    def mean_of(name: str) -> Value:
        return lambda s: _mean(getattr(class_means(side(s).terms, side(s).classes), name))

    return {
        "E l": mean_of("loss"),
        "rho E |grad l|": mean_of("gradient"),
        "rho²/2 E λ1": mean_of("curvature"),
        "right side: the sum": mean_of("bound"),
        "left side: E l~adv": mean_of("quadratic"),
        "E of the loss that PGD finds": mean_of("adversarial_loss"),
        "images with a PGD loss above their bound (%)": lambda s: 100 - _percent(side(s).terms.holds),
    }


GROUPS: dict[str, dict[str, Value]] = {
    "test images": {
        "clean accuracy (%)": lambda s: s.clean,
        "accuracy under PGD-10 at {threat} (%)": lambda s: s.robust,
        "λ1, mean (nats per pixel²)": lambda s: _mean(s.test.lambda_1),
        "λ1, median": lambda s: s.test.lambda_1.median().item(),
        "|cos(gradient, v1)|, mean": lambda s: _mean(s.test.cosine),
        "eq. 7 at h = {h}, mean": lambda s: _mean(s.finite),
    },
    "training images, bound (2) at rho = {rho} (nats)": _bound_2(lambda s: s.real),
    "distilled images, bound (2) at rho = {rho} (nats)": {
        "λ1, mean (nats per pixel²)": lambda s: _mean(s.distilled.around.lambda_1),
        "|cos(gradient, v1)|, mean": lambda s: _mean(s.distilled.around.cosine),
        **_bound_2(lambda s: s.distilled),
    },
    "from training to distilled images, bound (3)": {
        "right side without L sigma": lambda s: _mean(s.transfer.bound(0.0)),
        "left side: l~adv of a distilled image": lambda s: _mean(s.transfer.quadratic),
        "right / left, without L sigma": lambda s: _mean(s.transfer.bound(0.0)) / _mean(s.transfer.quadratic),
        "sigma: distance to the class's mean feature": lambda s: _mean(s.transfer.distance),
        "L, at least": lambda s: s.transfer.slope.max().item(),
        "L sigma, at least": lambda s: s.transfer.slope.max().item() * _mean(s.transfer.distance),
        "pairs of images that refute convexity (%)": lambda s: _percent(s.gaps < 0),
    },
}
"""title -> name of the row -> its value for a student; braces are filled by the settings"""

LEGEND = (
    "Means over images, classes and students. λ1: largest eigenvalue of the Hessian of the loss in the",
    "image, v1 its vector; l~adv: largest value of the quadratic model in the L2 ball of radius rho; PGD",
    "has 20 steps in that ball. l~adv is below the right side of (2) by arithmetic; a PGD loss above it",
    "shows terms that the quadratic model lacks. (3) is in the features of the last layer. L is a",
    "supremum: the largest slope between two training images of a class bounds it from below.",
)

Runs = Mapping[str, Sequence[MeasuredStudent]]
"""label of a run -> its students"""


def to_text(runs: Runs, settings: Mapping[str, str]) -> str:
    """Return a table with a column for each run, in blocks of as many runs as fit in a line.

    Args:
        runs: the measurements.
        settings: "rho", "h" and "threat" as texts.
    """
    blocks = "\n".join(_block({label: runs[label] for label in part}, settings) for part in _parts(runs, settings))
    return blocks + "\n" + "\n".join(LEGEND) + "\n"


def _parts(runs: Runs, settings: Mapping[str, str]) -> Iterator[Sequence[str]]:
    """Return the labels of each block: as many as fit in a line, at least one."""
    for size in range(len(runs), 0, -1):
        labels = list(runs)
        parts = [labels[first : first + size] for first in range(0, len(labels), size)]
        blocks = [_block({label: runs[label] for label in part}, settings) for part in parts]
        if size == 1 or all(len(line) <= WIDTH for block in blocks for line in block.splitlines()):
            return iter(parts)
    return iter(())


def _block(runs: Runs, settings: Mapping[str, str]) -> str:
    lines = [["", *runs]]
    for title, rows in GROUPS.items():
        lines.append([title.format(**settings), *[""] * len(runs)])
        for name, value in rows.items():
            means = [fmean(map(value, students)) for students in runs.values()]
            lines.append([f"  {name.format(**settings)}", *(f"{mean:.3g}" for mean in means)])
    return aligned(lines)


COLUMNS = ("run", "student", "images", "class", "term", "value")


def to_csv(runs: Runs, settings: Mapping[str, str]) -> str:
    """Return a line for each run, student and row of the table, and for each class where the row has classes."""
    lines = []
    for run, students in runs.items():
        for number, student in enumerate(students):
            at = {"run": run, "student": number}
            for title, rows in GROUPS.items():
                about = {"images": title.partition(",")[0], "class": ""}
                lines += [
                    at | about | {"term": name.format(**settings), "value": f"{value(student):.6g}"}
                    for name, value in rows.items()
                ]
            lines += [at | line for line in _by_class(student)]
    return written_csv(COLUMNS, lines)


def _by_class(student: MeasuredStudent) -> Iterator[dict[str, object]]:
    for images, side in (("training images", student.real), ("distilled images", student.distilled)):
        means = class_means(side.terms, side.classes)
        for number, name in enumerate(side.classes.unique().tolist()):
            for term in ("loss", "gradient", "curvature", "lambda_1", "quadratic", "adversarial_loss"):
                yield {"images": images, "class": name, "term": term, "value": f"{getattr(means, term)[number]:.6g}"}
    for name in student.distilled.classes.unique().tolist():
        of_class = student.distilled.classes == name
        for term in ("distance", "slope"):
            value = getattr(student.transfer, term)[of_class].double().mean()
            yield {"images": "from training to distilled images", "class": name, "term": term, "value": f"{value:.6g}"}


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, in [-1, 1]; None for fewer than three values or equal values.

    >>> rank_correlation([1, 2, 3], [30, 20, 10])
    -1.0
    """
    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    from scipy.stats import spearmanr  # here, because it takes a part of a second that --help does not need

    return float(spearmanr(first, second)[0])  # pyright: ignore[reportArgumentType]  # scipy's stubs have tuples of objects
