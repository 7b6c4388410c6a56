"""DD's unrolled training, and its exact gradient with the graph of only one step (see `baselines.dd.method`)."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.models import build

__all__ = ["cross_entropy_of", "descent", "drawn", "hypergradient", "untrained"]

Parameters = dict[str, Tensor]
Outer = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]


def cross_entropy_of(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Return DD's loss of the real batch, the mean cross-entropy."""
    return F.cross_entropy(model(x), y)


def hypergradient(
    net: nn.Module, images: Tensor, labels: Tensor, lrs: Tensor, x: Tensor, y: Tensor, outer: Outer = cross_entropy_of
) -> list[Tensor]:
    """Return the loss on a real batch after the distilled steps, and the gradients of the loss.

    Args:
        net: untrained network; its weights do not change, its mode becomes evaluation.
        images: (T, n, C, H, W), n images for each step, normalised.
        labels: (T, n) classes, or (T, n, K) vectors.
        lrs: (S,) learning rates; step s uses images[s mod T].
        x: (B, C, H, W) real images, normalised.
        y: (B,) classes of x.
        outer: loss of the real batch under the trained network: (function of the images, x, y) -> a scalar.

    Returns:
        the loss (a scalar), its gradients by `images`, by `lrs`, and, where labels are vectors, by `labels`.
    """
    soft = labels.is_floating_point()
    path = [dict(net.eval().named_parameters()), *descent(net, images, labels, lrs)]
    by_images, by_lrs, by_labels = torch.zeros_like(images), torch.zeros_like(lrs), torch.zeros_like(labels)
    last = _leaves(path.pop())
    loss = outer(lambda inputs: functional_call(net, last, (inputs,)), x, y)
    cotangent = torch.autograd.grad(loss, list(last.values()))
    for step in reversed(range(len(lrs))):
        batch, weights = step % len(images), _leaves(path.pop())
        synthetic, targets = images[batch].detach().requires_grad_(), labels[batch].detach().requires_grad_(soft)
        gradient = _gradient(net, weights, synthetic, targets, graph=True)
        by_lrs[step] = -sum((a * b.detach()).sum() for a, b in zip(cotangent, gradient, strict=True))
        leaves, scaled = [synthetic, targets][: 1 + soft], [-lrs[step] * c for c in cotangent]
        by_image, *rest = torch.autograd.grad(gradient, [*leaves, *weights.values()], scaled)
        by_images[batch] += by_image
        if soft:
            by_labels[batch] += rest.pop(0)
        cotangent = [a + b for a, b in zip(cotangent, rest, strict=True)]
    return [loss.detach(), by_images, by_lrs, by_labels][: 3 + soft]


def descent(network: nn.Module, images: Tensor, labels: Tensor, lrs: Tensor) -> Iterator[Parameters]:
    """Yield the weights after each step, starting from the network's weights; arguments as in `hypergradient`."""
    weights: Parameters = dict(network.named_parameters())
    for step, lr in enumerate(lrs):
        batch = step % len(images)
        gradient = _gradient(network, _leaves(weights), images[batch], labels[batch], graph=False)
        weights = {name: p.detach() - lr * g for (name, p), g in zip(weights.items(), gradient, strict=True)}
        yield weights


def _gradient(network: nn.Module, weights: Parameters, x: Tensor, y: Tensor, *, graph: bool) -> tuple[Tensor, ...]:
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        loss = F.cross_entropy(functional_call(network, weights, (x,)), y)
    return torch.autograd.grad(loss, list(weights.values()), create_graph=graph)


def _leaves(weights: Parameters) -> Parameters:
    return {name: p.detach().requires_grad_() for name, p in weights.items()}


def untrained(backbone: str, weights: str, data: ImageSet | DistilledSet, generator: torch.Generator) -> nn.Module:
    """Return an untrained network for images of the set, on the CPU."""
    return drawn(build(backbone, like=data, generator=generator), weights, generator)


@torch.no_grad()
def drawn(network: nn.Module, weights: str, generator: torch.Generator) -> nn.Module:
    """Return the network; `xavier` draws kernels and matrices from N(0, 2 / (fan in + fan out)) and sets biases to 0.

    Raises:
        InputError: the network has BatchNorm.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            raise InputError("dd's steps are too few for the statistics of BatchNorm; take norm=instance, or lenet")
        if weights == "xavier" and isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.copy_(nn.init.xavier_normal_(torch.empty(module.weight.shape), generator=generator))
            if module.bias is not None:
                module.bias.zero_()
    return network
