r"""Curvature of the loss in the input, per example: eigenvalues of its Hessian, what stands in for them, and a picture.

l is the cross-entropy under the model, H the Hessian of l in the image x, lambda_1 the *algebraically* largest
eigenvalue of H (it bounds v'Hv from above; the largest in absolute value does not). Section 5 of the GUARD paper (Xue
et al., arXiv 2403.10045) takes |grad l(x + h z) - grad l(x)| / h, z along the gradient, in place of lambda_1; what it
derives from lambda_1 is in bounds.py.

All lengths are L2 in the units of `images`: pixels in [0, 1] when normalisation is inside the model.

A network of piecewise linear layers (ReLU, average or max pooling, no norm over an image's own values) has
H = J'(diag(p) - pp')J almost everywhere, with J the Jacobian of the logits: positive semidefinite, of rank K - 1 at
most for K classes, so that power iteration meets no negative end. Smooth activations and instance norm make H
indefinite and of full rank.
"""

import warnings
from typing import Annotated, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from robust.losses.cross_entropy import cross_entropy
from robust.losses.curvature import Criterion, curvature_penalty
from robust.network.batches import images_at_once
from robust.network.inference import outside_inference
from robust.network.modes import Model, evaluating
from robust.per_example import unit
from robust.ranges import Count, Positive, Range, check_number
from robust.second_order.layers import SecondOrder
from robust.theory.eigenvalues import full, lanczos, power

__all__ = [
    "finite_difference_curvature",
    "gradient_cosine",
    "hessian_vector_product",
    "loss_surface",
    "top_eigenvalue",
]

Method = Literal["power", "lanczos", "full"]
FULL_LIMIT = 1024
"""features of an example up to which its whole Hessian is formed"""
EXAMPLES = 100
"""of a pass, at most"""
SECOND = 3
"""by how much the graph of a second derivative is larger than that of a first"""


