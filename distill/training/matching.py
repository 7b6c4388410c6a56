"""Gradients of a network on synthetic images, and distances between gradients: lists with one tensor per parameter.

`layerwise` is eq. 10 of "Dataset Condensation with Gradient Matching" (Zhao et al., ICLR 2021, arXiv 2006.05929): each
output unit's weights are one row. As in the official code, parameters with one dimension (biases, norms) do not count.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from robust import cross_entropy
from robust.second_order.layers import SecondOrder

__all__ = ["DISTANCES", "cosine", "freeze_batchnorm", "gradients_by_class", "layerwise", "mse"]

Gradient = Sequence[Tensor]


def layerwise(synthetic: Gradient, real: Gradient) -> Tensor:
    """Return the sum over rows of 1 - cosine, rows being output units of the parameters with two or more dimensions.

    A layer-norm weight (C, H, W) has C rows. 1e-6 is added to the product of the norms.

    >>> a, b = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, -1.0]])
    >>> round(layerwise([a, torch.ones(2)], [b, torch.zeros(2)]).item(), 4)  # rows: 0 and 2; the bias does not count
    2.0
    """
    total = real[0].new_zeros(())
    for ours, theirs in zip(synthetic, real, strict=True):
        if ours.ndim > 1:
            ours, theirs = ours.flatten(1), theirs.flatten(1)
            dots = (ours * theirs).sum(1)
            lengths = torch.linalg.vector_norm(ours, dim=1) * torch.linalg.vector_norm(theirs, dim=1)
            total = total + (1 - dots / (lengths + 1e-6)).sum()
    return total


def mse(synthetic: Gradient, real: Gradient) -> Tensor:
    """Return the squared L2 distance of the whole gradients, biases included.

    >>> mse([torch.tensor([1.0, 2.0])], [torch.tensor([1.0, 0.0])]).item()
    4.0
    """
    return torch.stack([(ours - theirs).square().sum() for ours, theirs in zip(synthetic, real, strict=True)]).sum()


def cosine(synthetic: Gradient, real: Gradient) -> Tensor:
    """Return 1 - cosine of the whole gradients, biases included.

    >>> round(cosine([torch.tensor([1.0, 0.0])], [torch.tensor([0.0, 5.0])]).item(), 4)
    1.0
    """
    ours, theirs = (torch.cat([g.flatten() for g in gradient]) for gradient in (synthetic, real))
    return 1 - ours @ theirs / (torch.linalg.vector_norm(ours) * torch.linalg.vector_norm(theirs) + 1e-6)


DISTANCES: dict[str, Callable[[Gradient, Gradient], Tensor]] = {"layerwise": layerwise, "mse": mse, "cosine": cosine}


def gradients_by_class(network: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Return each class's gradient of its mean loss, differentiable: (K, ipc, C, H, W), (K, ipc) -> K x a parameter."""
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        if len(images) == 1:
            with SecondOrder():
                loss = cross_entropy(network(images[0]), labels[0]).mean()
            parameters = [p for p in network.parameters() if p.requires_grad]
            return [g[None] for g in torch.autograd.grad(loss, parameters, create_graph=True)]
        copies = {  # a copy of the network for each class, so that one pass gives a separate gradient for every class
            name: p.detach().expand(len(images), *p.shape).clone().requires_grad_()
            for name, p in network.named_parameters()
            if p.requires_grad
        }
        mean_losses = vmap(lambda p, x, y: _mean_cross_entropy(functional_call(network, p, (x,)), y))
        return list(
            torch.autograd.grad(mean_losses(copies, images, labels).sum(), list(copies.values()), create_graph=True)
        )


def _mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy, with the bits of torch's, which under vmap imports sympy: a third of a second."""
    return -logits.log_softmax(1).gather(1, labels[:, None]).mean()


def freeze_batchnorm(network: nn.Module, samples: list[Callable[[], Tensor]]) -> None:
    """Put the network in evaluation mode, after BatchNorm has seen 16 real images of each class (official code).

    Args:
        network: changed in place.
        samples: one function per class, which returns real images (16, C, H, W), normalised.
    """
    if any(isinstance(module, _BatchNorm) for module in network.modules()):
        network.train()
        with torch.no_grad():
            network(torch.cat([sample() for sample in samples]))
    network.eval()
