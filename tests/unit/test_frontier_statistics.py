"""Curves of clean against robust accuracy: interpolation by hand, Holm's example, intervals that cover the truth."""

from collections.abc import Mapping
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from distill.evaluation.frontier import Point, compare_curves, holm, read_curve, weights_at
from distill.evaluation.intervals import difference


def at(clean: list[float], robust: list[float], where: float) -> float:
    return read_curve(*(torch.tensor(it, dtype=torch.float64) for it in (clean, robust, where))).item()


@pytest.mark.parametrize(
    ("clean", "robust", "where", "expected"),
    [
        ([50, 40, 30], [10, 20, 22], 45, 15),  # between the first two
        ([50, 40, 30], [10, 20, 22], 40, 20),  # at a point
        ([30, 50, 40], [22, 10, 20], 45, 15),  # the order of strengths, not of clean accuracy: 30 and 50 give 13
        ([30, 50, 40], [22, 10, 20], 35, 19),  # only 30 and 50 are neighbours around 35
        ([50, 40, 30], [10, 20, 22], 60, 10),  # nothing is extrapolated
        ([50, 40, 30], [10, 20, 22], 20, 22),
        ([50], [10], 20, 10),
        ([40, 40], [10, 20], 40, 15),  # no width: the middle
    ],
)
def test_interpolation_is_that_of_hand(clean: list[float], robust: list[float], where: float, expected: float) -> None:
    assert at(clean, robust, where) == pytest.approx(expected)


def test_weights_are_of_each_resample() -> None:
    clean = torch.tensor([[50.0, 40.0], [52.0, 42.0], [30.0, 20.0]])
    weights = weights_at(clean, torch.zeros(3, 2), torch.tensor([45.0, 45.0, 45.0]))
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.5], [0.3, 0.7], [1.0, 0.0]]))


def test_holm_is_the_textbook_s() -> None:
    """The example of Wright 1992, "Adjusted p-values for simultaneous inference", and R's p.adjust."""
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def sets(
    generator: torch.Generator, images: Tensor, base: float, spread: float, number: int = 3, students: int = 2
) -> dict[int, Tensor]:
    """Return sets of students whose accuracy is Phi(base / sqrt(1.36 + 2 spread^2)) on average."""
    found = {}
    for seed in range(number):
        of_set = base + spread * torch.randn((), generator=generator)
        of_student = of_set + spread * torch.randn(students, 1, generator=generator)
        found[seed] = images + 0.6 * torch.randn(students, len(images), generator=generator) + of_student > 0
    return found


def test_a_single_point_is_compared_as_by_welch() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1000, generator=generator)
    clean = sets(generator, images, 0.2, 0.1)
    a, b = sets(generator, images, -0.7, 0.1), sets(generator, images, -1.0, 0.1)
    for same in (False, True):
        ours = compare_curves([Point(clean, a)], [Point(clean, b)], same_sets=same)
        welch = difference(list(a.values()), list(b.values()), matched=same)
        assert ours.difference == pytest.approx(welch.value, abs=1e-4)
        assert ours.high - ours.low == pytest.approx(welch.high - welch.low, rel=0.15)
        assert (ours.unit, ours.units, ours.reach) == ("sets", 3, "between")


def test_equal_arguments_give_equal_results() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(200, generator=generator)
    points = [Point(sets(generator, images, 0.0, 0.1), sets(generator, images, -1.0, 0.1)) for _ in range(2)]
    assert compare_curves(points[:1], points[1:]) == compare_curves(points[:1], points[1:])


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.0, 0.13), (0.5, 0.65, 1.0)])
def test_the_interval_covers_the_truth_and_p_finds_a_difference(shift: float, low: float, high: float) -> None:
    """40 simulated tables; the clean accuracy of the reference is between points of the curve, and is estimated too."""
    phi, scale, spread = NormalDist().cdf, (1.36 + 2 * 0.1**2) ** 0.5, 0.1
    clean, robust, of_reference = [0.2, 0.0, -0.3], [-1.1, -0.9, -0.8], -0.05
    truth = at([phi(c / scale) for c in clean], [phi(r / scale) for r in robust], phi(of_reference / scale))
    equal = NormalDist().inv_cdf(truth) * scale
    covered, found, tables = 0, 0, 40
    for table in range(tables):
        generator = torch.Generator().manual_seed(table)
        images = torch.randn(250, generator=generator)
        curve = [
            Point(sets(generator, images, c, spread), sets(generator, images, r, spread))
            for c, r in zip(clean, robust, strict=True)
        ]
        reference = Point(sets(generator, images, of_reference, spread), sets(generator, images, equal - shift, spread))
        result = compare_curves(curve, [reference], resamples=300)
        difference_there = 100 * (truth - phi((equal - shift) / scale))
        covered += result.low <= difference_there <= result.high
        found += result.p_value < 0.05
    assert covered / tables >= 0.88
    assert low <= found / tables <= high


def test_a_curve_that_does_not_reach_the_clean_accuracy_is_read_at_its_nearest_point() -> None:
    def point(clean: int, robust: int) -> Point:
        right = torch.arange(100)
        return Point({0: (right < clean).expand(2, -1)}, {0: (right < robust).expand(2, -1)})

    above = compare_curves([point(60, 20), point(55, 25)], [point(50, 20)])
    assert (above.reach, above.weights, round(above.clean), round(above.difference)) == ("above", (0.0, 1.0), 55, 5)
    below = compare_curves([point(40, 30)], [point(50, 20)])
    assert (below.reach, round(below.clean), round(below.at)) == ("below", 40, 50)
    fixed = compare_curves([point(60, 20), point(40, 30)], [point(70, 10), point(40, 22)], at=50.0)
    assert (fixed.reach, round(fixed.robust, 1), round(fixed.difference, 1)) == ("between", 25.0, 7.0)


@pytest.mark.parametrize(
    ("mine", "other", "at_percent", "match"),
    [
        ({0: 100}, {1: 100}, None, "no seed in common"),
        ({0: 100}, {0: 50}, None, "different test images"),
        ({0: 100}, {}, None, "the reference has 0 points"),
    ],
)
def test_bad_sides_are_refused(
    mine: Mapping[int, int], other: Mapping[int, int], at_percent: float | None, match: str
) -> None:
    def points(sizes: Mapping[int, int]) -> list[Point]:
        bools = {seed: torch.ones(1, size, dtype=torch.bool) for seed, size in sizes.items()}
        return [Point(bools, bools)] * bool(sizes)

    with pytest.raises(ValueError, match=match):
        compare_curves(points(mine), points(other), at_percent)
