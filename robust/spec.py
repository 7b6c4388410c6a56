"""Words for configured objects: "NAME:field=value,field=value" into a frozen dataclass with those fields replaced."""

import re
from dataclasses import fields, replace
from typing import Any, TypeVar

from robust.ranges import shown

__all__ = ["configured", "number_in", "split_spec"]

T = TypeVar("T")


def split_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Return the name and the options of a spec.

    Raises:
        ValueError: an option without a value, or one given twice.

    >>> split_spec("pgd:steps=50,step_size=1/255")
    ('pgd', {'steps': '50', 'step_size': '1/255'})
    """
    name, _, rest = spec.partition(":")
    options: dict[str, str] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not value:
            raise ValueError(f"{shown(spec)}: {shown(item)} is no field=value")
        if key in options:
            raise ValueError(f"{shown(spec)}: {shown(key)} is given twice; give it once")
        options[key] = value
    return name, options


def configured(made: T, options: dict[str, str], what: str, fixed: tuple[str, ...] = ()) -> T:
    """Return a frozen dataclass with fields replaced by their written values.

    Args:
        made: the dataclass with its defaults.
        options: field -> value as written: whole numbers, numbers, fractions, true or false, names.
        what: what it is, for errors.
        fixed: fields that are no options, beside those whose metadata has written=False.

    Raises:
        ValueError: an unknown field, or a value of another kind; and what the dataclass says of its range.

    >>> from robust.attacks.pgd import PGD
    >>> from robust.threat import Threat
    >>> configured(PGD(Threat("linf", 0.1)), {"step_size": "1/4", "random_start": "false"}, "attack pgd").step_size
    0.25
    """
    all_fields = fields(made)  # pyright: ignore[reportArgumentType]
    known = [field.name for field in all_fields if field.name not in fixed and field.metadata.get("written", True)]
    for name in options:
        if name not in known:
            raise ValueError(f"{what} has no field {shown(name)}; choose from {', '.join(known) or 'none'}")
    values = {name: _value(getattr(made, name), text, f"{name} of {what}") for name, text in options.items()}
    return replace(made, **values)  # pyright: ignore[reportType, reportArgumentType, reportCallIssue]


def _value(default: Any, text: str, what: str) -> Any:
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise ValueError(f"{what} is {text!r}; it takes true or false")
        return text == "true"
    whole = isinstance(default, int)
    value = _whole_in(text) if whole else number_in(text)
    if value is None:
        raise ValueError(f"{what} is {shown(text)}; it takes {'a whole number' if whole else 'a number'}")
    return value


def number_in(text: str) -> float | None:
    """Return the number that a text is, also a fraction of whole numbers; infinity where too large, None for no number.

    >>> number_in("8/255") == 8 / 255, number_in("1e400"), number_in("1/0"), number_in("eight")
    (True, inf, None, None)
    """
    if not re.fullmatch(r"\s*[+-]?\d+/\d+\s*", text):
        try:
            return float(text)
        except ValueError:
            return None
    above, below = (_whole_in(part) for part in text.split("/"))
    if above is None or not below:
        return None
    try:
        return above / below
    except OverflowError:
        return float("inf") if above > 0 else float("-inf")


def _whole_in(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:  # no number, or one of thousands of digits
        return None
