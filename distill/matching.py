"""Distances between two gradients of a network, as lists of tensors, one a parameter.

`layerwise` is eq. 10 of "Dataset Condensation with Gradient Matching" (Zhao et al., ICLR 2021, arXiv 2006.05929): each
output unit's weights are one row. As in the official code, parameters with one dimension (biases, norms) do not count.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["DISTANCES", "cosine", "layerwise", "mse"]

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
