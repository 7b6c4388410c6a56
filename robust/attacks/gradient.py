"""The input gradient for attacks, also of models whose output has no gradient."""

import warnings

import torch
from torch import Tensor

from robust.network.precision import lift

__all__ = ["NO_PATH", "SuspiciousModelWarning", "input_gradient"]

NO_PATH = (
    "the model's output has no gradient path to its input, so attacks by gradients cannot succeed: "
    "wrap the step without a derivative in robust.bpda, or use a black-box attack (Square)"
)


class SuspiciousModelWarning(UserWarning):
    """A robust accuracy may be too high, since attacks by gradients may fail on this model."""


def input_gradient(total: Tensor, points: Tensor) -> Tensor:
    """Return the gradient of a sum over examples; zero, with a warning, if the sum does not depend on the points.

    Args:
        total: a scalar.
        points: (N, ...), the variables of differentiation.

    >>> points = torch.ones(2, requires_grad=True)
    >>> input_gradient((points**2).sum(), points)
    tensor([2., 2.])
    """
    found = None
    if total.requires_grad:
        factor = lift(points)
        (found,) = torch.autograd.grad(total * factor, points, allow_unused=True)
        found = found if found is None or factor == 1 else found / factor
    if found is None:
        warnings.warn(NO_PATH, SuspiciousModelWarning, stacklevel=3)
        return torch.zeros_like(points)
    return found
