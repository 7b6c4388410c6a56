"""Gaussian blur of training images: a control for methods whose images are smooth, as a blur alone adds robustness."""

from math import ceil

from torch import Tensor

from distill.errors import InputError

__all__ = ["blurred", "check_blur"]

WIDTHS = 4
"""standard deviations at which the kernel ends: what lies outside is 6e-5 of the whole"""


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Return blurred images, by a truncated Gaussian kernel with sum 1 and reflected borders.

    Args:
        images: (N, C, H, H) or (C, H, H), float, pixels in [0, 1].
        sigma: standard deviation of the kernel in pixels, > 0.

    Raises:
        InputError: the kernel is too wide for the images.

    >>> import torch
    >>> point = torch.zeros(1, 1, 7, 7).index_fill(2, torch.tensor([3]), 1.0)
    >>> [round(value, 2) for value in blurred(point, 0.75)[0, 0, :, 3].tolist()]
    [0.0, 0.02, 0.22, 0.53, 0.22, 0.02, 0.0]
    """
    from torchvision.transforms.functional import gaussian_blur  # slow to import

    check_blur(sigma, images.shape[-1])
    return gaussian_blur(images, [2 * _radius(sigma) + 1] * 2, [sigma] * 2).clamp_(0, 1)


def check_blur(sigma: float, size: int) -> None:
    """Refuse a blur whose kernel is too wide for its reflection at the border of the images.

    Args:
        sigma: standard deviation of the kernel in pixels.
        size: height and width of the images in pixels.

    Raises:
        InputError: the kernel is too wide.
    """
    if sigma > (size - 1) / WIDTHS:
        most = (size - 1) / WIDTHS
        raise InputError(f"--blur is {sigma:g}; for images of {size} px it must be at most {most:g}")


def _radius(sigma: float) -> int:
    return max(1, ceil(WIDTHS * sigma))
