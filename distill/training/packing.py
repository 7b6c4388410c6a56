"""Several small images in one stored image, as IDC stores them (Kim et al., ICML 2022, arXiv 2205.14959).

A stored image of H pixels holds factor x factor images of H / factor pixels, which are enlarged to H pixels when they
are used: factor² times the images in the same storage.
"""

from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import InputError

__all__ = ["check_factor", "packed", "unpacked"]


def check_factor(factor: int, size: int) -> None:
    """Refuse a factor of `packed` that does not fit images.

    Args:
        factor: number of images along a side of a stored image.
        size: height and width of the images in pixels.

    Raises:
        InputError: factor does not divide the size.
    """
    if size % factor:
        divisors = [str(each) for each in range(1, min(size, 16) + 1) if size % each == 0]
        raise InputError(f"--factor is {factor}; for images of {size} px it is one of {', '.join(divisors)}")


def packed(images: Tensor, factor: int) -> Tensor:
    """Return stored images that hold several images each, shrunk to H / factor pixels by the mean over areas.

    Args:
        images: (N factor², C, H, H); each run of N images fills the same corner of the N stored images, first the upper
            left one, then the next to the right, ...
        factor: number of images along a side of a stored image; it divides H.

    Returns:
        (N, C, H, H).

    Raises:
        ValueError: the images do not fill the stored ones, or factor does not divide their size.

    >>> packed(torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 2, 2), 2).tolist()
    [[[[0.0, 1.0], [2.0, 3.0]]]]
    """
    count, channels, size, _ = images.shape
    if count % factor**2 or size % factor:
        raise ValueError(f"{count} images of {size} px do not fill stored images of factor {factor}")
    small = F.interpolate(images, size // factor, mode="area")
    corners = small.view(factor, factor, count // factor**2, channels, size // factor, size // factor)
    return corners.permute(2, 3, 0, 4, 1, 5).reshape(-1, channels, size, size)


def unpacked(images: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return the images that IDC packs into each, enlarged to its size, sorted by class.

    Args:
        images: (N, C, H, H); where factor does not divide H, they are first filled up with 0.5 below and at the right.
        labels: (N,) classes.
        factor: number of images along a side of a stored image.

    Returns:
        (N factor², C, H, H), of each class first all upper left ones, then the next to the right, ...; (N factor²,).
    """
    size, side = images.shape[-1], ceil(images.shape[-1] / factor)
    filled = F.pad(images, (0, -size % factor, 0, -size % factor), value=0.5)
    corners = [(side * row, side * column) for row in range(factor) for column in range(factor)]
    parts = torch.cat([filled[:, :, top : top + side, left : left + side] for top, left in corners])
    labels = labels.repeat(factor**2)
    order = labels.argsort(stable=True)
    return F.interpolate(parts[order], size, mode="bilinear", align_corners=False), labels[order]
