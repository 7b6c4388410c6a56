"""Words for configured objects: "NAME:field=value,field=value" into a frozen dataclass with those fields replaced."""

from dataclasses import fields, replace
from fractions import Fraction
from typing import Any, TypeVar

__all__ = ["configured", "split_spec"]

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
            raise ValueError(f"{spec!r}: {item!r} is no field=value")
        if key in options:
            raise ValueError(f"{spec!r}: {key} is given twice; give it once")
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
            raise ValueError(f"{what} has no field {name!r}; choose from {', '.join(known) or 'none'}")
    values = {name: _value(getattr(made, name), text, f"{name} of {what}") for name, text in options.items()}
    return replace(made, **values)  # pyright: ignore[reportType, reportArgumentType, reportCallIssue]


def _value(default: Any, text: str, what: str) -> Any:
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise ValueError(f"{what} is {text!r}; it takes true or false")
        return text == "true"
    kind, word = (int, "a whole number") if isinstance(default, int) else (lambda t: float(Fraction(t)), "a number")
    try:
        return kind(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{what} is {text!r}; it takes {word}") from None
