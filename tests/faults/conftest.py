"""What the campaigns share: small runs on own data, of which no test is in doubt."""

from tests.recipes.conftest import data, no_advised_attacks

__all__ = ["data", "no_advised_attacks"]
