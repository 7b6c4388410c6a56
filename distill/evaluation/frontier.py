"""Clean against robust accuracy: the curve of a method, and its robust accuracy at the clean accuracy of another.

A *point* is a method at one strength; a *curve* has the points of a method in the order of their strengths.
`read_curve` interpolates robust accuracy linearly in clean accuracy between two neighbours of that order. Such a value
can be reached: who uses a network of one point with probability q, and of the other with 1 - q, has these two
accuracies. Where several pairs of neighbours enclose the clean accuracy, the most robust value is taken. Nothing is
extrapolated: where the curve does not have the clean accuracy, the nearest point in clean accuracy is taken instead.

`compare_curves` gives the difference to a reference with a bootstrap over distilled sets and test images:

    unit    a distilled set where both sides have several seeds in common, else a student, else nothing
    draw    images: N of N, the same for all points of both sides. Units: U - 1 of U, so that the variance is unbiased
            (McCarthy & Snowden 1985, "The bootstrap and finite population sampling"); the same for all points of a
            side. The two sides are drawn apart, unless they have the same sets, whose students are trained in two ways:
            then set k of both is drawn together. (Drawn together for the seed's sake alone, three sets would leave two
            degrees of freedom instead of four, and intervals twice as wide; sets of two methods with one seed are less
            alike than that.)
    V       V_images + sum over sides of max(0, V_units - V_residual). Each is the variance, over resamples, of the
            whole computation: clean accuracy of the reference, interpolation, difference. V_images draws images alone,
            V_units the units of one side alone, and V_residual = V_both - V_images - V_units. Drawing both counts the
            residual of units and images three times (Owen 2007, "The pigeonhole bootstrap", arXiv 0712.1111)
    ends    difference ± t sqrt(V), p from t, with Satterthwaite's degrees of freedom as in `intervals.difference`

Students are not drawn within a set: the variance between sets contains theirs (Davison & Hinkley 1997, section 3.8).
Percentiles are not used: three sets have ten different draws, and Student's t with four degrees of freedom is 1.4 times
as wide as a normal distribution.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from distill.evaluation.intervals import Unit, combined_variance, t_quantile, two_sided

__all__ = ["Comparison", "Point", "Reach", "compare_curves", "holm", "read_curve", "weights_at"]

RESAMPLES = 2000
"""of the bootstrap"""
Reach = Literal["between", "above", "below"]
"""of a curve at a clean accuracy: it has the accuracy between its points, or all points are more or less accurate"""


@dataclass(frozen=True)
class Point:
    """A method at one strength: which test images its students classify right. All points have the same images."""

    clean: Mapping[int, Tensor]
    """seed of the distilled set -> bools (students, images), without an attack"""
    robust: Mapping[int, Tensor]
    """the same under the attack"""


@dataclass(frozen=True)
class Comparison:
    """The robust accuracy of a curve at the clean accuracy of the reference. Accuracies are percent."""

    at: float
    """clean accuracy of the reference"""
    clean: float
    """clean accuracy at which the curve was read: `at`, or that of the nearest point if the curve does not have `at`"""
    robust: float
    """robust accuracy of the curve there"""
    reach: Reach
    weights: tuple[float, ...]
    """of the curve's points in `robust`, summing to 1"""
    difference: float
    """robust accuracy minus that of the reference, percentage points"""
    low: float
    """lower end of the interval of the difference"""
    high: float
    """upper end"""
    p_value: float
    """two-sided, of no difference; in [0, 1]"""
    degrees: float
    """degrees of freedom of t, >= 1"""
    unit: Unit
    """what is drawn beside images"""
    units: int
    """how many on each side"""


def weights_at(clean: Tensor, robust: Tensor, at: Tensor) -> Tensor:
    """Return the weight of each point of a curve at a clean accuracy: two neighbours that enclose it, or the nearest.

    Args:
        clean: of the points in the order of strengths, (..., points).
        robust: the same; it selects among several pairs of neighbours.
        at: clean accuracy, (...).

    Returns:
        (..., points), each row non-negative with the sum 1.

    >>> clean, robust = torch.tensor([50.0, 40.0, 30.0]), torch.tensor([10.0, 20.0, 22.0])
    >>> [weights_at(clean, robust, torch.tensor(at)).tolist() for at in (42.5, 20.0)]
    [[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]
    """
    points, at = clean.shape[-1], at.unsqueeze(-1)
    nearest = torch.nn.functional.one_hot((clean - at).abs().argmin(-1), points).to(clean)
    if points == 1:
        return nearest
    left, right = clean[..., :-1], clean[..., 1:]
    inside = (torch.minimum(left, right) <= at) & (at <= torch.maximum(left, right))
    width = right - left
    share = torch.where(width == 0, 0.5, (at - left) / torch.where(width == 0, 1.0, width))
    value = torch.where(inside, robust[..., :-1] + share * (robust[..., 1:] - robust[..., :-1]), -torch.inf)
    pair = value.argmax(-1, keepdim=True)
    share = share.gather(-1, pair)
    between = torch.zeros_like(clean).scatter(-1, pair, 1 - share).scatter(-1, pair + 1, share)
    return torch.where(inside.any(-1, keepdim=True), between, nearest)


def read_curve(clean: Tensor, robust: Tensor, at: Tensor) -> Tensor:
    """Return the robust accuracy of a curve at a clean accuracy; arguments as of `weights_at`.

    >>> read_curve(torch.tensor([50.0, 40.0]), torch.tensor([10.0, 20.0]), torch.tensor(42.5)).item()
    17.5
    """
    return (weights_at(clean, robust, at) * robust).sum(-1)


