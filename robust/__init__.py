"""Adversarial robustness for dataset distillation, on torch alone: GUARD's loss, attacks and their evaluation.

>>> from robust import CurvatureRegularizedLoss
>>> loss = CurvatureRegularizedLoss(weight=10.0, h=3.0)  # loss(model, inputs, targets) -> scalar
"""

from robust.attacks import PGD, paper_attacks, pgd
from robust.compiled import CompiledGradients
from robust.evaluate import Report, accuracy, correct, evaluate, robust_accuracy, withstands
from robust.losses import CrossEntropy, CurvatureRegularizedLoss, cross_entropy, curvature_penalty
from robust.preprocess import Normalize
from robust.teacher import RobustTeacher
from robust.threat import PAPER_THREATS, Threat

__all__ = [
    "PAPER_THREATS",
    "PGD",
    "CompiledGradients",
    "CrossEntropy",
    "CurvatureRegularizedLoss",
    "Normalize",
    "Report",
    "RobustTeacher",
    "Threat",
    "accuracy",
    "correct",
    "cross_entropy",
    "curvature_penalty",
    "evaluate",
    "paper_attacks",
    "pgd",
    "robust_accuracy",
    "withstands",
]
