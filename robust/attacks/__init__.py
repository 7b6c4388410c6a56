"""Attacks: `attack(model, images, targets, *, generator) -> adversarial images`, all in [0, 1]."""

from robust.attacks.pgd import PGD, paper_attacks, pgd

__all__ = ["PGD", "paper_attacks", "pgd"]
