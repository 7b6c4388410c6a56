"""The picture of a distilled set."""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from distill.distilled import DistilledSet
from distill.runs.files import write_atomic

__all__ = ["save_grid"]

LINE = 2
"""width in pixels of the black lines between images and around them"""


def save_grid(distilled: DistilledSet, path: Path) -> None:
    """Draw the images, cut to [0, 1], one row a class (at most 50 images of it), small ones enlarged."""
    classes = distilled.labels if distilled.labels.ndim == 1 else distilled.labels.argmax(1)
    rows = [distilled.images[classes == c][:50] for c in classes.unique()]
    across = max(map(len, rows))
    images = [F.pad(row, (0, 0, 0, 0, 0, 0, 0, across - len(row)), value=1.0) for row in rows]
    scale = max(1, 64 // distilled.images.shape[-1]) if across <= 10 else max(1, 32 // distilled.images.shape[-1])
    grid = [F.interpolate(row.clamp(0, 1), scale_factor=scale, mode="nearest") for row in images]
    picture = Image.fromarray(_joined(torch.stack(grid)).numpy())
    write_atomic(path, lambda file: picture.save(file, format="png"))


def _joined(images: Tensor) -> Tensor:
    """Join images (rows, columns, C, H, W) in [0, 1] to one (height, width, 3), uint8, with black lines."""
    lined = F.pad(images, (LINE, 0, LINE, 0)).permute(0, 3, 1, 4, 2)  # rows, height, columns, width, C
    picture = F.pad(lined.flatten(2, 3).flatten(0, 1), (0, 0, 0, LINE, 0, LINE))
    if picture.shape[2] == 1:
        picture = picture.expand(-1, -1, 3)
    return picture.mul(255).add(0.5).clamp(0, 255).to("cpu", torch.uint8)
