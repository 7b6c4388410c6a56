"""LS-PGD: one gradient for each image, and the best of a few step lengths, from where the last attack ended.

An image whose last perturbation still gives at least the loss of that time keeps it. For every other one gradient at
the perturbed image gives a direction v, and the points x + delta + alpha beta^q v, q = 0 ... Z - 1, projected to the
ball, are tried by forward passes; the one with the highest loss stays, if it is higher than that of the old point.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from robust import Threat
from robust.network.modes import Model

__all__ = ["line_search"]


def line_search(
    model: Model,
    pixels: Tensor,
    labels: Tensor,
    shift: Tensor,
    before: Tensor,
    threat: Threat,
    *,
    step: float,
    growth: float,
    trials: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the perturbations, the losses there, and the logits there.

    Args:
        model: of pixels, in evaluation mode.
        pixels: (N, C, H, W); they may be outside [0, 1].
        labels: (N,) classes.
        shift: (N, C, H, W), the last perturbations, in the ball.
        before: (N,), the losses at that time; infinite for images that have no perturbation yet.
        threat: the ball.
        step: alpha, in the threat's norm.
        growth: beta, > 1.
        trials: Z.
    """
    shift, losses, logits = shift.clone(), *_losses(model, pixels + shift, labels)
    (moving,) = (losses < before).nonzero(as_tuple=True)
    if not len(moving):
        return shift, losses, logits
    x, y, start = pixels[moving], labels[moving], shift[moving]
    points = (x + start).requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(points), y, reduction="sum"), points)
    direction = threat.ascent(gradient)
    for trial in range(trials):
        tried = threat.shrink(start + step * growth**trial * direction)
        tried = (x + tried).clamp(x.clamp(max=0.0), x.clamp(min=1.0)) - x  # no pixel further outside [0, 1]
        value, there = _losses(model, x + tried, y)
        better = value > losses[moving]
        at = moving[better]
        shift[at], losses[at], logits[at] = tried[better], value[better], there[better]
    return shift, losses, logits


@torch.no_grad()
def _losses(model: Model, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(points)
    return F.cross_entropy(logits, labels, reduction="none"), logits
