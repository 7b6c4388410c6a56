"""Intervals and p-values against closed forms, other estimators and simulation."""

import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from distill.evaluation.intervals import accuracy_interval, difference, unit_of, wilson


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bools(students: int, examples: int, share: float = 0.6, seed: int = 0) -> Tensor:
    return torch.rand(students, examples, generator=rng(seed)) < share


# --- Wilson


@pytest.mark.parametrize(("successes", "n"), [(1, 7), (50, 100), (9_500, 10_000)])
@pytest.mark.parametrize(("confidence", "z"), [(0.95, 1.959963984540054), (0.99, 2.5758293035489004)])
def test_the_ends_of_wilson_are_where_the_score_test_rejects(
    successes: int, n: int, confidence: float, z: float
) -> None:
    share = successes / n
    for end in wilson(successes, n, confidence):
        p = end / 100
        assert abs(share - p) / math.sqrt(p * (1 - p) / n) == pytest.approx(z, rel=1e-9)


def test_wilson_mirrors_and_stays_in_range() -> None:
    low, high = wilson(3, 40)
    assert wilson(37, 40) == pytest.approx((100 - high, 100 - low))
    assert wilson(0, 5)[0] == 0.0
    assert 40 < wilson(0, 5)[1] < 50  # z^2 / (n + z^2)
    assert wilson(5, 5)[1] == 100.0


