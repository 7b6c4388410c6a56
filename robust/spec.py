"""Texts for configured objects: "NAME:field=value,field=value" into a frozen dataclass with those fields replaced.

NAME is a name of a registry, or `package.module:name`: an object in anybody's package, with a dot before the colon.
A tuple of numbers is joined by colons, `h_warmup=0.1:1:3`.
"""

import re
from collections.abc import Collection
from dataclasses import fields, replace
from importlib import import_module
from typing import Any, TypeVar

from robust.ranges import shown

__all__ = ["configured", "differences", "number_in", "object_named", "split_spec"]

T = TypeVar("T")


def split_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Return the name and the options of a spec.

    Raises:
        ValueError: an option without a value, or one given twice.

    >>> split_spec("pgd:steps=50,step_size=1/255")
    ('pgd', {'steps': '50', 'step_size': '1/255'})
    >>> split_spec("my_package.losses:MyLoss:weight=3")
    ('my_package.losses:MyLoss', {'weight': '3'})
    """
    name, _, rest = spec.partition(":")
    member, _, behind = rest.partition(":")
    if "." in name and member and "=" not in member:
        name, rest = f"{name}:{member}", behind
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


def object_named(name: str, what: str) -> Any:
    """Return the object of a name `package.module:name`, None for a name of another form, which a registry may have.

    Args:
        name: as `split_spec` returns it.
        what: of what the name is, for the errors, such as "loss".

    Raises:
        ValueError: the module cannot be imported, or has no such object.

    >>> object_named("robust.losses.trades:TRADES", "loss").__name__, object_named("trades", "loss")
    ('TRADES', None)
    """
    module, colon, member = name.partition(":")
    if not colon or "." not in module:
        return None
    try:
        return getattr(import_module(module), member)
    except AttributeError as error:
        # an AttributeError of the module's own code is a fault of that code, as any other exception is
        fault = f"the module has no {shown(member)}" if error.name == member else shown(str(error))
    except Exception as error:  # anything can happen in somebody's module; the user gets one line
        fault = f"{type(error).__name__}: {error}".splitlines()[0]
    raise ValueError(f"{what} {shown(name)} cannot be imported: {fault}")


def differences(made: Any, default: Any, fixed: Collection[str] = ()) -> str | None:
    """Return "field=value,..." for the fields in which a dataclass differs from another: the inverse of `configured`.

    Args:
        made: a dataclass.
        default: one of the same class.
        fixed: fields that are no options.

    Returns:
        the text, "" where nothing differs; None where the text cannot express a value.

    >>> from robust.attacks.pgd import PGD
    >>> from robust.threat import Threat
    >>> differences(PGD(Threat("linf", 0.1), steps=50), PGD(Threat("linf", 0.1)), fixed=("threat",))
    'steps=50'
    """
    options: list[str] = []
    for field in fields(made):
        value, other = getattr(made, field.name), getattr(default, field.name)
        if value == other and isinstance(value, bool) == isinstance(other, bool):
            continue
        text = None if field.name in fixed or not field.metadata.get("written", True) else _text(value)
        if text is None:
            return None
        options.append(f"{field.name}={text}")
    return ",".join(options)


def _text(value: Any) -> str | None:
    """Return a value as `_value` reads it; None where it does not."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ":".join(map(str, value)) if value else None
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value) if isinstance(value, (str, int)) else None


def _value(default: Any, text: str, what: str) -> Any:
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise ValueError(f"{what} is {text!r}; it takes true or false")
        return text == "true"
    if isinstance(default, tuple):
        values = tuple(number_in(part) for part in text.split(":"))
        if None in values:
            raise ValueError(f"{what} is {shown(text)}; it takes numbers, joined by colons")
        return values
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
