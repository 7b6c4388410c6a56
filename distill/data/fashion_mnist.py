"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): 70,000 pictures of clothes, 28 x 28 grey."""

from pathlib import Path

from distill.data._torchvision import find_or_download
from distill.data.facts import Facts
from distill.data.imageset import ImageSet

__all__ = ["FACTS", "load"]

# Mean and std: DC's code, VICO-UoE/DatasetCondensation@53f63a6 utils.py, get_dataset; FRePo's code has the same.
_OFFICIAL = ((0.2861,), (0.3530,))
FACTS = Facts(
    name="fashion_mnist",
    classes=10,
    channels=1,
    size=28,
    examples=60_000,
    mean=_OFFICIAL[0],
    std=_OFFICIAL[1],
    constants={"dc": _OFFICIAL, "frepo": _OFFICIAL},
    official="FashionMNIST",
    licence="mit",
    terms="Fashion-MNIST (Zalando) is shared under the MIT licence.",
)


def load(root: Path) -> tuple[ImageSet, ImageSet]:
    """Return training and test set, images (N, 1, 28, 28); errors as in `find_or_download`."""
    return find_or_download(FACTS, root)
