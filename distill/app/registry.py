"""Which methods there are: found where they lie, in the three packages of methods."""

import pkgutil
from importlib import import_module

import baselines
import distill.methods
import sre2l
from distill.methods.method import Method

__all__ = ["find_methods"]

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
