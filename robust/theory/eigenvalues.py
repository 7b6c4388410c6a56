"""The algebraically largest eigenvalue of symmetric matrices that are known by their products with vectors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robust.per_example import norms, unit

__all__ = ["full", "lanczos", "power"]

Product = Callable[[Tensor], Tensor]

CHECK = 20
"""power steps between two checks whether the eigenvalue of largest absolute value is negative"""


def _dots(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def power(
    hessian_of: Callable[[Tensor], Product], start: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, int]:
    """Return values, vectors and the number of examples that have not converged.

    Examples that have converged are dropped from the batch when they are half of it.

    Args:
        hessian_of: indices of examples -> the product with their Hessians.
        start: (n, ...) unit vectors.
        iterations: steps at most.
        tolerance: see `robust.theory.spectrum.top_eigenvalue`.
    """
    per_example = (-1, *[1] * (start.ndim - 1))
    values, vectors = start.new_zeros(len(start)), start.clone()
    shift = torch.zeros_like(values)
    everyone = torch.arange(len(start), device=start.device)
    hessian, active = hessian_of(everyone), everyone
    waiting = torch.ones_like(everyone, dtype=torch.bool)
    for iteration in range(1, iterations + 1):
        if 2 * int(waiting.sum()) <= len(active):
            active = everyone[waiting]
            hessian = hessian_of(active)
        v, mu = vectors[active], shift[active]
        products = hessian(v)
        lengths = norms(products)
        values[active] = torch.where(waiting[active], _dots(v, products), values[active])
        theta = values[active]
        residuals = norms(products - theta.view(per_example) * v)
        done = residuals <= tolerance * torch.maximum(theta.abs(), mu.abs() / 10)
        # theta has the sign of the eigenvalue of largest absolute value. Where a positive and a negative eigenvalue are
        # equally large, v stays a mixture of both eigenvectors, and |v'Hv| is smaller than |Hv|.
        mixed = (theta < 0.99 * lengths) & (iteration % CHECK == 0)
        negative = (mu == 0) & ((done & (theta < 0)) | (~done & mixed))
        shift[active] = torch.where(negative, -1.1 * lengths, mu)
        moved = torch.where(negative.view(per_example), start[active], unit(products - mu.view(per_example) * v))
        stays = waiting[active] & (negative | ~done)
        vectors[active[stays]] = moved[stays]
        waiting[active] = stays
        if not waiting.any():
            break
    return values, vectors, int(waiting.sum())


def lanczos(hessian: Product, start: Tensor, iterations: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return the value (1,) and vector (1, ...) of one example.

    Args:
        hessian: (1, ...) -> (1, ...), the product.
        start: (1, ...) a unit vector.
        iterations: restarts at most.
        tolerance: see `robust.theory.spectrum.top_eigenvalue`.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    scale = norms(hessian(start).double()).item()  # ARPACK treats eigenvalues below 1e-11 as zero
    if scale == 0:
        return start.new_zeros(1), start

    def product(vector: Any) -> Any:
        v = torch.tensor(vector, dtype=torch.float64).to(start).view_as(start)
        return hessian(v).double().flatten().cpu().numpy() / scale

    size = start.numel()
    options: dict[str, Any] = {"which": "LA", "maxiter": iterations, "tol": tolerance}
    operator = LinearOperator((size, size), matvec=product, dtype="float64")  # pyright: ignore[reportCallIssue]
    try:
        values, vectors = eigsh(operator, 1, v0=start.double().flatten().cpu().numpy(), **options)
    except ArpackNoConvergence:
        return start.new_full((1,), torch.nan), start
    return torch.from_numpy(values * scale).to(start), torch.from_numpy(vectors).to(start).view_as(start)


def full(product: Product, examples: Tensor) -> tuple[Tensor, Tensor]:
    """Return values (n,) and vectors (n, ...) from the whole matrices, which are formed row by row.

    Args:
        product: (n, ...) vectors -> H v of each example.
        examples: (n, ...), whose shape, type and device the vectors have.
    """
    shape = examples.shape
    basis = torch.eye(shape[1:].numel(), dtype=examples.dtype, device=examples.device)
    rows = [product(row.view(1, *shape[1:]).expand(shape)).flatten(1) for row in basis]
    matrices = torch.stack(rows, 1).double()
    values, vectors = torch.linalg.eigh((matrices + matrices.mT) / 2)
    return values[:, -1].to(basis), vectors[:, :, -1].to(basis).view(shape)
