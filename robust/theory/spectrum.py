r"""Curvature of the loss in the input, per example: the top eigenvalue of the Hessian and its substitutes.

l is the cross-entropy under the model, H the Hessian of l in the image x, lambda_1 the *algebraically* largest
eigenvalue of H (which bounds v'Hv from above; the eigenvalue of largest absolute value does not). Section 5 of the
GUARD paper (Xue et al., arXiv 2403.10045) replaces lambda_1 by |grad l(x + h z) - grad l(x)| / h with z along the
gradient. The bounds that the paper derives from lambda_1 are in bounds.py.

All lengths are L2 in the units of `images`: pixels in [0, 1] when normalisation is inside the model.

A network of piecewise linear layers (ReLU, average or max pooling, no norm over an image's own values) has
H = J'(diag(p) - pp')J almost everywhere, with J the Jacobian of the logits and p the class probabilities. H is then
positive semidefinite, of rank K - 1 at most for K classes, so that power iteration finds no negative eigenvalue. Smooth
activations and instance norm make H indefinite and of full rank.
"""

import warnings
from typing import Literal, get_args

import torch
from torch import Tensor

from robust.losses.cross_entropy import cross_entropy
from robust.losses.curvature import Criterion, curvature_penalty
from robust.network.inference import outside_inference
from robust.network.modes import Model, evaluating
from robust.per_example import unit
from robust.ranges import Count, Positive, check_number
from robust.theory.eigenvalues import full, lanczos, power
from robust.theory.hessian import (
    Hessian,
    examples_at_once,
    losses_and_gradients,
    random_directions,
    with_constant_parameters,
)

__all__ = ["finite_difference_curvature", "gradient_cosine", "top_eigenvalue"]

Method = Literal["power", "lanczos", "full"]
FULL_LIMIT = 1024
"""features of an example up to which its whole Hessian is formed"""


