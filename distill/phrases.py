"""Phrases that the program's lines have in common."""

__all__ = ["counted"]


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where there is not one.

    Args:
        number: of things.
        noun: their name in the singular; its first word is put in the plural.

    >>> counted(1, "cell"), counted(0, "image"), counted(1438, "image of digits")
    ('1 cell', '0 images', '1,438 images of digits')
    """
    first, _, rest = noun.partition(" ")
    return f"{number:,} {first}{'s' * (number != 1)}{' ' * bool(rest)}{rest}"
