"""The flags that the fields of settings are on the command line, and settings that contain those of another method."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, make_dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from robust import Loss

__all__ = ["Flag", "flags_of_command", "nested"]


@dataclass(frozen=True)
class Flag:
    """A flag of a command: its field, and what the field is of."""

    name: str
    """--student.lr, or the upper-case name of a positional argument"""
    field: str
    """name of the field"""
    owner: type
    """dataclass of the field"""
    hint: Any
    """type of the field, with its annotations"""
    value: Any
    """its default; `tyro.MISSING` if the command requires a value"""


def flags_of_command(command: Any, prefix: str = "--") -> Iterator[Flag]:
    """Yield each flag of a command, those of nested dataclasses included.

    Args:
        command: a dataclass with its defaults.
        prefix: of the flags' names.
    """
    hints = get_type_hints(type(command), include_extras=True)
    for field in fields(command):
        hint, value = hints[field.name], getattr(command, field.name)
        marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        if tyro.conf.Suppress in marks:
            continue
        name = f"{prefix}{field.name.replace('_', '-')}"
        if is_dataclass(value) and not isinstance(value, Loss):
            nameless = any(getattr(mark, "name", None) == "" for mark in marks)
            yield from flags_of_command(value, prefix if nameless else f"{name}.")
        else:
            name = field.name.upper() if tyro.conf.Positional in marks else name
            yield Flag(name, field.name, type(command), hint, value)


def nested(settings: Any, inner: str) -> Any:
    """Return settings whose field `inner`, the settings of another method, has flags that no other field has.

    As a rule they are the flags of the other method: --iterations. If a name would be two flags, such as --teacher
    where the images have a teacher too, all flags of `inner` begin with its name: --images.iterations.

    Args:
        settings: a dataclass, with the flags of `inner` beside its own.
        inner: name of the field.
    """
    names = [flag.name for flag in flags_of_command(settings)]
    if len({*names}) == len(names):
        return settings
    return _prefixed(type(settings), inner)(**{each.name: getattr(settings, each.name) for each in fields(settings)})


@cache
def _prefixed(kind: type, inner: str) -> type:
    """Return a class of settings with the same name and fields, where the flags of a field begin with its name."""
    field = (inner, Annotated[Any, tyro.conf.arg()])
    same = {"__module__": kind.__module__, "__doc__": kind.__doc__}
    return make_dataclass(kind.__name__, [field], bases=(kind,), namespace=same, frozen=True)
