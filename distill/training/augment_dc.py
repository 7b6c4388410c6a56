"""The augmentation with which DC's authors train students: `dc:crop_scale_rotate` (MNIST), `dc:crop_noise` (BatchNorm).

From the code of "Dataset Condensation with Gradient Matching" (Zhao et al., ICLR 2021): `augment` and `get_daparam` in
utils.py of VICO-UoE/DatasetCondensation. It is older than DSA and has other parameters. DC distils without it; its code
augments students on a distilled set with it, for 1,000 epochs. One group is drawn for *each image*:

    crop    a shift by -4 to 3 rows and columns, filled with the batch's mean of the channel
    scale   height and width times U[0.8, 1.2), cut to whole pixels, by nearest neighbours, filled with zeros
    rotate  by a whole number of degrees from -45 to 44, by cubic splines, filled with the mean of the channels' means
    noise   0.001 times a standard normal

in normalised space. Exact in distribution, and for given draws equal to that code up to rounding. Deviations: all
images of a group are changed at once, where the official code loops over them; the crop's 4 pixels, which are for sides
of 28 and 32, become an eighth of other sides, as in DSA.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from distill.data.facts import Facts
from distill.errors import unknown

__all__ = ["DC_GROUPS", "DCAugmentation", "augmentation_of_students"]

Draw = dict[str, Tensor]

SCALE = 0.2
"""largest relative change of a side"""
ROTATE = 45
"""degrees"""
NOISE = 0.001
"""standard deviation, normalised units"""


def _margin(size: int) -> int:
    """Return the pixels by which `crop` pads a side.

    >>> [_margin(size) for size in (16, 28, 32)]
    [2, 4, 4]
    """
    return int(0.125 * size + 0.5)


def _taken(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return output[n, c, i, j] = x[n, c, rows[n, i], columns[n, j]]; indices outside are clamped."""
    height, width = x.shape[2:]
    which = torch.arange(len(x), device=x.device)[:, None, None]
    rows, columns = rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
    return x.permute(0, 2, 3, 1)[which, rows, columns].permute(0, 3, 1, 2)


