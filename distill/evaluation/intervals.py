"""Intervals of an accuracy and of a difference of two accuracies, from one bool per distilled set, student and image.

wilson             the score interval of one proportion (Wilson 1927), when only the counts are known
accuracy_interval  Wilson's interval over sets, students, images: effective number of images (Korn & Graubard 1998)
difference         Welch's t test and its interval over sets, students and images

An accuracy is a mean over *units* and test images. A unit is a distilled set where there are several, else a student,
and all units are evaluated on the same images: S x N bools are not S x N independent draws. Both functions add up the
variance of two crossed random effects (Owen 2007, "The pigeonhole bootstrap", arXiv 0712.1111, counts their shared part
twice; here it is counted once):

    V = V_images + max(0, V_units - V_residual)

V_units is the variance of the units' accuracies over S, V_images the variance of the images' mean results over N, and
V_residual the part of V_units that a finite number of images alone would give (two-way analysis of variance). Degrees
of freedom are Satterthwaite's (1946). With one distilled set the interval holds for that set alone: the variance
between the sets of several seeds is unknown then.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "Difference",
    "Unit",
    "accuracy_interval",
    "combined_variance",
    "difference",
    "t_quantile",
    "two_sided",
    "unit_of",
    "wilson",
]

Unit = Literal["sets", "students", "images"]
"""what an interval covers beside other test images: other distilled sets, other students of one set, or neither"""


@dataclass(frozen=True)
class Difference:
    """Accuracy of A minus accuracy of B: see `difference`."""

    value: float
    """of the mean accuracies, in percentage points"""
    low: float
    """lower end of the interval"""
    high: float
    """upper end"""
    p_value: float
    """two-sided, in [0, 1]; below 1 - confidence exactly where the interval does not contain 0"""
    unit: Unit
    """the units whose variance the interval contains"""
    degrees: float
    """Satterthwaite's degrees of freedom of t, >= 1"""


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval (low, high) of a proportion in percent.

    Args:
        successes: how many of n.
        n: independent draws, >= 1: the test images of one student; images of several students are not independent.
        confidence: in (0, 1).

    Raises:
        ValueError: a number is out of its range.

    >>> [round(end, 2) for end in wilson(8, 10)]
    [49.02, 94.33]
    >>> wilson(0, 10)[0], wilson(10, 10)[1]
    (0.0, 100.0)
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes is {successes} of n {n}; n must be >= 1 and successes from 0 to n")
    return _score_interval(successes / n, n, NormalDist().inv_cdf((1 + confidence) / 2))


