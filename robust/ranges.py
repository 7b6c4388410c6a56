"""Ranges of numbers, written where a field is declared and checked where the object is made.

    @dataclass(frozen=True)
    class Noise:
        sigma: Positive = 0.25
        draws: Count | None = None

        def __post_init__(self) -> None:
            check_ranges(self)

Every whole number and every float of the dataclass is checked, with a range or without: floats are finite and at most
the largest float32, whole numbers are within 2^31 unless a range has a larger `most` or `least`. `None` is allowed
where the type allows it; tuples and lists are checked entry by entry; nested dataclasses check themselves.
"""

import math
import operator
import types
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = [
    "Count",
    "Fraction",
    "Inside01",
    "NonNegative",
    "Positive",
    "Range",
    "StepSize",
    "UpToOne",
    "Whole",
    "check_number",
    "check_ranges",
    "shown",
]

FLOAT = (2 - 2**-23) * 2.0**127
"""the largest float32"""
INT = 2**31
"""the largest whole number where no range has a larger bound"""


@dataclass(frozen=True)
class Range:
    """The bounds of a number, as metadata of `Annotated`; None is no bound.

    >>> from typing import Annotated
    >>> Share = Annotated[float, Range(above=0, most=1)]
    """

    above: float | None = None
    """the number is larger"""
    least: float | None = None
    """the number is at least this"""
    below: float | None = None
    """the number is smaller"""
    most: float | None = None
    """the number is at most this"""
    hint: str = ""
    """further information for the error message, such as the unit"""

    def __contains__(self, value: float) -> bool:
        """Tell whether a number is inside; NaN is outside of every range."""
        return (
            (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.below is None or value < self.below)
            and (self.most is None or value <= self.most)
        )

    def __str__(self) -> str:
        """The bounds in mathematical notation: "> 0", "in (0, 1]", or an empty text."""
        low = "(" if self.above is not None else "["
        high = ")" if self.below is not None else "]"
        least = self.least if self.above is None else self.above
        most = self.most if self.below is None else self.below
        if least is not None and most is not None:
            return f"in {low}{_brief(least)}, {_brief(most)}{high}"
        pairs = ((">", self.above), (">=", self.least), ("<", self.below), ("<=", self.most))
        return "".join(f"{sign} {_brief(bound)}" for sign, bound in pairs if bound is not None)


def _brief(bound: float) -> str:
    return shown(int(bound)) if float(bound).is_integer() else f"{bound:g}"


Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(least=0)]
Fraction = Annotated[float, Range(least=0, most=1)]
Inside01 = Annotated[float, Range(above=0, below=1)]
UpToOne = Annotated[float, Range(least=0, below=1)]
Count = Annotated[int, Range(least=1)]
Whole = Annotated[int, Range(least=0)]
StepSize = Annotated[float, Range(above=0, hint="in pixels of [0, 1]")] | None


def check_ranges(made: Any) -> None:
    """Check every number among the fields of a dataclass; to be called in its `__post_init__`.

    Raises:
        ValueError: "FIELD is VALUE; it must be ...", for the first field whose value is outside its type or range.

    >>> @dataclass(frozen=True)
    ... class Smoothing:
    ...     sigma: Positive
    ...     def __post_init__(self) -> None:
    ...         check_ranges(self)
    >>> Smoothing(float("nan"))
    Traceback (most recent call last):
    ValueError: sigma is nan; it must be a finite number > 0
    """
    hints = _hints(type(made))
    for field in fields(made):
        check_number(field.name, getattr(made, field.name), hints[field.name])


def check_number(name: str, value: Any, hint: Any) -> None:
    """Check one value by its type, such as `Count` or `Positive | None`; types without numbers are not checked.

    Raises:
        ValueError: "NAME is VALUE; it must be ...".

    >>> check_number("steps", 10, Count)
    >>> check_number("steps", 0, Count)
    Traceback (most recent call last):
    ValueError: steps is 0; it must be >= 1
    """
    choices = _choices(hint)
    numbers = [(kind, limits) for kind, limits in choices if kind in (int, float)]
    others = [kind for kind, _ in choices if kind not in (int, float)]
    matching = [kind for kind in others if _is_of(value, kind)]
    if numbers and not matching:
        wrong = [_fault(value, kind, limits) for kind, limits in numbers]
        if None not in wrong:
            none = ", or None" if types.NoneType in others else ""
            raise ValueError(f"{name} is {shown(value)}; it must be {wrong[-1]}{none}")
    for kind in matching:
        origin, inside = get_origin(kind), get_args(kind)
        if inside and isinstance(value, (tuple, list)):
            same = origin is not tuple or inside[1:] == (...,)
            each = [inside[0]] * len(value) if same else inside
            for number, (entry, of) in enumerate(zip(value, each, strict=False)):
                check_number(f"{name}[{number}]", entry, of)


def shown(value: Any) -> str:
    """Return a short text of a value for a message; integers of many digits are shown by their size.

    >>> shown(0.5), shown(10**5000), shown("x" * 1000)[-8:]
    ('0.5', 'about 10^5000', 'xxxxx...')
    """
    if isinstance(value, int) and abs(value) >= 10**20:
        return f"{'-' if value < 0 else ''}about 10^{int(math.log10(abs(value)))}"
    try:
        text = repr(value)
    except ValueError:  # a list or the like with an integer of many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(kind: type) -> dict[str, Any]:
    if kind not in _HINTS:  # not functools.cache, about which torch.compile warns
        _HINTS[kind] = get_type_hints(kind, include_extras=True)
    return _HINTS[kind]


def _choices(hint: Any, limits: tuple[Range, ...] = ()) -> list[tuple[Any, tuple[Range, ...]]]:
    """Return the types that a type hint allows, each with its ranges."""
    if get_origin(hint) is Annotated:
        inner, *metadata = get_args(hint)
        return _choices(inner, (*limits, *(m for m in metadata if isinstance(m, Range))))
    if get_origin(hint) in (Union, types.UnionType):
        return [choice for part in get_args(hint) for choice in _choices(part, limits)]
    return [(hint, limits)]


def _is_of(value: Any, kind: Any) -> bool:
    """Tell whether a value is of a type other than numbers; True where this cannot be decided."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    kind = get_origin(kind) or kind
    try:
        return kind is Any or (kind in (list, Sequence) and isinstance(value, (tuple, list))) or isinstance(value, kind)
    except TypeError:  # a protocol without isinstance
        return True


def _fault(value: Any, kind: type, limits: tuple[Range, ...]) -> str | None:
    """Return what a number must be, in words, or None if the value fits."""
    word = "a whole number" if kind is int else "a finite number"
    bounds = " and ".join(filter(None, map(str, limits)))
    hint = "".join(f", {limit.hint}" for limit in limits if limit.hint)
    required = f"{word}{bounds and ' '}{bounds}{hint}"
    try:
        if isinstance(value, (str, bytes, bool)):
            return required
        number = operator.index(value) if kind is int else float(value)
    except OverflowError:
        return f"{required}, at most {FLOAT} in size"
    except (TypeError, ValueError, RuntimeError):
        return required
    if kind is float and not math.isfinite(number):
        return required
    if not all(number in limit for limit in limits):
        return bounds + hint
    largest = (
        FLOAT if kind is float else max([INT, *(abs(b) for r in limits for b in (r.least, r.most) if b is not None)])
    )
    return f"{required}, at most {shown(largest)} in size" if abs(number) > largest else None
