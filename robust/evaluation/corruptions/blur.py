"""Corruptions by blur: defocus, frosted glass, motion and zoom."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robust.evaluation.corruptions.sampling import (
    Streams,
    affine_grid,
    dragged,
    filtered,
    length_scale,
    normal_kernel,
    warped,
)

__all__ = ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur"]


def defocus_blur(images: Tensor, streams: Streams, radius: float, soft: float) -> Tensor:
    """Blur by a disk whose edge is softened by a normal kernel of three pixels."""
    radius = radius * length_scale(images)
    reach = math.ceil(radius)
    at = torch.arange(-reach, reach + 1, dtype=torch.float32)
    disk = (at[:, None].square() + at.square() <= radius**2).float()
    kernel = F.conv2d((disk / disk.sum())[None, None], normal_kernel(1, soft)[None, None], padding=2)[0, 0]
    return filtered(images, kernel)


def glass_blur(images: Tensor, streams: Streams, sigma: float, reach: int, passes: int) -> Tensor:
    """Blur, replace pixels by the value of a random pixel up to `reach` away, blur again.

    This follows the authors' published data: their loop is written to swap two pixels, but for colour images it copies
    one pixel over the other (both sides of the assignment are views of one array). Displacements run from -reach to
    reach - 1, and a border of `reach` pixels is unchanged. Deviation above 32 px, where reach > 1: all pixels of a pass
    are replaced at the same time, not one after another.

    Returns:
        (N, C, H, W).
    """
    scale, (height, width) = length_scale(images), images.shape[2:]
    reach, sigma = round(reach * scale), sigma * scale
    kernel = normal_kernel(max(1, int(4 * sigma + 0.5)), sigma)
    result = filtered(images, kernel)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    inner = (rows > reach) & (rows <= height - reach) & (columns > reach) & (columns <= width - reach)
    for _ in range(passes):
        moves = torch.stack([torch.randint(-reach, reach, (2, height, width), generator=g) for g in streams]) * inner
        source = (rows + moves[:, 0]) * width + columns + moves[:, 1]
        at = source.flatten(1)[:, None].expand(-1, images.shape[1], -1).to(images.device)
        result = result.flatten(2).gather(2, at).view_as(images)
    return filtered(result, kernel)


def motion_blur(images: Tensor, streams: Streams, radius: float, sigma: float) -> Tensor:
    """Smear each image along one direction, at an angle of -45 to 45 degrees, weighted by a half normal of `sigma`."""
    angles = torch.stack([torch.rand((), generator=g) for g in streams]).to(images) * math.pi / 2 - math.pi / 4
    return dragged(images, angles, math.ceil(radius * length_scale(images)), sigma * length_scale(images))


def zoom_blur(images: Tensor, streams: Streams, end: float, step: float) -> Tensor:
    """Average the image with enlarged copies, by factors from 1 in steps of `step`, as numpy's arange makes them."""
    factors = torch.arange(1.0, end, step, dtype=torch.float64).tolist()
    zoomed = sum(warped(images, affine_grid(images, zoom=factor)) for factor in factors)
    return (images + zoomed) / (1 + len(factors))
