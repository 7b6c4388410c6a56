"""CIFAR-100 (Krizhevsky 2009): 60,000 photographs of 100 classes (the fine labels), 32 x 32 RGB."""

from pathlib import Path

from distill.data._torchvision import find_or_download
from distill.data.facts import Facts
from distill.data.imageset import ImageSet

__all__ = ["FACTS", "load"]

# Mean and std: DC's code, VICO-UoE/DatasetCondensation@53f63a6 utils.py, get_dataset; FRePo's code has the same;
# MTT's, CAFE's and DCC's code have those of CIFAR-10.
_OFFICIAL = ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
FACTS = Facts(
    name="cifar100",
    classes=100,
    channels=3,
    size=32,
    examples=50_000,
    mean=_OFFICIAL[0],
    std=_OFFICIAL[1],
    constants={
        "dc": _OFFICIAL,
        "cafe": _CIFAR10,
        "mtt": _CIFAR10,
        "frepo": _OFFICIAL,
    },
    official="CIFAR100",
    whitened=("kip", "frepo"),
    terms="CIFAR-100 (Krizhevsky 2009) has no stated licence; it is used for research.",
)


def load(root: Path) -> tuple[ImageSet, ImageSet]:
    """Return training and test set, images (N, 3, 32, 32); errors as in `find_or_download`."""
    return find_or_download(FACTS, root)
