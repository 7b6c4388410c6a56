"""Tiny ImageNet (Stanford CS231n, 2015): 110,000 photographs of 200 classes, 64 x 64 RGB.

The user provides the files, in the data folder or, preferably, in a subfolder tiny-imagenet-200/, tiny-imagenet/ or
tiny-imagenet-10/. The layout is that of the archive (train/WNID/images/*, val/images/* and val/val_annotations.txt) or
re-sorted (train/WNID/*, val/WNID/* or val/WNID/images/*). Any number of classes is accepted. The validation set is the
test set: labels of the official test set were never published.
"""

import os
from pathlib import Path

import numpy as np
import torch

from distill.data._folders import Listing, find, held, image_sets, listing, paired
from distill.data.facts import Facts
from distill.data.imageset import ImageSet
from distill.errors import InputError

__all__ = ["FACTS", "listings", "load"]

_BELOW = ("tiny-imagenet-200", "tiny-imagenet", "tiny-imagenet-10")
# The codes of DC and MTT have ImageNet's mean and std.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FACTS = Facts(
    name="tiny_imagenet",
    classes=200,
    channels=3,
    size=64,
    examples=100_000,
    mean=(0.4802, 0.4481, 0.3975),  # mean and std: SRe2L's code for Tiny ImageNet, zeyuanyin/tiny-imagenet
    std=(0.2302, 0.2265, 0.2262),
    constants={
        "dc": _IMAGENET,
        "mtt": _IMAGENET,
        "frepo": ((0.4759, 0.4481, 0.3926), (0.2763, 0.2687, 0.2813)),
    },
    official="TinyImageNet",
    whitened=("frepo",),
    files=True,
    parts=True,
    licence="other",
    terms="Tiny-ImageNet is a part of ImageNet: non-commercial research and education.",
)


def load(root: Path, image_size: int | None = None, damaged: str = "refuse") -> tuple[ImageSet, ImageSet]:
    """Read the images into memory (5 GB), or leave them in their files if they would take more than 8 GiB.

    Args:
        root: the data folder.
        image_size: height and width in pixels. None is 64; below 64, each pixel is the mean over an area; above 64,
            images are transformed as in `imagenet` (as GUARD does for Tiny ImageNet at 224 pixels).
        damaged: handling of unreadable files: "refuse" or "skip".

    Returns:
        training and test set, images (N, 3, H, H).

    Raises:
        InputError: folders are missing, training and test set have different classes, or a file is damaged.
    """
    parts = listings(root, damaged)
    size = image_size or FACTS.size
    images = held(FACTS.name, parts, size, "crop" if size > FACTS.size else FACTS.view)
    return image_sets(FACTS.name, parts, images, FACTS.mean, FACTS.std)


def listings(root: Path, damaged: str = "refuse") -> tuple[Listing, Listing]:
    """Return the files of the training and the test set; arguments and errors are those of `load`."""
    folder = find(FACTS.name, root, _BELOW, "get tiny-imagenet-200.zip from cs231n.stanford.edu")
    train = listing(folder / "train")
    official = (folder / "val" / "val_annotations.txt").is_file() and (folder / "val" / "images").is_dir()
    test = _annotated(folder / "val", train.classes) if official else listing(folder / "val")
    return paired(train, test, damaged)


def _annotated(folder: Path, classes: tuple[str, ...]) -> Listing:
    """List the validation set in the layout of the archive: the files of `classes`, sorted by class and then by name.

    Args:
        folder: val/.
        classes: the classes of the training set.

    Returns:
        the files, in the same order as in the re-sorted layout.

    Raises:
        InputError: the file of labels is malformed, or a class has no images.
    """
    path = folder / "val_annotations.txt"
    number = {name: label for label, name in enumerate(classes)}
    try:
        pairs = [line.split("\t")[:2] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = sorted((number[wnid], name) for name, wnid in pairs if wnid in number)
    except ValueError:  # from unpacking, or because the file is not text
        raise InputError(f"{path} must have a file's name, a tab and its class on each line") from None
    missing = set(number.values()) - {label for label, _ in found}
    if missing:
        raise InputError(f"{path} names no image of class {classes[min(missing)]}, which {folder.parent}/train has")
    paths = np.array([os.fsencode(folder / "images" / name) for _, name in found])
    return Listing(folder, paths, torch.tensor([label for label, _ in found]), classes)
