"""Optical recognition of handwritten digits (UCI, 1998), included in scikit-learn: 8 x 8 grey, no download."""

from pathlib import Path

import torch

from distill.data.facts import Facts
from distill.data.imageset import ImageSet

__all__ = ["FACTS", "load"]

_SPLIT_SEED = 0
"""belongs to the definition of the data set: another seed would give another split"""
FACTS = Facts(
    name="digits",
    classes=10,
    channels=1,
    size=8,
    examples=1438,
    mean=(0.3059,),  # mean and std: measured on the training part
    std=(0.3765,),
    flips=False,
)


def load(root: Path) -> tuple[ImageSet, ImageSet]:
    """Return the 1,797 digits; the test set is a fixed fifth of each class.

    Args:
        root: ignored; the argument is common to all data sets.

    Returns:
        training and test set, images (N, 1, 8, 8).
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    whole = ImageSet(
        name=FACTS.name,
        images=torch.from_numpy(pixels).float().div_(16).view(-1, 1, 8, 8),
        labels=torch.from_numpy(labels).long(),
        classes=tuple("0123456789"),
        mean=FACTS.mean,
        std=FACTS.std,
    )
    return whole.split(0.2, torch.Generator().manual_seed(_SPLIT_SEED))
