"""The picture of a distilled set."""

from pathlib import Path

import torch.nn.functional as F
from torchvision.utils import save_image

from distill.distilled import DistilledSet
from distill.runs.files import write_atomic

__all__ = ["save_grid"]


def save_grid(distilled: DistilledSet, path: Path) -> None:
    """Draw the images, cut to [0, 1], one row a class (at most 50 images of it), small ones enlarged."""
    classes = distilled.labels if distilled.labels.ndim == 1 else distilled.labels.argmax(1)
    rows = [distilled.images[classes == c][:50] for c in classes.unique()]
    across = max(map(len, rows))
    images = [F.pad(row, (0, 0, 0, 0, 0, 0, 0, across - len(row)), value=1.0) for row in rows]
    scale = max(1, 64 // distilled.images.shape[-1]) if across <= 10 else max(1, 32 // distilled.images.shape[-1])
    grid = [F.interpolate(row.clamp(0, 1), scale_factor=scale, mode="nearest") for row in images]
    write_atomic(
        path, lambda file: save_image([image for row in grid for image in row], file, nrow=across, format="png")
    )
