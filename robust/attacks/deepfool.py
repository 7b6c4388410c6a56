"""DeepFool (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599, algorithm 2), on a whole batch at a time.

Each step treats the model as linear and moves the point to the nearest boundary between its class and another class,
its rival.

Differences from the paper: every step overshoots (the paper scales the sum of the steps once) and is clamped to [0, 1],
as in torchattacks; rivals are the nine wrong classes of the highest logits at the image, and a move is 1e-4 longer, as
in the authors' code.

Why torchattacks 3.5.1 is not used: it omits the 1e-4. Where pixels are clamped, steps then shrink towards the boundary
until rounding stops them before it: 53 of 100 MNIST digits withstood it on a small network, at points within 0.001 of
the points of this implementation, which all are misclassified. It also attacks image by image (about 20 times slower on
these), fills `.grad` of the parameters, and returns NaN where two logits have the same gradient; such a rival is
skipped here.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from robust.attacks.pgd import check_pixels
from robust.network.inference import outside_inference
from robust.network.modes import Model, evaluating
from robust.per_example import norms, unit
from robust.ranges import Count, NonNegative, Range, check_number, check_ranges
from robust.registry import Named
from robust.threat import Threat

__all__ = ["DeepFool", "deepfool"]

Classes = Annotated[int, Range(least=2)]

FLOOR = 1e-4
"""added to the length of every move, as in the authors' code"""


@outside_inference
def deepfool(
    model: Model, images: Tensor, targets: Tensor, *, steps: int = 50, overshoot: float = 0.02, classes: int = 10
) -> Tensor:
    """Return for each image a near misclassified point in L2, or the last point where no point is misclassified.

    Args:
        model: maps pixels (N, ...) in [0, 1] to logits (N, K), normalisation inside; its train/eval mode is unchanged.
        images: (N, ...) pixels in [0, 1].
        targets: (N,) class indices.
        steps: moves at most, >= 1; an example stops where it is misclassified.
        overshoot: share by which a move is longer than the distance to the boundary, >= 0.
        classes: number of classes considered, including the true class, >= 2.

    Returns:
        (N, ...) in [0, 1]; images that are misclassified from the start unchanged.

    Raises:
        ValueError: images outside [0, 1], or a number out of its range.

    On a linear model one step crosses the boundary:

    >>> model = lambda x: torch.stack([x.sum(1), -x.sum(1) + 2.0], 1)  # class 0 where the pixels sum to more than 1
    >>> deepfool(model, torch.tensor([[0.7, 0.5]]), torch.tensor([0]), overshoot=0.1).round(decimals=2)
    tensor([[0.5900, 0.3900]])
    """
    _check_options(steps, overshoot, classes)
    check_pixels(images)
    points = images.detach().clone()
    if len(points) == 0:
        return points
    rivals, standing = None, torch.arange(len(points), device=points.device)
    for _ in range(steps):
        with torch.no_grad():
            logits = model(points[standing])
        if rivals is None:
            others = logits.scatter(1, targets[:, None], -torch.inf)
            rivals = others.topk(min(classes, logits.shape[1]) - 1).indices
        standing = standing[logits.argmax(1) == targets[standing]]
        if len(standing) == 0:
            break
        shift = _to_the_nearest_boundary(model, points[standing], targets[standing], rivals[standing])
        points[standing] = (points[standing] + (1 + overshoot) * shift).clamp(0.0, 1.0)
    return points


def _to_the_nearest_boundary(model: Model, points: Tensor, targets: Tensor, rivals: Tensor) -> Tensor:
    """Return the shortest shift to equal logits of a rival and the target in the linearised model, (N, ...)."""
    shift = torch.zeros_like(points)
    nearest = torch.full((len(points),), torch.inf, device=points.device)
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        logits = model(points)
        gaps = logits.gather(1, targets[:, None]) - logits.gather(1, rivals)
        totals = (-gaps.sum(0)).unbind()
    for gap, total in zip(gaps.detach().unbind(1), totals, strict=True) if gaps.requires_grad else ():
        (gradients,) = torch.autograd.grad(total, points, retain_graph=True)
        distance = gap.abs().to(nearest) / norms(gradients).to(nearest)
        better = distance < nearest
        move = (distance + FLOOR).to(shift).view(-1, *[1] * (shift.ndim - 1)) * unit(gradients)
        shift = torch.where(better.view(-1, *[1] * (shift.ndim - 1)), move, shift)
        nearest = torch.where(better, distance, nearest)
    return shift


def _check_options(steps: int, overshoot: float, classes: int) -> None:
    check_number("steps", steps, Count)
    check_number("overshoot", overshoot, NonNegative)
    check_number("classes", classes, Classes)


@dataclass(frozen=True)
class DeepFool:
    """DeepFool as an `Attack`. It searches the nearest point, which may lie outside the ball.

    Raises:
        ValueError: a field is out of its range, or a threat in another norm than l2.
    """

    minimum_norm: ClassVar[bool] = True
    """an example counts as broken if its point is misclassified and within `threat.eps`"""

    threat: Threat
    """the l2 ball in which a misclassified point counts as a success; it does not limit the attack"""
    steps: Count = 50
    """moves at most"""
    overshoot: NonNegative = 0.02
    """share by which a move is longer than the distance to the boundary"""
    classes: Classes = 10
    """number of classes considered, including the true class (10 in the authors' code, all in torchattacks)"""

    def __post_init__(self) -> None:
        if self.threat.norm != "l2":
            raise ValueError(f"norm is {self.threat.norm!r}; DeepFool minimises l2, write a threat such as l2:0.5")
        check_ranges(self)

    def __call__(
        self, model: Model, images: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return near misclassified images (N, ...) in [0, 1] for pixels (N, ...) in [0, 1] and classes (N,).

        The model is in evaluation mode meanwhile; no random numbers are drawn.
        """
        with evaluating(model):
            return deepfool(model, images, targets, steps=self.steps, overshoot=self.overshoot, classes=self.classes)


NAMED: Named = {"deepfool": DeepFool}
NORM = {"deepfool": "l2"}
