"""Data sets: each module that exports `load(root) -> (train, test)` and FACTS is one, by its own name.

The folder is the registry. FACTS (`distill.data.facts`) is all that is known of a set; a set of the user's own images
exports `facts(root, image_size)` instead. A set of image files of any size exports `load(root, image_size, damaged)`,
which decodes them at that size, and `listings(root, damaged)`; all others are resized here. To keep `import
distill.data` quick, what is heavy (torchvision, scikit-learn) is imported inside functions.

A data set of another package is a `DataSet` record, named `package.module:name`.
"""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from distill.data import folder
from distill.data._folders import fingerprint as files_hash
from distill.data.facts import Facts
from distill.data.imageset import ImageSet
from distill.errors import InputError, unknown
from robust.spec import object_named

__all__ = [
    "DAMAGED",
    "DATASETS",
    "FACTS",
    "FILES",
    "DataSet",
    "Facts",
    "ImageSet",
    "check_dataset",
    "facts_named",
    "facts_of",
    "fingerprint",
    "label",
    "load",
]

DAMAGED = ("refuse", "skip")
"""what can be done with damaged files"""

_MODULES = {module.name: import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)}

DATASETS: tuple[str, ...] = tuple(sorted(name for name, module in _MODULES.items() if hasattr(module, "load")))
"""names of the data sets"""

FACTS: dict[str, Facts] = {name: _MODULES[name].FACTS for name in DATASETS if hasattr(_MODULES[name], "FACTS")}
"""what is known of each data set that is not the user's own images"""

FILES: dict[str, int | None] = {
    name: FACTS[name].size if name in FACTS else None for name in DATASETS if FACTS.get(name, folder.TYPICAL).files
}
"""data sets of image files -> side in pixels at which each is decoded by default; None: that of the files"""


@dataclass(frozen=True)
class DataSet:
    """A data set of another package."""

    facts: Facts
    """what is known of it"""
    load: Callable[[Path], tuple[ImageSet, ImageSet]]
    """data folder -> training and test set, on the CPU; InputError where the data are missing"""


def check_dataset(name: str) -> None:
    """Refuse a name that is neither one of DATASETS nor a `DataSet` of another package, `package.module:name`.

    Raises:
        InputError: with the names that there are.
    """
    if name not in DATASETS and _elsewhere(name) is None:
        raise unknown("data set", name, (*DATASETS, "package.module:name"))


_IMPORTED: dict[str, DataSet] = {}
"""data sets of other packages that a caller named: a name that stands in a file alone imports nothing"""


def _elsewhere(name: str) -> DataSet | None:
    """Import a data set of another package; None for a name of another form."""
    try:
        found = object_named(name, "data set")
    except ValueError as error:
        raise InputError(str(error)) from None
    if found is not None and not isinstance(found, DataSet):
        raise InputError(f"data set {name} is a {type(found).__name__}; it must be a distill.data.DataSet")
    if found is not None:
        _IMPORTED[name] = found
    return found


def facts_of(name: str, root: Path, image_size: int | None = None) -> Facts:
    """Return what is known of a data set, at the size in pixels at which it will be seen.

    Args:
        name: one of DATASETS, or `package.module:name`.
        root: as in `load`; looked at for the user's own images alone.
        image_size: height and width in pixels; None keeps the set's own.

    Raises:
        InputError: the name is unknown, or the folder of the user's own images is missing, or has no images.
    """
    check_dataset(name)
    if name not in DATASETS or name in FACTS:
        return facts_named(name).resized(image_size)
    return _MODULES[name].facts(root.expanduser().absolute(), image_size)


def facts_named(name: str) -> Facts:
    """Return what is known of a data set by its name alone; of the user's own images, that no code or paper has them.

    A data set of another package is known once `check_dataset`, `facts_of` or `load` imported it.

    >>> facts_named("mnist").flips, facts_named("folder").flips, facts_named("folder").constants
    (False, True, {})
    """
    return replace(_IMPORTED[name].facts, derived=True) if name in _IMPORTED else FACTS.get(name, folder.TYPICAL)


def label(name: str, root: Path) -> str:
    """Return how folders and tables name a data set; of own images the name of their folder is in it, so that two sets
    live side by side.

    Args:
        name: one of DATASETS, or `package.module:name`.
        root: as in `load`.

    >>> label("mnist", Path("data")), re.sub("[0-9a-f]{6}$", "123abc", label("folder", Path("my data/pets 2")))
    ('mnist', 'folder-pets_2-123abc')
    """
    if name != "folder":
        return name.replace(":", ".")
    place = os.path.realpath(root.expanduser())
    word = re.sub(r"[^A-Za-z0-9_.]+", "_", os.path.basename(place))[:40]
    return f"{name}-{word}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:6]}"


def fingerprint(name: str, root: Path) -> str:
    """Return a hash of the training data as it lies there, 64 hex digits; image files are not decoded.

    Args:
        name: one of DATASETS, or `package.module:name`.
        root: as in `load`.

    Raises:
        InputError: the data are missing.
    """
    root = root.expanduser().absolute()
    return files_hash(_MODULES[name].listings(root)[0]) if name in FILES else load(name, root)[0].digest


def load(name: str, root: Path, image_size: int | None = None, damaged: str = "refuse") -> tuple[ImageSet, ImageSet]:
    """Load a data set, downloading it first where it is missing and its authors allow that.

    Args:
        name: one of DATASETS, or `package.module:name`.
        root: folder of the data, as torchvision lays it out; for `folder` the one that holds train/.
        image_size: height and width in pixels to resize to (by the mean over areas; ImageNet and its subsets as its
            evaluation has it), 4 to 1024; None keeps the set's own.
        damaged: what to do with image files that cannot be read. "refuse": raise, naming them. "skip": try each file
            once while loading, leave those out, and say so on standard error. Sets that are no image files have none.

    Returns:
        the training and the test set, on the CPU.

    Raises:
        InputError: the name is unknown, the size out of range, `damaged` none of these, or the data missing or
            damaged.
    """
    check_dataset(name)
    if image_size is not None and not 4 <= image_size <= 1024:
        raise InputError(f"image size is {image_size}; it must be from 4 to 1024 pixels")
    if damaged not in DAMAGED:
        raise unknown("way with damaged files", damaged, DAMAGED)
    root = root.expanduser().absolute()
    if name in FILES:
        return _MODULES[name].load(root, image_size, damaged)
    elsewhere = None if name in DATASETS else _elsewhere(name)
    if elsewhere is None:
        train, test = _MODULES[name].load(root)
    else:  # a set is known by the name that was written, so that its facts are found
        train, test = (replace(part, name=name) for part in elsewhere.load(root))
    return (train, test) if image_size is None else (train.resized(image_size), test.resized(image_size))