def test_wilson_covers() -> None:
    """Exactly, by summing the binomial: the mean coverage over proportions is the nominal one."""
    n, coverages = 50, []
    ends = [wilson(k, n) for k in range(n + 1)]
    for p in torch.linspace(0.1, 0.9, 81, dtype=torch.float64).tolist():
        weights = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        coverages.append(sum(w for w, (low, high) in zip(weights, ends, strict=True) if low <= 100 * p <= high))
    assert sum(coverages) / len(coverages) == pytest.approx(0.95, abs=0.005)
    assert min(coverages) > 0.91


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((1, 0), "successes is 1 of n 0"),
        ((-1, 5), "successes is -1 of n 5"),
        ((6, 5), "successes is 6 of n 5"),
        ((1, 5, 1.0), r"confidence is 1\.0"),
        ((1, 5, 95), "confidence is 95"),
    ],
)
def test_wilson_refuses(arguments: tuple[float, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wilson(*arguments)


# --- simulated sets, students and images


def simulate(
    sets: int, students: int, images: Tensor, generator: torch.Generator, *, of_sets: float, of_students: float
) -> list[Tensor]:
    """Return bools of sets: a probit model with effects of image, set, set x image, student and student x image.

    About 25 percent are right; two students of a set agree as real ones under attack do (correlation about 0.5).
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    logit = -1.2 + 1.2 * images + of_sets * normal(sets, 1, 1) + 0.2 * (of_sets > 0) * normal(sets, 1, len(images))
    logit = logit + of_students * normal(sets, students, 1)
    return list((logit + normal(sets, students, len(images)) > 0).unbind())


def chance(of_sets: float, of_students: float) -> float:
    """Return the expected accuracy of `simulate` in percent."""
    variance = 1 + 1.2**2 + of_sets**2 + 0.2**2 * (of_sets > 0) + of_students**2
    return 100 * NormalDist().cdf(-1.2 / math.sqrt(variance))


# --- the interval of an accuracy


def test_of_one_student_it_is_wilsons() -> None:
    table = bools(1, 200)
    assert accuracy_interval([table]) == wilson(int(table.sum()), 200)
    assert accuracy_interval([table], 0.8) == wilson(int(table.sum()), 200, 0.8)


def test_students_that_agree_know_no_more_than_one() -> None:
    one = bools(1, 400)
    assert accuracy_interval([one.expand(7, 400)]) == pytest.approx(accuracy_interval([one]), abs=0.1)


def test_students_that_are_always_or_never_right_are_the_only_unit() -> None:
    """3 of 4 students: the images tell nothing, and the variance is that of four numbers, with three degrees."""
    table = torch.tensor([True, True, True, False])[:, None].expand(4, 10_000)
    n, t = 0.75 * 0.25 / (0.25 / 4), 3.182446305284263  # p (1 - p) / V = 3; the 97.5 % point of t with 3 degrees
    share, shrink = 0.75, 1 / (1 + t * t / n)
    centre = shrink * (share + t * t / (2 * n))
    reach = shrink * t * math.sqrt(share * (1 - share) / n + t * t / (4 * n * n))
    assert accuracy_interval([table]) == pytest.approx((100 * (centre - reach), 100 * (centre + reach)), abs=0.1)


@pytest.mark.parametrize("sets", [1, 3])
@pytest.mark.parametrize("students", [2, 10])
def test_nothing_but_zeros_has_an_interval_of_about_wilsons_width(sets: int, students: int) -> None:
    none = [torch.zeros(students, 1000, dtype=torch.bool)] * sets
    low, high = accuracy_interval(none)
    assert low == 0.0
    assert high == pytest.approx(wilson(0, 1000)[1], rel=0.01)
    low, high = accuracy_interval([~bools for bools in none])
    assert (low, high) == (pytest.approx(100 - wilson(0, 1000)[1], rel=1e-3), 100.0)
    none[0] = none[0].clone()
    none[0][0, 5] = True  # one image right by one student: hardly anything changes
    low, higher = accuracy_interval(none)
    assert 0.0 < low < 100 / (sets * students * 1000) < 0.37 < higher < 0.6


def test_students_x_images_bools_are_not_independent() -> None:
    """Fifty students on the same hard and easy images: an interval of S x N draws would be far too narrow."""
    hits = {"ours": 0, "wilson": 0}
    for seed in range(100):
        table = (torch.rand(300, generator=rng(seed)) < 0.6).expand(50, 300)
        low, high = accuracy_interval([table])
        hits["ours"] += low <= 60 <= high
        low, high = wilson(int(table.sum()), table.numel())
        hits["wilson"] += low <= 60 <= high
    assert hits["ours"] > 88
    assert hits["wilson"] < 50


@pytest.mark.parametrize(
    ("sets", "students", "of_sets", "least"),
    [(1, 2, 0.0, 0.90), (1, 5, 0.0, 0.92), (2, 3, 0.1, 0.85), (3, 3, 0.1, 0.90), (5, 2, 0.1, 0.90)],
)
def test_the_interval_of_an_accuracy_covers(sets: int, students: int, of_sets: float, least: float) -> None:
    generator, truth, covered = rng(1), chance(of_sets, 0.1), 0
    for _ in range(200):
        images = torch.randn(400, generator=generator)
        low, high = accuracy_interval(simulate(sets, students, images, generator, of_sets=of_sets, of_students=0.1))
        covered += low <= truth <= high
    assert least <= covered / 200 <= 0.99


@pytest.mark.parametrize("percent", [0.1, 0.3, 1.0])
def test_the_interval_covers_near_the_edge(percent: float) -> None:
    """Three students, 1,000 images of differing difficulty, hardly any of them classified right."""
    variance = 1 + 1.2**2 + 0.1**2
    threshold, generator, covered = NormalDist().inv_cdf(percent / 100) * math.sqrt(variance), rng(2), 0
    for _ in range(200):
        images, students = torch.randn(1000, generator=generator), torch.randn(3, 1, generator=generator)
        logit = threshold + 1.2 * images + 0.1 * students + torch.randn(3, 1000, generator=generator)
        low, high = accuracy_interval([logit > 0])
        covered += low <= percent <= high
    assert covered / 200 >= 0.94


# --- the difference of two sides


def test_the_unit_follows_from_what_is_there() -> None:
    one, several = bools(1, 9), bools(4, 9)
    assert unit_of([one], [one]) == "images"
    assert unit_of([one], [several]) == unit_of([several], [several]) == "students"
    assert unit_of([one, one], [several]) == unit_of([several], [several, one]) == "sets"
    assert difference([one], [one]).unit == "images"


def test_sides_that_do_not_differ() -> None:
    one = bools(1, 80)
    same = difference([one], [one])
    assert (same.value, same.p_value) == (0.0, 1.0)
    assert same.low == -same.high < 0  # 80 other images could tell them apart
    many = difference([bools(5, 80)], [bools(5, 80)])
    assert (many.value, many.p_value) == (0.0, 1.0)
    assert many.low < same.low
    none = torch.zeros(3, 1000, dtype=torch.bool)
    edge = difference([none], [none])
    assert edge.value == 0.0
    assert -0.4 < edge.low < -0.2 < 0.2 < edge.high < 0.4


@pytest.mark.parametrize("students", [(1, 1), (4, 7), (1, 5)])
def test_swapping_the_sides_mirrors(students: tuple[int, int]) -> None:
    a, b = [bools(students[0], 200)], [bools(students[1], 200, 0.5, 1)]
    there, back = difference(a, b), difference(b, a)
    assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))
    assert back.p_value == pytest.approx(there.p_value)


@pytest.mark.parametrize(("only_a", "only_b"), [(3, 3), (9, 2), (12, 30), (300, 250)])
def test_of_two_networks_it_is_mcnemars_test_with_two_more_images(only_a: int, only_b: int) -> None:
    a = torch.cat([torch.ones(only_a + 300), torch.zeros(only_b + 200)]).bool()[None]
    b = torch.cat([torch.zeros(only_a), torch.ones(300 + only_b), torch.zeros(200)]).bool()[None]
    result = difference([a], [b])
    n = a.shape[1]
    square = (only_a + only_b + 2 - (only_a - only_b) ** 2 / n) / (n + 2) ** 2
    t = (only_a - only_b) / n / math.sqrt(square)
    assert result.value == pytest.approx(100 * (only_a - only_b) / n)
    assert result.p_value == pytest.approx(2 * NormalDist().cdf(-abs(t)), rel=0.05)
    fewer, discordant = min(only_a, only_b), only_a + only_b
    exact = min(1.0, 2 * sum(math.comb(discordant, k) for k in range(fewer + 1)) / 2**discordant)
    assert (result.p_value < 0.05) == (exact < 0.05) or discordant == 11  # 9 to 2: .042 here, .065 exactly


def test_of_many_images_it_is_welchs_test() -> None:
    """Students that are right on all images or none: the images tell nothing, and SciPy's test is the answer."""
    from scipy.stats import ttest_ind

    accuracies = torch.tensor([[0.2, 0.3, 0.25, 0.4], [0.5, 0.35, 0.6, 0.7]], dtype=torch.float64)
    order = torch.rand(2, 4, 40_000, generator=rng()).argsort(-1)  # each student is wrong on other images
    sides = [[ranks < 40_000 * share[:, None]] for ranks, share in zip(order, accuracies, strict=True)]
    result, expected = difference(*sides), ttest_ind(*accuracies.tolist(), equal_var=False)
    assert result.value == pytest.approx(100 * (accuracies[0] - accuracies[1]).mean().item())
    assert result.p_value == pytest.approx(expected.pvalue, rel=0.01)
    assert result.degrees == pytest.approx(expected.df, rel=0.01)
    assert (result.low, result.high) == pytest.approx(
        tuple(100 * end for end in expected.confidence_interval()), abs=0.1
    )


def test_a_single_unit_varies_as_the_others_do() -> None:
    several = [(torch.arange(10_000) < 10_000 * share).expand(1, -1) for share in (0.2, 0.3, 0.4)]
    result = difference([several[1]], several)
    error = (result.high - result.low) / 2 / 4.302652729696142  # the 97.5 % point of t with 2 degrees
    assert result.value == pytest.approx(0.0)
    assert result.degrees == pytest.approx(2, abs=0.02)
    assert error == pytest.approx(10 * math.sqrt(1 + 1 / 3), rel=0.01)


def test_sets_count_alike_whatever_their_number_of_students() -> None:
    always, never = torch.ones(6, 50, dtype=torch.bool), torch.zeros(1, 50, dtype=torch.bool)
    result = difference([always, never], [never, never])
    assert result.value == pytest.approx(50.0)


def test_of_the_same_sets_their_differences_are_the_unit() -> None:
    """Sets that differ widely, each with 10 points more on one side: SciPy's paired test, and far narrower."""
    from scipy.stats import ttest_rel

    shares = torch.tensor([[0.22, 0.41, 0.59], [0.1, 0.3, 0.5]], dtype=torch.float64)
    order = torch.rand(3, 40_000, generator=rng()).argsort(-1)
    a, b = ([(ranks < 40_000 * share)[None] for ranks, share in zip(order, side, strict=True)] for side in shares)
    result, expected = difference(a, b, matched=True), ttest_rel(*shares.tolist())
    assert result.p_value == pytest.approx(expected.pvalue, rel=0.1)
    unmatched = difference(a, b)
    assert unmatched.high - unmatched.low > 10 * (result.high - result.low)
    assert (result.value, result.unit) == (pytest.approx(unmatched.value), "sets")
    for sides in ((a, b[:2]), (a[:1], b[:1])):
        with pytest.raises(ValueError, match="matched sides have"):
            difference(*sides, matched=True)


def test_a_true_null_of_matched_sets_is_rejected_as_often_as_p_says() -> None:
    for sets in (2, 3, 5):
        generator, found = rng(4), 0
        for _ in range(300):
            images = torch.randn(400, generator=generator)
            both = simulate(sets, 6, images, generator, of_sets=0.3, of_students=0.1)
            found += (
                difference(*([table[half] for table in both] for half in (slice(3), slice(3, 6))), matched=True).p_value
                < 0.05
            )
        assert 0.003 <= found / 300 <= 0.07


@pytest.mark.parametrize(("share", "more"), [(0.0, 0.5), (0.02, 0.02), (0.2, 0.1), (0.5, 0.05), (0.7, 0.0)])
@pytest.mark.parametrize("shape", [((1, 1), (1, 1)), ((1, 2), (1, 2)), ((2, 3), (3, 1)), ((1, 4), (3, 2))])
def test_p_and_the_interval_never_contradict_each_other(
    share: float, more: float, shape: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    for seed in range(5):
        a, b = (
            [bools(students, 60, chance, 10 * seed + k) for k in range(sets)]
            for (sets, students), chance in zip(shape, (share, share + more), strict=True)
        )
        for confidence in (0.5, 0.95, 0.999):
            result = difference(a, b, confidence)
            assert (result.p_value < 1 - confidence) == (not result.low <= 0 <= result.high)
            assert result.low <= result.value <= result.high


def rejected(
    shape: tuple[int, int], other: tuple[int, int], *, of_sets: float, of_students: float, trials: int = 300
) -> float:
    """Return how often p < 0.05 where both sides are draws of one distribution; shapes are (sets, students)."""
    generator, found = rng(3), 0
    for _ in range(trials):
        images = torch.randn(400, generator=generator)
        a, b = (
            simulate(sets, students, images, generator, of_sets=of_sets, of_students=of_students)
            for sets, students in (shape, other)
        )
        found += difference(a, b).p_value < 0.05
    return found / trials


@pytest.mark.parametrize("students", [(2, 2), (3, 3), (5, 5), (2, 5), (1, 3)])
@pytest.mark.parametrize("of_students", [0.03, 0.15])
def test_students_of_one_set_differ_significantly_as_often_as_p_says(
    students: tuple[int, int], of_students: float
) -> None:
    rate = rejected((1, students[0]), (1, students[1]), of_sets=0.0, of_students=of_students)
    assert 0.003 <= rate <= 0.07


@pytest.mark.parametrize("sets", [(2, 2), (3, 3), (5, 5), (2, 5), (2, 8), (1, 4)])
def test_sets_of_one_method_differ_significantly_as_often_as_p_says(sets: tuple[int, int]) -> None:
    rate = rejected((sets[0], 3), (sets[1], 3), of_sets=0.15, of_students=0.1)
    assert 0.003 <= rate <= 0.07


def test_images_alone_would_find_a_difference_too_often() -> None:
    """The fault that the units mend: students of one set, tested by images, differ in a tenth and more of the cases."""
    assert rejected((1, 1), (1, 1), of_sets=0.0, of_students=0.0) <= 0.07  # networks of one accuracy do not
    assert rejected((1, 1), (1, 1), of_sets=0.0, of_students=0.1) > 0.15  # two of different accuracy do: they differ


def test_the_interval_of_a_difference_covers_and_pairing_narrows_it() -> None:
    covered = 0
    for seed in range(200):
        easy = 0.1 + 0.8 * (torch.rand(200, generator=rng(seed)) < 0.5)  # hard or easy for both sets
        draws = torch.rand(2, 6, 200, generator=rng(1000 + seed))
        a, b = draws[0] < easy + 0.05, draws[1] < easy - 0.05
        result = difference([a], [b])
        covered += result.low <= 10 <= result.high
    assert 0.92 <= covered / 200 <= 1.0
    (low_a, high_a), (low_b, high_b) = accuracy_interval([a]), accuracy_interval([b])
    assert result.high - result.low < 0.8 * math.hypot(high_a - low_a, high_b - low_b)


def test_a_real_difference_is_found() -> None:
    for students in (1, 5):
        result = difference([bools(students, 2000, 0.6)], [bools(students, 2000, 0.5, 1)])
        assert 5 < result.low < result.value < result.high < 15
        assert 0 < result.p_value < 1e-4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a": [torch.rand(2, 9)]}, r"bools are torch\.float32 \(2, 9\)"),
        ({"a": [bools(1, 9)[0]]}, r"bools are torch\.bool \(9,\)"),
        ({"b": [bools(0, 9)]}, r"\(0, 9\)"),
        ({"b": [bools(2, 8)]}, "9 and 8 images"),
        ({"b": []}, "there are no sets"),
        ({"confidence": 0.0}, r"confidence is 0\.0"),
    ],
)
def test_difference_refuses(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        difference(**{"a": [bools(2, 9)], "b": [bools(2, 9)], **change})


def test_accuracy_interval_refuses() -> None:
    with pytest.raises(ValueError, match=r"confidence is 95"):
        accuracy_interval([bools(2, 9)], 95)
    with pytest.raises(ValueError, match="9 and 8 images"):
        accuracy_interval([bools(2, 9), bools(2, 8)])
