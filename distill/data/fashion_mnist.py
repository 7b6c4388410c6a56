"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): 70,000 pictures of clothes, 28 x 28 grey."""

from pathlib import Path

from distill.data._torchvision import find_or_download
from distill.data.imageset import ImageSet

__all__ = ["load"]

# DC's code: VICO-UoE/DatasetCondensation@53f63a6 utils.py, get_dataset
_MEAN = (0.2861,)
_STD = (0.3530,)


def load(root: Path) -> tuple[ImageSet, ImageSet]:
    """Return training and test set, images (N, 1, 28, 28); see `find_or_download` for what it raises."""
    return find_or_download("FashionMNIST", root, "fashion_mnist", _MEAN, _STD)
