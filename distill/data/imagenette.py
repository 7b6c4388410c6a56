"""ImageNette (Howard 2019): 13,394 photographs of 10 easy classes of ImageNet, decoded when used.

The user provides the files: train/WNID/* and val/WNID/* in the data folder or, preferably, in a subfolder
imagenette2/, imagenette2-320/, imagenette2-160/, imagenette-224/ or imagenette/ (in this order). The validation set is
the test set.
"""

from pathlib import Path

from distill.data._folders import Listing, imagenet_listings, sets_in_files
from distill.data.facts import Facts
from distill.data.imageset import ImageSet

__all__ = ["FACTS", "listings", "load"]

# Mean and std: expected by torchvision's weights; the codes of DC and MTT have the same.
_OFFICIAL = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FACTS = Facts(
    name="imagenette",
    classes=10,
    channels=3,
    size=224,
    examples=9469,
    mean=_OFFICIAL[0],
    std=_OFFICIAL[1],
    constants={
        "dc": _OFFICIAL,
        "mtt": _OFFICIAL,
        "frepo": ((0.4626, 0.4588, 0.4251), (0.2790, 0.2745, 0.2973)),
    },
    files=True,
    view="crop",
    parts=True,
    licence="other",
    terms="Imagenette is a part of ImageNet: non-commercial research and education.",
)
_BELOW = ("imagenette2", "imagenette2-320", "imagenette2-160", "imagenette-224", "imagenette")


def load(root: Path, image_size: int | None = None, damaged: str = "refuse") -> tuple[ImageSet, ImageSet]:
    """List the files; images are decoded when used.

    Args:
        root: the data folder.
        image_size: height and width in pixels, as in `imagenet`; None is 224.
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
    bring = "get imagenette2.tgz from github.com/fastai/imagenette"
    return imagenet_listings(FACTS.name, root, _BELOW, bring, damaged)
