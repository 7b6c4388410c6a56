"""The attacks of ROME and C2R on a network of normalised images: the right one, and the one of ROME's released code."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust import Normalize, Threat
from robust.losses.adversarial import ascend, random_start

__all__ = ["attacked", "attacked_as_published"]

CHUNK = 256
"""images that are attacked at once"""
SIZE = 2 / 225
"""length of a step in ROME's released code (sic)"""
EPS = 8 / 255
"""radius in ROME's released code, on normalised images"""


def attacked(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    normalize: Normalize,
    threat: Threat,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Return normalised images after untargeted PGD in pixels, from a random start, (N, C, H, W).

    Args:
        network: of normalised images; in evaluation mode during the attack.
        inputs: (N, C, H, W), normalised.
        labels: (N,) classes.
        normalize: from pixels to the network's inputs.
        threat: the ball, pixels in [0, 1].
        steps: of 2.5 eps / steps each.
        generator: of the random points, on the CPU.
    """
    pixels = normalize.inverse(inputs)
    start = random_start(pixels, threat, generator)
    model, points = nn.Sequential(normalize, network), []
    for x, y, first in zip(pixels.split(CHUNK), labels.split(CHUNK), start.split(CHUNK), strict=True):
        points.append(ascend(model, x, first, partial(_losses, y), threat=threat, steps=steps))
    return normalize(torch.cat(points))


def attacked_as_published(
    network: nn.Module, inputs: Tensor, labels: Tensor, classes: int, steps: int, generator: torch.Generator
) -> Tensor:
    """Return the images of ROME's released attack: targeted at the next class, on normalised images, in [0, 1].

    The clamp to [0, 1] of images that are not in [0, 1] sets every pixel below the mean to the mean. This is a fault,
    kept to compare with; with it ROME's attack removes most of an image.

    Args:
        network: of normalised images; its mode stays.
        inputs: (N, C, H, W), normalised.
        labels: (N,) classes.
        classes: number of classes.
        steps: of 2/225 each, in a ball of 8/255.
        generator: of the random points, on the CPU.
    """
    shift = torch.rand(inputs.shape, generator=generator).to(inputs).mul_(2 * EPS).sub_(EPS)
    points, target = (inputs + shift).clamp(0, 1), (labels + 1) % classes
    for _ in range(steps):
        points = points.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(points), target), points)
        moved = points.detach() - SIZE * gradient.sign()
        points = (inputs + (moved - inputs).clamp(-EPS, EPS)).clamp(0, 1)
    return points.detach()


def _losses(labels: Tensor, logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")
