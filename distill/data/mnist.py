"""MNIST (LeCun, Cortes, Burges 1998): 70,000 handwritten digits, 28 x 28 grey."""

from pathlib import Path

from distill.data._torchvision import find_or_download
from distill.data.imageset import ImageSet

__all__ = ["load"]

# DC's code: VICO-UoE/DatasetCondensation@53f63a6 utils.py, get_dataset
_MEAN = (0.1307,)
_STD = (0.3081,)


def load(root: Path) -> tuple[ImageSet, ImageSet]:
    """Return training and test set, images (N, 1, 28, 28); see `find_or_download` for what it raises."""
    return find_or_download("MNIST", root, "mnist", _MEAN, _STD)
