"""Random resized crops of a batch, and the boxes of CutMix: drawn as numbers, which stages can store, then applied.

Pixel i of a crop that is enlarged by bilinear interpolation (half-pixel centres, the edge of the crop repeated) is read
at

    s_i = top + min(max((i + 1/2) height / size - 1/2, 0), height - 1)

A mirrored crop and a padded crop (zero outside the image) are read in the same way.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "Augment",
    "cut",
    "cut_box",
    "cut_same_box",
    "draw_boxes",
    "draw_crops",
    "draw_flips",
    "draw_strips",
    "padded_boxes",
    "shuffled",
]

Augment = Literal["resized_crop", "padded_crop", "none"]
"""crop of a random area, enlarged; crop of the image padded by an eighth of its side (CIFAR); the whole image"""

RATIO = (3 / 4, 4 / 3)
TRIES = 10


def draw_boxes(
    count: int,
    height: int,
    width: int,
    least: float,
    generator: torch.Generator,
    ratios: tuple[float, float] = RATIO,
) -> Tensor:
    """Draw crops as torchvision's RandomResizedCrop does.

    Args:
        count: number of crops.
        height: of the image in pixels.
        width: of the image in pixels.
        least: least share of the area of the image; the share is uniform in [least, 1].
        generator: CPU generator.
        ratios: least and largest aspect ratio, between which it is log-uniform.

    Returns:
        (count, 4) int64: top, left, height, width; the largest central crop of a valid ratio if ten tries fail.
    """
    area = height * width * (least + (1 - least) * torch.rand(count, TRIES, generator=generator))
    low, high = (torch.tensor(ratio).log() for ratio in ratios)
    ratio = (low + (high - low) * torch.rand(count, TRIES, generator=generator)).exp()
    w, h = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(1, keepdim=True)
    h, w = h.gather(1, first)[:, 0], w.gather(1, first)[:, 0]
    top = (torch.rand(count, generator=generator) * (height - h + 1)).long()
    left = (torch.rand(count, generator=generator) * (width - w + 1)).long()
    boxes = torch.stack([top, left, h, w], 1)
    central_h, central_w = min(height, round(width / ratios[0])), min(width, round(height * ratios[1]))
    central = torch.tensor([(height - central_h) // 2, (width - central_w) // 2, central_h, central_w])
    return torch.where(fits.any(1, keepdim=True), boxes, central)


def padded_boxes(count: int, size: int, padding: int, generator: torch.Generator) -> Tensor:
    """Draw crops of the size of the image from the image padded with zeros, (count, 4)."""
    corners = torch.randint(-padding, padding + 1, (count, 2), generator=generator)
    return torch.cat([corners, torch.full((count, 2), size)], 1)


def draw_flips(count: int, generator: torch.Generator) -> Tensor:
    """Draw whether each image is mirrored, with probability 1/2, bools (count,)."""
    return torch.rand(count, generator=generator) < 0.5


def draw_crops(
    augment: Augment, flip: bool, count: int, height: int, width: int, least: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw the crop and the mirroring of each image.

    Args:
        augment: kind of crops.
        flip: whether half of them are mirrored.
        count: number of images.
        height: of an image in pixels; without resizing also its width.
        width: of an image in pixels.
        least: least share of the area of a resized crop.
        generator: CPU generator.

    Returns:
        boxes (count, 4) and flips (count,).
    """
    if augment == "resized_crop":
        boxes = draw_boxes(count, height, width, least, generator)
    else:
        boxes = padded_boxes(count, height, height // 8 if augment == "padded_crop" else 0, generator)
    return boxes, draw_flips(count, generator) & flip


def draw_strips(count: int, parts: int, generator: torch.Generator) -> Tensor:
    """Draw the order of the horizontal and vertical strips of each image, (count, 2, parts) int64."""
    return torch.rand(count, 2, parts, generator=generator).argsort(-1)


def shuffled(images: Tensor, strips: Tensor) -> Tensor:
    """Return images whose horizontal and vertical strips are in another order.

    Args:
        images: (N, C, H, H).
        strips: (N, 2, parts): the strip at each place, from the top and from the left. A strip has H // parts pixels,
            the last one also the rest.

    >>> image = torch.arange(9.0).view(1, 1, 3, 3)
    >>> shuffled(image, torch.tensor([[[0, 1], [1, 0]]]))[0, 0].tolist()
    [[1.0, 2.0, 0.0], [4.0, 5.0, 3.0], [7.0, 8.0, 6.0]]
    """
    size, parts, device = images.shape[-1], strips.shape[-1], images.device
    strip_of = (torch.arange(size, device=device) // (size // parts)).clamp_max(parts - 1)
    places = strips.to(device, non_blocking=True).argsort(-1)
    sources = places[:, :, strip_of].argsort(dim=-1, stable=True)
    rows, columns = sources[:, 0, :, None], sources[:, 1, None, :]
    return images[torch.arange(len(images), device=device)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)


@torch.no_grad()
def cut(images: Tensor, boxes: Tensor, flips: Tensor) -> Tensor:
    """Return a crop of each image, enlarged to the size of the image, and mirrored where `flips` is true.

    Args:
        images: (N, C, H, H).
        boxes: (N, 4): top, left, height, width, at most H; zero outside the image.
        flips: (N,) bool.
    """
    rows, columns = _sources(boxes, flips, images)
    grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), -1)
    grid = 2 * grid / (images.shape[-1] - 1) - 1
    return F.grid_sample(images.float(), grid, padding_mode="zeros", align_corners=True)


def cut_same_box(images: Tensor, box: Tensor, flip: bool) -> Tensor:
    """Return the same crop `box` (4,) of all images, as `cut` does: differentiable and deterministic on a device."""
    rows, columns = _sources(box[None], torch.tensor([flip]), images)
    pixels = torch.arange(images.shape[-1], device=images.device)
    down, across = ((1 - (pixels - sources.T).abs()).clamp_min(0).to(images.dtype) for sources in (rows, columns))
    with torch.autocast(images.device.type, enabled=False):  # bilinear interpolation as two matrix products
        return ((images @ across.T).mT @ down.T).mT


def _sources(boxes: Tensor, flips: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coordinates in the image at which rows and columns of each crop are read, (N, size) each."""
    size, device = images.shape[-1], images.device
    top, left, height, width = boxes.to(device, non_blocking=True).T[:, :, None]
    centres = torch.arange(size, device=device) + 0.5
    mirrored = torch.where(flips.to(device, non_blocking=True)[:, None], centres.flip(0), centres)
    rows, columns = (
        (at * length / size - 0.5).clamp_min(0).minimum(length - 1) + start
        for at, length, start in ((centres, height, top), (mirrored, width, left))
    )
    return rows, columns


def cut_box(size: int, share: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Draw the rectangle that CutMix replaces.

    Args:
        size: side of the images in pixels.
        share: of the area that is not replaced, in [0, 1]; more where the edge of the image cuts the rectangle off.
        generator: CPU generator.

    Returns:
        top, left, bottom, right.
    """
    side = int(size * (1 - share) ** 0.5)
    y, x = torch.randint(size, (2,), generator=generator).tolist()
    top, bottom = (min(max(y + d, 0), size) for d in (-(side // 2), side // 2))
    left, right = (min(max(x + d, 0), size) for d in (-(side // 2), side // 2))
    return top, left, bottom, right
