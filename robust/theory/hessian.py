"""Products of each example's input Hessian with vectors, and functions that all measurements of curvature use.

l is the loss of an example under the model, H the Hessian of l in the image x. All lengths are L2 in the units of
`images`: pixels in [0, 1] when normalisation is inside the model.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from robust.losses.cross_entropy import cross_entropy
from robust.losses.curvature import Criterion
from robust.network.batches import images_at_once
from robust.network.inference import outside_inference
from robust.network.modes import Model, evaluating
from robust.per_example import streams, unit
from robust.second_order.layers import SecondOrder

__all__ = [
    "Hessian",
    "examples_at_once",
    "hessian_vector_product",
    "losses_and_gradients",
    "passes",
    "random_directions",
    "with_constant_parameters",
]

MOST = 100
"""examples of a pass, at most"""
COPIES = 3
"""size of the graph of a second derivative relative to the graph of a first"""

Pass = tuple[Model, Tensor, Tensor, Criterion]


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
        model: maps (N, ...) to outputs that `criterion` takes, independently for each example.
        images: (N, ...), floating point.
        targets: (N,) class indices or (N, K) class probabilities.
        vectors: (N, ...), shaped as `images`.
        criterion: (outputs, targets) -> loss of each example (N,).
        batch_size: examples of one pass; None follows from the network (see `robust.network.batches`), at most 100. The
            result does not depend on it.

    Returns:
        (N, ...), without a graph; zero where the loss is linear.

    >>> cubes = lambda x: x.pow(3).sum(1) / 6  # its Hessian is diag(x)
    >>> x, v = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 7.0]])
    >>> hessian_vector_product(cubes, x, x, v, criterion=lambda out, _: out).round().tolist()
    [[5.0, 14.0]]
    """
    batch_size = examples_at_once(model, images, batch_size)
    with evaluating(model):
        batches = passes(with_constant_parameters(model), images, targets, criterion, batch_size)
        return torch.cat([Hessian(*batch)(v) for batch, v in zip(batches, vectors.split(batch_size), strict=True)])


class Hessian:
    """The Hessians of a batch of examples: losses, gradients, and products with vectors from one graph."""

    def __init__(self, model: Model, images: Tensor, targets: Tensor, criterion: Criterion):
        self.images: Tensor = images.detach().requires_grad_()
        with torch.enable_grad():
            with sdpa_kernel(SDPBackend.MATH), SecondOrder() as layers:  # fused attention has no second derivative
                losses = criterion(model(self.images), targets)
            self.gradients: Tensor = layers.gradient(losses.sum(), self.images)
        self.losses: Tensor = losses.detach()

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return H v for each example, (N, ...) -> (N, ...)."""
        if not self.gradients.requires_grad:  # a linear loss
            return torch.zeros_like(self.images)
        options = {"retain_graph": True, "materialize_grads": True}
        (products,) = torch.autograd.grad(self.gradients, self.images, vectors.to(self.gradients), **options)
        return products


def with_constant_parameters(model: Model) -> Model:
    """Return the model with its parameters as constants: no time is spent on their derivatives."""
    if not isinstance(model, nn.Module):
        return model
    constants = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return lambda x: functional_call(model, constants, (x,))


def examples_at_once(model: Model, images: Tensor, batch_size: int | None) -> int:
    """Return how many examples fit in one pass with second derivatives; a number given by the caller is unchanged."""
    return images_at_once(model, images, batch_size, most=MOST, copies=COPIES)


def passes(model: Model, images: Tensor, targets: Tensor, criterion: Criterion, batch_size: int) -> list[Pass]:
    """Return the arguments of each pass over `batch_size` examples."""
    batches = zip(images.split(batch_size), targets.split(batch_size), strict=True)
    return [(model, x, y, criterion) for x, y in batches]


def losses_and_gradients(
    model: Model, images: Tensor, targets: Tensor, criterion: Criterion, batch_size: int | None
) -> tuple[Tensor, Tensor]:
    """Return each example's loss (N,) and its gradient in the image (N, ...), in evaluation mode, without a graph."""
    batch_size = examples_at_once(model, images, batch_size)
    found = []
    with evaluating(model), torch.enable_grad():
        for network, x, y, rule in passes(with_constant_parameters(model), images, targets, criterion, batch_size):
            x = x.detach().requires_grad_()
            losses = rule(network(x), y)
            found.append((losses.detach(), *torch.autograd.grad(losses.sum(), x)))
    losses, gradients = (torch.cat(parts) for parts in zip(*found, strict=True))
    return losses, gradients


def random_directions(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return a random unit vector for each example, (N, ...); without a generator the same vector for all."""
    if generator is None:
        generators = [torch.Generator().manual_seed(0) for _ in images]
    else:
        generators = streams(len(images), generator)
    noise = [torch.randn(images.shape[1:], generator=each) for each in generators]
    return unit(torch.stack(noise).to(images)) if noise else torch.zeros_like(images)
