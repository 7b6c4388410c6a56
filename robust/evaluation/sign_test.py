"""McNemar's exact test: whether one attack breaks more examples than another by more than chance."""

from itertools import accumulate

__all__ = ["FEW", "LEVEL", "sign_test"]

LEVEL = 0.01
"""significance level of the one-sided sign tests: 7 examples to 0 are significant, 6 to 0 are not"""
FEW = 7
"""least number of examples that is not taken for chance"""


def sign_test(wins: int, losses: int) -> float:
    """Return the probability of at least `wins` heads in wins + losses tosses of a fair coin.

    One-sided exact test of McNemar: `wins` examples are broken by one attack only, `losses` by the other attack only.

    >>> sign_test(7, 0), sign_test(0, 7), sign_test(0, 0)
    (0.0078125, 1.0, 1.0)
    """
    ways = accumulate(range(losses), lambda way, k: way * (wins + losses - k) // (k + 1), initial=1)
    return sum(ways) / 2 ** (wins + losses)
