"""Input-gradient regularisation (Ross & Doshi-Velez 2018, arXiv 1711.09404): Drucker & LeCun's double backpropagation.

Deviation: gradients are computed per example, and the penalty is averaged over examples. The authors' code takes half
the squared norm of the gradient of the batch's *mean* loss: on a batch of N, their weight must be 2 N times ours for an
equal effect.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.losses.calling import takes_network
from robust.losses.cross_entropy import cross_entropy
from robust.losses.curvature import losses_and_gradients
from robust.losses.traits import Loss, Named, Traits
from robust.network.modes import Model
from robust.per_example import norms
from robust.ranges import NonNegative, check_ranges

__all__ = ["GradientNorm"]


@dataclass(frozen=True)
class GradientNorm(Loss):
    """Mean of l(x) + weight x ||grad l(x)||^2, l the cross-entropy, in the units of `inputs`.

    One pass without changing the model's mode. In training mode BatchNorm couples the examples, so that a gradient
    includes the effect of an input on the losses of other examples. Works under autocast, `torch.no_grad()` (value
    only), DistributedDataParallel and `torch.func`.

    Raises:
        ValueError: weight is not a finite number >= 0.

    >>> model = lambda x: torch.stack([x[:, 0], -x[:, 0]], 1)  # at 0 the gradient of the loss is -1
    >>> x, y = torch.zeros(1, 1), torch.tensor([0])
    >>> round(GradientNorm(10.0)(model, x, y).item() - GradientNorm(0.0)(model, x, y).item(), 4)
    10.0
    """

    traits: ClassVar[Traits] = Traits(strength="weight")

    weight: NonNegative = 1.0
    """>= 0; unit for the squared norm: (units of inputs)^2 / loss"""
    squared: bool = True
    """penalise the squared norm, otherwise the norm"""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def passes(self) -> float:
        """Measured as for `CurvatureRegularizedLoss`: one forward pass, and the gradient of a gradient."""
        return 2.5 if self.weight else 1.0

    @takes_network
    def __call__(self, model: Model, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss, a scalar.

        Args:
            model: maps inputs to logits (N, K), called in the mode it is in.
            inputs: (N, ...), as the model takes them.
            targets: (N,) class indices or (N, K) probabilities.
        """
        if self.weight == 0:
            return cross_entropy(model(inputs), targets).mean()
        recording = torch.is_grad_enabled()
        with torch.enable_grad():
            losses, gradients = losses_and_gradients(model, inputs, targets)
            lengths = norms(gradients)
            value = (losses + self.weight * (lengths.square() if self.squared else lengths)).mean()
        return value if recording else value.detach()


NAMED: Named = {"gradient_norm": lambda threat: GradientNorm()}
