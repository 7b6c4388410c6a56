"""Find methods: the modules of three packages register them; a flag can name a method of another package.

A method of another package is a `Method` record with the name `package.module:name`.
"""

import pkgutil
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import baselines
import distill.methods
import sre2l
from baselines.attacked import named as named_attacked
from baselines.robust_features.method import named as named_features
from baselines.robust_labels.recipes import named as named_labels
from distill.errors import InputError
from distill.methods.method import Method
from distill.outside import object_of_package
from distill.training.protocol import ProtocolOf

__all__ = ["check_packages", "find_methods", "method_named", "methods_named", "protocols_of"]

PACKAGES = (distill.methods, sre2l, baselines)
"""packages whose modules (at any depth) export METHODS, in the order of `list`"""


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


def protocols_of(methods: Mapping[str, Method]) -> dict[str, ProtocolOf]:
    """Return the authors' protocol of each method that has one, by the method's name."""
    return {name: method.protocol for name, method in methods.items() if method.protocol}


def method_named(name: str, methods: Mapping[str, Method]) -> Method | None:
    """Return a method by name, None for an unknown name.

    Args:
        name: a key of `find_methods`; METHOD_robust_labels and the like, or METHOD_robust_features, for any METHOD that
            has no colon; at_METHOD and the like; or `package.module:name`, which folders and tables then show as
            the method's name.
        methods: the result of `find_methods`.

    Raises:
        InputError: the module cannot be imported, or has no such method.
    """
    if name in methods:
        return methods[name]
    if ":" not in name:
        of_base = partial(method_named, methods=methods)
        return named_labels(name, of_base) or named_features(name, of_base) or named_attacked(name)
    expected = "a distill.methods.method.Method"
    found = object_of_package(name, "method", lambda it: isinstance(it, Method), expected)
    return found and replace(found, name=name)


def methods_named(names: Iterable[str], methods: Mapping[str, Method]) -> dict[str, Method]:
    """Return the methods by name, and with them those that only `method_named` knows.

    Args:
        names: of methods, as a comma-separated list has them; unknown ones are left to the caller.
        methods: the result of `find_methods`.

    Raises:
        InputError: as of `method_named`.
    """
    found = {name: method_named(name, methods) for name in filter(None, map(str.strip, names))}
    return dict(methods) | {name: method for name, method in found.items() if method is not None}


def packages_in(names: Iterable[str]) -> dict[str, str]:
    """Return object -> package for the objects of other packages that texts name.

    >>> packages_in(["cifar10", "theirs.nets:wide:width=4"])
    {'theirs.nets:wide': 'theirs'}
    """
    found = [name for text in names for name in re.findall(r"[A-Za-z_]\w*(?:\.\w+)+:[A-Za-z_]\w*", text)]
    return {name: name.partition(".")[0] for name in found}


def check_packages(source: Path, names: Iterable[str], flags: Iterable[str]) -> None:
    """Refuse to import another package that only a file names: the command line must name the package too.

    Args:
        source: the file or folder, for the error.
        names: texts from the file that may name data sets, backbones, methods, attacks.
        flags: the words of the command line.

    Raises:
        InputError: a text names `package.module:name`, and no word of the command line names it or the package.
    """
    for name, package in packages_in(names).items():
        if not any(name in word or package in word.split(",") for word in flags):
            raise InputError(
                f"{source} names {name} of another package, which is imported only if the command names it: "
                f"--packages {package}"
            )