@outside_inference
def top_eigenvalue(
    model: Model,
    images: Tensor,
    targets: Tensor,
    *,
    method: Method = "power",
    iterations: int = 1000,
    tolerance: float = 1e-4,
    criterion: Criterion = cross_entropy,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return lambda_1, the algebraically largest eigenvalue of each example's input Hessian, and its eigenvector.

    Args:
        model: maps (N, ...) to outputs that `criterion` takes, independently for each example; in evaluation mode
            meanwhile.
        images: (N, ...), floating point.
        targets: (N,) class indices or (N, K) class probabilities.
        method: "power" iterates v <- H v on all examples of a batch at once, each until it has converged; where the
            iteration finds a negative eigenvalue of largest absolute value, v <- (H - mu) v with mu below it. "lanczos"
            is SciPy's eigsh (ARPACK), one example at a time: the fewest products where the spectrum is dense or
            indefinite. "full" forms the Hessian of examples of at most 1024 features, batch_size * features^2 numbers.
        iterations: steps (power) or restarts (lanczos) of each example, at most.
        tolerance: largest |H v - lambda v| for a unit v, relative to |lambda| (power: or to |mu| / 10, if that is
            larger). It bounds the relative error of lambda, which is usually of the order of its square.
        criterion: (outputs, targets) -> loss of each example (N,).
        generator: CPU generator of the start vectors; None starts every example at the same vector.
        batch_size: examples of one pass; None follows from the network (see `robust.network.batches`), at most 100. The
            result does not depend on it.

    Returns:
        values (N,) and unit vectors (N, ...) of arbitrary sign. For an example that has not converged, a RuntimeWarning
        is issued, and its value is the last Rayleigh quotient, a lower bound ("power"), or NaN ("lanczos").

    Raises:
        ValueError: an unknown method, too many features for "full", or an option that is not > 0.

    >>> a = torch.diag(torch.tensor([-5.0, 1.0, 2.0]))  # the largest in absolute value is the negative one
    >>> quadratic = lambda x: (x @ a * x).sum(1) / 2
    >>> x = torch.ones(1, 3)
    >>> options = {"criterion": lambda out, _: out}
    >>> [round(top_eigenvalue(quadratic, x, x, method=m, **options)[0].item(), 4) for m in ("power", "lanczos", "full")]
    [2.0, 2.0, 2.0]
    """
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}; choose from {', '.join(get_args(Method))}")
    check_number("iterations", iterations, Count)
    batch_size = examples_at_once(model, images, batch_size)
    check_number("tolerance", tolerance, Positive)
    features = images[0].numel() if len(images) else 0
    if method == "full" and features > FULL_LIMIT:
        raise ValueError(f"method 'full' takes at most {FULL_LIMIT} features, not {features}; choose power or lanczos")
    start = random_directions(images, generator)
    values, vectors = images.new_zeros(len(images)), start.clone()
    not_converged = 0
    with evaluating(model):
        size = 1 if method == "lanczos" else batch_size
        for batch in torch.arange(len(images), device=images.device).split(size) if len(images) else ():

            def hessian(part: Tensor | slice = slice(None), batch: Tensor = batch) -> Hessian:
                return Hessian(with_constant_parameters(model), images[batch[part]], targets[batch[part]], criterion)

            if method == "full" or features < 3:  # ARPACK needs more features than eigenvalues
                values[batch], vectors[batch] = full(hessian(), images[batch])
            elif method == "power":
                values[batch], vectors[batch], left = power(hessian, start[batch], iterations, tolerance)
                not_converged += left
            else:
                values[batch], vectors[batch] = lanczos(hessian(), start[batch], iterations, tolerance)
                not_converged += int(values[batch].isnan().sum())
    if not_converged:
        message = (
            f"{not_converged} of {len(images)} examples are not within {tolerance:g} after {iterations} iterations "
            f"({method})"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    return values, vectors


@outside_inference
def gradient_cosine(
    model: Model,
    images: Tensor,
    targets: Tensor,
    vectors: Tensor,
    *,
    criterion: Criterion = cross_entropy,
    batch_size: int | None = None,
) -> Tensor:
    """Return |cos| of the angle between each example's gradient and a vector, such as its top eigenvector, (N,).

    The paper regularises along the gradient because the gradient is near the direction of the largest curvature; this
    function measures how near. Zero where a gradient is zero. Arguments as of `hessian_vector_product`.

    >>> x = torch.tensor([[3.0, 4.0]])
    >>> half_square = lambda x: x.square().sum(1) / 2  # its gradient is x
    >>> gradient_cosine(half_square, x, x, torch.tensor([[0.0, -2.0]]), criterion=lambda out, _: out).item()
    0.800000011920929
    """
    _, gradients = losses_and_gradients(model, images, targets, criterion, batch_size)
    return (unit(gradients) * unit(vectors)).flatten(1).sum(1).abs()


@outside_inference
def finite_difference_curvature(
    model: Model,
    images: Tensor,
    targets: Tensor,
    *,
    h: float,
    criterion: Criterion = cross_entropy,
    batch_size: int | None = None,
) -> Tensor:
    """Return |grad l(x + h z) - grad l(x)| / h of each example, z = grad l / |grad l|: a substitute for lambda_1.

    Equation 7, not squared, hence in the units of an eigenvalue; the penalty of eq. 8 is the square of this value times
    h^2. For small h the value tends to |H z|, which is at most the largest |lambda|, until rounding errors dominate
    (float32: below about 1e-3).

    Args:
        model: maps (N, ...) to outputs that `criterion` takes, independently for each example; in evaluation mode
            meanwhile.
        images: (N, ...), floating point.
        targets: (N,) class indices or (N, K) class probabilities.
        h: L2 length of the step, > 0, in the units of `images`.
        criterion: (outputs, targets) -> loss of each example (N,).
        batch_size: examples of one pass; None follows from the network (see `robust.network.batches`), at most 100. The
            result does not depend on it.

    Returns:
        (N,); zero where the gradient is zero.

    Raises:
        ValueError: h is not > 0.

    >>> x = torch.tensor([[3.0, 4.0]])
    >>> value = finite_difference_curvature(lambda x: x.square().sum(1), x, x, h=0.5, criterion=lambda out, _: out)
    >>> round(value.item(), 6)
    2.0
    """
    batch_size = examples_at_once(model, images, batch_size)
    with evaluating(model), torch.enable_grad():
        network = with_constant_parameters(model)
        batches = zip(images.detach().split(batch_size), targets.split(batch_size), strict=True)
        differences = [
            curvature_penalty(network, x, y, h=h, penalty="norm", criterion=criterion)[1].detach() for x, y in batches
        ]
    return torch.cat(differences) / h
