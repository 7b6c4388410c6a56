"""McNemar's exact test: may it be chance that one attack breaks so many examples that another does not?"""

from itertools import accumulate

__all__ = ["FEW", "LEVEL", "sign_test"]

LEVEL = 0.01
"""of the one-sided sign tests: 7 examples to 0 count, 6 to 0 do not"""
FEW = 7
"""examples: so few may be chance"""


def sign_test(wins: int, losses: int) -> float:
    """Return the probability of so many wins or more among wins + losses tosses of a fair coin.

    McNemar's exact test, one-sided, of examples that one attack breaks and another does not (and the reverse).

    >>> sign_test(7, 0), sign_test(0, 7), sign_test(0, 0)
    (0.0078125, 1.0, 1.0)
    """
    ways = accumulate(range(losses), lambda way, k: way * (wins + losses - k) // (k + 1), initial=1)
    return sum(ways) / 2 ** (wins + losses)
