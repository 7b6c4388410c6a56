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

Labels can be learned too: then y_i = softmax(logits of the images of step i), the mean cross-entropy is that of soft
labels, and the gradient of the loss by the logits has the form of dS, with y_i in the place of S_i: dlogits +=
-alpha d<lambda, g_i>/dlogits, in all three algorithms.

Replayed and tesla compute g_i in groups of the step's images (`groups`), of which several processes have some each. All
processes exchange the groups' gradients in each step, and sum them in one order: the result does not depend on the
number of processes. Unrolled, and images that are one group, are the work of the main process.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from math import ceil
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from distill.runs.divided import block, blocks, from_main, gathered
from distill.runs.ranks import alone, is_main_process
from robust.second_order.layers import SecondOrder

__all__ = ["Gradient", "groups", "logits_at", "match"]

MOST_GROUPS = 8
"""groups of a step's images: each process that works on a group has a gradient of all parameters to exchange"""
SMALLEST_GROUP = {"cpu": 5 * 32**2, "cuda": 64 * 32**2}
"""pixels by type of device: in smaller groups the overhead of a step takes much of the time (not measured on a GPU)"""

Gradient = Literal["unrolled", "replayed", "tesla"]
Batch = Callable[..., tuple[Tensor, Tensor]]
"""(step, images (N, C, H, W)) -> the augmented images of the step and their labels; with learned labels (step, images,
logits (N, K)) -> the augmented images and their probabilities; deterministic for a given step"""


def match(
    network: nn.Module,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    lr: Tensor,
    batch: Batch,
    steps: int,
    gradient: Gradient = "replayed",
    logits: Tensor | None = None,
) -> tuple[Tensor, ...]:
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
        logits: (N, K) of learned labels; None for labels that are not learned.

    Returns:
        the loss (a scalar), its gradient by the images (shaped like `images`), by the learning rate (a scalar), and,
        with `logits`, by them (shaped like `logits`).
    """
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        gradients = _unrolled if gradient == "unrolled" else partial(_replayed, exact=gradient == "replayed")
        learned = (images,) if logits is None else (images, logits)
        work = partial(gradients, network.train(), start, target, learned, lr, batch, steps)
        if gradient != "unrolled" and len(groups(network, images)) > 1:
            return work()
        found = tuple(map(torch.zeros_like, (lr, images, lr, *learned[1:])))
        if is_main_process():
            with alone():
                found = work()
        return tuple(from_main(each.contiguous()) for each in found)


def _unrolled(
    network: nn.Module,
    start: Tensor,
    target: Tensor,
    learned: tuple[Tensor, ...],
    lr: Tensor,
    batch: Batch,
    steps: int,
) -> tuple[Tensor, ...]:
    leaves, lr = [each.detach().requires_grad_() for each in learned], lr.detach().requires_grad_()
    parameters = start.detach().requires_grad_()
    for step in range(steps):
        parameters = parameters - lr * _step(network, parameters, *batch(step, *leaves), graph=True)
    loss = (parameters - target).square().sum() / (start - target).square().sum()
    to_images, to_lr, *to_logits = torch.autograd.grad(loss, (leaves[0], lr, *leaves[1:]))
    return loss.detach(), to_images, to_lr, *to_logits


def _replayed(
    network: nn.Module,
    start: Tensor,
    target: Tensor,
    learned: tuple[Tensor, ...],
    lr: Tensor,
    batch: Batch,
    steps: int,
    *,
    exact: bool,
) -> tuple[Tensor, ...]:
    learned, lr = tuple(each.detach() for each in learned), lr.detach()
    path = [start.detach()]
    for step in range(steps):
        x, y = batch(step, *learned)
        parts, found = groups(network, x), [start.new_zeros(0, len(start))]
        for part in block(parts):
            at = path[-1].clone().requires_grad_()
            found.append(_step(network, at, x[part], y[part], graph=False)[None] * (len(part) / len(x)))
        path.append(path[-1] - lr * gathered(torch.cat(found), [len(each) for each in blocks(parts)]).sum(0))
    gap, scale = path.pop() - target, (start - target).square().sum()
    cotangent = 2 * gap / scale
    totals, to_lr = [torch.zeros_like(each) for each in learned], torch.zeros_like(lr)
    for step in reversed(range(steps)):
        theta, leaves = path.pop(), [each.clone().requires_grad_() for each in learned]
        x, y = batch(step, *leaves)
        data = (x, y)[: len(leaves)]  # depends on the leaves
        parts, through = groups(network, x), exact and step > 0
        found, to_data = [start.new_zeros(0, 1 + through * len(start))], [[each.detach()[:0]] for each in data]
        for part in block(parts):
            at, group = theta.clone().requires_grad_(), [each.detach()[part].requires_grad_() for each in data]
            labels = group[1] if len(group) > 1 else y[part]
            along = _step(network, at, group[0], labels, graph=True) @ cotangent * (len(part) / len(x))
            gradients = torch.autograd.grad(along, (*group, at) if through else group)
            found.append(torch.cat([along.detach().view(1), *gradients[len(group) :]])[None])
            for rows, gradient in zip(to_data, gradients, strict=False):
                rows.append(gradient)
        to_theta = gathered(torch.cat(found), [len(each) for each in blocks(parts)]).sum(0)
        sizes = [sum(map(len, each)) for each in blocks(parts)]
        cotangents = [gathered(torch.cat(rows), sizes) for rows in to_data]
        for total, each in zip(totals, torch.autograd.grad(data, leaves, cotangents), strict=True):
            total -= lr * each
        to_lr -= to_theta[0]
        if through:
            cotangent = cotangent - lr * to_theta[1:]
    return gap.square().sum() / scale, totals[0], to_lr, *totals[1:]


def groups(network: nn.Module, images: Tensor) -> Sequence[Tensor]:
    """Return the groups into which the images of a step are divided, as indices; they depend on no number of processes.

    All images are one group where they are few and small, and for a network with BatchNorm.

    Args:
        network: in training mode.
        images: (N, C, H, W).
    """
    count, pixels = len(images), images.shape[2] * images.shape[3]
    size = max(ceil(SMALLEST_GROUP.get(images.device.type, 0) / pixels), ceil(count / MOST_GROUPS))
    if any(isinstance(module, _BatchNorm) for module in network.modules()):
        size = count
    return torch.arange(count, device=images.device).split(size)


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
