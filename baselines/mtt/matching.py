"""MTT's loss: the distance between training on synthetic images and an expert's trajectory, and the loss's gradients.

`match` returns this loss, with the gradient by the images and the learning rate alpha:

    || theta_N - target ||^2 / || start - target ||^2,   theta_0 = start,   theta_(i+1) = theta_i - alpha g_i(theta_i)

where g_i is the gradient of the mean cross-entropy on the images of step i. Three algorithms compute the gradient of
the loss:

unrolled   through the graph of all N steps, as in MTT's code.
replayed   the same gradient, storing N times P numbers and the graph of one step. The steps run without a graph first.
           Then each step, from the last to the first, is recomputed from the stored theta_i, and the cotangent lambda
           of theta_(i+1) is turned into the cotangent of theta_i:
               lambda = 2 (theta_N - target) / || start - target ||^2,  then for i = N - 1 ... 0
               dS += -alpha d<lambda, g_i>/dS,   dalpha += -<lambda, g_i>,   lambda += -alpha d<lambda, g_i>/dtheta_i
tesla      the gradient of TESLA (Cui et al., ICML 2023, arXiv 2211.10586): as replayed, but lambda keeps its initial
           value. theta_N = start - alpha sum_i g_i is exact, and so is the term of dS from the images of step i in
           g_i; the dependence of theta_i on alpha and on the images of earlier steps is ignored. It equals the other
           two only for N = 1, and saves the backward pass through theta_i.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from robust.second_order.layers import SecondOrder

__all__ = ["Gradient", "logits_at", "match"]

Gradient = Literal["unrolled", "replayed", "tesla"]
Batch = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""(step, images (N, C, H, W)) -> the augmented images of the step and their labels; deterministic for a given step"""


def match(
    network: nn.Module,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    lr: Tensor,
    batch: Batch,
    steps: int,
    gradient: Gradient = "replayed",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the matching loss of a trajectory and the gradients of the loss.

    Args:
        network: provides the layers, in training mode; the values of its parameters are not used.
        start: (P,) initial parameters, in the order of `network.parameters()`.
        target: (P,) target parameters, in the same order.
        images: (N, C, H, W), normalised or whitened.
        lr: learning rate, a scalar.
        batch: returns the training batch of each step.
        steps: number of steps.
        gradient: algorithm for the gradients.

    Returns:
        the loss (a scalar), its gradient by the images (shaped like `images`), and by the learning rate (a scalar).
    """
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        if gradient == "unrolled":
            return _unrolled(network.train(), start, target, images, lr, batch, steps)
        return _replayed(network.train(), start, target, images, lr, batch, steps, exact=gradient == "replayed")


def _unrolled(
    network: nn.Module, start: Tensor, target: Tensor, images: Tensor, lr: Tensor, batch: Batch, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    images, lr = images.detach().requires_grad_(), lr.detach().requires_grad_()
    parameters = start.detach().requires_grad_()
    for step in range(steps):
        parameters = parameters - lr * _step(network, parameters, *batch(step, images), graph=True)
    loss = (parameters - target).square().sum() / (start - target).square().sum()
    to_images, to_lr = torch.autograd.grad(loss, (images, lr))
    return loss.detach(), to_images, to_lr


def _replayed(
    network: nn.Module,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    lr: Tensor,
    batch: Batch,
    steps: int,
    *,
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    images, lr = images.detach(), lr.detach()
    path = [start.detach()]
    for step in range(steps):
        at = path[-1].clone().requires_grad_()
        path.append(path[-1] - lr * _step(network, at, *batch(step, images), graph=False))
    gap, scale = path.pop() - target, (start - target).square().sum()
    cotangent = 2 * gap / scale
    to_images, to_lr = torch.zeros_like(images), torch.zeros_like(lr)
    for step in reversed(range(steps)):
        at, leaf = path.pop().clone().requires_grad_(), images.clone().requires_grad_()
        along = _step(network, at, *batch(step, leaf), graph=True) @ cotangent
        to_lr -= along.detach()
        to_leaf, *to_at = torch.autograd.grad(along, (leaf, at) if exact and step else (leaf,))
        to_images -= lr * to_leaf
        if to_at:
            cotangent = cotangent - lr * to_at[0]
    return gap.square().sum() / scale, to_images, to_lr


def _step(network: nn.Module, parameters: Tensor, x: Tensor, y: Tensor, *, graph: bool) -> Tensor:
    """Return the gradient of the mean cross-entropy by the parameters (P,); differentiable if `graph` is True."""
    with SecondOrder() if graph else nullcontext():
        loss = F.cross_entropy(logits_at(network, parameters, x), y)
    return torch.autograd.grad(loss, parameters, create_graph=graph)[0]


def logits_at(network: nn.Module, parameters: Tensor, x: Tensor) -> Tensor:
    """Return the logits (N, K) of a network with `parameters` (P,), in the order of `network.parameters()`."""
    templates = dict(network.named_parameters())
    flat = parameters.split([template.numel() for template in templates.values()])
    named = {name: values.view_as(templates[name]) for name, values in zip(templates, flat, strict=True)}
    return functional_call(network, named, (x,))
