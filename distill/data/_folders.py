"""Image sets with a folder for each class: find them, list them without a stat of any file, and make ImageSets."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.data.damaged import find_damaged
from distill.data.facts import Facts
from distill.data.image_files import ENDINGS, LIMIT, ImageFiles, View, read_all
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
"""largest size in bytes of training and test images together in memory"""


@dataclass(frozen=True, eq=False)
class Listing:
    """The image files of a training or test set, sorted by class and then by name."""

    folder: Path
    """the folder that contains the class folders"""
    paths: np.ndarray
    """(N,) bytes, paths of the files"""
    labels: Tensor
    """(N,) int64, classes of the files"""
    classes: tuple[str, ...]
    """names of the class folders, sorted"""


def find(name: str, root: Path, below: Sequence[str], bring: str) -> Path:
    """Return the folder that contains train/ and val/ of a data set: a known subfolder of `root`, or `root`.

    Args:
        name: name of the data set.
        root: the data folder; absolute.
        below: known names of the subfolder, in order of preference.
        bring: advice for the user if the folder is missing.

    Raises:
        InputError: the folder is missing.
    """
    found = [folder for folder in (*(root / each for each in below), root) if (folder / "train").is_dir()]
    if not found:
        raise InputError(
            f"{name} is not in {root}: neither this folder nor {', '.join(below)} below it has train/CLASS/*.JPEG and "
            f"val/CLASS/*.JPEG; {bring}, and set --data-dir or DATA_DIR"
        )
    if len(found) > 1 and is_main_process():
        others = ", ".join(map(str, found[1:]))
        print(f"{name} is read from {found[0]}; there is also {others}", file=sys.stderr)
    return found[0]


def listing(folder: Path) -> Listing:
    """List the images of a folder with a subfolder for each class, recursively; hidden names are ignored.

    Args:
        folder: the folder; absolute.

    Returns:
        the files whose names have the suffix of an image; no file is opened.

    Raises:
        InputError: the folder is missing or cannot be read, has no class folders, or a class folder has no images.
    """
    try:
        with os.scandir(folder) as entries:
            classes = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
        files = [_files_in(folder / name) for name in classes]
        flat = [] if classes else _files_in(folder)
    except OSError as error:
        raise InputError(f"{folder} must contain a folder of images for each class ({error.strerror})") from None
    if flat:
        raise InputError(
            f"{folder} contains {len(flat):,} images but no class folders: sort them into {folder}/CLASS/, as in train/"
        )
    if not classes:
        raise InputError(f"{folder} must contain a folder of images for each class (it is empty)")
    empty = [name for name, found in zip(classes, files, strict=True) if not found]
    if empty:
        endings = ", ".join(ENDINGS)
        raise InputError(
            f"{folder / empty[0]} has no images ({endings}){f', nor have {len(empty) - 1} others' if empty[1:] else ''}"
            ": add images, or remove the class from the training and the test set"
        )
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(found) for found in files]))
    return Listing(folder, np.array([path for found in files for path in found]), labels, tuple(classes))


def _files_in(folder: Path | bytes) -> list[bytes]:
    """Return the paths of the image files in a folder, sorted by name, followed by those of the subfolders.

    Raises:
        OSError: the folder cannot be read.
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
    """Check that training and test set have the same classes, and return them, without damaged files for "skip".

    Args:
        train: listing of the training set.
        test: listing of the test set.
        damaged: "refuse" opens no file; "skip" decodes each file once and reports the omitted files.

    Returns:
        the listings of the training and the test set.

    Raises:
        InputError: the classes differ, there is only one class, or all files of a class are damaged.
    """
    odd = sorted(set(train.classes) ^ set(test.classes))
    if odd:
        raise InputError(
            f"{train.folder} and {test.folder} must have the same classes; only one has {', '.join(odd[:5])}"
        )
    if len(train.classes) < 2:
        raise InputError(
            f"{train.folder} has one class, {', '.join(train.classes)}, but at least two are needed: make a folder for "
            "each class"
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
        print(f"damaged and omitted: {len(found):,} of {len(paths):,} files: {names}{more}", file=sys.stderr)
    sound = torch.ones(len(paths), dtype=torch.bool)
    sound[[index for index, _ in found]] = False
    return _selected(train, sound[: len(train.paths)]), _selected(test, sound[len(train.paths) :])


def _selected(files: Listing, mask: Tensor) -> Listing:
    labels = files.labels[mask]
    counts = labels.bincount(minlength=len(files.classes))
    if not counts.all():
        name = files.classes[int(counts.argmin())]
        raise InputError(f"all files of class {name} in {files.folder} are damaged: repair them or remove the class")
    return replace(files, paths=files.paths[mask.numpy()], labels=labels)


def held(
    name: str, parts: Sequence[Listing], size: int, view: View, channels: int = 3
) -> list[Tensor] | list[ImageFiles]:
    """Return the training and test images as tensors, or as files if they would take more than 8 GiB of memory.

    Args:
        name: name of the data set.
        parts: the listings of the training and the test set.
        size: height and width in pixels.
        view: how an image is cropped and resized.
        channels: 3 for RGB; 1 if all files are grey.

    Raises:
        InputError: a decoded file is damaged.
    """
    files = [ImageFiles(part.paths, size, view, channels=channels) for part in parts]
    total = sum(map(len, files))
    if 4 * channels * total * size**2 <= _LIMIT:
        return read_all(files)
    if is_main_process():
        print(
            f"{name}: {total:,} images of {size}x{size} pixels take more than {_LIMIT / 2**30:g} GiB of memory: "
            "they are decoded at each use",
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
    """Return the training and the test set.

    Args:
        name: name of the data set.
        parts: the listings of the training and the test set.
        images: the images of the training and the test set.
        mean: per channel, of pixels in [0, 1].
        std: per channel, as `mean`.
    """
    train, test = (
        ImageSet(name, pixels, part.labels, part.classes, mean, std, fingerprint(part))
        for part, pixels in zip(parts, images, strict=True)
    )
    return train, test


def fingerprint(part: Listing) -> str:
    """Return a hash of the files of a listing: see `ImageFiles.fingerprint`."""
    return ImageFiles(part.paths, 1, "square").fingerprint(os.fsencode(part.folder))


def imagenet_listings(name: str, root: Path, below: Sequence[str], bring: str, damaged: str) -> tuple[Listing, Listing]:
    """Return the files of ImageNet or a subset: train/ and val/ with a folder for each class.

    Args:
        name: name of the data set.
        root: the data folder; absolute.
        below: known names of the subfolder, in order of preference.
        bring: advice for the user if the folder is missing.
        damaged: handling of unreadable files: "refuse" (error at the first use) or "skip" (checks all files first).

    Raises:
        InputError: as `find`, `listing` and `paired`.
    """
    folder = find(name, root, below, bring)
    return paired(listing(folder / "train"), listing(folder / "val"), damaged)


def sets_in_files(facts: Facts, parts: Sequence[Listing]) -> tuple[ImageSet, ImageSet]:
    """Return the training and the test set, whose images stay in their files.

    Args:
        facts: facts of the data set; used are name, size, view, mean and std.
        parts: the listings of the training and the test set.
    """
    files = [ImageFiles(part.paths, facts.size, facts.view) for part in parts]
    return image_sets(facts.name, parts, files, facts.mean, facts.std)
