"""Optical recognition of handwritten digits (UCI, 1998), as scikit-learn brings it: 8 x 8 grey, no download."""

from pathlib import Path

import torch

from distill.data.imageset import ImageSet

__all__ = ["load"]

_SPLIT_SEED = 0
"""part of the data set: another seed would make another one"""
# measured on the training part
_MEAN = (0.3059,)
_STD = (0.3765,)


def load(root: Path) -> tuple[ImageSet, ImageSet]:
    """Return the 1,797 digits, a fifth of each class as the test set, always the same.

    Args:
        root: not looked at; every data set has it.

    Returns:
        training and test set, images (N, 1, 8, 8).
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    whole = ImageSet(
        name="digits",
        images=torch.from_numpy(pixels).float().div_(16).view(-1, 1, 8, 8),
        labels=torch.from_numpy(labels).long(),
        classes=tuple("0123456789"),
        mean=_MEAN,
        std=_STD,
    )
    return whole.split(0.2, torch.Generator().manual_seed(_SPLIT_SEED))
