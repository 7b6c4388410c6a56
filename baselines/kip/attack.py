"""Attacked real images for KIP's regression (Tsilivis, Su, Kempe, 2022, arXiv 2207.11727, "adversarial KIP").

The predictor f(x) = k(x, S) (K_ss + ridge)^-1 Y_s is differentiable in x through the kernel. PGD ascends the loss that
KIP minimises, 1/2 |f(x) - y|^2, in the ball around each real image, in pixels. We know the paper's loop from its
abstract and from descriptions; loss, number of steps and radius of the attack are our choices.

Every process attacks all images; the attacked points are constants of KIP's gradient.
"""

from functools import partial

import torch
from torch import Tensor

from baselines.kip.kernels import Kernel
from distill.training.ridge import centred, regressed
from distill.training.whiten import Whiten
from robust import Normalize, Threat
from robust.losses.adversarial import ascend, random_start

__all__ = ["attacked"]


def attacked(
    kernel: Kernel,
    images: Tensor,
    labels: Tensor,
    pixels: Tensor,
    truth: Tensor,
    space: Normalize | Whiten,
    *,
    ridge: float,
    chunk: int,
    threat: Threat,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Return the points of the balls around real images at which the regression predicts worst, (T, C, H, W).

    Args:
        kernel: the kernel of two batches of images.
        images: (S, C, H, W), the support, preprocessed.
        labels: (S, K), centred.
        pixels: (T, C, H, W), the real batch, in [0, 1].
        truth: (T,) classes of the real batch.
        space: from pixels to the kernel's inputs.
        ridge: regulariser in units of the mean of the kernel's diagonal.
        chunk: pairs whose kernel is computed at once.
        threat: the ball.
        steps: of PGD, of 2.5 eps / steps each, from a random point.
        generator: of the random points, on the CPU.

    Raises:
        torch.linalg.LinAlgError: the kernel of the support is singular.
    """
    support = images.detach()
    with torch.no_grad():
        k_ss = kernel(support, support)
        weights = regressed(k_ss, torch.eye(len(k_ss)).to(k_ss), labels.detach(), ridge)
    right, start = centred(truth, labels.shape[1]).to(labels), random_start(pixels, threat, generator)

    def model(x: Tensor) -> Tensor:
        return kernel(space(x).to(support.dtype), support) @ weights

    found, rows = [], max(1, chunk // len(support))
    for part in torch.arange(len(pixels), device=pixels.device).split(rows):
        loss = partial(_losses, right[part])
        found.append(ascend(model, pixels[part], start[part], loss, threat=threat, steps=steps))
    return torch.cat(found)


def _losses(right: Tensor, predicted: Tensor) -> Tensor:
    return 0.5 * (predicted - right).square().mean(1)
