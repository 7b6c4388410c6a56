"""Your own images: train/CLASS/* and val/CLASS/* (or test/CLASS/*) in the data folder.

Formats: BMP, JPEG, PNG, PNM, TIFF, WebP (`distill.data.decode`).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.data._folders import Listing, held, image_sets, listing, paired
from distill.data.decode import Header, all_grey, header
from distill.data.facts import Facts
from distill.data.image_files import ImageFiles, find_damaged, refusal
from distill.data.imageset import ImageSet
from distill.errors import InputError
from distill.runs.foreign import open_regular

__all__ = ["TYPICAL", "facts", "listings", "load"]

TYPICAL = Facts("folder", classes=10, channels=3, size=32, examples=10_000, files=True, derived=True)
"""stands for a folder that is not there, in `--help`: whoever loads the folder names the error"""
_HEADERS = 100
"""image files whose headers tell size and colours"""
_ENOUGH = 2000
"""images that mean and std are taken of where the training images stay in their files"""


def load(root: Path, image_size: int | None = None, damaged: str = "refuse") -> tuple[ImageSet, ImageSet]:
    """Find all images; mean and std are those of the training images.

    They are RGB, but where every file of both parts is grey by its header: then they have one channel.

    They are read into memory where they take at most 8 GiB. Beyond, they stay in their files, decoded whenever they
    are used, and mean and std are those of at most 2,000 training images, evenly chosen.

    Args:
        root: the folder that holds train/ and val/ (test/ is taken where there is no val/).
        image_size: height and width in pixels: the central square of each image is resized to it by the mean over
            areas. None where all images are squares of one size.
        damaged: what to do with files that cannot be read: "refuse" or "skip".

    Returns:
        training and test set, images (N, 3, H, H), or (N, 1, H, H).

    Raises:
        InputError: a folder is missing or has no images, the classes of the parts differ, a file is damaged, or sizes
            differ and image_size is None.
    """
    parts = listings(root, damaged)
    paths = np.concatenate([part.paths for part in parts])
    size = image_size or _common_size(paths)
    images = held(TYPICAL.name, parts, size, TYPICAL.view, channels=1 if all_grey(paths) else 3)
    mean, std = _statistics(images[0])
    if min(std) == 0:
        raise InputError(f"a channel of all images in {root / 'train'} has one value: there is nothing to learn there")
    return image_sets(TYPICAL.name, parts, images, mean, std)


def facts(root: Path, image_size: int | None = None) -> Facts:
    """Return what the names and a few headers of the training images tell; nothing is decoded.

    Args:
        root: the folder that holds train/.
        image_size: height and width in pixels at which the images will be seen; None for those of the files.

    Returns:
        the number of classes and images; one channel where a hundred images, evenly spread, are grey by their headers;
        and the shorter side of the first image, as all are squares of one size where no other size is given.

    Raises:
        InputError: there is no such folder, it has fewer than two classes, or no image has a header.
    """
    train = listing(root / "train")
    heads = _headers(train.paths)
    if len(train.classes) < 2 or not heads:
        raise InputError(f"{train.folder} must hold two classes or more, of image files that can be read")
    size = image_size or min(heads[0][:2])
    channels = 1 if all(head.grey for head in heads) else 3
    return replace(TYPICAL, classes=len(train.classes), channels=channels, size=size, examples=len(train.paths))


def _headers(paths: np.ndarray) -> list[Header]:
    """Return the headers of a hundred files, evenly spread; where none of them can be read, of the first that can."""
    count = min(_HEADERS, len(paths))
    found = [head for path in paths[np.arange(count) * len(paths) // count] if (head := _header(path))]
    return found or [head for head in map(_header, paths) if head][:1]


def _header(path: bytes | str) -> Header | None:
    try:
        with open_regular(path) as file:
            return header(file)
    except Exception:  # as of `header`
        return None


def listings(root: Path, damaged: str = "refuse") -> tuple[Listing, Listing]:
    """Return the files of both parts: arguments and errors as of `load`."""
    test = "test" if (root / "test").is_dir() and not (root / "val").is_dir() else "val"
    for part in (root / "train", root / test):
        if not part.is_dir():
            raise InputError(
                f"{part} must hold a folder of images for each class (there is no such folder); "
                "--data-dir or DATA_DIR names the folder of train/ and val/ (or test/)"
            )
    return paired(listing(root / "train"), listing(root / test), damaged)


def _common_size(paths: np.ndarray) -> int:
    """Return the side of the images, from their headers; what has none is left to be named by who reads it.

    Raises:
        InputError: they are not squares of one size, or none has a header.
    """
    sizes: dict[tuple[int, int], None] = {}
    for path in paths:
        if head := _header(path):
            sizes[head[:2]] = None
        if len(sizes) == 2:
            break
    if not sizes:
        raise refusal([(paths[index], why) for index, why in find_damaged(paths)], len(paths))
    (width, height), *others = sizes
    if others or width != height:
        found = " and ".join(f"{width}x{height}" for width, height in sizes)
        raise InputError(f"images must be squares of one size, but there are {found} pixels: give --image-size N")
    return width


def _statistics(images: Tensor | ImageFiles) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, in float64, a few images at a time."""
    if isinstance(images, ImageFiles) and len(images) > _ENOUGH:
        images = images.take(torch.arange(_ENOUGH) * len(images) // _ENOUGH)
    parts = [torch.var_mean(part.double(), (2, 3), correction=0) for part in images.split(256)]
    variances, means = (torch.cat(one) for one in zip(*parts, strict=True))  # of each image and channel
    variance = variances.mean(0) + means.var(0, correction=0)
    return tuple(means.mean(0).tolist()), tuple(variance.sqrt().tolist())