@outside_inference
def hessian_vector_product(
    model: Model,
    images: Tensor,
    targets: Tensor,
    vectors: Tensor,
    *,
    criterion: Criterion = cross_entropy,
    batch_size: int | None = None,
) -> Tensor:
    """Return H v for each example, exactly, by double backward, with the model in evaluation mode.

    Args:
        model: maps (N, ...) to outputs that `criterion` takes, each example on its own.
        images: (N, ...), floating point.
        targets: (N,) class indices or (N, K) class probabilities.
        vectors: (N, ...), shaped as `images`.
        criterion: (outputs, targets) -> loss of each example (N,).
        batch_size: examples of one pass; None follows from the network (see `robust.batches`), at most 100. It changes
            no result.

    Returns:
        (N, ...), without a graph; zero where the loss is linear.

    >>> cubes = lambda x: x.pow(3).sum(1) / 6  # its Hessian is diag(x)
    >>> x, v = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 7.0]])
    >>> hessian_vector_product(cubes, x, x, v, criterion=lambda out, _: out).round().tolist()
    [[5.0, 14.0]]
    """
    batch_size = together(model, images, batch_size)
    with evaluating(model):
        hessians = chunks(constant(model), images, targets, criterion, batch_size)
        return torch.cat([_Hessian(*chunk)(v) for chunk, v in zip(hessians, vectors.split(batch_size), strict=True)])


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
        model: maps (N, ...) to outputs that `criterion` takes, each example on its own; in evaluation mode meanwhile.
        images: (N, ...), floating point.
        targets: (N,) class indices or (N, K) class probabilities.
        method: "power" iterates v <- H v on all examples of a batch at once, each until it has converged; where that
            meets a negative end of the spectrum, v <- (H - mu) v with mu below it. "lanczos" is SciPy's eigsh (ARPACK),
            one example at a time: the fewest products where the spectrum is dense or indefinite. "full" forms the
            Hessian of examples of at most 1024 features, batch_size * features^2 numbers.
        iterations: at most so many steps (power) or restarts (lanczos) an example.
        tolerance: largest |H v - lambda v| for a unit v, relative to |lambda| (power: or to a tenth of |mu|, if that is
            larger), which bounds the relative error of the value; that error is usually the square of it.
        criterion: (outputs, targets) -> loss of each example (N,).
        generator: CPU generator of the start vectors; None starts every example at one and the same vector.
        batch_size: examples of one pass; None follows from the network (see `robust.batches`), at most 100. It changes
            no result.

    Returns:
        values (N,) and unit vectors (N, ...) of arbitrary sign. An example that has not converged comes with a
        RuntimeWarning and its last Rayleigh quotient, a lower bound ("power"), or NaN ("lanczos").

    Raises:
        ValueError: an unknown method, too many features for "full", or a number that is not > 0.

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
    batch_size = together(model, images, batch_size)
    check_number("tolerance", tolerance, Positive)
    features = images[0].numel() if len(images) else 0
    if method == "full" and features > FULL_LIMIT:
        raise ValueError(f"method 'full' takes at most {FULL_LIMIT} features, not {features}; choose power or lanczos")
    start = _starts(images, generator)
    values, vectors = images.new_zeros(len(images)), start.clone()
    lost = 0
    with evaluating(model):
        size = 1 if method == "lanczos" else batch_size
        for who in torch.arange(len(images), device=images.device).split(size) if len(images) else ():

            def hessian(part: Tensor | slice = slice(None), who: Tensor = who) -> "_Hessian":
                return _Hessian(constant(model), images[who[part]], targets[who[part]], criterion)

            if method == "full" or features < 3:  # ARPACK wants fewer eigenvalues than features
                values[who], vectors[who] = full(hessian(), images[who])
            elif method == "power":
                values[who], vectors[who], left = power(hessian, start[who], iterations, tolerance)
                lost += left
            else:
                values[who], vectors[who] = lanczos(hessian(), start[who], iterations, tolerance)
                lost += int(values[who].isnan().sum())
    if lost:
        message = (
            f"{lost} of {len(images)} examples are not within {tolerance:g} after {iterations} iterations ({method})"
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

    The paper regularises along the gradient because that is near the direction of the largest curvature: this says how
    near. Zero where a gradient is zero. Arguments as of `hessian_vector_product`.

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
    """Return |grad l(x + h z) - grad l(x)| / h of each example, z = grad l / |grad l|: the stand-in for lambda_1.

    Equation 7, not squared, so in the units of an eigenvalue; eq. 8's penalty is its square times h^2. For small h it
    tends to |H z|, which is at most the largest |lambda|, until rounding takes over (float32: below some 1e-3).

    Args:
        model: maps (N, ...) to outputs that `criterion` takes, each example on its own; in evaluation mode meanwhile.
        images: (N, ...), floating point.
        targets: (N,) class indices or (N, K) class probabilities.
        h: L2 length of the step, > 0, in the units of `images`.
        criterion: (outputs, targets) -> loss of each example (N,).
        batch_size: examples of one pass; None follows from the network (see `robust.batches`), at most 100. It changes
            no result.

    Returns:
        (N,); zero where the gradient is zero.

    Raises:
        ValueError: h is not > 0.

    >>> x = torch.tensor([[3.0, 4.0]])
    >>> value = finite_difference_curvature(lambda x: x.square().sum(1), x, x, h=0.5, criterion=lambda out, _: out)
    >>> round(value.item(), 6)
    2.0
    """
    batch_size = together(model, images, batch_size)
    with evaluating(model), torch.enable_grad():
        differences = [
            curvature_penalty(network, x, y, h=h, penalty="norm", criterion=rule)[1].detach()
            for network, x, y, rule in chunks(constant(model), images.detach(), targets, criterion, batch_size)
        ]
    return torch.cat(differences) / h


@outside_inference
def loss_surface(
    model: Model,
    image: Tensor,
    target: Tensor,
    *,
    extent: float,
    points: int = 41,
    criterion: Criterion = cross_entropy,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the loss around an image, over its gradient direction and a random direction orthogonal to that.

    Args:
        model: maps (N, ...) to outputs that `criterion` takes; in evaluation mode meanwhile.
        image: (...), one example, without a batch dimension; points around it are not cut to [0, 1].
        target: a class index () or class probabilities (K,).
        extent: steps go from -extent to extent, > 0, L2, in the units of `image`.
        points: steps along a direction, >= 2.
        criterion: (outputs, targets) -> loss of each example (N,).
        generator: CPU generator of the random direction; None is one of seed 0.
        batch_size: points of one pass; None follows from the network.

    Returns:
        losses (points, points), the row a step along the unit gradient, the column one along the random unit vector;
        and the steps (points,).

    Raises:
        ValueError: extent or points out of range, or a gradient of zero, which has no direction.
    """
    check_number("extent", extent, Positive)
    check_number("points", points, Annotated[int, Range(least=2)])
    _, gradients = losses_and_gradients(model, image[None], target[None], criterion, 1)
    first = unit(gradients)
    if not first.any():
        raise ValueError(
            "the gradient is zero at the image (or in its precision); choose an image the model is unsure of"
        )
    second = _starts(image[None], torch.Generator().manual_seed(0) if generator is None else generator)
    second = unit(second - (second * first).sum() * first)
    steps = torch.linspace(-extent, extent, points, dtype=image.dtype, device=image.device)
    a, b = (s.reshape(-1, *[1] * image.ndim) for s in torch.meshgrid(steps, steps, indexing="ij"))
    around = image[None].expand(2, *image.shape)
    batch_size = together(model, around, batch_size)
    with evaluating(model), torch.no_grad():
        rows = zip(a.split(batch_size), b.split(batch_size), strict=True)
        losses = [
            criterion(model(image + u * first + v * second), target.expand(len(u), *target.shape)) for u, v in rows
        ]
    return torch.cat(losses).view(points, points), steps


class _Hessian:
    """The Hessians of some examples: losses, gradients, and products with vectors from one graph at the images."""

    def __init__(self, model: Model, images: Tensor, targets: Tensor, criterion: Criterion):
        self.images = images.detach().requires_grad_()
        with torch.enable_grad():
            with sdpa_kernel(SDPBackend.MATH), SecondOrder() as layers:  # fused attention has no second derivative
                losses = criterion(model(self.images), targets)
            self.gradients = layers.gradient(losses.sum(), self.images)
        self.losses = losses.detach()

    def __call__(self, vectors: Tensor) -> Tensor:
        if not self.gradients.requires_grad:  # a linear loss
            return torch.zeros_like(self.images)
        options = {"retain_graph": True, "materialize_grads": True}
        (products,) = torch.autograd.grad(self.gradients, self.images, vectors.to(self.gradients), **options)
        return products


def constant(model: Model) -> Model:
    """Return the model with its parameters as constants: no time goes into their derivatives."""
    if not isinstance(model, nn.Module):
        return model
    constants = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return lambda x: functional_call(model, constants, (x,))


def together(model: Model, images: Tensor, asked: int | None) -> int:
    """Return how many examples to take in one pass with second derivatives."""
    return images_at_once(model, images, asked, most=EXAMPLES, copies=SECOND)


Chunk = tuple[Model, Tensor, Tensor, Criterion]


def chunks(model: Model, images: Tensor, targets: Tensor, criterion: Criterion, batch_size: int) -> list[Chunk]:
    """Return the arguments of each pass over `batch_size` examples."""
    parts = zip(images.split(batch_size), targets.split(batch_size), strict=True)
    return [(model, x, y, criterion) for x, y in parts]


def losses_and_gradients(
    model: Model, images: Tensor, targets: Tensor, criterion: Criterion, batch_size: int | None
) -> tuple[Tensor, Tensor]:
    """Return each example's loss (N,) and its gradient in the image (N, ...), in evaluation mode, without a graph."""
    batch_size = together(model, images, batch_size)
    found = []
    with evaluating(model), torch.enable_grad():
        for network, x, y, rule in chunks(constant(model), images, targets, criterion, batch_size):
            x = x.detach().requires_grad_()
            losses = rule(network(x), y)
            found.append((losses.detach(), *torch.autograd.grad(losses.sum(), x)))
    losses, gradients = (torch.cat(parts) for parts in zip(*found, strict=True))
    return losses, gradients


def _starts(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return a random unit vector for each example, each from a stream of its own."""
    none = generator is None
    seeds = [0] * len(images) if none else torch.randint(2**62, (len(images),), generator=generator).tolist()
    noise = [torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return unit(torch.stack(noise).to(images)) if noise else torch.zeros_like(images)
