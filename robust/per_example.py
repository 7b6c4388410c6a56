"""Functions of each example of a batch on its own: norms, unit vectors, and random streams."""

import torch
from torch import Tensor

__all__ = ["norms", "streams", "unit"]


def norms(vectors: Tensor, order: float = 2.0) -> Tensor:
    """Return the norm of each example, (N, ...) -> (N,), in float32 at least.

    The gradient at a zero vector is zero (not NaN).

    >>> norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [5.0, 0.0]
    """
    precise = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    return torch.linalg.vector_norm(precise, order, dim=tuple(range(1, vectors.ndim)))


def streams(count: int, generator: torch.Generator | None) -> list[torch.Generator]:
    """Return a CPU generator for each example, so that its random numbers do not depend on the rest of the batch.

    Args:
        count: examples.
        generator: CPU generator of the seeds; None takes torch's default.

    >>> first, second = streams(2, torch.Generator().manual_seed(0))
    >>> first.initial_seed() == second.initial_seed()
    False
    """
    seeds = torch.randint(2**62, (count,), generator=generator).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def unit(vectors: Tensor) -> Tensor:
    """Return each example divided by its L2 norm, (N, ...) -> (N, ...); a zero example stays zero.

    Examples are divided by their largest entry first, so that gradients of 1e-30 (of images that the network classifies
    with near certainty) do not underflow when squared.

    >>> unit(torch.tensor([[3e-30, 4e-30], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    tiny = torch.finfo(vectors.dtype).tiny
    dims = tuple(range(1, vectors.ndim))
    scaled = vectors / vectors.abs().amax(dims, keepdim=True).clamp_min(tiny)
    lengths = norms(scaled).to(vectors.dtype).clamp_min(tiny)
    return scaled / lengths.view(-1, *[1] * (vectors.ndim - 1))
