"""Backward pass differentiable approximation (BPDA): attacks on models with a step that has no useful derivative.

Athalye et al. 2018 (arXiv 1802.00420, section 4.1): the forward pass runs the step, the backward pass differentiates a
similar function. For JPEG, quantisation and most preprocessing the identity is similar enough.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BPDA", "bpda"]

Step = Callable[[Tensor], Tensor]


class BPDA(nn.Module):
    """A step with the backward pass of another function: see `bpda`."""

    def __init__(self, forward: Step, backward: Step | None = None):
        super().__init__()
        self.step: Step = forward
        self.approximation: Step | None = backward

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output of the step, with the derivative of its approximation."""
        with torch.no_grad():
            exact = self.step(inputs.detach())
        smooth = inputs if self.approximation is None else self.approximation(inputs)
        if exact.shape != smooth.shape:
            name = "the input" if self.approximation is None else "the output of backward"
            raise ValueError(
                f"bpda: the output of forward is {tuple(exact.shape)}, {name} is {tuple(smooth.shape)}; give a "
                "backward whose output has the same shape"
            )
        return _ValueAndGradient.apply(exact, smooth)  # pyright: ignore[reportReturnType]


class _ValueAndGradient(torch.autograd.Function):
    """The values of one tensor, the gradient of another."""

    @staticmethod
    def forward(ctx: Any, exact: Tensor, smooth: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return exact.to(smooth.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> tuple[None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, gradients


def bpda(forward: Step, backward: Step | None = None) -> BPDA:
    """Return a step whose backward pass differentiates an approximation of it.

    Attacks and `suspect_model` take a model with such a step. To approximate the whole model, use
    `PGD(threat, bpda=approximation)`.

    Args:
        forward: (N, ...) -> (M, ...), any function of tensors; it runs without gradients.
        backward: differentiable, (N, ...) -> (M, ...), similar to `forward`; None for the identity.

    Raises:
        ValueError: when the step is called, if the outputs of both functions have different shapes.

    >>> coarse = bpda(lambda x: (8 * x).round() / 8)
    >>> x = torch.tensor([[0.3]], requires_grad=True)
    >>> coarse(x).item(), torch.autograd.grad(coarse(x).sum(), x)[0].item()
    (0.25, 1.0)
    """
    return BPDA(forward, backward)
