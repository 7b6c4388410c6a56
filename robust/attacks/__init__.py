"""Attacks: `attack(model, images, targets, *, generator) -> adversarial images`, all in [0, 1]."""

from robust.attacks.apgd import APGD
from robust.attacks.autoattack import AutoAttack
from robust.attacks.bpda import BPDA, bpda
from robust.attacks.cw import CW
from robust.attacks.deepfool import DeepFool
from robust.attacks.fab import FAB
from robust.attacks.gradient import SuspiciousModelWarning
from robust.attacks.jitter import Jitter
from robust.attacks.jsma import JSMA
from robust.attacks.named import ATTACKS, attack_named
from robust.attacks.noise import Noise
from robust.attacks.pgd import PGD, pgd
from robust.attacks.pgd_presets import paper_attacks
from robust.attacks.square import Square
from robust.attacks.transfer import Transfer
from robust.attacks.vmi_fgsm import VMIFGSM

__all__ = [
    "APGD",
    "ATTACKS",
    "BPDA",
    "CW",
    "FAB",
    "JSMA",
    "PGD",
    "VMIFGSM",
    "AutoAttack",
    "DeepFool",
    "Jitter",
    "Noise",
    "Square",
    "SuspiciousModelWarning",
    "Transfer",
    "attack_named",
    "bpda",
    "paper_attacks",
    "pgd",
]
