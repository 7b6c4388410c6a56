"""ImageNet (ILSVRC 2012; Russakovsky et al. 2015): 1.28 million photographs of 1,000 classes, decoded when used.

The user provides the files, because the terms of ImageNet forbid redistribution: train/WNID/* and val/WNID/* in the
data folder or, preferably, in a subfolder imagenet/, ILSVRC2012/ or imagenet-1k/. Any number of classes is accepted;
they are numbered in the order of the folder names, as torchvision's weights expect. The validation set is the test set.
"""

from pathlib import Path

from distill.data._folders import Listing, imagenet_listings, sets_in_files
from distill.data.facts import Facts
from distill.data.imageset import ImageSet

__all__ = ["FACTS", "listings", "load"]

# Mean and std: expected by torchvision's weights; the codes of DC and MTT have the same.
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
    licence="other",
    terms="ImageNet is for non-commercial research and education; its terms of access apply.",
)
_BELOW = ("imagenet", "ILSVRC2012", "imagenet-1k")


def load(root: Path, image_size: int | None = None, damaged: str = "refuse") -> tuple[ImageSet, ImageSet]:
    """List the files; images are decoded when used.

    Args:
        root: the data folder.
        image_size: height and width in pixels after torchvision's evaluation transform: the shorter side is resized to
            size / 0.875, then the central square is cropped. Squares of this size are not changed. None is 224.
        damaged: handling of unreadable files: "refuse" (error at the first use) or "skip" (checks all files first).

    Returns:
        training and test set, images (N, 3, H, H).

    Raises:
        InputError: folders are missing, class folders are missing, differ between training and test set, or have no
            images.
    """
    return sets_in_files(FACTS.resized(image_size), listings(root, damaged))


def listings(root: Path, damaged: str = "refuse") -> tuple[Listing, Listing]:
    """Return the files of the training and the test set; arguments and errors are those of `load`."""
    bring = "this program cannot download it: get it from image-net.org, whose terms apply"
    return imagenet_listings(FACTS.name, root, _BELOW, bring, damaged)
