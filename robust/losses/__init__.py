"""Losses: frozen dataclasses called as `loss(model, inputs, targets) -> scalar`, and the functions behind them."""

from robust.losses.adversarial import AdversarialTraining
from robust.losses.cross_entropy import CrossEntropy, cross_entropy, smoothed
from robust.losses.curvature import CurvatureRegularizedLoss, curvature_penalty
from robust.losses.gradient_norm import GradientNorm
from robust.losses.margin import difference_of_logits_ratio, margin
from robust.losses.named import LOSSES, loss_named
from robust.losses.noise import GaussianNoise
from robust.losses.trades import TRADES

__all__ = [
    "LOSSES",
    "TRADES",
    "AdversarialTraining",
    "CrossEntropy",
    "CurvatureRegularizedLoss",
    "GaussianNoise",
    "GradientNorm",
    "cross_entropy",
    "curvature_penalty",
    "difference_of_logits_ratio",
    "loss_named",
    "margin",
    "smoothed",
]
