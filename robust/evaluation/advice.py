"""Which attack to run next when an accuracy is suspicious, and which attacks already follow that advice."""

import re
from collections.abc import Sequence
from typing import Any

from robust.attacks.apgd import APGD
from robust.attacks.autoattack import AutoAttack
from robust.attacks.noise import Noise
from robust.attacks.pgd import PGD
from robust.attacks.square import Square
from robust.attacks.transfer import Transfer
from robust.attacks.vmi_fgsm import VMIFGSM

__all__ = ["ANY_STEP", "AVERAGED", "BLACK_BOX", "MARGIN", "advised", "concerns", "remedy"]

MARGIN = "pgd_ce_margin"
"""for models on which cross-entropy is a weak objective"""
BLACK_BOX = "square"
"""for models without useful gradients"""
AVERAGED = "autoattack:version=rand"
"""for models with random answers"""
ANY_STEP = f"use BPDA (robust.bpda) or {BLACK_BOX}"

_USE = re.compile(r"use (?:BPDA \(robust\.bpda\) or )?([\w:=]+)$")
_WITHOUT_USE = ("input gradient", "takes gradients inside", "noise breaks", "black-box", "single-step", "weaker")
_MASKED = ("masked gradients", "can be made grey", "breaks no more", "breaks fewer", "break different images")


def remedy(reason: str) -> str | None:
    """Return the attack that a reason recommends, a name or spec of `robust.ATTACKS`; None where no attack helps.

    >>> remedy("input gradient is zero on 20 of 20 images: use BPDA (robust.bpda) or square")
    'square'
    """
    found = _USE.search(reason)
    if found:
        return found[1]
    misleading = reason.startswith(_WITHOUT_USE) or any(words in reason for words in _MASKED)
    return BLACK_BOX if misleading else None


def advised(doubts: str | Sequence[str]) -> str | None:
    """Return the attack to run next, with whose accuracy a suspicious accuracy should be compared.

    Args:
        doubts: the reasons, or a verdict with them ("suspicious: a; b").

    Returns:
        a spec for `attack_named`, without a threat; None for "ok", and where no attack helps (logits that are not
        finite, or that do not depend on the image).

    >>> advised("suspicious: cross-entropy PGD is weak here, the margin breaks more, 33 to 0: use pgd_ce_margin")
    'pgd_ce_margin'
    >>> advised("ok")
    """
    reasons = doubts.removeprefix("suspicious: ").split("; ") if isinstance(doubts, str) else doubts
    explicit = {found[1] for reason in reasons if (found := _USE.search(reason))}
    found = explicit or {remedy(reason) for reason in reasons}
    return next((spec for spec in (AVERAGED, BLACK_BOX, MARGIN) if spec in found), None)


def concerns(reason: str, attack: Any) -> bool:
    """Tell whether a reason to doubt a model applies to the accuracy under this attack.

    Args:
        reason: of `suspect_model` or `unbounded`.
        attack: of this library; any other, or None, is treated as an attack by the gradient of cross-entropy.

    Returns:
        False where the attack follows the advice of the reason, or does not use the gradients that it is about.

    >>> from robust.threat import Threat
    >>> reason = "cross-entropy PGD is weak here, the margin breaks more, 33 to 0: use pgd_ce_margin"
    >>> [concerns(reason, PGD(Threat("linf", 0.1), objective=objective)) for objective in ("ce", "margin")]
    [True, False]
    """
    spec = remedy(reason)
    if spec == MARGIN:
        by_loss = (isinstance(attack, PGD) and attack.objective == "ce") or getattr(attack, "loss", None) == "ce"
        return by_loss or isinstance(attack, VMIFGSM) or not type(attack).__module__.startswith("robust.attacks")
    if spec == BLACK_BOX and not reason.startswith("takes gradients inside"):
        # Where gradients mislead but are not zero, a black box may be weaker than an attack that uses them (seen with
        # k-winners-take-all), so its accuracy is doubtful too.
        blind = reason.startswith("input gradient") or any(words in reason for words in _MASKED)
        return not isinstance(attack, (Square, Transfer, Noise) if blind else Noise)
    if spec == AVERAGED:
        return not (isinstance(attack, (PGD, APGD, AutoAttack)) and attack.eot > 1)
    return True