def accuracy_interval(sets: Sequence[Tensor], confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval (low, high) of the mean accuracy, in percent.

    With one student it is `wilson`. Otherwise it is Wilson's interval with t for z and n = p (1 - p) / V for the number
    of images, so that an accuracy of 0 or 100 has an interval of about Wilson's width for N images.

    Sources: Korn & Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data" (effective sample size, t instead of z); here with Wilson's ends instead of Clopper and
    Pearson's, and with one image added that every student classifies right and one that every student classifies wrong
    (as Agresti and Coull do) in V and n, which bounds n by about N near 0 and 100.

    Args:
        sets: by distilled set, bools (students, images): classified right? All have the same images; each set has equal
            weight, whatever its number of students.
        confidence: in (0, 1).

    Raises:
        ValueError: confidence is out of its range, or sets are no such tensors.

    Three students that are wrong on all of 50 images give an interval of about the width of one such student's:

    >>> [round(end, 1) for end in accuracy_interval([torch.zeros(3, 50, dtype=torch.bool)])], round(wilson(0, 50)[1], 1)
    ([0.0, 7.2], 7.1)
    """
    _check_confidence(confidence)
    _check_sets([sets])
    units = _units(sets, unit_of(sets))
    images = units.shape[1]
    if len(sets) == 1 and len(sets[0]) == 1:
        return wilson(int(sets[0].sum()), images, confidence)
    spread = _Spread.of(units)
    centre = (spread.per_image.sum() + 1) / (images + 2)
    squares = (spread.per_image - centre).square().sum() + centre.square() + (1 - centre).square()
    variance, degrees = combined_variance(squares.item() / (images + 2) ** 2, images, [spread.of_mean()])
    n = (centre * (1 - centre)).item() / variance
    return _score_interval(min(1.0, spread.per_image.mean().item()), n, t_quantile(degrees, confidence))


def difference(
    a: Sequence[Tensor], b: Sequence[Tensor], confidence: float = 0.95, *, matched: bool = False
) -> Difference:
    """Return how much more accurate the students of A are than those of B, on the same test images.

    Welch's t test with the images as a third source of variance: t = (mean of A - mean of B) / sqrt(V), where V has
    the variance of A's units, of B's units, and of the images' differences. Students are not paired: where student k of
    both sides has the same first weights, the interval is a little wide. V is not less, and the degrees of freedom are
    not more, than those of Student's test, which pools the units of both sides: with 2 against 10 units Welch's test
    alone rejected a true null hypothesis in 9 % of simulations at 5 %. Where one side has a single unit, only Student's
    test is possible: the unit is taken to vary as much as the units of the other side. With one student on each side V
    is the variance of the images alone. Two images are added to it, one that only A and one that only B classifies
    right, as by Bonett & Price 2012 ("Adjusted Wald confidence interval for a difference of binomial proportions based
    on paired data"; deviation: the centre stays where it is), so that V > 0.

    Args:
        a: by distilled set, bools (students, images): classified right?
        b: the same of other sets, on the same images in the same order; another number of sets and students is fine.
        confidence: in (0, 1).
        matched: whether set k of A and set k of B are the same set, whose students were trained in two ways: the units
            are then the differences of the sets, several on each side.

    Raises:
        ValueError: confidence is out of its range, a or b are no such tensors, they differ in images, or matched sides
            do not have the same number of sets, two or more.

    >>> a, b = torch.zeros(2, 1, 100, dtype=torch.bool)
    >>> a[0, :9] = True  # nine images that only A classifies right: McNemar's exact p is 2 / 2**9
    >>> result = difference([a], [b])
    >>> result.value, round(result.low, 1), round(result.high, 1), round(result.p_value, 4), result.unit
    (9.0, 2.8, 15.2, 0.0049, 'images')
    """
    _check_confidence(confidence)
    _check_sets([a, b])
    unit = unit_of(a, b)
    units = [_units(side, unit) for side in (a, b)]
    images = units[0].shape[1]
    spreads = [_Spread.of(side) for side in units]
    change = spreads[0].per_image - spreads[1].per_image
    value = change.mean().item()
    of_images = ((change - change.mean()).square().sum().item() + 2) / (images + 2) ** 2
    if matched:
        if not len(a) == len(b) > 1:
            raise ValueError(f"matched sides have {len(a)} and {len(b)} sets; they must have as many, two or more")
        estimates = [[_Spread.of(units[0] - units[1]).of_mean()]]
    else:
        pooled = _pooled(*spreads)
        estimates = [[pooled]] if pooled else [[]]
        if all(spread.units > 1 for spread in spreads):
            estimates.append([spread.of_mean() for spread in spreads])
    found = [combined_variance(of_images, images, of_units) for of_units in estimates]
    variance, degrees = max(variance for variance, _ in found), min(degrees for _, degrees in found)
    error, reach = math.sqrt(variance), t_quantile(degrees, confidence)
    low, high = value - reach * error, value + reach * error
    return Difference(100 * value, 100 * low, 100 * high, two_sided(value / error, degrees), unit, degrees)


def unit_of(*sides: Sequence[Tensor]) -> Unit:
    """Return what varies: sets where a side has several, else students where a side has several, else images.

    Args:
        sides: by side, by distilled set, bools (students, images).
    """
    if any(len(side) > 1 for side in sides):
        return "sets"
    return "students" if any(len(bools) > 1 for side in sides for bools in side) else "images"


def _units(sets: Sequence[Tensor], unit: Unit) -> Tensor:
    """Return results by unit and image, float64 (units, images): of a set the mean over its students."""
    tables = [bools.cpu().double() for bools in sets]
    return torch.stack([table.mean(0) for table in tables]) if unit == "sets" else tables[0]


@dataclass(frozen=True)
class _Spread:
    """How far units and images vary around the mean."""

    units: int
    per_image: Tensor
    """mean over units, float64 (images,)"""
    between: float
    """sample variance of the units' accuracies; 0 for one unit"""
    residual: float
    """the part of `between` that the finite number of images alone gives"""

    @classmethod
    def of(cls, table: Tensor) -> "_Spread":
        count, images = table.shape
        per_image = table.mean(0)
        if count == 1:
            return cls(1, per_image, 0.0, 0.0)
        of_units = table.mean(1, keepdim=True)
        left = (table - of_units - per_image + per_image.mean()).square().sum() / (count - 1) / max(1, images - 1)
        return cls(count, per_image, of_units.var().item(), left.item() / images)

    def of_mean(self) -> tuple[float, float, int]:
        """Return V_units, V_residual and degrees of freedom of the mean over these units."""
        return self.between / self.units, self.residual / self.units, self.units - 1


def _pooled(a: _Spread, b: _Spread) -> tuple[float, float, int] | None:
    """Return V_units, V_residual and degrees of freedom of the difference if units of A and B vary alike.

    None where each side has a single unit.
    """
    of_a, of_b = a.units - 1, b.units - 1
    if of_a + of_b == 0:
        return None
    between, residual = (
        (of_a * x + of_b * y) / (of_a + of_b) for x, y in ((a.between, b.between), (a.residual, b.residual))
    )
    share = 1 / a.units + 1 / b.units
    return share * between, share * residual, of_a + of_b


def combined_variance(
    of_images: float, images: int, of_units: Sequence[tuple[float, float, int]]
) -> tuple[float, float]:
    """Return the variance V of a mean over units and images, and Satterthwaite's degrees of freedom, >= 1.

    The degrees take V_units before V_residual is subtracted: the uncertainty of an estimate does not shrink by that.
    With the difference instead, 2 against 2 units rejected a true null hypothesis in up to 12 % of simulations at 5 %.

    Args:
        of_images: V_images.
        images: their number.
        of_units: for each independent group of units V_units, V_residual and the group's degrees of freedom.
    """
    variance = of_images + sum(max(0.0, units - residual) for units, residual, _ in of_units)
    uncertainty = of_images**2 / max(1, images - 1) + sum(units**2 / degrees for units, _, degrees in of_units)
    return variance, max(1.0, variance**2 / uncertainty)


def _score_interval(share: float, n: float, z: float) -> tuple[float, float]:
    """Return Wilson's interval in percent of a share of n draws, n any number > 0."""
    shrink = 1 / (1 + z * z / n)
    centre = shrink * (share + z * z / (2 * n))
    reach = shrink * z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if share == 0 else centre - reach
    high = 1.0 if share == 1 else centre + reach
    return 100 * low, 100 * high


def t_quantile(degrees: float, confidence: float) -> float:
    """Return the quantile of Student's t that a two-sided interval takes: 2.78 at 4 degrees and confidence 0.95."""
    from scipy.special import stdtrit  # here, because it takes a tenth of a second that --help does not need

    return float(stdtrit(degrees, (1 + confidence) / 2))


def two_sided(t: float, degrees: float) -> float:
    """Return the two-sided p-value of Student's t."""
    from scipy.special import stdtr

    return float(2 * stdtr(degrees, -abs(t)))


def _check_sets(sides: Sequence[Sequence[Tensor]]) -> None:
    for side in sides:
        if not side:
            raise ValueError("there are no sets; give one tensor (students, images) for each distilled set")
    tables = [bools for side in sides for bools in side]
    for bools in tables:
        if bools.ndim != 2 or bools.dtype != torch.bool or bools.numel() == 0:
            shape = tuple(bools.shape)
            raise ValueError(f"bools are {bools.dtype} {shape}; they must be torch.bool (students, images)")
    if len({bools.shape[1] for bools in tables}) > 1:
        counts = " and ".join(dict.fromkeys(str(bools.shape[1]) for bools in tables))
        raise ValueError(f"the sets have {counts} images; they must be evaluated on the same images")


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be in (0, 1)")
