"""The user's images: train/CLASS/* and val/CLASS/* (or test/CLASS/*) in the data folder.

Formats: BMP, JPEG, PNG, PNM, TIFF, WebP (`distill.data.decode`).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.data._folders import Listing, held, image_sets, listing, paired
from distill.data.damaged import find_damaged, refusal
from distill.data.decode import Header, all_grey, header
from distill.data.facts import Facts
from distill.data.image_files import ImageFiles
from distill.data.imageset import ImageSet
from distill.errors import InputError
from distill.runs.foreign import open_regular

__all__ = ["TYPICAL", "facts", "listings", "load"]

TYPICAL = Facts("folder", classes=10, channels=3, size=32, examples=10_000, files=True, derived=True)
"""facts of a missing folder, for `--help`; loading the folder raises the error"""
_HEADERS = 100
"""number of files whose headers give size and colours"""
_ENOUGH = 2000
"""number of images for mean and std if the training images stay in their files"""


def load(root: Path, image_size: int | None = None, damaged: str = "refuse") -> tuple[ImageSet, ImageSet]:
    """Find all images; mean and std are measured on the training images.

    Images are RGB; they have one channel if all training and test files are grey according to their headers.

    Images are read into memory if they take at most 8 GiB. Otherwise they stay in their files and are decoded at each
    use; mean and std are then measured on at most 2,000 evenly spaced training images.

    Args:
        root: the folder that contains train/ and val/ (or test/, if there is no val/).
        image_size: height and width in pixels, to which the central square of each image is resized by the mean over
            areas. None requires that all images are squares of one size.
        damaged: handling of unreadable files: "refuse" or "skip".

    Returns:
        training and test set, images (N, 3, H, H), or (N, 1, H, H).

    Raises:
        InputError: a folder is missing or has no images, training and test set have different classes, a file is
            damaged, or sizes differ and image_size is None.
    """
    parts = listings(root, damaged)
    paths = np.concatenate([part.paths for part in parts])
    size = image_size or _common_size(paths)
    images = held(TYPICAL.name, parts, size, TYPICAL.view, channels=1 if all_grey(paths) else 3)
    mean, std = _statistics(images[0])
    if min(std) == 0:
        raise InputError(f"a channel of all images in {root / 'train'} is constant: there is nothing to learn")
    return image_sets(TYPICAL.name, parts, images, mean, std)


def facts(root: Path, image_size: int | None = None) -> Facts:
    """Return the facts from the names and some headers of the training images; no image is decoded.

    Args:
        root: the folder that contains train/.
        image_size: height and width in pixels at which images will be used; None for the size of the files.

    Returns:
        the numbers of classes and images; one channel if 100 evenly spaced images are grey according to their headers;
        and as size the shorter side of the first image, because without image_size all images must have one size.

    Raises:
        InputError: the folder is missing, has fewer than two classes, or no image has a readable header.
    """
    train = listing(root / "train")
    heads = _headers(train.paths)
    if len(train.classes) < 2 or not heads:
        raise InputError(f"{train.folder} must contain at least two classes of readable image files")
    size = image_size or min(heads[0][:2])
    channels = 1 if all(head.grey for head in heads) else 3
    return replace(TYPICAL, classes=len(train.classes), channels=channels, size=size, examples=len(train.paths))


def _headers(paths: np.ndarray) -> list[Header]:
    """Return the headers of 100 evenly spaced files; if none is readable, the first readable header of all files."""
    count = min(_HEADERS, len(paths))
    found = [head for path in paths[np.arange(count) * len(paths) // count] if (head := _header(path))]
    return found or [head for head in map(_header, paths) if head][:1]


def _header(path: bytes | str) -> Header | None:
    try:
        with open_regular(path) as file:
            return header(file)
    except Exception:  # as in `header`
        return None


def listings(root: Path, damaged: str = "refuse") -> tuple[Listing, Listing]:
    """Return the files of the training and the test set; arguments and errors are those of `load`."""
    test = "test" if (root / "test").is_dir() and not (root / "val").is_dir() else "val"
    for subfolder in (root / "train", root / test):
        if not subfolder.is_dir():
            raise InputError(
                f"{subfolder} must contain a folder of images for each class (the folder is missing); "
                "--data-dir or DATA_DIR is the folder that contains train/ and val/ (or test/)"
            )
    return paired(listing(root / "train"), listing(root / test), damaged)


def _common_size(paths: np.ndarray) -> int:
    """Return the side of the images, from their headers; files without a header are ignored here.

    Raises:
        InputError: the images are not squares of one size, or no file has a readable header.
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
    variances, means = (torch.cat(tensors) for tensors in zip(*parts, strict=True))  # per image and channel
    variance = variances.mean(0) + means.var(0, correction=0)
    return tuple(means.mean(0).tolist()), tuple(variance.sqrt().tolist())
