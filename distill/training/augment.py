"""Augmentation whose parameters are drawn once and applied to several batches (siamese), or drawn for each image.

DSA: the six groups of "Dataset Condensation with Differentiable Siamese Augmentation" (Zhao & Bilen, ICML 2021), with
the official code's parameters; each call draws one group. It acts in normalised space, where the fill value 0 is the
mean colour. The older augmentation of DC's authors, for students, is in `distill.training.augment_dc`, and that by
classes of kornia in `distill.training.augment_kornia`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.errors import unknown
from distill.training.augment_dc import DCAugmentation
from distill.training.augment_kornia import Kornia

__all__ = ["DSA", "STRATEGIES", "Augmentation", "augmentation", "dsa_strategy"]

Draw = dict[str, Tensor]


class Augmentation(Protocol):
    """Random change of images, in two steps: draw parameters, apply them."""

    def sample(self, n: int | None, shape: tuple[int, ...], generator: torch.Generator) -> Any:
        """Return parameters.

        Args:
            n: number of images, each of which gets its own parameters; None for one draw that serves all images.
            shape: (C, H, W) of an image.
            generator: CPU generator.
        """
        ...

    def apply(self, images: Tensor, parameters: Any) -> Tensor:
        """Return changed images, (N, C, H, W) -> (N, C, H, W), differentiable twice."""
        ...


def augmentation(policy: str, mean: Sequence[float] = (), std: Sequence[float] = ()) -> Augmentation | None:
    """Return the augmentation that a policy names, for normalised images.

    Args:
        policy: "" or "none"; a DSA strategy, groups of STRATEGIES joined by "_"; "dc:crop_scale_rotate", groups of
            `DC_GROUPS`, with which DC's authors train students; or
            "kornia:RandomAffine(15, p=1.0)+RandomHorizontalFlip()", classes of kornia.augmentation in order.
        mean: per channel, of the normalisation of the images; only kornia policies need it.
        std: per channel.

    Raises:
        InputError: an unknown group or class, or arguments that are not literals.
    """
    if policy in ("", "none"):
        return None
    if policy.startswith("dc:"):
        return DCAugmentation(policy.removeprefix("dc:"))
    if policy.startswith("kornia:"):
        return Kornia(policy.removeprefix("kornia:"), tuple(mean), tuple(std))
    return DSA(policy)


def dsa_strategy(flips: bool) -> str:
    """Return the strategy of DSA's paper (section 4), which the codes of DSA, DM and MTT have as their default.

    Args:
        flips: whether a mirrored image has the same class (`Facts.flips`).
    """
    return f"color_crop_cutout{'_flip' if flips else ''}_scale_rotate"


# --- DSA: each group draws u in [0, 1) or whole numbers, then applies a formula


def _each(values: Tensor, images: Tensor) -> Tensor:
    """Return one value per image (or one for all images), shaped to multiply images."""
    return values.to(images, non_blocking=True).view(-1, 1, 1, 1)


def _color(x: Tensor, drawn: Draw) -> Tensor:
    x = x + (_each(drawn["brightness"], x) - 0.5)
    gray = x.mean(1, keepdim=True)
    x = (x - gray) * (2.0 * _each(drawn["saturation"], x)) + gray
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (_each(drawn["contrast"], x) + 0.5) + mean


def _crop(x: Tensor, drawn: Draw) -> Tensor:
    """Shift by whole pixels and fill with zeros: output[i, j] = x[i + down, j + right]."""
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device) + drawn["down"].to(x.device, non_blocking=True).view(-1, 1)
    columns = torch.arange(width, device=x.device) + drawn["right"].to(x.device, non_blocking=True).view(-1, 1)
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None, :]
    which = torch.arange(len(x), device=x.device)[:, None, None]
    rows, columns = rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
    return x.permute(0, 2, 3, 1)[which, rows, columns].permute(0, 3, 1, 2) * inside


def _cutout(x: Tensor, drawn: Draw) -> Tensor:
    """Set a square to zero, which may reach beyond the image."""

    def covered(size: int, centre: Tensor) -> Tensor:
        side = int(0.5 * size + 0.5)
        first = centre.to(x.device, non_blocking=True).view(-1, 1) - side // 2
        where = torch.arange(size, device=x.device)
        return (where >= first) & (where < first + side)

    rows, columns = covered(x.shape[2], drawn["row"]), covered(x.shape[3], drawn["column"])
    return x * ~(rows[:, None, :, None] & columns[:, None, None, :])


def _flip(x: Tensor, drawn: Draw) -> Tensor:
    return torch.where(_each(drawn["flip"], x) < 0.5, x.flip(3), x)


def _warp(x: Tensor, matrices: Tensor) -> Tensor:
    matrices = matrices.to(x, non_blocking=True).expand(len(x), 2, 3)
    grid = F.affine_grid(matrices, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def _scale(x: Tensor, drawn: Draw) -> Tensor:
    low, high = 1 / 1.2, 1.2
    sx, sy = (low + (high - low) * drawn[name] for name in ("x", "y"))
    zero = torch.zeros_like(sx)
    return _warp(x, torch.stack([sx, zero, zero, zero, sy, zero], 1).view(-1, 2, 3))


def _rotate(x: Tensor, drawn: Draw) -> Tensor:
    angle = (drawn["angle"] - 0.5) * 2 * 15 / 180 * torch.pi
    sine, cosine, zero = angle.sin(), angle.cos(), torch.zeros_like(angle)
    return _warp(x, torch.stack([cosine, -sine, zero, sine, cosine, zero], 1).view(-1, 2, 3))


def _offsets(size: int) -> tuple[int, int]:
    shift = int(0.125 * size + 0.5)
    return -shift, shift + 1


def _centres(size: int) -> tuple[int, int]:
    return 0, size + (1 - int(0.5 * size + 0.5) % 2)


HEIGHT, WIDTH = 1, 2  # indices in the shape (C, H, W) of an image
Range = tuple[Callable[[int], tuple[int, int]], int] | None
GROUPS: dict[str, tuple[Callable[[Tensor, Draw], Tensor], dict[str, Range]]] = {
    "color": (_color, {"brightness": None, "saturation": None, "contrast": None}),
    "crop": (_crop, {"down": (_offsets, HEIGHT), "right": (_offsets, WIDTH)}),
    "cutout": (_cutout, {"row": (_centres, HEIGHT), "column": (_centres, WIDTH)}),
    "flip": (_flip, {"flip": None}),
    "scale": (_scale, {"x": None, "y": None}),
    "rotate": (_rotate, {"angle": None}),
}
"""name -> (formula, its draws: None for u in [0, 1), else the range of whole numbers and the side it depends on)"""

STRATEGIES = tuple(GROUPS)
"""names of DSA's groups"""


