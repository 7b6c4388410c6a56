"""MNIST (LeCun, Cortes, Burges 1998): 70,000 handwritten digits, 28 x 28 grey."""

from pathlib import Path

from distill.data._torchvision import find_or_download
from distill.data.facts import Facts
from distill.data.imageset import ImageSet

__all__ = ["FACTS", "load"]

# Mean and std: DC's code, VICO-UoE/DatasetCondensation@53f63a6 utils.py, get_dataset; FRePo's code has the same.
_OFFICIAL = ((0.1307,), (0.3081,))
FACTS = Facts(
    name="mnist",
    classes=10,
    channels=1,
    size=28,
    examples=60_000,
    mean=_OFFICIAL[0],
    std=_OFFICIAL[1],
    constants={"dc": _OFFICIAL, "dd": _OFFICIAL, "frepo": _OFFICIAL},
    official="MNIST",
    flips=False,
    dc_students="dc:crop_scale_rotate",
    licence="cc-by-sa-3.0",
    terms="MNIST (LeCun, Cortes, Burges) is shared under CC BY-SA 3.0.",
)


def load(root: Path) -> tuple[ImageSet, ImageSet]:
    """Return training and test set, images (N, 1, 28, 28); errors as in `find_or_download`."""
    return find_or_download(FACTS, root)
