"""TRADES (Zhang et al. 2019, arXiv 1901.08573): cross-entropy, plus the largest change of the predictions in a ball.

The multi-class form, as in the authors' code: the divergence is KL(clean || attacked), and its maximisation starts
near the input. Deviations: the model is attacked in evaluation mode, and inputs may be outside [0, 1] (see
`robust.losses.adversarial`).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from robust.losses.adversarial import ascend
from robust.losses.calling import takes_network
from robust.losses.cross_entropy import cross_entropy
from robust.losses.traits import Loss, Named, Traits
from robust.network.modes import Model, evaluating, keeping_buffers, network_inside
from robust.ranges import Count, NonNegative, StepSize, check_ranges
from robust.threat import Threat

__all__ = ["TRADES"]

NEAR = 0.001
"""standard deviation of the noise on the starting point: at the input itself the gradient of the divergence is zero"""


@dataclass(frozen=True)
class TRADES(Loss):
    """Mean cross-entropy + beta x KL(predictions || predictions at the point of largest KL in the ball).

    Neither training pass changes the model's mode: BatchNorm sees the clean batch, then the attacked batch (with beta
    or eps 0 only the clean batch). Otherwise as `AdversarialTraining`.

    Raises:
        ValueError: a field is out of its range.
    """

    traits: ClassVar[Traits] = Traits("pixels", random=True, threat=True, strength="beta")

    threat: Threat
    """the ball, pixels in [0, 1]"""
    beta: NonNegative = 6.0
    """weight of the divergence, >= 0; 1 / lambda of the paper"""
    steps: Count = 10
    """steps of the inner PGD"""
    step_size: StepSize = None
    """length of a step in the threat's norm; None is 2.5 eps / steps"""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def passes(self) -> float:
        """Two training passes, a forward pass, and the attack, which computes gradients only with respect to inputs."""
        return 2 + (1 + 2 * self.steps) / 3 if self.beta and self.threat.eps else 1.0

    @takes_network
    def __call__(
        self, model: Model, inputs: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the mean loss, a scalar.

        Args:
            model: maps pixels to logits (N, K), normalisation inside.
            inputs: (N, ...) pixels; they may be outside [0, 1].
            targets: (N,) class indices or (N, K) probabilities.
            generator: CPU generator of the noise on the starting point; None is torch's default.
        """
        if self.beta == 0 or self.threat.eps == 0:
            return cross_entropy(model(inputs), targets).mean()
        # not under no_grad: autocast of older torch would cache weights without a graph, also for the passes below
        with torch.enable_grad(), evaluating(model), keeping_buffers(model):
            clean = _log_probabilities(network_inside(model)(inputs.detach())).detach()
        start = inputs.detach() + NEAR * torch.randn(inputs.shape, generator=generator).to(inputs)
        options = {"threat": self.threat, "steps": self.steps, "step_size": self.step_size}
        points = ascend(model, inputs, start, lambda logits: _divergence(clean, logits), **options)
        logits = model(inputs)
        divergence = _divergence(_log_probabilities(logits), model(points))
        return (cross_entropy(logits, targets) + self.beta * divergence).mean()


def _log_probabilities(logits: Tensor) -> Tensor:
    """Return log-softmax in at least float32, because the divergence is a difference of log-probabilities."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)


def _divergence(of: Tensor, logits: Tensor) -> Tensor:
    """Return KL(of || softmax(logits)) of each example, from log-probabilities and logits (N, K)."""
    return F.kl_div(_log_probabilities(logits), of, reduction="none", log_target=True).sum(1)


NAMED: Named = {"trades": TRADES}
