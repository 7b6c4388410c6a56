"""Signed steps in a linf ball: the loop of attacks that differ from PGD in the direction of a step."""

from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from robust.attacks.gradient import input_gradient
from robust.attacks.record import Ascended, Iterate, Record
from robust.network.expectation import Expected
from robust.network.modes import Model
from robust.threat import Threat

__all__ = ["check_box", "gradients_of", "signed_steps"]

Slope = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""points (n, ...) and the indices (n,) of their examples to gradients (n, ...) and logits (n, K)"""
Direction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""points (n, ...), their gradients (n, ...) and the indices (n,) of their examples to directions (n, ...)"""


def signed_steps(
    model: Model,
    images: Tensor,
    targets: Tensor,
    begin: Tensor,
    *,
    threat: Threat,
    steps: int,
    step_size: float,
    iterate: Iterate,
    slope: Slope,
    direction: Direction,
    objective: Ascended,
) -> Tensor:
    """Return adversarial images: move by the sign of a direction, project, repeat.

    Args:
        model: maps pixels (N, ...) in [0, 1] to logits (N, K), normalisation inside; its train/eval mode is unchanged.
        images: (N, ...) pixels in [0, 1].
        targets: (N,) class indices.
        begin: (N, ...) points of the ball at which the steps begin.
        threat: a linf ball.
        steps: >= 1.
        step_size: length of a step, pixels in [0, 1].
        iterate: "worst" drops an example at its first misclassified point and returns that point, else the point of the
            highest objective (the clean image counts as a point); "last" returns the last points. The answers of an
            `Expected` model are random, so that no example is dropped there.
        slope: the gradients that a step begins with.
        direction: turns gradients into the directions whose signs are followed; called in each step for the examples
            that are not dropped.
        objective: compares points.

    Returns:
        (N, ...) in [0, 1] and in the ball.
    """
    worst = iterate == "worst"
    record = Record(images, targets, objective, final=not isinstance(model, Expected))
    if worst:
        with torch.no_grad():
            record.update(images, model(images))
    indices = record.standing()
    points = begin[indices]
    for _ in range(steps):
        if len(indices) == 0:
            break
        gradients, logits = slope(points, indices)
        if worst:
            stands = record.update(points, logits, indices).nonzero().flatten()
            indices, points, gradients = indices[stands], points[stands], gradients[stands]
        moved = points + step_size * direction(points, gradients, indices).sign()
        points = threat.project(moved, images[indices])
    if not worst:
        return points
    if len(indices):
        with torch.no_grad():
            record.update(points, model(points), indices)
    return record.images


def gradients_of(model: Model, points: Tensor, value: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return the gradient of a sum of values with respect to points, zero where it is not finite, and the logits.

    Args:
        model: maps points (n, ...) to logits (n, K).
        points: (n, ...).
        value: points and their logits to values (n,), one for each example.

    Returns:
        (n, ...) and (n, K).
    """
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        logits = model(points)
        gradients = input_gradient(value(points, logits).sum(), points)
    return gradients.nan_to_num(0.0, 0.0, 0.0), logits.detach()


def check_box(name: str, threat: Threat, iterate: str) -> None:
    """Refuse a threat in another norm than linf, and a name that is no iterate.

    Raises:
        ValueError: with what to write.
    """
    if threat.norm != "linf":
        raise ValueError(f"{name}: norm is {threat.norm!r}; it steps by signs, write a linf threat such as 8/255")
    if iterate not in get_args(Iterate):
        raise ValueError(f"iterate is {iterate!r}; choose from {', '.join(get_args(Iterate))}")
