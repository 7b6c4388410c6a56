"""Losses by name: `NAME[:field=value,...][@THREAT]`, the fields being those of its dataclass, on pixels in [0, 1].

>>> loss_named("trades:beta=3@2/255").beta
3.0
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from robust.losses.adversarial import AdversarialTraining, fast_adversarial_training
from robust.losses.cross_entropy import CrossEntropy
from robust.losses.curvature import CurvatureRegularizedLoss
from robust.losses.gradient_norm import GradientNorm
from robust.losses.noise import GaussianNoise
from robust.losses.trades import TRADES
from robust.spec import configured, split_spec
from robust.threat import Threat, threat_named

__all__ = ["LOSSES", "drawing_from", "loss_named"]

LOSSES: dict[str, Callable[[Threat], Any]] = {
    "cross_entropy": lambda threat: CrossEntropy(),
    "pgd_at": AdversarialTraining,
    "fast_at": fast_adversarial_training,
    "trades": TRADES,
    "gradient_norm": lambda threat: GradientNorm(),
    "cure": lambda threat: CurvatureRegularizedLoss(weight=4.0, h=0.75, direction="sign", penalty="norm"),
    "guard": lambda threat: CurvatureRegularizedLoss(weight=1.0, h=0.75),
    "guard_released": lambda threat: CurvatureRegularizedLoss(weight=1e-4, h=0.75, penalty="loss_difference"),
    "noise": lambda threat: GaussianNoise(),
}
"""name -> loss at a threat. h of `cure` and `guard` is the papers' 3 in normalised units, at a standard deviation of
pixels of a quarter (CIFAR-10's). `guard_released` is what GUARD's code does at ImageNet scale: the loss's own
difference, its weight 1e-4 whatever its --lamda says."""


def loss_named(spec: str, family: str = "cifar10") -> Any:
    """Return the loss of a spec.

    Args:
        spec: "NAME", "NAME:field=value,...", with "@THREAT" behind it for another ball than `linf_star`.
        family: whose threats the names mean (see `threat_named`).

    Raises:
        ValueError: an unknown name, field or threat, or a value out of range.
    """
    spec, at, place = spec.partition("@")
    name, options = split_spec(spec)
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; choose from {', '.join(LOSSES)}")
    threat = threat_named(place if at else "linf_star", family)
    return configured(LOSSES[name](threat), options, f"loss {name}", fixed=("threat",))


def drawing_from(loss: Any, generator: torch.Generator) -> Any:
    """Return the loss with its randomness, if it has any, drawn from a CPU generator."""
    random = isinstance(loss, (AdversarialTraining, TRADES, GaussianNoise))
    return partial(loss, generator=generator) if random else loss
