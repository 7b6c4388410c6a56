"""How sure an accuracy is, and a difference of two: intervals and a p-value from one bool per student and test image.

wilson     the score interval of one proportion (Wilson 1927), when only the counts are known.
bootstrap  students and examples are resampled separately and crossed (Owen 2007, "The pigeonhole bootstrap", arXiv
           0712.1111): the same hard images are wrong for all students, so S x N bools are not S x N independent draws.
paired     two sets judged on the same examples.

Deviation: of S students S - 1 are drawn, not S, so that the variance of their mean comes out unbiased (Rao & Wu 1988);
S draws would be narrow by sqrt((S - 1) / S), a tenth for five students. What no interval here can know: the noise of
distilling (one distilled set), and of the students where there is one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

__all__ = ["Paired", "bootstrap", "paired", "wilson"]

CELLS = 2**20
"""entries of the largest table of resamples x examples in memory"""


@dataclass(frozen=True)
class Paired:
    """The first set less the second: see `paired`."""

    difference: float
    """of the mean accuracies, in percentage points"""
    low: float
    """lower end of its interval"""
    high: float
    """upper end"""
    p_value: float
    """two-sided, in (0, 1]; given these students, see `paired`"""


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval (low, high) of a proportion in percent.

    Args:
        successes: how many of n.
        n: independent draws, >= 1: the test images of one student, not of several.
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
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, shrink = successes / n, 1 / (1 + z * z / n)
    centre = shrink * (share + z * z / (2 * n))
    reach = shrink * z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else centre - reach
    high = 1.0 if successes == n else centre + reach
    return 100 * low, 100 * high


def bootstrap(bools: Tensor, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Return the percentile interval (low, high) of the mean accuracy, in percent, over students and examples.

    With one student only the examples are resampled: the interval is then of that student's accuracy. Where students
    vary more than examples do, percentiles of few students are optimistic: 95 % intervals covered 76, 89, 91, 94 and
    96 % for 2, 3, 5, 10 and 20 students (400 simulations). Where no bool differs the interval has no width: take
    `wilson` for an accuracy of 0 or 100.

    Args:
        bools: (S, N), students x examples: classified right?
        confidence: in (0, 1).
        resamples: >= 100.
        seed: of the resampling.

    Raises:
        ValueError: a number is out of its range, or bools are no such tensor.

    >>> bootstrap(torch.ones(3, 50, dtype=torch.bool))
    (100.0, 100.0)
    """
    accuracies = _resampled([bools], confidence, resamples, seed)
    return _percentiles(accuracies[:, 0], confidence)


