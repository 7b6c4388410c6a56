"""ImageNet (ILSVRC 2012; Russakovsky et al. 2015): 1.28 million photographs of 1,000 classes, decoded when used.

Brought by the user, since its terms forbid to hand it on: train/WNID/* and val/WNID/* in the data folder, or in
imagenet/, ILSVRC2012/ or imagenet-1k/ in it (these come first). Any number of classes will do; they are numbered in
the order of their folders' names, as torchvision's weights expect. The validation part is the test set.
"""

from pathlib import Path

from distill.data._folders import Listing, imagenet_listings, imagenet_sets
from distill.data.imageset import ImageSet

__all__ = ["SIZE", "listings", "load"]

SIZE = 224
"""side in pixels where none is asked for"""
_BELOW = ("imagenet", "ILSVRC2012", "imagenet-1k")


def load(root: Path, image_size: int | None = None, damaged: str = "refuse") -> tuple[ImageSet, ImageSet]:
    """List the files; nothing is decoded before it is used.

    Args:
        root: the data folder.
        image_size: height and width in pixels, of torchvision's evaluation: the shorter side to size / 0.875, then the
            central square; files that are squares of that size already stay as they are. None is 224.
        damaged: what to do with files that cannot be read: "refuse" (when one is met) or "skip" (checks all of them).

    Returns:
        training and test set, images (N, 3, H, H).

    Raises:
        InputError: the folders are missing, have no class folders or not the same, or one without images.
    """
    return imagenet_sets("imagenet", listings(root, damaged), image_size or SIZE)


def listings(root: Path, damaged: str = "refuse") -> tuple[Listing, Listing]:
    """Return the files of both parts: arguments and errors as of `load`."""
    bring = "it cannot be downloaded here: get it from image-net.org, whose terms apply"
    return imagenet_listings("imagenet", root, _BELOW, bring, damaged)
