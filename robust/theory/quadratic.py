r"""The quadratic model of the loss around an example, and its exact maximum in a ball.

With the gradient g and the Hessian H of the loss l of an example x, the model is

    l~(x + v) = l(x) + g'v + v'Hv / 2

and its maximum over |v| <= rho (the adversarial loss in bounds (2) and (3) of the GUARD paper, see bounds.py) is a
trust-region problem. By strong duality (Conn, Gould, Toint, "Trust-Region Methods", 2000, chapter 7) it equals

    min over mu >= max(lambda_1, 0) of  mu rho^2 / 2 + g'(mu - H)^-1 g / 2,

a convex function of one number once H is diagonal. H is known only by its products with vectors, so that it is taken
in the Krylov space of g (Gould et al., "Solving the trust-region subproblem using the Lanczos method", 1999), to which
the top eigenvector v_1 is added: without it, a gradient orthogonal to v_1 (the "hard case") would hide lambda_1. In a
subspace the maximum is at most the exact one. It is exact if the space has all features, and for a piecewise linear
network of K classes after K products: g and the range of H are in the span of the K gradients of the logits.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from robust.losses.cross_entropy import cross_entropy
from robust.losses.curvature import Criterion
from robust.network.inference import outside_inference
from robust.network.modes import Model, evaluating
from robust.per_example import unit
from robust.ranges import Range, check_number
from robust.theory.hessian import Hessian, examples_at_once, passes, with_constant_parameters
from robust.theory.spectrum import Method, top_eigenvalue

__all__ = ["PRODUCTS", "QuadraticModel", "quadratic_model"]

PRODUCTS = 16
"""products with the Hessian of an example; with 8, a ConvNet's maximum on CIFAR-10 is within 1e-6 of the exact one"""
Products = Annotated[int, Range(least=2)]
DEPENDENT = 1e-8
"""part of a vector outside a space, relative to its length, below which it counts as inside"""
HALVINGS = 200
"""of the interval of mu, more than float64 has bits"""


@dataclass(frozen=True)
class QuadraticModel:
    """The quadratic models of the loss around N examples, with the Hessian in a space of M dimensions."""

    losses: Tensor
    """l(x), (N,)"""
    eigenvalues: Tensor
    """of the Hessian in the space, (N, M), ascending; the last is lambda_1. float64, nats per unit of length^2.

    Where the space has fewer than M dimensions, the first are below all others and have slopes of 0.
    """
    slopes: Tensor
    """of the loss along their eigenvectors, (N, M), float64; the whole gradient is in the space"""

    @property
    def lambda_1(self) -> Tensor:
        """The algebraically largest eigenvalue of each Hessian, (N,)."""
        return self.eigenvalues[:, -1].to(self.losses)

    @property
    def gradient_norms(self) -> Tensor:
        """|g| of each example, (N,)."""
        return self.slopes.norm(dim=1).to(self.losses)

    @property
    def cosine(self) -> Tensor:
        """|cos| of the angle between g and v_1, (N,), in [0, 1]; zero where g is zero."""
        return unit(self.slopes)[:, -1].abs().to(self.losses)

    def maximum(self, rho: float) -> Tensor:
        """Return the largest value of each model in the ball |v| <= rho, (N,), in nats.

        Args:
            rho: L2 radius, >= 0.

        >>> line = torch.zeros(1, 2, dtype=torch.float64)
        >>> QuadraticModel(torch.ones(1), line, torch.tensor([[3.0, 4.0]]).double()).maximum(0.5).item()
        3.5
        """
        if rho == 0:
            return self.losses
        least = self.eigenvalues[:, -1:].clamp_min(0)
        below, squares = least - self.eigenvalues, self.slopes.square()
        low, high = torch.zeros_like(least), self.slopes.norm(dim=1, keepdim=True) / rho  # of mu - least
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            long = (squares / (middle + below).clamp_min(1e-300).square()).sum(1, keepdim=True) > rho**2
            low, high = torch.where(long, middle, low), torch.where(long, high, middle)
        gains = (least + high)[:, 0] * rho**2 / 2 + (squares / (high + below).clamp_min(1e-300)).sum(1) / 2
        return (self.losses.double() + gains).to(self.losses)


