"""Your own images: train/CLASS/* and val/CLASS/* (or test/CLASS/*) in the data folder, in any format Pillow reads."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from distill.data.imageset import ImageSet
from distill.errors import InputError
from distill.progress import progress

__all__ = ["load"]

_LIMIT = 8 * 2**30
"""bytes that the images of both parts may take in memory"""
_BYTES_PER_PIXEL = 3 * 4
"""three channels of float32"""


def load(root: Path, image_size: int | None = None) -> tuple[ImageSet, ImageSet]:
    """Read all images as RGB; mean and std are those of the training images.

    Args:
        root: the folder that holds train/ and val/ (test/ is taken where there is no val/).
        image_size: height and width in pixels: the central square of each image is resized to it by the mean over
            areas. None where all images are squares of one size.

    Returns:
        training and test set, images (N, 3, H, H).

    Raises:
        InputError: a folder is missing or has no images, the classes of the parts differ, a file is not an image,
            sizes differ and image_size is None, or the whole would not fit into memory.
    """
    from torchvision.datasets import ImageFolder

    def find(folder: Path) -> ImageFolder:
        try:
            return ImageFolder(folder)
        except OSError as error:
            raise InputError(
                f"{folder} must hold a folder of images for each class ({error}); --data-dir or DATA_DIR names the "
                "folder of train/ and val/ (or test/)"
            ) from None

    train = find(root / "train")
    test = find(root / ("test" if (root / "test").is_dir() and not (root / "val").is_dir() else "val"))
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise InputError(f"{train.root} and {test.root} must have the same classes; only one has {', '.join(odd[:5])}")

    files = [path for path, _ in train.samples + test.samples]
    size = image_size or _common_size(files)
    if len(files) * size**2 * _BYTES_PER_PIXEL > _LIMIT:
        largest = int((_LIMIT / len(files) / _BYTES_PER_PIXEL) ** 0.5)
        raise InputError(
            f"{len(files)} images of {size}x{size} pixels take more than {_LIMIT / 2**30:g} GiB; "
            f"--image-size {largest} is the largest that fits"
        )
    train_images, test_images = (_read([path for path, _ in part.samples], size) for part in (train, test))
    mean, std = _statistics(train_images)
    if min(std) == 0:
        raise InputError(f"a channel of all images in {train.root} has one value: there is nothing to learn from them")
    classes = tuple(train.classes)
    return (
        ImageSet("folder", train_images, torch.tensor(train.targets), classes, mean, std),
        ImageSet("folder", test_images, torch.tensor(test.targets), classes, mean, std),
    )


def _common_size(files: Iterable[str]) -> int:
    """Return the side of the images, from their headers.

    Raises:
        InputError: they are not squares of one size, or not images.
    """
    sizes: dict[tuple[int, int], None] = {}
    for file in files:
        with _open(file) as image:
            sizes[image.size] = None
        if len(sizes) == 2:
            break
    (width, height), *others = sizes
    if others or width != height:
        found = " and ".join(f"{width}x{height}" for width, height in sizes)
        raise InputError(f"images must be squares of one size, but there are {found} pixels: give --image-size N")
    return width


@contextmanager
def _open(file: str) -> Iterator[Image.Image]:
    """Open an image, whose pixels are decoded on their first use.

    Raises:
        InputError: it is not an image, is damaged (when decoded), or has more than eight bits a channel.
    """
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip these to eight bits without a word
                raise InputError("more than 8 bits a channel")
            yield image
    except Exception as error:  # Pillow raises anything from SyntaxError to struct.error
        raise InputError(f"{file} cannot be read as an image ({error}): mend or remove it") from None


def _read(files: list[str], size: int) -> Tensor:
    images = torch.empty(len(files), 3, size, size)
    many = len(files) > 2000
    with progress("reading images", len(files), unit="file") if many else tqdm(disable=True) as bar:
        for image, file in zip(images, files, strict=True):
            image.copy_(torch.from_numpy(_square(file, size)).permute(2, 0, 1))
            bar.update()
    return images.div_(255)


def _square(file: str, size: int) -> np.ndarray:
    """Return the central square of an image, (size, size, 3) uint8; at that size already, it is untouched."""
    with _open(file) as image:
        if "transparency" in image.info:
            image = image.convert("RGBA")
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
        return np.array(image.convert("RGB").resize((size, size), Image.Resampling.BOX, box))


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, in float64, a few images at a time."""
    parts = [torch.var_mean(part.double(), (2, 3), correction=0) for part in images.split(256)]
    variances, means = (torch.cat(one) for one in zip(*parts, strict=True))  # of each image and channel
    variance = variances.mean(0) + means.var(0, correction=0)
    return tuple(means.mean(0).tolist()), tuple(variance.sqrt().tolist())
