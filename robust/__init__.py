"""Adversarial robustness for dataset distillation, on torch alone: GUARD's loss, attacks and their evaluation.

>>> from robust import CurvatureRegularizedLoss
>>> loss = CurvatureRegularizedLoss(weight=10.0, h=3.0)  # loss(model, inputs, targets) -> scalar

On a CPU, `robust.keep_memory()` before the training makes steps faster: the process keeps freed memory instead of
returning it to the system. No other function does this.

Attacks of torchattacks, Lanczos and certificates need torchattacks or scipy when they are called, not before.
"""

from robust.attacks import (
    APGD,
    ATTACKS,
    BPDA,
    CW,
    FAB,
    JSMA,
    PGD,
    VMIFGSM,
    AutoAttack,
    DeepFool,
    Jitter,
    Noise,
    Square,
    SuspiciousModelWarning,
    Transfer,
    attack_named,
    bpda,
    paper_attacks,
    pgd,
)
from robust.evaluation.accuracy import Report, accuracy, correct, evaluate, least_distances, robust_accuracy, withstands
from robust.evaluation.certificates import certified, certify
from robust.losses import (
    LOSSES,
    TRADES,
    AdversarialTraining,
    CrossEntropy,
    CurvatureRegularizedLoss,
    GaussianNoise,
    GradientNorm,
    Loss,
    Traits,
    cross_entropy,
    curvature_penalty,
    loss_named,
    smoothed,
)
from robust.memory import keep_memory
from robust.network.adapters import LogitsOf, logits_of
from robust.network.expectation import Expected, expected
from robust.preprocess import Normalize
from robust.second_order.compiled import CompiledGradients
from robust.teacher import RobustTeacher
from robust.threat import PAPER_THREATS, THREATS, Threat, threat_named

__all__ = [
    "APGD",
    "ATTACKS",
    "BPDA",
    "CW",
    "FAB",
    "JSMA",
    "LOSSES",
    "PAPER_THREATS",
    "PGD",
    "THREATS",
    "TRADES",
    "VMIFGSM",
    "AdversarialTraining",
    "AutoAttack",
    "CompiledGradients",
    "CrossEntropy",
    "CurvatureRegularizedLoss",
    "DeepFool",
    "Expected",
    "GaussianNoise",
    "GradientNorm",
    "Jitter",
    "LogitsOf",
    "Loss",
    "Noise",
    "Normalize",
    "Report",
    "RobustTeacher",
    "Square",
    "SuspiciousModelWarning",
    "Threat",
    "Traits",
    "Transfer",
    "accuracy",
    "attack_named",
    "bpda",
    "certified",
    "certify",
    "correct",
    "cross_entropy",
    "curvature_penalty",
    "evaluate",
    "expected",
    "keep_memory",
    "least_distances",
    "logits_of",
    "loss_named",
    "paper_attacks",
    "pgd",
    "robust_accuracy",
    "smoothed",
    "threat_named",
    "withstands",
]
