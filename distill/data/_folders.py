"""Image sets in folders, one folder a class: found, listed without a stat of any file, and made into ImageSets."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.data.facts import Facts
from distill.data.image_files import ENDINGS, LIMIT, ImageFiles, View, find_damaged, read_all
from distill.data.imageset import ImageSet
from distill.errors import InputError
from distill.runs.ranks import is_main_process

__all__ = [
    "Listing",
    "find",
    "fingerprint",
    "held",
    "image_sets",
    "imagenet_listings",
    "listing",
    "paired",
    "sets_in_files",
]

_LIMIT = LIMIT
"""of both parts together"""


@dataclass(frozen=True, eq=False)
class Listing:
    """The image files of a part of a data set, class by class, each class by name."""

    folder: Path
    """what was listed"""
    paths: np.ndarray
    """(N,) bytes"""
    labels: Tensor
    """(N,) int64"""
    classes: tuple[str, ...]
    """names of the folders, sorted"""


def find(name: str, root: Path, below: Sequence[str], bring: str) -> Path:
    """Return the folder that holds train/ and val/ of a data set: one of the set's own names in `root`, or `root`.

    Args:
        name: of the data set.
        root: the data folder; absolute.
        below: names of the set's folder, the preferred first.
        bring: what the user can do where there is none.

    Raises:
        InputError: there is none.
    """
    found = [place for place in (*(root / each for each in below), root) if (place / "train").is_dir()]
    if not found:
        raise InputError(
            f"{name} is not in {root}: neither it nor a folder {', '.join(below)} in it holds train/CLASS/*.JPEG and "
            f"val/CLASS/*.JPEG; {bring}, and point --data-dir or DATA_DIR to it"
        )
    if len(found) > 1 and is_main_process():
        others = ", ".join(map(str, found[1:]))
        print(f"{name} is read from {found[0]}; there is also {others}", file=sys.stderr)
    return found[0]


def listing(folder: Path) -> Listing:
    """List the images of a folder that holds a folder for each class; subfolders count, hidden names do not.

    Args:
        folder: absolute.

    Returns:
        the files, told by the endings of their names: nothing is opened.

    Raises:
        InputError: the folder is missing or cannot be read, has no class folders, or one of them has no images.
    """
    try:
        with os.scandir(folder) as entries:
            classes = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
        files = [_files_in(folder / name) for name in classes]
        flat = [] if classes else _files_in(folder)
    except OSError as error:
        raise InputError(f"{folder} must hold a folder of images for each class ({error.strerror})") from None
    if flat:
        raise InputError(
            f"{folder} holds {len(flat):,} images but no class folders: sort them into {folder}/CLASS/, as train/ has "
            "them"
        )
    if not classes:
        raise InputError(f"{folder} must hold a folder of images for each class (it is empty)")
    empty = [name for name, found in zip(classes, files, strict=True) if not found]
    if empty:
        endings = ", ".join(ENDINGS)
        raise InputError(
            f"{folder / empty[0]} has no images ({endings}){f', nor have {len(empty) - 1} others' if empty[1:] else ''}"
            ": put some there, or remove the class from both parts"
        )
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(found) for found in files]))
    return Listing(folder, np.array([path for found in files for path in found]), labels, tuple(classes))


def _files_in(folder: Path | bytes) -> list[bytes]:
    """Return the paths of the image files in a folder, by name, then those of its subfolders.

    Raises:
        OSError: it cannot be read.
    """
    images, folders = [], []
    with os.scandir(os.fsencode(folder)) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            if os.fsdecode(entry.name.lower()).endswith(ENDINGS):
                images.append(entry.path)
            elif entry.is_dir():
                folders.append(entry.path)
    images.sort()
    for each in sorted(folders):
        images += _files_in(each)
    return images


def paired(train: Listing, test: Listing, damaged: str) -> tuple[Listing, Listing]:
    """Return both parts, which must have the same classes, without their damaged files where these are to be skipped.

    Args:
        train: training part.
        test: test part.
        damaged: "refuse" looks into no file; "skip" decodes each of them once and says what it leaves out.

    Raises:
        InputError: the classes differ, there is one alone, or all files of a class are damaged.
    """
    odd = sorted(set(train.classes) ^ set(test.classes))
    if odd:
        raise InputError(
            f"{train.folder} and {test.folder} must have the same classes; only one has {', '.join(odd[:5])}"
        )
    if len(train.classes) < 2:
        raise InputError(
            f"{train.folder} has one class, {', '.join(train.classes)}, and a network tells at least two apart: give "
            "each class a folder of its own"
        )
    if damaged == "refuse":
        return train, test
    paths = np.concatenate([train.paths, test.paths])
    found = find_damaged(paths)
    if not found:
        return train, test
    names = ", ".join(f"{os.fsdecode(paths[index])} ({why})" for index, why in found[:3])
    if is_main_process():
        more = ", ..." if len(found) > 3 else ""
        print(f"damaged and left out: {len(found):,} of {len(paths):,} files: {names}{more}", file=sys.stderr)
    sound = torch.ones(len(paths), dtype=torch.bool)
    sound[[index for index, _ in found]] = False
    return _kept(train, sound[: len(train.paths)]), _kept(test, sound[len(train.paths) :])


def _kept(part: Listing, sound: Tensor) -> Listing:
    labels = part.labels[sound]
    counts = labels.bincount(minlength=len(part.classes))
    if not counts.all():
        name = part.classes[int(counts.argmin())]
        raise InputError(f"all files of class {name} in {part.folder} are damaged: mend them or remove the class")
    return replace(part, paths=part.paths[sound.numpy()], labels=labels)


def held(
    name: str, parts: Sequence[Listing], size: int, view: View, channels: int = 3
) -> list[Tensor] | list[ImageFiles]:
    """Return the images of both parts in memory, or as files where they would take more than 8 GiB.

    Args:
        name: of the data set.
        parts: their files.
        size: height and width in pixels.
        view: what is seen of an image.
        channels: 3 for RGB; 1 where all files are grey.

    Raises:
        InputError: files that are read are damaged.
    """
    files = [ImageFiles(part.paths, size, view, channels=channels) for part in parts]
    total = sum(map(len, files))
    if 4 * channels * total * size**2 <= _LIMIT:
        return read_all(files)
    if is_main_process():
        print(
            f"{name}: {total:,} images of {size}x{size} pixels take more than {_LIMIT / 2**30:g} GiB of memory: "
            "they are decoded whenever they are used",
            file=sys.stderr,
        )
    return files


def image_sets(
    name: str,
    parts: Sequence[Listing],
    images: Sequence[Tensor | ImageFiles],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tuple[ImageSet, ImageSet]:
    """Return training and test set.

    Args:
        name: of the data set.
        parts: what was listed of each.
        images: of each part.
        mean: per channel, of pixels in [0, 1].
        std: per channel, as `mean`.
    """
    train, test = (
        ImageSet(name, pixels, part.labels, part.classes, mean, std, fingerprint(part))
        for part, pixels in zip(parts, images, strict=True)
    )
    return train, test


def fingerprint(part: Listing) -> str:
    """Return a hash of a part's files: see `ImageFiles.fingerprint`."""
    return ImageFiles(part.paths, 1, "square").fingerprint(os.fsencode(part.folder))


def imagenet_listings(name: str, root: Path, below: Sequence[str], bring: str, damaged: str) -> tuple[Listing, Listing]:
    """Return the files of ImageNet or a part of it: train/ and val/ with a folder a class.

    Args:
        name: of the data set.
        root: the data folder; absolute.
        below: names of the set's folder, the preferred first.
        bring: what the user can do where there is none.
        damaged: what to do with files that cannot be read: "refuse" (when one is met) or "skip" (checks all of them).

    Raises:
        InputError: as `find`, `listing` and `paired`.
    """
    place = find(name, root, below, bring)
    return paired(listing(place / "train"), listing(place / "val"), damaged)


def sets_in_files(facts: Facts, parts: Sequence[Listing]) -> tuple[ImageSet, ImageSet]:
    """Return training and test set, whose images stay in their files.

    Args:
        facts: of the data set: name, size, view, mean and std.
        parts: its files.
    """
    files = [ImageFiles(part.paths, facts.size, facts.view) for part in parts]
    return image_sets(facts.name, parts, files, facts.mean, facts.std)
