"""The loss around an image as a surface, to be drawn: over the gradient direction and a random direction."""

from typing import Annotated

import torch
from torch import Tensor

from robust.losses.cross_entropy import cross_entropy
from robust.losses.curvature import Criterion
from robust.network.inference import outside_inference
from robust.network.modes import Model, evaluating
from robust.per_example import unit
from robust.ranges import Positive, Range, check_number
from robust.theory.hessian import examples_at_once, losses_and_gradients, random_directions

__all__ = ["loss_surface"]


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
    """Return the loss around an image, over its gradient direction and a random direction orthogonal to the gradient.

    Args:
        model: maps (N, ...) to outputs that `criterion` takes; in evaluation mode meanwhile.
        image: (...), one example, without a batch dimension; points around it are not cut to [0, 1].
        target: a class index () or class probabilities (K,).
        extent: steps go from -extent to extent, > 0, L2, in the units of `image`.
        points: steps along a direction, >= 2.
        criterion: (outputs, targets) -> loss of each example (N,).
        generator: CPU generator of the random direction; None is a generator of seed 0.
        batch_size: points of one pass; None follows from the network.

    Returns:
        losses (points, points), a row for each step along the unit gradient, a column for each step along the random
        unit vector; and the steps (points,).

    Raises:
        ValueError: extent or points out of range, or a gradient of zero, whose direction is undefined.
    """
    check_number("extent", extent, Positive)
    check_number("points", points, Annotated[int, Range(least=2)])
    _, gradients = losses_and_gradients(model, image[None], target[None], criterion, 1)
    first = unit(gradients)
    if not first.any():
        raise ValueError(
            "the gradient is zero at the image (or too small for its number type); choose an image that the model "
            "classifies with less certainty"
        )
    second = random_directions(image[None], torch.Generator().manual_seed(0) if generator is None else generator)
    second = unit(second - (second * first).sum() * first)
    steps = torch.linspace(-extent, extent, points, dtype=image.dtype, device=image.device)
    a, b = (s.reshape(-1, *[1] * image.ndim) for s in torch.meshgrid(steps, steps, indexing="ij"))
    around = image[None].expand(2, *image.shape)
    batch_size = examples_at_once(model, around, batch_size)
    with evaluating(model), torch.no_grad():
        rows = zip(a.split(batch_size), b.split(batch_size), strict=True)
        losses = [
            criterion(model(image + u * first + v * second), target.expand(len(u), *target.shape)) for u, v in rows
        ]
    return torch.cat(losses).view(points, points), steps
