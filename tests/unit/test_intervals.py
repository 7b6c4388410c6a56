"""Intervals and p-values against closed forms, enumeration and simulation."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from distill.reports.intervals import bootstrap, paired, wilson


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


# --- bootstrap


def test_of_one_student_the_bootstrap_is_the_binomial() -> None:
    table = torch.arange(400)[None] < 280
    low, high = bootstrap(table, resamples=20_000)
    reach = 100 * 1.96 * math.sqrt(0.7 * 0.3 / 400)
    assert low == pytest.approx(70 - reach, abs=0.3)
    assert high == pytest.approx(70 + reach, abs=0.3)


def test_of_students_one_fewer_is_drawn() -> None:
    """Students that are right always or never, 3 of 4: the interval is the one of the students' mean."""
    table = torch.tensor([True, True, True, False])[:, None].expand(4, 100)
    low, high = bootstrap(table, confidence=0.6, resamples=20_000)  # of S - 1 = 3 draws 0, 1, 2 or 3 are right
    assert (low, high) == (pytest.approx(200 / 3), 100.0)  # P(3) = 0.42, P(<= 1) = 0.16: the 20th percentile is 2
    constant = bootstrap(bools(1, 200).expand(7, 200), seed=3)  # students that agree tell no more than one
    assert constant == pytest.approx(bootstrap(bools(1, 200)), abs=1.0)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    table, other = bools(1, 50), bools(1, 50, seed=1)  # one student: one stream of draws, whatever its chunks
    whole = bootstrap(table), paired(table, other)
    monkeypatch.setattr("distill.reports.intervals.CELLS", 120)
    assert (bootstrap(table), paired(table, other)) == whole


def test_the_seed_repeats_and_tells_apart() -> None:
    table = bools(4, 300)
    assert bootstrap(table, seed=1) == bootstrap(table, seed=1) != bootstrap(table, seed=2)
    state = torch.get_rng_state()
    paired(table, bools(4, 300, seed=1))
    assert torch.equal(state, torch.get_rng_state())


def simulate(students: int, noise: float) -> Callable[[int], Tensor]:
    """Examples of differing difficulty, students of differing skill; the mean accuracy is 60 percent."""

    def draw(seed: int) -> Tensor:
        generator = rng(seed)
        hard = 0.6 * (torch.rand(300, generator=generator) - 0.5)
        skill = noise * torch.randn(students, 1, generator=generator)
        return torch.rand(students, 300, generator=generator) < 0.6 + hard + skill

    return draw


@pytest.mark.parametrize(("students", "noise", "least", "most"), [(1, 0.0, 0.91, 0.98), (10, 0.03, 0.91, 0.99)])
def test_the_bootstrap_covers(students: int, noise: float, least: float, most: float) -> None:
    draw = simulate(students, noise)
    covered = 0
    for seed in range(300):
        low, high = bootstrap(draw(seed), resamples=400, seed=seed)
        covered += low <= 60 <= high
    assert least <= covered / 300 <= most


def test_students_x_examples_bools_are_not_independent() -> None:
    """Fifty students on the same hard and easy images: an interval of S x N draws would be far too narrow."""
    hits = {"bootstrap": 0, "wilson": 0}
    for seed in range(100):
        generator = rng(seed)
        table = (torch.rand(300, generator=generator) < 0.6).expand(50, 300)
        low, high = bootstrap(table, resamples=200)
        hits["bootstrap"] += low <= 60 <= high
        low, high = wilson(int(table.sum()), table.numel())
        hits["wilson"] += low <= 60 <= high
    assert hits["bootstrap"] > 88
    assert hits["wilson"] < 50


# --- paired


def test_identical_sets() -> None:
    one = bools(1, 80)
    result = paired(one, one)
    assert (result.difference, result.low, result.high, result.p_value) == (0.0, 0.0, 0.0, 1.0)
    many = paired(bools(5, 80), bools(5, 80))
    assert many.difference == 0.0
    assert many.p_value == 1.0
    assert many.low < 0 < many.high  # other students of either set could differ


