"""Corruptions by image processing: elastic deformation, pixelation and JPEG."""

import io
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robust.evaluation.corruptions.sampling import Streams, affine_grid, filtered, normal_kernel, warped

__all__ = ["elastic_transform", "jpeg", "pixelate"]


def elastic_transform(images: Tensor, streams: Streams, strength: float, smooth: float, corner: float) -> Tensor:
    """Move three points at random, and every pixel by a smooth random field; lengths are shares of the side."""
    n, side = len(images), images.shape[-1]
    moves = torch.stack([torch.rand(3, 2, generator=g) for g in streams]).to(images) * 2 - 1
    grid = affine_grid(images, corners=2 * corner * moves)
    if strength:
        field = torch.stack([torch.rand(2, *images.shape[2:], generator=g) for g in streams]).to(images) * 2 - 1
        sigma = max(smooth * side, 0.3)
        field = filtered(field, normal_kernel(math.ceil(3 * sigma), sigma))
        grid = grid + 2 * strength * field.permute(0, 2, 3, 1)
    return warped(images, grid.view(n, *images.shape[2:], 2))


def pixelate(images: Tensor, streams: Streams, share: float) -> Tensor:
    """Shrink to a share of the side and enlarge to the original size, without smoothing."""
    small = [max(1, int(side * share)) for side in images.shape[2:]]
    return F.interpolate(F.interpolate(images, small, mode="area"), images.shape[2:], mode="nearest")


def jpeg(images: Tensor, streams: Streams, quality: int) -> Tensor:
    """Encode as JPEG and decode."""
    import numpy  # optional, with Pillow
    from PIL import Image

    decoded = []
    for x in (255 * images).round().byte().cpu():
        file = io.BytesIO()
        picture = Image.fromarray(x[0].numpy() if len(x) == 1 else x.permute(1, 2, 0).numpy())
        picture.save(file, "JPEG", quality=quality)
        pixels = torch.from_numpy(numpy.array(Image.open(file)))
        decoded.append(pixels[None] if len(x) == 1 else pixels.permute(2, 0, 1))
    return torch.stack(decoded).to(images) / 255
