"""The threat: a ball around the image, cut to [0, 1]. The only file that computes norms of perturbations."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal, get_args

import torch
from torch import Tensor

from robust.per_example import norms, unit
from robust.ranges import Range, check_ranges, shown
from robust.spec import number_in

__all__ = ["PAPER_THREATS", "THREATS", "Threat", "family_of", "threat_named"]

Norm = Literal["linf", "l2"]
LARGEST = 1e4
"""largest l2 eps: the diameter of [0, 1]^n for images of n = 1e8 values"""


@dataclass(frozen=True)
class Threat:
    """All images in [0, 1] within `eps` of the clean one in `norm`, pixels in [0, 1].

    Raises:
        ValueError: an unknown norm, an eps that is not a finite number in [0, 10000], or a linf eps above 1, the
            largest distance of images in [0, 1].

    >>> box = Threat("linf", 0.1)
    >>> image = torch.tensor([[0.05, 0.5]])
    >>> [round(v, 2) for v in box.project(torch.tensor([[-1.0, 0.55]]), image)[0].tolist()]
    [0.0, 0.55]
    """

    norm: Norm
    eps: Annotated[float, Range(least=0, most=LARGEST, hint="for pixels in [0, 1]")]

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm is {self.norm!r}; choose from {', '.join(get_args(Norm))}")
        check_ranges(self)
        if self.norm == "linf" and self.eps > 1:
            proposal = f"{self.eps:g}/255" if self.eps <= 255 else "8/255"
            raise ValueError(
                f"eps is {self.eps:g}; pixels are in [0, 1], where no linf ball is larger than 1: write {proposal}"
            )

    @property
    def written(self) -> str:
        """The ball in the notation of `threat_named`, exactly: "8/255", "0.3", "l2:0.5".

        >>> [Threat(norm, eps).written for norm, eps in (("linf", 8 / 255), ("linf", 0.1), ("l2", 0.2), ("l2", 1 / 7))]
        ['8/255', '0.1', 'l2:0.2', 'l2:0.14285714285714285']
        """
        short = f"{self.eps:.6g}"
        bytes_ = f"{round(self.eps * 255)}/255"
        forms = [form for form in (short, bytes_) if float(Fraction(form)) == self.eps]
        return ("" if self.norm == "linf" else f"{self.norm}:") + (forms or [repr(self.eps)])[0]

    @property
    def named(self) -> str:
        """The ball with its norm, as in rows of results: "linf:8/255", "l2:0.5"."""
        return f"{self.norm}:{self.written.rpartition(':')[2]}"

    def random_start(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return a uniform point of each image's ball, cut to [0, 1].

        Args:
            images: (N, ...) pixels in [0, 1].
            generators: a CPU generator for each example, so that a start does not depend on the rest of the batch.

        Returns:
            (N, ...), on the images' device.
        """
        return self.project(images + self.random_shift(images, generators), images)

    def random_shift(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return a uniform point of the ball around zero for each image, (N, ...), on the images' device."""
        shape = images.shape[1:]
        if self.norm == "linf":
            noise = torch.stack([torch.rand(shape, generator=g) for g in generators]) * 2 - 1
        else:
            noise = unit(torch.stack([torch.randn(shape, generator=g) for g in generators]))
            radii = torch.stack([torch.rand((), generator=g) for g in generators]) ** (1 / shape.numel())
            noise = noise * radii.view(-1, *[1] * len(shape))
        return self.eps * noise.to(images)

    def ascent(self, gradients: Tensor) -> Tensor:
        """Return the direction of steepest ascent, of length 1 in the norm, (N, ...) -> (N, ...)."""
        return gradients.sign() if self.norm == "linf" else unit(gradients)

    def project(self, points: Tensor, images: Tensor) -> Tensor:
        """Return the nearest points of the ball, cut to [0, 1]; points inside do not move.

        Args:
            points: (N, ...).
            images: (N, ...), the centres, pixels in [0, 1].

        Returns:
            (N, ...). Cutting to [0, 1] moves every pixel towards the centre, so the result stays in the ball.
        """
        return (images + self.shrink(points - images)).clamp(0.0, 1.0)

    def shrink(self, shift: Tensor) -> Tensor:
        """Return the nearest shifts in the ball around zero, (N, ...) -> (N, ...); shifts inside do not change."""
        if self.norm == "linf":
            return shift.clamp(-self.eps, self.eps)
        length = norms(shift).clamp_min(torch.finfo(shift.dtype).tiny)
        ratio = (self.eps / length).clamp_max(1.0).to(shift.dtype)
        return shift * ratio.view(-1, *[1] * (shift.ndim - 1))

    def distance(self, points: Tensor, images: Tensor) -> Tensor:
        """Return the distance of each example from its image in the norm, (N,)."""
        return norms(points - images, float("inf") if self.norm == "linf" else 2.0)


PAPER_THREATS: dict[str, dict[str, Threat]] = {
    "mnist": {"linf_star": Threat("linf", 0.3), "linf": Threat("linf", 0.1), "l2": Threat("l2", 1.0)},
    "cifar10": {"linf_star": Threat("linf", 8 / 255), "linf": Threat("linf", 2 / 255), "l2": Threat("l2", 0.2)},
}
"""Section 7.2 of the GUARD paper: three threats for each of its data sets."""

THREATS: dict[str, dict[str, Threat]] = {
    "mnist": PAPER_THREATS["mnist"] | {"aaai25": Threat("linf", 1 / 255), "standard": Threat("linf", 0.3)},
    "cifar10": PAPER_THREATS["cifar10"]
    | {"aaai25": Threat("linf", 1 / 255), "standard": Threat("linf", 8 / 255), "standard_l2": Threat("l2", 0.5)},
    "imagenet": PAPER_THREATS["cifar10"] | {"aaai25": Threat("linf", 1 / 255), "standard": Threat("linf", 4 / 255)},
}
"""By family of images: the three threats of the paper (for ImageNet, the threats of CIFAR-10), `aaai25` of its later
version, and the threats of RobustBench and the attack papers: `standard`, `standard_l2`."""


def family_of(channels: int, size: int) -> str:
    """Return the key of `THREATS` for images of this shape: grey images "mnist", colour images "cifar10", from 64 px
    "imagenet".

    Args:
        channels: of an image; 1 is grey.
        size: pixels a side.
    """
    return "mnist" if channels == 1 else "imagenet" if size >= 64 else "cifar10"


def threat_named(text: str, family: str = "cifar10") -> Threat:
    """Return a threat by its name for a family of images, or by its size: "8/255", "linf:0.03", "l2:0.5".

    Args:
        text: a name of THREATS[family], or an eps (a number or a fraction), with a norm and a colon before it; the
            norm is linf by default.
        family: "mnist", "cifar10" or "imagenet".

    Raises:
        ValueError: the text is neither a name nor such a number, eps is out of its range, or the family is unknown.

    >>> threat_named("linf", "mnist").eps, threat_named("l2:1/2")
    (0.1, Threat(norm='l2', eps=0.5))
    """
    if family not in THREATS:
        raise ValueError(f"no threats for {family!r}; choose from {', '.join(THREATS)}")
    if text in THREATS[family]:
        return THREATS[family][text]
    norm, colon, size = text.rpartition(":")
    norm = norm if colon else "linf"
    eps = number_in(size)
    if eps is None or norm not in get_args(Norm):
        names = ", ".join(THREATS[family])
        raise ValueError(f"threat is {shown(text)}; choose from {names}, or write it: 8/255, l2:0.5")
    try:
        return Threat(norm, eps)  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        raise ValueError(f"threat is {shown(text)}: {error}") from None
