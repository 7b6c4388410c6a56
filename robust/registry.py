"""A folder as a registry: merge the dicts that the files of a package export under one name."""

import sys
from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from robust.threat import Threat

__all__ = ["Named", "joined"]

Named = dict[str, Callable[[Threat], Any]]
"""name -> attack at a threat"""


def joined(package: str, export: str) -> dict[str, Any]:
    """Return the merged dicts that files of a package export under one name, sorted by key.

    Args:
        package: the name of the package, whose import may not have finished.
        export: the name of the dict in each file; a file without it has no entries.

    Raises:
        ValueError: two files have the same key.
    """
    found: dict[str, Any] = {}
    for info in iter_modules(sys.modules[package].__path__):
        entries = vars(import_module(f"{package}.{info.name}")).get(export, {})
        if twice := sorted(found.keys() & entries.keys()):
            raise ValueError(f"{package}: two files have {', '.join(twice)} in their {export}")
        found |= entries
    return dict(sorted(found.items()))
