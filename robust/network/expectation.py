"""The expected answer of models with random answers (dropout or noise at evaluation).

Expectation over transformation: Athalye et al. 2018 (arXiv 1707.07397, 1802.00420). On single random answers an attack
with more steps can look weaker: it stops at the first misclassified answer, and the next answer at the same point may
be correct.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robust.network.modes import Model, evaluating
from robust.ranges import Count, check_number

__all__ = ["PASSES", "Expected", "expected", "is_random"]

PASSES = 20
"""forward passes of an expectation; the value of AutoAttack's `eot_iter` for random models"""
SAMPLE = 8
"""images with which a model is tested for random answers"""


class Expected(nn.Module):
    """The expected answer of a random model: the logarithm of the mean of its class probabilities over several passes.

    For a model that is not random these are its logits up to a constant for each example. PGD and APGD average their
    gradients over the same number of passes; every other attack differentiates through the mean, with one pass in
    memory at a time.

    Raises:
        ValueError: passes < 1.

    >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
    >>> Expected(lambda x: x, 5)(logits).allclose(logits.log_softmax(1))
    True
    """

    def __init__(self, model: Model, passes: int = PASSES):
        super().__init__()
        check_number("passes", passes, Count)
        self.model: Model = model
        self.passes: int = passes
        self.training: bool = False

    def train(self, mode: bool = True) -> "Expected":
        """Put the model in training or evaluation mode."""
        super().train(mode)
        self.training = False
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return log of the mean probabilities, (N, ...) -> (N, K)."""
        return _Mean.apply(images, self.model, self.passes)  # pyright: ignore[reportReturnType]

    def rebuilt_around(self, unwrapped: Callable[[Model], Model]) -> "Expected":
        """Return the expected answer of the unwrapped network (see `network_inside`)."""
        network = unwrapped(self.model)
        return self if network is self.model else Expected(network, self.passes)


class _Mean(torch.autograd.Function):
    """Log of the mean probabilities; the backward pass draws new answers, with the graph of one pass in memory."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, model: Model, passes: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        with torch.no_grad():
            mean = torch.stack([model(images).log_softmax(1) for _ in range(passes)]).logsumexp(0)
        ctx.model, ctx.passes = model, passes
        ctx.save_for_backward(images, mean)
        return mean - torch.tensor(passes).to(mean).log()

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        images, mean = ctx.saved_tensors
        total = torch.zeros_like(images)
        for _ in range(ctx.passes):
            with torch.enable_grad():
                points = images.detach().requires_grad_()
                answer = ctx.model(points).log_softmax(1)
            if answer.requires_grad:
                share = gradients * (answer.detach() - mean).exp()  # weight of this pass in the mean
                (gradient,) = torch.autograd.grad(answer, points, share, allow_unused=True)
                total = total if gradient is None else total + gradient
        return total, None, None


@torch.no_grad()
def is_random(model: Model, images: Tensor) -> bool:
    """Tell whether two passes of the model over the same images differ by more than rounding, in evaluation mode.

    Args:
        model: maps pixels (N, ...) to logits (N, K).
        images: (N, ...) pixels in [0, 1]; only the first 8 are used.

    Returns:
        False without images.
    """
    sample = images[:SAMPLE]
    if len(sample) == 0:
        return False
    with evaluating(model):
        first, second = model(sample), model(sample)
    if not first.is_floating_point():
        return False
    coarse = torch.finfo(first.dtype).eps ** 0.5 * first.abs().amax()
    return bool(((first - second).abs() > coarse).any())


def expected(model: Model, images: Tensor, *, passes: int = PASSES) -> Model:
    """Return the model, or its expected answer if its answers on these images are random.

    Args:
        model: maps pixels (N, ...) in [0, 1] to logits (N, K), normalisation inside.
        images: (N, ...) pixels in [0, 1]; only the first 8 are used.
        passes: forward passes of the expectation, >= 1.
    """
    if isinstance(model, Expected) or not is_random(model, images):
        return model
    return Expected(model, passes)