def test_swapping_the_sets_mirrors() -> None:
    a, b = bools(1, 200), bools(1, 200, 0.5, 1)
    there, back = paired(a, b), paired(b, a)
    assert (back.difference, back.p_value) == (-there.difference, there.p_value)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
    a, b = bools(4, 200), bools(7, 200, 0.5, 1)
    there, back = paired(a, b, resamples=20_000), paired(b, a, resamples=20_000)
    assert (back.difference, back.p_value) == (-there.difference, there.p_value)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=0.3)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (3, 3), (9, 2), (0, 40), (300, 250)])
def test_mcnemar_is_the_binomial(only_a: int, only_b: int) -> None:
    a = torch.cat([torch.ones(only_a + 30), torch.zeros(only_b + 20)]).bool()[None]
    b = torch.cat([torch.zeros(only_a), torch.ones(30 + only_b), torch.zeros(20)]).bool()[None]
    n, fewer = only_a + only_b, min(only_a, only_b)
    expected = min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)
    result = paired(a, b)
    assert result.p_value == expected
    assert result.difference == pytest.approx(100 * (only_a - only_b) / a.shape[1])


def test_sign_flips_agree_with_all_of_them() -> None:
    a, b = bools(3, 12, 0.8), bools(2, 12, 0.6, 1)
    differences = a.double().mean(0) - b.double().mean(0)
    observed = differences.sum().abs() - 1e-9
    flips = [
        (differences * torch.tensor(signs)).sum().abs() >= observed for signs in itertools.product((1, -1), repeat=12)
    ]
    exact = sum(map(int, flips)) / 2**12
    assert 0.001 < exact < 0.5
    assert paired(a, b, resamples=40_000).p_value == pytest.approx(exact, abs=0.01)


def test_p_is_uniform_where_the_sets_do_not_differ() -> None:
    """Rejected at the 10 percent level about that often, of one student and of several."""
    for students, least in ((1, 0.02), (4, 0.04)):
        rejected = 0
        for seed in range(200):
            easy = torch.rand(100, generator=rng(seed))
            a, b = (torch.rand(2, students, 100, generator=rng(1000 + seed)) < easy).unbind()
            rejected += paired(a, b, resamples=200).p_value <= 0.1
        assert least <= rejected / 200 <= 0.15


def test_the_interval_of_a_difference_covers_and_pairing_narrows_it() -> None:
    covered = 0
    for seed in range(200):
        easy = 0.1 + 0.8 * (torch.rand(200, generator=rng(seed)) < 0.5)  # hard or easy for both sets
        draws = torch.rand(2, 6, 200, generator=rng(1000 + seed))
        a, b = draws[0] < easy + 0.05, draws[1] < easy - 0.05
        result = paired(a, b, resamples=300, seed=seed)
        covered += result.low <= 10 <= result.high
    assert 0.92 <= covered / 200 <= 1.0
    (low_a, high_a), (low_b, high_b) = bootstrap(a), bootstrap(b)
    assert result.high - result.low < 0.8 * math.hypot(high_a - low_a, high_b - low_b)


def test_a_real_difference_is_found() -> None:
    for students in (1, 5):
        result = paired(bools(students, 2000, 0.6), bools(students, 2000, 0.5, 1))
        assert 5 < result.low < result.difference < result.high < 15
        assert (result.p_value == 1 / 2001) if students > 1 else (0 < result.p_value < 1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a": torch.rand(2, 9)}, r"bools are torch\.float32 \(2, 9\)"),
        ({"a": bools(1, 9)[0]}, r"bools are torch\.bool \(9,\)"),
        ({"b": bools(0, 9)}, r"\(0, 9\)"),
        ({"b": bools(2, 8)}, "9 and 8 examples"),
        ({"confidence": 0.0}, r"confidence is 0\.0"),
        ({"resamples": 99}, "resamples is 99"),
    ],
)
def test_paired_refuses(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        paired(**{"a": bools(2, 9), "b": bools(2, 9), **change})
