"""Losses: frozen dataclasses called as `loss(model, inputs, targets) -> scalar`, and the underlying functions."""

from robust.losses.adversarial import AdversarialTraining
from robust.losses.cross_entropy import CrossEntropy, cross_entropy, smoothed
from robust.losses.curvature import CurvatureRegularizedLoss, curvature_penalty
from robust.losses.gradient_norm import GradientNorm
from robust.losses.in_pixels import InPixels, on_inputs
from robust.losses.margin import difference_of_logits_ratio, margin
from robust.losses.named import LOSSES, loss_named, written
from robust.losses.noise import GaussianNoise
from robust.losses.trades import TRADES
from robust.losses.traits import Loss, Traits, drawing_from

__all__ = [
    "LOSSES",
    "TRADES",
    "AdversarialTraining",
    "CrossEntropy",
    "CurvatureRegularizedLoss",
    "GaussianNoise",
    "GradientNorm",
    "InPixels",
    "Loss",
    "Traits",
    "cross_entropy",
    "curvature_penalty",
    "difference_of_logits_ratio",
    "drawing_from",
    "loss_named",
    "margin",
    "on_inputs",
    "smoothed",
    "written",
]
