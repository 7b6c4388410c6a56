"""ImageNette (Howard 2019): 13,394 photographs of 10 easy classes of ImageNet, decoded when used.

Brought by the user: train/WNID/* and val/WNID/* in the data folder, or in imagenette2/, imagenette2-320/,
imagenette2-160/, imagenette-224/ or imagenette/ in it (these come first, in this order). The validation part is the
test set.
"""

from pathlib import Path

from distill.data._folders import Listing, imagenet_listings, imagenet_sets
from distill.data.imageset import ImageSet

__all__ = ["SIZE", "listings", "load"]

SIZE = 224
"""side in pixels where none is asked for"""
_BELOW = ("imagenette2", "imagenette2-320", "imagenette2-160", "imagenette-224", "imagenette")


def load(root: Path, image_size: int | None = None, damaged: str = "refuse") -> tuple[ImageSet, ImageSet]:
    """List the files; nothing is decoded before it is used.

    Args:
        root: the data folder.
        image_size: height and width in pixels, as of `imagenet`; None is 224.
        damaged: what to do with files that cannot be read: "refuse" (when one is met) or "skip" (checks all of them).

    Returns:
        training and test set, images (N, 3, H, H).

    Raises:
        InputError: the folders are missing, have no class folders or not the same, or one without images.
    """
    return imagenet_sets("imagenette", listings(root, damaged), image_size or SIZE)


def listings(root: Path, damaged: str = "refuse") -> tuple[Listing, Listing]:
    """Return the files of both parts: arguments and errors as of `load`."""
    bring = "get imagenette2.tgz as github.com/fastai/imagenette says"
    return imagenet_listings("imagenette", root, _BELOW, bring, damaged)