def compare_curves(
    curve: Sequence[Point],
    reference: Sequence[Point],
    at: float | None = None,
    *,
    same_sets: bool = False,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Return the robust accuracy of a curve at the clean accuracy of the reference, and the difference of the two.

    Args:
        curve: points in the order of strengths; sets of seeds that not all points of both sides have are left out.
        reference: a single point where `at` is None; else a curve, read at the same clean accuracy.
        at: clean accuracy in percent; None for that of the reference, which is then drawn as all other numbers.
        same_sets: whether both sides have the same distilled set for each seed, so that sets are drawn together.
        confidence: of the interval, in (0, 1).
        resamples: number of bootstrap samples, >= 2.
        seed: of the draws: equal arguments give equal results, and all calls with equal numbers draw the same images.

    Raises:
        ValueError: a side is empty, has no seed in common with the other, or the points differ in images; or `at` is
            None, and the reference has several points.
    """
    if at is None and len(reference) != 1:
        raise ValueError(f"the reference has {len(reference)} points; without `at` it has exactly one")
    table, unit = _table([*curve, *reference])
    units, columns, images = table.shape
    size = len(curve)

    def read(means: Tensor) -> Tensor:
        """Return the difference, from means (..., clean and robust of all points)."""
        clean, robust = means.unflatten(-1, (2, -1)).unbind(-2)
        where = clean[..., size] if at is None else torch.full_like(clean[..., 0], at / 100)
        mine = read_curve(clean[..., :size], robust[..., :size], where)
        other = robust[..., size] if at is None else read_curve(clean[..., size:], robust[..., size:], where)
        return mine - other

    means = table.double().mean((0, 2))
    value = read(means).item()
    of_images = _drawn_means(table, resamples, seed)
    images_alone = read(of_images.mean(1)).var().item()
    of_curve = (torch.arange(columns // 2) < size).repeat(2)  # which columns are the curve's
    together = [torch.ones_like(of_curve)] if same_sets else [of_curve, ~of_curve]
    of_units = []
    for number, drawn in enumerate(together if units > 1 else []):
        draws = (_counts(resamples, units, units - 1, seed + 1 + number) / (units - 1)).double()
        units_alone = read(torch.where(drawn, draws @ table.double().mean(2), means)).var().item()
        both = read(torch.where(drawn, torch.einsum("bu,buc->bc", draws, of_images), of_images.mean(1))).var().item()
        of_units.append((units_alone, max(0.0, both - images_alone - units_alone), units - 1))
    # two images more, which only one side classifies right: as `intervals.difference`, so that V > 0
    images_alone = (images_alone * images**2 + 2) / (images + 2) ** 2
    variance, degrees = combined_variance(images_alone, images, of_units)
    error = math.sqrt(variance)
    reached = t_quantile(degrees, confidence) * error
    clean, robust = means.unflatten(-1, (2, -1)).unbind(-2)
    where = clean[size] if at is None else torch.tensor(at / 100, dtype=torch.float64)
    weights = weights_at(clean[:size], robust[:size], where)
    return Comparison(
        at=100 * where.item(),
        clean=100 * (weights * clean[:size]).sum().item(),
        robust=100 * (weights * robust[:size]).sum().item(),
        reach=_reach(clean[:size], where),
        weights=tuple(weights.tolist()),
        difference=100 * value,
        low=100 * (value - reached),
        high=100 * (value + reached),
        p_value=two_sided(value / error, degrees),
        degrees=degrees,
        unit=unit,
        units=units,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values after Holm's correction (1979) for their number: reject those <= alpha.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _reach(clean: Tensor, at: Tensor) -> Reach:
    if clean.min() > at:
        return "above"
    return "below" if clean.max() < at else "between"


def _table(points: Sequence[Point]) -> tuple[Tensor, Unit]:
    """Return shares of students that are right, float32 (units, clean and robust of all points, images), and the unit.

    Raises:
        ValueError: there are no points, no common seeds, or different images.
    """
    if not points:
        raise ValueError("there are no points")
    seeds = sorted(set.intersection(*({*point.clean} & {*point.robust} for point in points)))
    if not seeds:
        raise ValueError("the points have no seed in common")
    columns = [side[seed] for point in points for side in (point.clean, point.robust) for seed in seeds]
    if len({bools.shape[1] for bools in columns}) > 1:
        raise ValueError("the points have different test images")
    sides = [[point.clean for point in points], [point.robust for point in points]]
    if len(seeds) > 1:
        rows = [[side[seed].float().mean(0) for of_kind in sides for side in of_kind] for seed in seeds]
        return torch.stack([torch.stack(row) for row in rows]), "sets"
    students = min(bools.shape[0] for bools in columns)
    rows = torch.stack([side[seeds[0]][:students].float() for of_kind in sides for side in of_kind], 1)
    return rows, "students" if students > 1 else "images"


def _counts(resamples: int, choices: int, draws: int, seed: int) -> Tensor:
    """Return how often each choice is drawn, with replacement: float32 (resamples, choices), each row sums to draws."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(resamples, choices)
    for row in counts:  # in one piece it is slower: the counts of a row fit in the cache
        row += torch.randint(choices, (draws,), generator=generator).bincount(minlength=choices)
    return counts


_counts_of_images = lru_cache(maxsize=1)(_counts)
"""many curves are compared on the same images; 2,000 resamples of 10,000 images are 80 MB"""


def _drawn_means(table: Tensor, resamples: int, seed: int) -> Tensor:
    """Return means over drawn images, float64 (resamples, units, columns)."""
    units, columns, images = table.shape
    sums = _counts_of_images(resamples, images, images, seed) @ table.flatten(0, 1).T
    return (sums.double() / images).unflatten(1, (units, columns))
