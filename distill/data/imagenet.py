"""ImageNet (ILSVRC 2012; Russakovsky et al. 2015): 1.28 million photographs of 1,000 classes, decoded when used.

Brought by the user, since its terms forbid to hand it on: train/WNID/* and val/WNID/* in the data folder, or in
imagenet/, ILSVRC2012/ or imagenet-1k/ in it (these come first). Any number of classes will do; they are numbered in
the order of their folders' names, as torchvision's weights expect. The validation part is the test set.
"""

from pathlib import Path

from distill.data._folders import Listing, imagenet_listings, sets_in_files
from distill.data.facts import Facts
from distill.data.imageset import ImageSet

__all__ = ["FACTS", "listings", "load"]

# Mean and std: what torchvision's weights expect; the codes of DC and MTT have them too.
_OFFICIAL = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FACTS = Facts(
    name="imagenet",
    classes=1000,
    channels=3,
    size=224,
    examples=1_281_167,
    mean=_OFFICIAL[0],
    std=_OFFICIAL[1],
    constants={"dc": _OFFICIAL, "mtt": _OFFICIAL},
    files=True,
    view="crop",
    parts=True,
)
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
    return sets_in_files(FACTS.resized(image_size), listings(root, damaged))


def listings(root: Path, damaged: str = "refuse") -> tuple[Listing, Listing]:
    """Return the files of both parts: arguments and errors as of `load`."""
    bring = "it cannot be downloaded here: get it from image-net.org, whose terms apply"
    return imagenet_listings(FACTS.name, root, _BELOW, bring, damaged)