@outside_inference
def quadratic_model(
    model: Model,
    images: Tensor,
    targets: Tensor,
    *,
    products: int = PRODUCTS,
    method: Method = "power",
    iterations: int = 1000,
    tolerance: float = 1e-4,
    criterion: Criterion = cross_entropy,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> QuadraticModel:
    """Return the quadratic model of the loss around each example.

    Args:
        model: maps (N, ...) to outputs that `criterion` takes, independently for each example; in evaluation mode
            meanwhile.
        images: (N, ...), floating point.
        targets: (N,) class indices or (N, K) class probabilities.
        products: products with each Hessian, in addition to those for its top eigenvector; no more than the number of
            features are made, and then the model is exact.
        method: of `top_eigenvalue`, as are `iterations` and `tolerance`.
        iterations: of `top_eigenvalue`.
        tolerance: of `top_eigenvalue`.
        criterion: (outputs, targets) -> loss of each example (N,).
        generator: CPU generator of the start vectors of `top_eigenvalue`.
        batch_size: examples of one pass; None follows from the network (see `robust.network.batches`), at most 100.

    Raises:
        ValueError: `products` is no whole number >= 2, or an option of `top_eigenvalue` is invalid.

    >>> a = torch.diag(torch.tensor([-5.0, 1.0, 2.0]))
    >>> quadratic = lambda x: (x @ a * x).sum(1) / 2
    >>> found = quadratic_model(quadratic, torch.zeros(1, 3), torch.zeros(1), criterion=lambda out, _: out)
    >>> round(found.lambda_1.item(), 4), round(found.maximum(2.0).item(), 4)
    (2.0, 4.0)
    """
    check_number("products", products, Products)
    batch_size = examples_at_once(model, images, batch_size)
    options = {"method": method, "iterations": iterations, "tolerance": tolerance, "batch_size": batch_size}
    _, top = top_eigenvalue(model, images, targets, criterion=criterion, generator=generator, **options)
    with evaluating(model):
        batches = passes(with_constant_parameters(model), images, targets, criterion, batch_size)
        found = [_in_a_space(Hessian(*b), v, products) for b, v in zip(batches, top.split(batch_size), strict=True)]
    return QuadraticModel(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _in_a_space(hessian: Hessian, top: Tensor, products: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses, eigenvalues and slopes of a batch in the space of v_1, g, H g, H^2 g, ..."""
    shape, gradients = top.shape, hessian.gradients.detach().flatten(1).double()
    size = min(products, gradients.shape[1])
    basis, mapped = gradients.new_zeros(2, len(gradients), size, gradients.shape[1])
    for number in range(size):
        new = (top.flatten(1).double(), gradients)[number] if number < 2 else mapped[:, number - 1]
        rest = new
        for _ in range(2):  # once leaves the rounding errors of the first subtraction
            rest = rest - torch.einsum("nmd,nm->nd", basis, torch.einsum("nmd,nd->nm", basis, rest))
        inside = rest.norm(dim=1) <= DEPENDENT * new.norm(dim=1)  # of the space: the rest is rounding errors
        basis[:, number] = torch.where(inside[:, None], 0, unit(rest))
        mapped[:, number] = hessian(basis[:, number].view(shape).to(top)).flatten(1).double()
    small = torch.einsum("nid,njd->nij", basis, mapped)
    lowest = -small.abs().sum((1, 2))  # the eigenvalue of a vector that is missing, so that no maximum uses it
    small += torch.diag_embed(torch.where(basis.any(2), 0, lowest[:, None]))
    values, vectors = torch.linalg.eigh((small + small.mT) / 2)
    slopes = torch.einsum("nji,nj->ni", vectors, torch.einsum("nmd,nd->nm", basis, gradients))
    return hessian.losses, values, slopes
