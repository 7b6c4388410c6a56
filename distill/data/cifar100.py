"""CIFAR-100 (Krizhevsky 2009): 60,000 photographs of 100 classes (the fine labels), 32 x 32 RGB."""

from pathlib import Path

from distill.data._torchvision import find_or_download
from distill.data.imageset import ImageSet

__all__ = ["load"]

# DC's code: VICO-UoE/DatasetCondensation@53f63a6 utils.py, get_dataset
_MEAN = (0.5071, 0.4866, 0.4409)
_STD = (0.2673, 0.2564, 0.2762)


def load(root: Path) -> tuple[ImageSet, ImageSet]:
    """Return training and test set, images (N, 3, 32, 32); see `find_or_download` for what it raises."""
    return find_or_download("CIFAR100", root, "cifar100", _MEAN, _STD)
