"""The one exception for what a user can mend: `__main__` prints its line and exits with code 2."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["InputError", "unknown"]


class InputError(ValueError):
    """Bad input or missing data; the message is one line that names the value and the alternatives."""


def unknown(kind: str, value: str, known: Iterable[str]) -> InputError:
    """Make the error for a name that is not in a registry.

    Args:
        kind: what the name is of.
        value: the name.
        known: all names of that kind.

    Returns:
        the error, to be raised.

    >>> print(unknown("method", "guard_cd", ["dc", "guard_dc"]))
    unknown method 'guard_cd'; did you mean 'guard_dc'? Known: dc, guard_dc
    """
    names = list(known)
    close = get_close_matches(value, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    return InputError(f"unknown {kind} '{value}'{hint} Known: {', '.join(names)}")
