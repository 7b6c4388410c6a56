"""Data sets: each module that exports `load(root) -> (train, test)` and FACTS is a data set with the module's name.

The folder is the registry. FACTS (`distill.data.facts`) has the metadata of a set; `folder`, for the user's images,
exports `facts(root, image_size)` instead. A set of image files of any size exports `load(root, image_size, damaged)`,
which decodes the files at that size, and `listings(root, damaged)`; other sets are resized here. To keep `import
distill.data` quick, slow imports (torchvision) are inside functions.

A data set of another package is a `DataSet` record with the name `package.module:name`.
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
from distill.outside import object_of_package

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
"""how damaged image files can be handled"""

_MODULES = {module.name: import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)}

DATASETS: tuple[str, ...] = tuple(sorted(name for name, module in _MODULES.items() if hasattr(module, "load")))
"""names of the data sets"""

FACTS: dict[str, Facts] = {name: _MODULES[name].FACTS for name in DATASETS if hasattr(_MODULES[name], "FACTS")}
"""facts of each data set except `folder`"""

FILES: dict[str, int | None] = {
    name: FACTS[name].size if name in FACTS else None for name in DATASETS if FACTS.get(name, folder.TYPICAL).files
}
"""data set of image files -> side in pixels at which images are decoded by default; None: the size of the files"""


@dataclass(frozen=True)
class DataSet:
    """A data set of another package."""

    facts: Facts
    """metadata of the data set"""
    load: Callable[[Path], tuple[ImageSet, ImageSet]]
    """data folder -> training and test set, on the CPU; raises InputError if the data are missing"""


def check_dataset(name: str) -> None:
    """Refuse a name that is neither in DATASETS nor names a `DataSet` of another package, `package.module:name`.

    Raises:
        InputError: the name is unknown; the message lists the known names.
    """
    if name not in DATASETS and _elsewhere(name) is None:
        raise unknown("data set", name, (*DATASETS, "package.module:name"))


_IMPORTED: dict[str, DataSet] = {}
"""data sets of other packages that a caller named; a name that occurs only in a file imports nothing"""


def _elsewhere(name: str) -> DataSet | None:
    """Import a data set of another package; return None if the name has another form."""
    found = object_of_package(name, "data set", lambda it: isinstance(it, DataSet), "a distill.data.DataSet")
    if found is not None:
        _IMPORTED[name] = found
    return found


def facts_of(name: str, root: Path, image_size: int | None = None) -> Facts:
    """Return the facts of a data set at an image size.

    Args:
        name: one of DATASETS, or `package.module:name`.
        root: as in `load`; read only for `folder`.
        image_size: height and width in pixels; None keeps the size of the set.

    Raises:
        InputError: the name is unknown, or the folder of the user's images is missing or has no images.
    """
    check_dataset(name)
    if name not in DATASETS or name in FACTS:
        return facts_named(name).resized(image_size)
    return _MODULES[name].facts(root.expanduser().absolute(), image_size)


def facts_named(name: str) -> Facts:
    """Return the facts of a data set from the name alone; for `folder` and unknown names these are typical facts.

    A data set of another package is known after `check_dataset`, `facts_of` or `load` has imported it.

    >>> facts_named("mnist").flips, facts_named("folder").flips, facts_named("folder").constants
    (False, True, {})
    """
    return replace(_IMPORTED[name].facts, derived=True) if name in _IMPORTED else FACTS.get(name, folder.TYPICAL)


def label(name: str, root: Path) -> str:
    """Return the name of a data set in folders and tables; for `folder` it includes the name of the data folder.

    Args:
        name: one of DATASETS, or `package.module:name`.
        root: as in `load`.

    >>> label("mnist", Path("data")), re.sub("[0-9a-f]{6}$", "123abc", label("folder", Path("my data/pets 2")))
    ('mnist', 'folder-pets_2-123abc')
    """
    if name != "folder":
        return name.replace(":", ".")
    path = os.path.realpath(root.expanduser())
    word = re.sub(r"[^A-Za-z0-9_.]+", "_", os.path.basename(path))[:40]
    return f"{name}-{word}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:6]}"


def fingerprint(name: str, root: Path) -> str:
    """Return a hash of the stored training data, 64 hex digits; image files are not decoded.

    Args:
        name: one of DATASETS, or `package.module:name`.
        root: as in `load`.

    Raises:
        InputError: the data are missing.
    """
    root = root.expanduser().absolute()
    return files_hash(_MODULES[name].listings(root)[0]) if name in FILES else load(name, root)[0].digest


def load(name: str, root: Path, image_size: int | None = None, damaged: str = "refuse") -> tuple[ImageSet, ImageSet]:
    """Load a data set; a missing set is first downloaded if its authors allow that.

    Args:
        name: one of DATASETS, or `package.module:name`.
        root: folder of the data, in torchvision's layout; for `folder` the folder that contains train/.
        image_size: new height and width in pixels, 4 to 1024 (by the mean over areas; for ImageNet and its subsets by
            the transform of ImageNet's evaluation); None keeps the size of the set.
        damaged: handling of unreadable image files. "refuse": raise an error that names them. "skip": try each file
            once while loading, omit unreadable files and report them on standard error. Sets without image files
            ignore this argument.

    Returns:
        the training and the test set, on the CPU.

    Raises:
        InputError: the name is unknown, the size is out of range, `damaged` has another value, or the data are missing
            or damaged.
    """
    check_dataset(name)
    if image_size is not None and not 4 <= image_size <= 1024:
        raise InputError(f"image size is {image_size}; it must be from 4 to 1024 pixels")
    if damaged not in DAMAGED:
        raise unknown("value of damaged", damaged, DAMAGED)
    root = root.expanduser().absolute()
    if name in FILES:
        return _MODULES[name].load(root, image_size, damaged)
    elsewhere = None if name in DATASETS else _elsewhere(name)
    if elsewhere is None:
        train, test = _MODULES[name].load(root)
    else:  # the set is renamed to `package.module:name`, under which its facts are found
        train, test = (replace(part, name=name) for part in elsewhere.load(root))
    return (train, test) if image_size is None else (train.resized(image_size), test.resized(image_size))
