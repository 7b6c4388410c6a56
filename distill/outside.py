"""Objects of other packages, named `package.module:name`: methods, data sets, backbones."""

from collections.abc import Callable
from typing import Any

from distill.errors import InputError
from robust.spec import object_named

__all__ = ["object_of_package"]


def object_of_package(name: str, what: str, is_right: Callable[[Any], bool], expected: str) -> Any:
    """Import an object of another package.

    Args:
        name: `package.module:name`, or any other name.
        what: the kind of object, for errors.
        is_right: whether an object can be used as that kind.
        expected: what the object must be, for errors.

    Returns:
        the object; None for a name of another form.

    Raises:
        InputError: the module cannot be imported, has no such object, or the object is of another kind.
    """
    try:
        found = object_named(name, what)
    except ValueError as error:
        raise InputError(str(error)) from None
    if found is not None and not is_right(found):
        raise InputError(f"{what} {name} is a {type(found).__name__}; it must be {expected}")
    return found