@dataclass(frozen=True)
class DSA:
    """Differentiable siamese augmentation with one group drawn for each call.

    Raises:
        InputError: an unknown group.

    >>> dsa = DSA("flip_crop")
    >>> group, drawn = dsa.sample(None, (3, 32, 32), torch.Generator().manual_seed(0))
    >>> dsa.apply(torch.zeros(7, 3, 32, 32), (group, drawn)).shape
    torch.Size([7, 3, 32, 32])
    """

    strategy: str
    """groups joined by "_" """

    def __post_init__(self) -> None:
        for group in self.strategy.split("_"):
            if group not in GROUPS:
                raise unknown("augmentation", group, [*GROUPS, "dc:...", "kornia:..."])

    def sample(self, n: int | None, shape: tuple[int, ...], generator: torch.Generator) -> tuple[str, Draw]:
        """Return the group and its draws, (n,) each or (1,): see `Augmentation`."""
        groups = self.strategy.split("_")
        group = groups[int(torch.randint(len(groups), (), generator=generator))]
        drawn, size = {}, (1 if n is None else n,)
        for name, kind in GROUPS[group][1].items():
            if kind is None:
                drawn[name] = torch.rand(size, generator=generator)
            else:
                limits, side = kind
                drawn[name] = torch.randint(*limits(shape[side]), size, generator=generator)
        return group, drawn

    def apply(self, images: Tensor, parameters: tuple[str, Draw]) -> Tensor:
        """Return changed images: see `Augmentation`."""
        group, drawn = parameters
        return GROUPS[group][0](images, drawn)
