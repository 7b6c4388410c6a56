"""The picture of a distilled set."""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from distill.distilled import DistilledSet
from distill.reports.class_names import readable
from distill.runs.files import write_atomic

__all__ = ["LINE", "picture", "save_grid"]

GAP = 8
"""pixels between a name and its row"""
LONGEST = 24
"""most characters of a name that are shown"""
LINE = 2
"""width in pixels of the black lines between images and around them"""


def save_grid(distilled: DistilledSet, path: Path) -> None:
    """Draw the images, one row a class (at most 50 images of it), with the names of the classes beside the rows."""
    classes, grid = distilled.image_classes, picture(distilled)
    known = readable(distilled.classes)
    names = [_shown(known[c]) for c in classes.unique().tolist()]
    height = grid.height / len(names)
    font = ImageFont.load_default(size=max(9, min(15, round(height / 4))))
    margin = round(max(font.getlength(name) for name in names)) + 2 * GAP
    whole = Image.new("RGB", (margin + grid.width, grid.height), "white")
    whole.paste(grid, (margin, 0))
    draw = ImageDraw.Draw(whole)
    for number, name in enumerate(names):
        draw.text((margin - GAP, (number + 0.5) * height), name, fill="black", font=font, anchor="rm")
    write_atomic(path, lambda file: whole.save(file, format="png"))


def _shown(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..."


def picture(distilled: DistilledSet) -> Image.Image:
    """Return the images without names, cut to [0, 1], one row a class, small ones enlarged."""
    classes = distilled.image_classes
    rows = [distilled.images[classes == c][:50] for c in classes.unique()]
    across = max(map(len, rows))
    images = [F.pad(row, (0, 0, 0, 0, 0, 0, 0, across - len(row)), value=1.0) for row in rows]
    scale = max(1, 64 // distilled.images.shape[-1]) if across <= 10 else max(1, 32 // distilled.images.shape[-1])
    grid = [F.interpolate(row.clamp(0, 1), scale_factor=scale, mode="nearest") for row in images]
    return Image.fromarray(_joined(torch.stack(grid)).numpy())


def _joined(images: Tensor) -> Tensor:
    """Join images (rows, columns, C, H, W) in [0, 1] to one (height, width, 3), uint8, with black lines."""
    lined = F.pad(images, (LINE, 0, LINE, 0)).permute(0, 3, 1, 4, 2)  # rows, height, columns, width, C
    picture = F.pad(lined.flatten(2, 3).flatten(0, 1), (0, 0, 0, LINE, 0, LINE))
    if picture.shape[2] == 1:
        picture = picture.expand(-1, -1, 3)
    return picture.mul(255).add(0.5).clamp(0, 255).to("cpu", torch.uint8)
