"""How far training on a few images leads from the trajectory of an expert, and the gradients of that distance.

`match` is MTT's loss, with its gradient by the images and the learning rate alpha:

    || theta_N - target ||^2 / || start - target ||^2,   theta_0 = start,   theta_(i+1) = theta_i - alpha g_i(theta_i)

with g_i the gradient of the mean cross-entropy of step i's images. There are three ways to that gradient:

unrolled   through the graph of all N steps, as MTT's code has it.
replayed   the same gradient with the graph of one step in memory, and N times P numbers. The steps are taken without a
           graph; then, from the last to the first, each is taken again from its kept theta_i, and the cotangent lambda
           of theta_(i+1) becomes that of theta_i:
               lambda = 2 (theta_N - target) / || start - target ||^2,  then for i = N - 1 ... 0
               dS += -alpha d<lambda, g_i>/dS,   dalpha += -<lambda, g_i>,   lambda += -alpha d<lambda, g_i>/dtheta_i
tesla      that of TESLA (Cui et al., ICML 2023, arXiv 2211.10586): the same, but lambda stays what it is at first.
           theta_N = start - alpha sum_i g_i is exact, and so is the part of dS through the images of step i in g_i;
           that theta_i itself depends on the images of the steps before, and on alpha, is left out. Equal to the others
           for N = 1 only; it saves the pass backward through theta_i.
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
"""(step, images (N, C, H, W)) -> the images of that step, augmented, and their labels; the same for every call"""


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
    """Return the matching loss of a trajectory, and its gradients.

    Args:
        network: lends its layers, in training mode; its own parameters are not read.
        start: (P,) parameters to start from, in the order of `network.parameters()`.
        target: (P,) those to arrive at.
        images: (N, C, H, W), as the network takes them.
        lr: learning rate, a scalar.
        batch: what each step trains on.
        steps: how many.
        gradient: the way to them.

    Returns:
        the loss (a scalar), its gradient by the images (shaped as they), and by the learning rate (a scalar).
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
    way = [start.detach()]
    for step in range(steps):
        at = way[-1].clone().requires_grad_()
        way.append(way[-1] - lr * _step(network, at, *batch(step, images), graph=False))
    gap, scale = way.pop() - target, (start - target).square().sum()
    cotangent = 2 * gap / scale
    to_images, to_lr = torch.zeros_like(images), torch.zeros_like(lr)
    for step in reversed(range(steps)):
        at, leaf = way.pop().clone().requires_grad_(), images.clone().requires_grad_()
        along = _step(network, at, *batch(step, leaf), graph=True) @ cotangent
        to_lr -= along.detach()
        to_leaf, *to_at = torch.autograd.grad(along, (leaf, at) if exact and step else (leaf,))
        to_images -= lr * to_leaf
        if to_at:
            cotangent = cotangent - lr * to_at[0]
    return gap.square().sum() / scale, to_images, to_lr


def _step(network: nn.Module, parameters: Tensor, x: Tensor, y: Tensor, *, graph: bool) -> Tensor:
    """Return the gradient of the mean cross-entropy by the parameters (P,), differentiable where a graph is asked."""
    with SecondOrder() if graph else nullcontext():
        loss = F.cross_entropy(logits_at(network, parameters, x), y)
    return torch.autograd.grad(loss, parameters, create_graph=graph)[0]


def logits_at(network: nn.Module, parameters: Tensor, x: Tensor) -> Tensor:
    """Return a network's logits (N, K) with other parameters, (P,) in the order of `network.parameters()`."""
    own = dict(network.named_parameters())
    parts = parameters.split([parameter.numel() for parameter in own.values()])
    named = {name: part.view_as(own[name]) for name, part in zip(own, parts, strict=True)}
    return functional_call(network, named, (x,))
