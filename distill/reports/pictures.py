"""Images as data addresses of a page: PNG for small ones, whose pixels count, WebP for photographs."""

import base64
import io
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from distill.reports.grid import LINE

__all__ = ["data_address", "difference", "file_address", "row_of_images"]

SMALL = 64
"""side up to which images are stored without loss"""


def row_of_images(images: Tensor) -> str:
    """Return images (N, C, H, W) side by side as one picture, with clear gaps; values are cut to [0, 1]."""
    coloured = images.float().clamp(0, 1).expand(-1, 3, -1, -1)
    opaque = torch.cat([coloured, torch.ones_like(coloured[:, :1])], 1)
    return data_address(F.pad(opaque, (0, LINE)).permute(1, 2, 0, 3).flatten(2)[..., :-LINE])


def difference(first: Tensor, second: Tensor) -> tuple[Tensor, float]:
    """Return (second - first), magnified around grey, and by how much, (N, C, H, W) -> the same in [0, 1].

    The largest change of all images becomes black or white.
    """
    change = second.float() - first.float()
    largest = change.abs().max().item()
    factor = 0.5 / largest if largest > 0 else 1.0
    return (0.5 + factor * change).clamp(0, 1), factor


def data_address(image: Tensor) -> str:
    """Return an image (C, H, W) in [0, 1] as `data:image/png;base64,...`, a large one as WebP.

    Args:
        image: of one channel (grey), three, or four (the last: 0 is clear).

    >>> data_address(torch.zeros(1, 2, 2))[:22]
    'data:image/png;base64,'
    """
    image = image.expand(3, -1, -1) if len(image) == 1 else image
    pixels = image.float().clamp(0, 1).mul(255).add(0.5).to("cpu", torch.uint8).permute(1, 2, 0).contiguous()
    kind, options = ("png", {}) if image.shape[1] <= SMALL else ("webp", {"quality": 88})
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, format=kind, **options)
    return _address(kind, file.getvalue())


def file_address(path: Path) -> str:
    """Return a picture of a file, .png or .svg, as a data address.

    Raises:
        OSError: the file cannot be read.
    """
    return _address({".svg": "svg+xml"}.get(path.suffix, path.suffix[1:]), path.read_bytes())


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
