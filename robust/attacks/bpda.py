"""Backward pass differentiable approximation (BPDA): attacks on models with a step that has no useful derivative.

Athalye et al. 2018 (arXiv 1802.00420, section 4.1): the forward pass is the step's own, the backward pass that of a
function close to it. For JPEG, quantisation and most preprocessing the identity is close enough.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BPDA", "bpda"]

Step = Callable[[Tensor], Tensor]


class BPDA(nn.Module):
    """A step with another function's backward pass: see `bpda`."""

    def __init__(self, forward: Step, backward: Step | None = None):
        super().__init__()
        self.step: Step = forward
        self.stand_in: Step | None = backward

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the step's output, with the stand-in's derivative."""
        with torch.no_grad():
            exact = self.step(inputs.detach())
        smooth = inputs if self.stand_in is None else self.stand_in(inputs)
        if exact.shape != smooth.shape:
            name = "the input" if self.stand_in is None else "that of backward"
            raise ValueError(
                f"bpda: the output of forward is {tuple(exact.shape)}, {name} {tuple(smooth.shape)}; give a backward "
                "whose output has the shape of forward's"
            )
        return _Straight.apply(exact, smooth)  # pyright: ignore[reportReturnType]


class _Straight(torch.autograd.Function):
    """The values of one tensor, the gradient of another."""

    @staticmethod
    def forward(ctx: Any, exact: Tensor, smooth: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return exact.to(smooth.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> tuple[None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, gradients


def bpda(forward: Step, backward: Step | None = None) -> BPDA:
    """Return a step whose forward pass is its own and whose backward pass is a stand-in's.

    For attacks and `suspect_model`; as a whole model's: `PGD(threat, bpda=stand_in)`.

    Args:
        forward: (N, ...) -> (M, ...), any code on tensors; it is run without gradients.
        backward: differentiable, (N, ...) -> (M, ...), near `forward`; None for the identity, where shapes are equal.

    Raises:
        ValueError: when called, outputs of different shapes.

    >>> coarse = bpda(lambda x: (8 * x).round() / 8)
    >>> x = torch.tensor([[0.3]], requires_grad=True)
    >>> coarse(x).item(), torch.autograd.grad(coarse(x).sum(), x)[0].item()
    (0.25, 1.0)
    """
    return BPDA(forward, backward)
