"""CIFAR-10 (Krizhevsky 2009): 60,000 photographs of 10 classes, 32 x 32 RGB."""

from pathlib import Path

from distill.data._torchvision import find_or_download
from distill.data.facts import Facts
from distill.data.imageset import ImageSet

__all__ = ["FACTS", "load"]

# Mean and std: DC's code, VICO-UoE/DatasetCondensation@53f63a6 utils.py, get_dataset. This customary std is smaller
# than the std of the pixels, (0.2470, 0.2435, 0.2616); learning rates and h are in these units.
_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.2023, 0.1994, 0.2010)
FACTS = Facts(
    name="cifar10",
    classes=10,
    channels=3,
    size=32,
    examples=50_000,
    mean=_MEAN,
    std=_STD,
    constants={
        "dc": (_MEAN, _STD),
        "dd": (_MEAN, (0.247, 0.243, 0.261)),
        "mtt": (_MEAN, _STD),
        "frepo": (_MEAN, (0.2470, 0.2435, 0.2616)),
    },
    official="CIFAR10",
    whitened=("kip", "frepo"),
    terms="CIFAR-10 (Krizhevsky 2009) has no stated licence; it is used for research.",
)


def load(root: Path) -> tuple[ImageSet, ImageSet]:
    """Return training and test set, images (N, 3, 32, 32); errors as in `find_or_download`."""
    return find_or_download(FACTS, root)