def _both(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the outer "and" of (N, H) and (N, W), (N, 1, H, W)."""
    return rows[:, None, :, None] & columns[:, None, None, :]


def _crop(x: Tensor, means: Tensor, drawn: Draw) -> Tensor:
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device) + drawn["top"][:, None] - _margin(height)
    columns = torch.arange(width, device=x.device) + drawn["left"][:, None] - _margin(width)
    inside = _both((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))
    return torch.where(inside, _taken(x, rows, columns), means.view(1, -1, 1, 1))


def _scale(x: Tensor, means: Tensor, drawn: Draw) -> Tensor:
    sides = x.shape[2:]
    new = [drawn[name] for name in ("height", "width")]
    canvas = torch.maximum(*new).clamp_min(max(sides))  # a square that holds the old and the new image, both centred
    sources, within = [], []
    for side, scaled in zip(sides, new, strict=True):
        place = torch.arange(side, device=x.device) + ((canvas - side) // 2 - (canvas - scaled) // 2)[:, None]
        within.append((place >= 0) & (place < scaled[:, None]))
        # float32, as F.interpolate computes it
        ratio = torch.full_like(scaled, side, dtype=torch.float32) / scaled.to(torch.float32)
        sources.append((place * ratio[:, None]).floor().long())
    return _taken(x, *sources) * _both(*within)


@cache
def _spline_filter(size: int) -> Tensor:
    """Return the matrix (size, size) from values to coefficients of a cubic B-spline, mirrored at the ends' middles."""
    kernel = torch.eye(size, dtype=torch.float64) * (4 / 6)
    inner = torch.arange(size - 1)
    kernel[inner, inner + 1] = kernel[inner + 1, inner] = 1 / 6
    kernel[0, 1] = kernel[-1, -2] = 2 / 6
    return kernel.inverse()


def _taps(where: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the four coefficients' indices and weights of positions (...) along a side, each (..., 4)."""
    first = where.floor()
    t = (where - first)[..., None]
    s = 1 - t
    weights = torch.cat([s**3, 4 - 6 * t**2 + 3 * t**3, 4 - 6 * s**2 + 3 * s**3, t**3], -1) / 6
    index = first.long()[..., None] + torch.arange(-1, 3, device=where.device)
    index = index.abs()  # mirrored at 0, then at the other end
    return (size - 1 - (size - 1 - index).abs()).clamp(0, size - 1), weights


def _rotate(x: Tensor, means: Tensor, drawn: Draw) -> Tensor:
    height, width = x.shape[2:]
    angle = torch.deg2rad(drawn["angle"].double())
    cosine, sine = angle.cos(), angle.sin()
    grown = [  # the rotated image's sides; its middle stays where it is, which may be half a pixel off
        (cosine.abs() * a + sine.abs() * b + 0.5).floor() for a, b in ((height, width), (width, height))
    ]
    middles = [(side - 1) / 2 for side in grown]
    rows, columns = (
        torch.arange(side, device=x.device) + ((larger - side) / 2).floor()[:, None]
        for side, larger in zip((height, width), grown, strict=True)
    )
    offset_y = (height - 1) / 2 - (cosine * middles[0] + sine * middles[1])
    offset_x = (width - 1) / 2 - (cosine * middles[1] - sine * middles[0])
    cosine, sine = cosine[:, None, None], sine[:, None, None]
    y = offset_y[:, None, None] + cosine * rows[:, :, None] + sine * columns[:, None, :]
    z = offset_x[:, None, None] - sine * rows[:, :, None] + cosine * columns[:, None, :]
    inside = (y >= 0) & (y <= height - 1) & (z >= 0) & (z <= width - 1)

    down, across = (_spline_filter(side).to(x, non_blocking=True) for side in (height, width))
    coefficients = down @ x @ across.T
    (row_index, row_weight), (column_index, column_weight) = _taps(y, height), _taps(z, width)
    index = (row_index[..., :, None] * width + column_index[..., None, :]).flatten(1)
    weight = (row_weight[..., :, None] * column_weight[..., None, :]).flatten(3).to(x)
    near = coefficients.flatten(2).gather(2, index[:, None].expand(-1, x.shape[1], -1))
    turned = (near.view(*x.shape, 16) * weight[:, None]).sum(-1)
    return torch.where(inside[:, None], turned, means.mean())


def _noise(x: Tensor, means: Tensor, drawn: Draw) -> Tensor:
    return x + NOISE * drawn["noise"].to(x)


def _draw_crop(n: int, shape: tuple[int, ...], generator: torch.Generator) -> Draw:
    margins = {"top": _margin(shape[1]), "left": _margin(shape[2])}
    return {name: torch.randint(max(2 * m, 1), (n,), generator=generator) for name, m in margins.items()}


def _draw_scale(n: int, shape: tuple[int, ...], generator: torch.Generator) -> Draw:
    def side() -> Tensor:  # both are shares of the height, as in the official code, whose images are square
        share = 1 - SCALE + 2 * SCALE * torch.rand(n, dtype=torch.float64, generator=generator)
        return (share * shape[1]).long()

    return {"height": side(), "width": side()}


def _draw_rotate(n: int, shape: tuple[int, ...], generator: torch.Generator) -> Draw:
    return {"angle": torch.randint(-ROTATE, ROTATE, (n,), generator=generator)}


def _draw_noise(n: int, shape: tuple[int, ...], generator: torch.Generator) -> Draw:
    return {"noise": torch.randn(n, *shape, generator=generator)}


DC_GROUPS: dict[
    str,
    tuple[Callable[[Tensor, Tensor, Draw], Tensor], Callable[[int, tuple[int, ...], torch.Generator], Draw]],
] = {
    "crop": (_crop, _draw_crop),
    "scale": (_scale, _draw_scale),
    "rotate": (_rotate, _draw_rotate),
    "noise": (_noise, _draw_noise),
}
"""name -> (formula of images, channel means and draws; the draws of n images of a shape)"""


@dataclass(frozen=True)
class DCAugmentation:
    """DC's augmentation of students: for each image one group of the strategy, drawn uniformly.

    Raises:
        InputError: an unknown group.

    >>> dc = DCAugmentation("crop_scale_rotate")
    >>> drawn = dc.sample(7, (1, 28, 28), torch.Generator().manual_seed(0))
    >>> dc.apply(torch.zeros(7, 1, 28, 28), drawn).shape
    torch.Size([7, 1, 28, 28])
    """

    strategy: str
    """groups joined by "_" """

    def __post_init__(self) -> None:
        for group in self.strategy.split("_"):
            if group not in DC_GROUPS:
                raise unknown("augmentation dc:", group, [*DC_GROUPS])

    def sample(self, n: int | None, shape: tuple[int, ...], generator: torch.Generator) -> Draw:
        """Return each image's group and the draws of all groups, (n, ...) each or (1, ...): see `Augmentation`."""
        count, groups = 1 if n is None else n, self.strategy.split("_")
        drawn = {"group": torch.randint(len(groups), (count,), generator=generator)}
        for group in groups:
            drawn |= DC_GROUPS[group][1](count, shape, generator)
        return drawn

    def apply(self, images: Tensor, parameters: Draw) -> Tensor:
        """Return changed images: see `Augmentation`. The means behind `crop` and `rotate` are this batch's."""
        means = images.detach().mean((0, 2, 3))
        device, groups = images.device, parameters["group"].expand(len(images))
        drawn = {k: v.to(device, non_blocking=True).expand(len(images), *v.shape[1:]) for k, v in parameters.items()}
        changed = images.clone()
        for number, group in enumerate(self.strategy.split("_")):
            which = (groups == number).nonzero()[:, 0].to(device, non_blocking=True)  # found on the CPU
            if len(which):
                changed[which] = DC_GROUPS[group][0](images[which], means, {k: v[which] for k, v in drawn.items()})
        return changed


def augmentation_of_students(facts: Facts, backbone: str) -> str:
    """Return the policy with which DC's code trains students that nothing else augments.

    Args:
        facts: of the data set.
        backbone: the students' network.

    >>> from distill.data import FACTS
    >>> [augmentation_of_students(FACTS["mnist"], each) for each in ("convnet", "convnet:norm=batch")]
    ['dc:crop_scale_rotate', 'dc:crop_noise']
    >>> augmentation_of_students(FACTS["cifar10"], "convnet")
    ''
    """
    name, _, options = backbone.partition(":")
    if name == "convnet" and "norm=batch" in options.split(","):
        return "dc:crop_noise"
    return facts.dc_students
