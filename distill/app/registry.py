"""Which methods there are: found where they lie, in the three packages of methods, or named from outside.

A method of another package is a `Method` record, named `package.module:name`.
"""

import pkgutil
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import baselines
import distill.methods
import sre2l
from distill.errors import InputError
from distill.methods.method import Method
from robust.spec import object_named

__all__ = ["check_packages", "find_methods", "method_named"]

PACKAGES = (distill.methods, sre2l, baselines)
"""whose modules, and those of whose folders, export METHODS; in the order in which `list` has them"""


def find_methods() -> dict[str, Method]:
    """Return all methods by name.

    Raises:
        ValueError: two methods have one name.
    """
    found: dict[str, Method] = {}
    for package in PACKAGES:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for method in getattr(import_module(module.name), "METHODS", ()):
                if method.name in found:
                    raise ValueError(f"two methods are named {method.name}; {module.name} has the second")
                found[method.name] = method
    return found


def method_named(name: str, methods: Mapping[str, Method]) -> Method | None:
    """Return a method by name, None where there is none.

    Args:
        name: as `find_methods` has it, or `package.module:name`, which is then the name of the method in folders and
            tables too, so that they say where it came from.
        methods: what `find_methods` found.

    Raises:
        InputError: the module cannot be imported, or has no such method.
    """
    if name in methods:
        return methods[name]
    try:
        found = object_named(name, "method")
    except ValueError as error:
        raise InputError(str(error)) from None
    if found is not None and not isinstance(found, Method):
        raise InputError(f"method {name} is a {type(found).__name__}; it must be a distill.methods.method.Method")
    return found and replace(found, name=name)


def check_packages(source: Path, names: Iterable[str], flags: Iterable[str]) -> None:
    """Refuse to import another package that only a file names: the command line has to name it too.

    Args:
        source: the file or folder, for the error.
        names: names in it, of any form: of data sets, backbones, methods, attacks.
        flags: the words of the command line.

    Raises:
        InputError: `package.module:name` is among the names, and no word contains it.
    """
    for text in names:
        for name in re.findall(r"[A-Za-z_]\w*(?:\.\w+)+:[A-Za-z_]\w*", text):
            package = name.partition(".")[0]
            if not any(name in word or package in word.split(",") for word in flags):
                raise InputError(
                    f"{source} names {name} of another package, which is imported if the command names it: "
                    f"--packages {package}"
                )
