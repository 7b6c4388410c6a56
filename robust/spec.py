"""Specs: texts "NAME:field=value,field=value" that mean a frozen dataclass with these fields replaced.

NAME is a key of a registry, or `package.module:name` for an object of another package; the dot before the colon tells
the two apart. The numbers of a tuple are joined by colons, `h_warmup=0.1:1:3`.
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
        ValueError: an option has no value, or occurs twice.

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
            raise ValueError(f"{shown(spec)}: {shown(item)} is not field=value")
        if key in options:
            raise ValueError(f"{shown(spec)}: {shown(key)} is given twice; give it once")
        options[key] = value
    return name, options


def configured(made: T, options: dict[str, str], what: str, fixed: tuple[str, ...] = ()) -> T:
    """Return a frozen dataclass with fields replaced by their written values.

    Args:
        made: the dataclass with default values.
        options: field -> text of a value: whole number, number, fraction, true or false, name.
        what: description of the object for errors, such as "attack pgd".
        fixed: fields that are not options; fields whose metadata has written=False are not options either.

    Raises:
        ValueError: a field is unknown, or a value has another type or is out of range.

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
    """Return the object that `package.module:name` names; None for a name of another form (of a registry).

    Args:
        name: as `split_spec` returns it.
        what: kind of the object, for errors, such as "loss".

    Raises:
        ValueError: the module cannot be imported, or has no object of this name.

    >>> object_named("robust.losses.trades:TRADES", "loss").__name__, object_named("trades", "loss")
    ('TRADES', None)
    """
    module, colon, member = name.partition(":")
    if not colon or "." not in module:
        return None
    try:
        return getattr(import_module(module), member)
    except AttributeError as error:
        # an AttributeError raised by the module's code is reported like any other exception of that code
        fault = f"the module has no {shown(member)}" if error.name == member else shown(str(error))
    except Exception as error:  # another package may raise anything; the user gets one line
        fault = f"{type(error).__name__}: {error}".splitlines()[0]
    raise ValueError(f"{what} {shown(name)} cannot be imported: {fault}")


def differences(made: Any, default: Any, fixed: Collection[str] = ()) -> str | None:
    """Return "field=value,..." for the fields in which a dataclass differs from a default: the inverse of `configured`.

    Args:
        made: a dataclass.
        default: another object of the same class.
        fixed: fields that are not options.

    Returns:
        the text, "" if nothing differs; None if a differing value cannot be written as text.

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
    """Return the text from which `_value` reads this value; None if there is no such text."""
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
    """Return the number in a text, which may be a fraction of whole numbers; infinity if too large, None if no number.

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
    except ValueError:  # not a number, or a number of thousands of digits
        return None
