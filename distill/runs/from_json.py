"""Objects that `distill.runs.description.describe` wrote as JSON, typed again: the way back from experiment.json."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from distill.errors import one_line
from robust.spec import object_named

__all__ = ["Known", "MismatchError", "from_json", "types_of"]

T = TypeVar("T")


class MismatchError(ValueError):
    """A value that does not fit its type; the message begins with the path of the field, as config.real_loss.h."""


@dataclass(frozen=True)
class Known:
    """Types that annotations do not say."""

    types: Mapping[str, type] = field(default_factory=dict)
    """path of a field that is annotated with Any -> its type"""
    classes: Mapping[str, type] = field(default_factory=dict)
    """name of a dataclass -> the class, for fields that are annotated with a Protocol, as losses are"""


NOTHING = Known()


def types_of(config: Any, path: str) -> dict[str, type]:
    """Return the type of a dataclass, and of each value in it whose field is annotated with Any, by path.

    Args:
        config: an object of the type that `from_json` is to return.
        path: of the object.
    """
    found = {path: type(config)}
    for each in fields(config):
        annotation = get_args(each.type)[0] if get_origin(each.type) is Annotated else each.type
        value = getattr(config, each.name)
        if annotation is Any and is_dataclass(value):
            found |= types_of(value, f"{path}.{each.name}")
    return found


def from_json(kind: type[T], value: Any, path: str = "", known: Known = NOTHING) -> T:
    """Return the value of a type that JSON describes: the inverse of `describe`.

    Dataclasses (by the name in "class"), protocols (by that name too, or by package.module:name), unions, Optional,
    Literal, tuples, lists, dicts with text keys, paths, texts, numbers. A dataclass needs a value for each of its
    fields, and no further one; fields with the metadata {"later": True} may be absent, and then have their default.

    Args:
        kind: the type, an annotation of a field as a rule.
        value: of JSON's types.
        path: of the value, for messages: "" at the top.
        known: types that the annotations do not say.

    Raises:
        MismatchError: the value does not fit, with the path of the field.

    >>> from_json(tuple[int, ...] | None, [1, 2])
    (1, 2)
    >>> from_json(Literal["a", "b"], "a", "config.init")
    'a'
    """
    return _typed(known.types.get(path, kind), value, path, known)


def _typed(kind: Any, value: Any, path: str, known: Known) -> Any:
    """Return the value as `from_json` does, of any annotation."""
    origin, parameters = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        return _typed(parameters[0], value, path, known)
    if origin in (Union, UnionType):
        return _of_union(parameters, value, path, known)
    if origin is Literal:
        if any(type(value) is type(each) and value == each for each in parameters):
            return value
        raise _mismatch(path, value, " or ".join(map(repr, parameters)))
    if is_dataclass(kind):
        return _object(kind, value, path, known)
    if getattr(kind, "_is_protocol", False):
        return _object(_class_of(kind, value, path, known), value, path, known)
    if origin in (tuple, list):
        return _sequence(kind, value, path, known)
    if origin is dict and isinstance(value, dict):
        return {name: _typed(parameters[1], each, f"{path}.{name}", known) for name, each in value.items()}
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (bool, int, float, str, NoneType) and type(value) is kind:
        return value
    raise _mismatch(path, value, _name(kind))


def _of_union(parameters: tuple[Any, ...], value: Any, path: str, known: Known) -> Any:
    """Return the value as the member of a union that it fits exactly; an int is taken for a float only without one."""
    members = [get_args(each)[0] if get_origin(each) is Annotated else each for each in parameters]
    if isinstance(value, dict) and "class" in value:
        named = [each for each in members if is_dataclass(each) and _name(each) == value["class"]]
        if named:
            return _typed(named[0], value, path, known)
    for member in sorted(members, key=lambda each: each is float):  # int before float
        try:
            return _typed(member, value, path, known)
        except MismatchError as error:
            if is_dataclass(member) and isinstance(value, dict) and value.get("class") == _name(member):
                raise error from None
    raise _mismatch(path, value, " or ".join(map(_name, members)))


def _sequence(kind: Any, value: Any, path: str, known: Known) -> Any:
    """Return the tuple or list that a JSON list describes."""
    origin, parameters = get_origin(kind), get_args(kind)
    if not isinstance(value, list):
        raise _mismatch(path, value, _name(kind))
    if origin is tuple and parameters[-1:] != (Ellipsis,):
        if len(value) != len(parameters):
            raise _mismatch(path, value, f"a list of {len(parameters)}")
        kinds = parameters
    else:
        kinds = (parameters[0],) * len(value)
    entries = zip(kinds, value, strict=True)
    return origin(_typed(each, entry, f"{path}[{n}]", known) for n, (each, entry) in enumerate(entries))


def _class_of(kind: Any, value: Any, path: str, known: Known) -> Any:
    """Return the dataclass that a dict names, for a field that is annotated with a Protocol."""
    name = value.get("class") if isinstance(value, dict) else None
    try:
        found = known.classes.get(name) or object_named(name, "class") if isinstance(name, str) else None
    except ValueError as error:
        raise MismatchError(f"{_join(path, 'class')}: {error}") from None
    if not (isinstance(found, type) and is_dataclass(found)):
        raise _mismatch(path, value, f"a {_name(kind)}")
    return found


def _object(kind: Any, value: Any, path: str, known: Known) -> Any:
    """Return the dataclass that a dict with its fields and its "class" describes."""
    if not isinstance(value, dict) or str(value.get("class")).rpartition(":")[2] != kind.__qualname__:
        raise _mismatch(path, value, f"a {kind.__name__}")
    hints, names = get_type_hints(kind, include_extras=True), [each.name for each in fields(kind) if each.init]
    later = {each.name for each in fields(kind) if each.metadata.get("later", False)}
    found = {}
    for name, entry in value.items():
        if name == "class":
            continue
        if name not in names:
            raise MismatchError(f"{_join(path, name)} is unknown")
        here = _join(path, name)
        found[name] = _typed(known.types.get(here, hints[name]), entry, here, known)
    for name in names:
        if name not in found and name not in later:
            raise MismatchError(f"{_join(path, name)} is missing")
    try:
        return kind(**found)
    except ValueError as error:
        raise MismatchError(f"{path or kind.__name__}: {one_line(error, 200)}") from None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _mismatch(path: str, value: Any, expected: str) -> MismatchError:
    return MismatchError(f"{path or 'the value'} is {one_line(repr(value), 80)}; it must be {expected}")


def _name(kind: Any) -> str:
    """Return an annotation as a message names it."""
    return "None" if kind is NoneType else kind.__name__ if isinstance(kind, type) else str(kind)
