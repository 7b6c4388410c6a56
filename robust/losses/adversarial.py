"""Adversarial training (Madry et al. 2018, arXiv 1706.06083), and its fast form (Wong et al. 2020, arXiv 2001.03994).

The inner attack differs from `robust.pgd` in two ways. All examples take all steps, and the last point is used, as
usual in training. Inputs may be outside [0, 1], as distilled images are; the attack never pushes a pixel further
outside [0, 1].

Deviation: the model is attacked in evaluation mode, so that the attack on one example does not depend on the others and
BatchNorm sees the batch once, in the training pass. Wong et al.'s code attacks in training mode.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.losses.calling import takes_network
from robust.losses.cross_entropy import cross_entropy
from robust.losses.traits import Loss, Named, Traits
from robust.network.modes import Model, evaluating, keeping_buffers, network_inside
from robust.network.precision import lift
from robust.ranges import Count, StepSize, check_ranges
from robust.threat import Threat

__all__ = ["AdversarialTraining", "ascend", "fast_adversarial_training", "random_start"]

Objective = Callable[[Tensor], Tensor]


def ascend(
    model: Model,
    inputs: Tensor,
    start: Tensor,
    objective: Objective,
    *,
    threat: Threat,
    steps: int,
    step_size: float | None = None,
) -> Tensor:
    """Maximise an objective in the ball around each input; the model is in evaluation mode and its buffers are kept.

    Args:
        model: maps pixels (N, ...) to logits (N, K), normalisation inside.
        inputs: (N, ...) pixels, the centres; they may be outside [0, 1].
        start: (N, ...) first points; they are not projected, unlike the points after each step.
        objective: logits -> (N,), a value for each example.
        threat: the ball.
        steps: number of steps, >= 1.
        step_size: length of a step in the norm of the threat; None is 2.5 eps / steps (Madry et al.).

    Returns:
        (N, ...), the last points, computed as the inputs plus a constant: the gradient of a loss with respect to the
        inputs is then its gradient at these points. A pixel stays in [0, 1], or between [0, 1] and its input value.

    >>> total = lambda x: x.sum(1, keepdim=True)
    >>> x = torch.tensor([[0.5, 0.95, 1.2]])
    >>> ascend(total, x, x, lambda out: out[:, 0], threat=Threat("linf", 0.1), steps=2)
    tensor([[0.6000, 1.0000, 1.2000]])
    """
    size = 2.5 * threat.eps / steps if step_size is None else step_size
    centre, points, attacked = inputs.detach(), start.detach(), network_inside(model)
    with torch.enable_grad(), evaluating(model), keeping_buffers(model):
        for _ in range(steps):
            points = points.clone().requires_grad_()
            # only the direction counts, so the factor is not divided out
            (gradients,) = torch.autograd.grad(objective(attacked(points)).sum() * lift(points), points)
            moved = points.detach() + size * threat.ascent(gradients)
            points = _cut(centre + threat.shrink(moved - centre), centre)
    return points + (inputs - centre)


def random_start(inputs: Tensor, threat: Threat, generator: torch.Generator | None = None) -> Tensor:
    """Return uniform points in the inputs' balls, (N, ...), clipped as in `ascend`; None: torch's default generator."""
    centre = inputs.detach()
    seeds = torch.randint(2**62, (len(inputs),), generator=generator).tolist()
    shift = threat.random_shift(centre, [torch.Generator().manual_seed(seed) for seed in seeds])
    return _cut(centre + shift, centre)


def _cut(points: Tensor, centre: Tensor) -> Tensor:
    return points.clamp(centre.clamp_max(0.0), centre.clamp_min(1.0))


@dataclass(frozen=True)
class AdversarialTraining(Loss):
    """Mean cross-entropy at the worst point that PGD finds; the training pass does not change the model's mode.

    The gradient is that of the training pass; the perturbation is a constant. The model changes only as in one plain
    training pass. Works under autocast, `torch.no_grad()` (value only) and DistributedDataParallel, not inside
    `torch.func` transforms. The mode can be set only for a module: a plain function is called unchanged.

    Raises:
        ValueError: a field is out of its range.

    >>> loss = AdversarialTraining(Threat("linf", 0.1), steps=3)
    >>> model = lambda x: torch.stack([x.sum(1), -x.sum(1)], 1)  # each pixel of weight 2 in the margin
    >>> x, y = torch.full((1, 4), 0.5), torch.tensor([0])
    >>> worst = torch.nn.functional.cross_entropy(model(x - 0.1), y)
    >>> bool(torch.isclose(loss(model, x, y), worst))
    True
    """

    traits: ClassVar[Traits] = Traits("pixels", random=True, threat=True, strength="threat")

    threat: Threat
    """the ball, pixels in [0, 1]"""
    steps: Count = 10
    """steps of the inner PGD"""
    step_size: StepSize = None
    """length of a step in the threat's norm; None is 2.5 eps / steps (Madry et al.)"""
    random_start: bool = True
    """start at a uniform point of the ball, otherwise at the input"""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def passes(self) -> float:
        """One training pass, and the attack, which computes gradients only with respect to inputs."""
        return 1 + 2 / 3 * self.steps if self.threat.eps else 1.0

    @takes_network
    def __call__(
        self, model: Model, inputs: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the mean loss, a scalar.

        Args:
            model: maps pixels to logits (N, K), normalisation inside.
            inputs: (N, ...) pixels; they may be outside [0, 1].
            targets: (N,) class indices or (N, K) probabilities.
            generator: CPU generator of the random start; None is torch's default.
        """
        if self.threat.eps == 0:
            return cross_entropy(model(inputs), targets).mean()
        start = random_start(inputs, self.threat, generator) if self.random_start else inputs
        options = {"threat": self.threat, "steps": self.steps, "step_size": self.step_size}
        points = ascend(model, inputs, start, lambda logits: cross_entropy(logits, targets), **options)
        return cross_entropy(model(points), targets).mean()


def fast_adversarial_training(threat: Threat) -> AdversarialTraining:
    """Return FGSM from a random start, with Wong et al.'s step of 1.25 eps."""
    return AdversarialTraining(threat, steps=1, step_size=1.25 * threat.eps or None)


NAMED: Named = {"pgd_at": AdversarialTraining, "fast_at": fast_adversarial_training}
