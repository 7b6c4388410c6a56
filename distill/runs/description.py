"""Experiments as JSON, by which runs are told apart, and the differences between two of them."""

from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

__all__ = ["describe", "difference"]


def describe(value: Any) -> Any:
    """Return a value as JSON has it; a dataclass becomes a dict with the name of its class.

    The class of an object from another package, such as a loss, is named `package.module:name`.
    Two kinds of fields are left out. With the metadata {"identity": False}: runs that differ in nothing else are the
    same run. With {"later": True}, where the value is the default: a run has the description that versions before the
    field gave it, and `from_json` takes the default.
    """
    if is_dataclass(value) and not isinstance(value, type):
        names = [each.name for each in fields(value) if _is_described(each, getattr(value, each.name))]
        return {"class": _class_of(value)} | {name: describe(getattr(value, name)) for name in names}
    if isinstance(value, (tuple, list)):
        return [describe(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _is_described(field: Field, value: Any) -> bool:
    """Return whether a description has a field of this value."""
    if field.metadata.get("later", False):
        return value != (field.default if field.default_factory is MISSING else field.default_factory())
    return field.metadata.get("identity", True)


def _class_of(value: Any) -> str:
    kind = type(value)
    package, _, rest = kind.__module__.partition(".")
    ours = package in ("robust", "distill", "baselines", "sre2l") or not rest
    return kind.__name__ if ours else f"{kind.__module__}:{kind.__qualname__}"


def difference(found: Any, requested: Any, path: str = "") -> str:
    """Return where two descriptions differ, as "field is A there, B now; ...".

    >>> difference({"ipc": 1, "config": {"lr": 0.1}}, {"ipc": 1, "config": {"lr": 0.2}})
    'config.lr is 0.1 there, 0.2 now'
    """
    if isinstance(found, dict) and isinstance(requested, dict):
        names = [*found, *(name for name in requested if name not in found)]
        parts = (
            difference(found.get(name), requested.get(name), f"{path}.{name}".strip("."))
            for name in names
            if found.get(name) != requested.get(name)
        )
        return "; ".join(parts)
    return f"{path or 'it'} is {found} there, {requested} now"
