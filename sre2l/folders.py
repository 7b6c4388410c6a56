"""Distilled images as folders of pictures: ours written for people and other code, published ones read.

Written are pictures/CLASS/NNNN.png, rounded to bytes; the exact floats stay in the set's own file. Read are such
folders, and those of the official code of SRe2L, CDA and GUARD: newCCC/classCCC_idIII.jpg, CCC the number of the class.
"""

import re
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from distill.data.image_files import ENDINGS
from distill.errors import InputError
from distill.files import write_atomic

__all__ = ["read_pictures", "write_pictures"]


def write_pictures(images: Tensor, labels: Tensor, classes: tuple[str, ...], folder: Path) -> None:
    """Write each image as a PNG file.

    Args:
        images: (N, C, H, W) pixels.
        labels: (N,) classes.
        classes: their names, which become folders.
        folder: made if needed.
    """
    numbers = [0] * len(classes)
    for image, label in zip(chain.from_iterable(images.split(256)), labels.tolist(), strict=True):
        path = folder / _folder_of(classes[label]) / f"{numbers[label]:04d}.png"
        numbers[label] += 1
        if not path.exists():
            picture = to_pil_image((image.clamp(0, 1) * 255).round().byte().cpu())
            write_atomic(path, lambda temporary, picture=picture: picture.save(temporary, "PNG"))


def read_pictures(folder: Path, classes: tuple[str, ...], ipc: int, shape: tuple[int, int, int]) -> Tensor:
    """Read the images of a folder of pictures.

    Args:
        folder: with a folder of pictures for each class, named as the class, or newCCC with its number.
        classes: names of the classes.
        ipc: images of each class to take, in the order of their names.
        shape: (C, H, W) that the images must have.

    Returns:
        (classes * ipc, C, H, W) pixels, sorted by class.

    Raises:
        InputError: a class, or an image of one, is missing, a file is no image, or has another size.
    """
    from PIL import Image

    if not folder.is_dir():
        raise InputError(f"recover.images is {folder}: no such folder")
    found: list[Tensor] = []
    for number, name in enumerate(classes):
        names = (name, _folder_of(name), f"new{number:03d}")
        place = next((folder / each for each in names if (folder / each).is_dir()), None)
        if place is None:
            raise InputError(f"{folder} has no folder for class {name} (looked for {', '.join(dict.fromkeys(names))})")
        files = sorted(path for path in place.iterdir() if path.suffix.lower() in ENDINGS)
        if len(files) < ipc:
            raise InputError(f"{place} has {len(files)} images, fewer than ipc {ipc}")
        for path in files[:ipc]:
            try:
                with Image.open(path) as image:
                    found.append(pil_to_tensor(image.convert("RGB" if shape[0] == 3 else "L")))
            except Exception as error:  # Pillow raises anything from SyntaxError to struct.error
                raise InputError(f"{path} cannot be read as an image ({error})") from None
            if tuple(found[-1].shape) != shape:
                size = "x".join(map(str, found[-1].shape[1:]))
                raise InputError(f"{path} has {size} pixels, the data set {shape[1]}x{shape[2]}; give --image-size")
    return torch.stack(found).float() / 255


def _folder_of(name: str) -> str:
    """Return the name of a class as a file system takes it."""
    return re.sub(r"[^\w.-]+", "_", name)
