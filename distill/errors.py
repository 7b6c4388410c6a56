"""The exception for errors that a user can correct: the program prints its message and exits with code 2."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["LONGEST", "InputError", "one_line", "printable", "unknown"]

LONGEST = 400
"""most characters of a line for the terminal"""


class InputError(ValueError):
    r"""Bad input or missing data; the message is one line that names the value and the alternatives.

    >>> print(InputError("there is no file a" + chr(10) + "b"))
    there is no file a\nb
    """

    def __str__(self) -> str:
        """Return the message; characters that cannot be printed (of a file name, for example) become escapes."""
        return printable(super().__str__())


def unknown(kind: str, value: str, known: Iterable[str]) -> InputError:
    """Make the error for a name that is not in a registry.

    Args:
        kind: of the name, such as "method".
        value: the name.
        known: all names of that kind.

    Returns:
        the error, to be raised.

    >>> print(unknown("method", "guard_cd", ["dc", "guard_dc"]))
    unknown method 'guard_cd'; did you mean 'guard_dc'? Known: dc, guard_dc
    >>> print(unknown("backbone", "ResNet-18", ["resnet18_ap", "resnet18"]))
    unknown backbone 'ResNet-18'; did you mean 'resnet18'? Known: resnet18_ap, resnet18
    """
    names = list(known)
    close = _meant(value, names)
    hint = f"; did you mean '{close}'?" if close else "."
    return InputError(f"unknown {kind} '{value}'{hint} Known: {', '.join(names)}")


def _meant(value: str, names: list[str]) -> str | None:
    """Return the name that a value is in other letters, else the first that it begins, else the most similar one."""

    def letters(text: str) -> str:
        return "".join(filter(str.isalnum, text)).lower()

    same = [name for name in names if letters(name) == letters(value)]
    begun = [name for name in names if name.startswith(f"{value.lower()}_")]
    similar = get_close_matches(value, names, n=1) or get_close_matches(value.lower(), names, n=1)
    return next(iter([*same, *begun, *similar]), None)


def printable(text: str) -> str:
    """Return a text with its control characters as escapes."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def one_line(text: object, most: int = LONGEST) -> str:
    r"""Return a text as one line for a terminal: control characters as escapes, a long text without its middle.

    Names and messages may come from files of other people, which can contain any character.

    >>> print(one_line("no class 'a" + chr(27) + "[2J'" + chr(10) + " in x.pt"))
    no class 'a\x1b[2J' in x.pt
    >>> len(one_line("x" * 1_000_000))
    400
    """
    whole = str(text)
    words = " ".join(whole[: 100 * most].split())
    if len(whole) > 100 * most:
        words += " " + " ".join(whole[-most:].split())
    line = printable(words)
    if len(line) <= most:
        return line
    end = most // 3  # a message ends with what to do
    return f"{line[: most - end - 5]} ... {line[-end:]}"
