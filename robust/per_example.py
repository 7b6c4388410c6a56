"""Norms and unit vectors of each example of a batch: (N, ...) in, one number or one vector for each of the N out."""

import torch
from torch import Tensor

__all__ = ["norms", "unit"]


def norms(vectors: Tensor, order: float = 2.0) -> Tensor:
    """Return the norm of each example, (N, ...) -> (N,), in float32 at least.

    The gradient at a zero vector is zero (not NaN).

    >>> norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [5.0, 0.0]
    """
    precise = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    return torch.linalg.vector_norm(precise, order, dim=tuple(range(1, vectors.ndim)))


def unit(vectors: Tensor) -> Tensor:
    """Return each example divided by its L2 norm, (N, ...) -> (N, ...); a zero example stays zero.

    Scaled by the largest entry first, so that gradients of 1e-30 (a confident example's) do not underflow when squared.

    >>> unit(torch.tensor([[3e-30, 4e-30], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    tiny = torch.finfo(vectors.dtype).tiny
    dims = tuple(range(1, vectors.ndim))
    scaled = vectors / vectors.abs().amax(dims, keepdim=True).clamp_min(tiny)
    lengths = norms(scaled).to(vectors.dtype).clamp_min(tiny)
    return scaled / lengths.view(-1, *[1] * (vectors.ndim - 1))
