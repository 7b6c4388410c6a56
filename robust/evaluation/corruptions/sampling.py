"""Functions that several corruptions use: noise for each example, filters, images sampled on a moved grid."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Streams",
    "affine_grid",
    "dragged",
    "filtered",
    "length_scale",
    "normal_kernel",
    "normal_noise",
    "uniform_noise",
    "warped",
]

Streams = Sequence[torch.Generator]
"""one CPU generator for each example, so that the noise of an image does not depend on its batch"""


def length_scale(images: Tensor) -> float:
    """Return the factor by which lengths grow above 32 px; below it is 1, or the blurs of 8 px would leave nothing."""
    return max(1.0, images.shape[-1] / 32)


def normal_noise(images: Tensor, streams: Streams) -> Tensor:
    """Return standard normal noise in the shape of the images, (N, C, H, W)."""
    return torch.stack([torch.randn(images.shape[1:], generator=g) for g in streams]).to(images)


def uniform_noise(images: Tensor, streams: Streams) -> Tensor:
    """Return uniform noise in [0, 1) in the shape of the images, (N, C, H, W)."""
    return torch.stack([torch.rand(images.shape[1:], generator=g) for g in streams]).to(images)


def normal_kernel(reach: int, sigma: float) -> Tensor:
    """Return a normal filter of sum 1, (2 reach + 1, 2 reach + 1), of standard deviation `sigma` in pixels."""
    at = torch.arange(-reach, reach + 1, dtype=torch.float32)
    line = torch.exp(-at.square() / (2 * sigma**2))
    kernel = line[:, None] * line
    return kernel / kernel.sum()


def filtered(images: Tensor, kernel: Tensor) -> Tensor:
    """Return images filtered in every channel with the border repeated, (N, C, H, W) -> (N, C, H, W)."""
    reach = len(kernel) // 2
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    weight = kernel.to(images).expand(images.shape[1], 1, *kernel.shape)
    return F.conv2d(padded, weight, groups=images.shape[1])


def dragged(images: Tensor, angles: Tensor, reach: int, sigma: float) -> Tensor:
    """Return the mean of each image shifted by 0 to `reach` pixels along its angle (N,), weighted by a half normal."""
    weights = torch.exp(-(torch.arange(reach + 1) ** 2) / (2 * sigma**2))
    result = torch.zeros_like(images)
    for step, weight in enumerate((weights / weights.sum()).tolist()):
        shift = step * torch.stack([angles.cos(), angles.sin()], 1)
        result += weight * warped(images, affine_grid(images, shift=shift))
    return result


def affine_grid(
    images: Tensor, *, shift: Tensor | None = None, zoom: float = 1.0, corners: Tensor | None = None
) -> Tensor:
    """Return a sampling grid, (N, H, W, 2), in the coordinates of `grid_sample`.

    Args:
        images: (N, C, H, W), for their shape.
        shift: (N, 2) pixels to the right and down.
        zoom: factor by which images are enlarged.
        corners: (N, 3, 2) displacement of the upper left, upper right and lower left corner of the central square whose
            corners lie a third of the side off the centre in both directions.
    """
    n, (height, width) = len(images), images.shape[2:]
    theta = torch.eye(2, 3, device=images.device, dtype=images.dtype).repeat(n, 1, 1) / zoom
    if shift is not None:
        theta[:, :, 2] += 2 * shift / torch.tensor([width, height]).to(shift)
    if corners is not None:  # three points determine an affine map; the authors' lie a third of the side off the centre
        third = torch.tensor([2 * (length // 3) / length for length in (width, height)]).to(corners)
        theta[:, :, 0] += (corners[:, 1] - corners[:, 0]) / (2 * third[0])
        theta[:, :, 1] += (corners[:, 2] - corners[:, 0]) / (2 * third[1])
        theta[:, :, 2] += (corners[:, 1] + corners[:, 2]) / 2
    return F.affine_grid(theta, list(images.shape), align_corners=False)


def warped(images: Tensor, grid: Tensor) -> Tensor:
    """Return images sampled bilinearly on a grid (N, H, W, 2), reflected beyond the border."""
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
