"""A network with a loss: gradient matching and SRe2L use it for the real data."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robust.losses.curvature import CurvatureRegularizedLoss
from robust.losses.traits import Called, Loss, at_epoch, drawing_from
from robust.network.inference import outside_inference
from robust.network.modes import evaluating, is_training
from robust.ranges import Count, Positive, check_number, check_ranges
from robust.second_order.compiled import CompiledGradients

__all__ = ["RobustTeacher"]


@dataclass(frozen=True)
class RobustTeacher:
    """A network with a loss. GUARD is another method with the curvature-regularised loss here.

    Raises:
        ValueError: `chunk` is no whole number >= 1.

    >>> network = nn.Linear(4, 3)
    >>> teacher = RobustTeacher(network, CurvatureRegularizedLoss(weight=10.0))
    >>> [tuple(g.shape) for g in teacher.gradients(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))]
    [(3, 4), (3,)]
    """

    network: nn.Module
    loss: Loss | Called = field(default_factory=CurvatureRegularizedLoss)
    """a loss of `robust.losses`, or a plain function (network, inputs, targets) -> scalar"""
    chunk: Count | None = None
    """examples whose graph is in memory at once; None for all. Their gradients add up to the batch's"""
    compiled: CompiledGradients | None = None
    """compiled programs, shared by teachers of one architecture; None to run eagerly"""

    def __post_init__(self) -> None:
        check_ranges(self)

    @outside_inference
    def value_and_gradients(
        self, inputs: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the loss, a scalar, and its gradient for each trainable parameter, in their order and detached.

        The gradient of a parameter that the loss does not depend on is zero. `.grad` is not changed.

        Args:
            inputs: (N, ...), as the network takes them.
            targets: (N,) class indices or (N, K) probabilities.
            generator: CPU generator for the draws of a random loss, chunk after chunk; None is torch's default.

        Raises:
            ValueError: the batch has several chunks, and the network is in training mode; or a random loss is compiled.
        """
        step, loss = self.compiled or _value_and_gradients, self._drawing_from(generator)
        if self.chunk is None or len(inputs) <= self.chunk:
            value, gradients = step(loss, self.network, inputs, targets)
            return value, tuple(gradients)
        if is_training(self.network):
            raise ValueError("the network is in training mode, where a chunk has other statistics; call .eval()")
        total, sums = inputs.new_zeros(()), None
        for x, y in zip(inputs.split(self.chunk), targets.split(self.chunk), strict=True):
            value, gradients = step(loss, self.network, x, y)
            share = len(x) / len(inputs)
            total = total + share * value
            gradients = [share * g for g in gradients]
            sums = gradients if sums is None else [s.add_(g) for s, g in zip(sums, gradients, strict=True)]
        return total, tuple(sums or ())

    def gradients(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of `value_and_gradients`."""
        return self.value_and_gradients(inputs, targets)[1]

    def _drawing_from(self, generator: torch.Generator | None) -> Loss | Called:
        """Return the loss with its random numbers drawn from a generator; a loss without randomness is unchanged."""
        if not (isinstance(self.loss, Loss) and self.loss.traits.random):
            return self.loss
        if self.compiled is not None:
            raise ValueError(f"{type(self.loss).__name__} is random; a compiled program would repeat its first draws")
        return self.loss if generator is None else drawing_from(self.loss, generator)

    @outside_inference
    def training_loss(self, inputs: Tensor, targets: Tensor, epoch: int = 0) -> Tensor:
        """Return the loss of a training epoch (0 for the first), a scalar with a graph for `.backward()`.

        A loss with a schedule (`CurvatureRegularizedLoss.h_warmup`) has its value of that epoch.
        """
        return at_epoch(self.loss, epoch)(self.network, inputs, targets)

    @torch.no_grad()
    def soft_labels(self, inputs: Tensor, temperature: float = 1.0) -> Tensor:
        """Return softmax(logits / temperature), (N, K), with the network in evaluation mode.

        Raises:
            ValueError: a temperature that is not > 0.
        """
        check_number("temperature", temperature, Positive)
        with evaluating(self.network):
            return (self.network(inputs) / temperature).softmax(1)


def _value_and_gradients(
    loss: Loss | Called, network: nn.Module, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Sequence[Tensor]]:
    parameters = [p for p in network.parameters() if p.requires_grad]
    with torch.enable_grad():
        value = loss(network, inputs, targets)
    return value.detach(), torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
