"""Optical recognition of handwritten digits (UCI, 1998), included in scikit-learn: 8 x 8 grey, no download."""

from importlib.metadata import distribution
from pathlib import Path

import numpy as np
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
    licence="cc-by-4.0",
    terms="scikit-learn's digits are a part of UCI's optdigits, shared under CC BY 4.0.",
)


def load(root: Path) -> tuple[ImageSet, ImageSet]:
    """Return the 1,797 digits; the test set is a fixed fifth of each class.

    Args:
        root: ignored; the argument is common to all data sets.

    Returns:
        training and test set, images (N, 1, 8, 8).
    """
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = np.loadtxt(str(path), delimiter=",")  # as `load_digits`, without a second for the import of scikit-learn
    whole = ImageSet(
        name=FACTS.name,
        images=torch.from_numpy(rows[:, :-1]).float().div_(16).view(-1, 1, 8, 8),
        labels=torch.from_numpy(rows[:, -1]).long(),
        classes=tuple("0123456789"),
        mean=FACTS.mean,
        std=FACTS.std,
    )
    return whole.split(0.2, torch.Generator().manual_seed(_SPLIT_SEED))