def paired(a: Tensor, b: Tensor, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Paired:
    """Return how much more accurate the students of one set are than those of another, on the same examples.

    The interval resamples the examples once for both sets, and the students of each set: the difference that new
    students and new test images would show. Students are not paired; where student k of both sets has the same first
    weights, the interval is a little wide.

    The p-value conditions on the students; the examples are its unit. Null hypothesis: for each example, its
    difference of mean accuracies is as likely as its negative. With one student each that is McNemar's exact
    (binomial) test on the discordant examples; with more it is a sign-flip permutation test on the sum of the
    differences by `resamples` random flips, p = (1 + flips at least as extreme) / (1 + flips): valid at any level, and
    never below 1 / (1 + resamples). Noise of the students is inside the interval only, so p can be small while the
    interval holds 0: these students differ, and the two sets need not.

    Args:
        a: (S, N), students x examples: classified right?
        b: (T, N), on the same examples in the same order.
        confidence: in (0, 1).
        resamples: >= 100.
        seed: of the resampling and of the flips.

    Returns:
        the difference a - b with its interval in percentage points, and the p-value.

    Raises:
        ValueError: a number is out of its range, a or b are no such tensors, or they differ in examples.

    >>> a, b = torch.zeros(2, 1, 10, dtype=torch.bool)
    >>> a[0, :6] = True  # six discordant examples, all one way: p = 2 / 2**6
    >>> result = paired(a, b)
    >>> result.difference, result.p_value
    (60.0, 0.03125)
    """
    accuracies = _resampled([a, b], confidence, resamples, seed)
    low, high = _percentiles(accuracies[:, 0] - accuracies[:, 1], confidence)
    # whole numbers: S x T x the differences of an example's mean accuracy, so that ties are exact
    differences = len(b) * a.cpu().sum(0) - len(a) * b.cpu().sum(0)
    difference = 100 * differences.sum().item() / (len(a) * len(b) * a.shape[1])
    if len(a) == len(b) == 1:
        p_value = _mcnemar(int((differences > 0).sum()), int((differences < 0).sum()))
    else:
        p_value = _sign_flip(differences, resamples, _generator(seed, 1))
    return Paired(difference, low, high, p_value)


def _mcnemar(only_a: int, only_b: int) -> float:
    """Return P(a fair coin, thrown for each discordant example, falls as unevenly as this or more)."""
    n, term, tail = only_a + only_b, 1, 0
    for k in range(min(only_a, only_b) + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def _sign_flip(differences: Tensor, flips: int, generator: torch.Generator) -> float:
    """Return the p-value of whole differences (N,) under random signs."""
    moving = differences[differences != 0].double()
    if len(moving) == 0:
        return 1.0
    extreme = 0
    for rows in _chunks(flips, len(moving)):
        signs = torch.randint(2, (rows, len(moving)), generator=generator, dtype=torch.float64) * 2 - 1
        extreme += int(((signs @ moving).abs() >= moving.sum().abs()).sum())
    return (1 + extreme) / (1 + flips)


def _resampled(sets: Sequence[Tensor], confidence: float, resamples: int, seed: int) -> Tensor:
    """Return mean accuracies in percent (resamples, sets); a resample's examples are the same in all sets."""
    _check_confidence(confidence)
    if resamples < 100:
        raise ValueError(f"resamples is {resamples}; it must be >= 100")
    for bools in sets:
        if bools.ndim != 2 or bools.dtype != torch.bool or bools.numel() == 0:
            shape = tuple(bools.shape)
            raise ValueError(f"bools are {bools.dtype} {shape}; they must be torch.bool (students, examples)")
    if len({bools.shape[1] for bools in sets}) > 1:
        counts = " and ".join(str(bools.shape[1]) for bools in sets)
        raise ValueError(f"the sets have {counts} examples; they must be judged on the same")
    examples, generator = sets[0].shape[1], _generator(seed, 0)
    tables, chunks = [bools.cpu().double() for bools in sets], []
    for rows in _chunks(resamples, examples):
        drawn = _counts(examples, examples, rows, generator)
        columns = []
        for table in tables:
            of_students = drawn @ table.T / examples  # (rows, S): each student's accuracy on these examples
            if len(table) > 1:
                of_students = of_students * _counts(len(table) - 1, len(table), rows, generator)
            columns.append(of_students.sum(1) / max(1, len(table) - 1))
        chunks.append(torch.stack(columns, 1))
    return 100 * torch.cat(chunks)


def _counts(draws: int, n: int, rows: int, generator: torch.Generator) -> Tensor:
    """Return how often each of n was drawn in `draws` with replacement, float64 (rows, n)."""
    picks = torch.randint(n, (rows, draws), generator=generator)
    counts = torch.zeros(rows, n, dtype=torch.float64)
    return counts.scatter_add_(1, picks, counts.new_ones(()).expand_as(picks))


def _chunks(rows: int, columns: int) -> Iterator[int]:
    """Yield numbers of rows that sum up, each with at most CELLS entries (but one row at least)."""
    step = max(1, CELLS // columns)
    for first in range(0, rows, step):
        yield min(step, rows - first)


def _percentiles(values: Tensor, confidence: float) -> tuple[float, float]:
    ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=values.dtype)
    low, high = values.quantile(ends).tolist()
    return low, high


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(2 * seed + stream)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be in (0, 1)")
