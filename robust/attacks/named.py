"""Attacks by name: `NAME[:field=value,...]`, the fields being those of the attack's dataclass.

>>> attack_named("pgd:steps=50,restarts=5", Threat("linf", 8 / 255)).steps
50
"""

from collections.abc import Callable
from typing import Any

from robust.attacks.apgd import APGD
from robust.attacks.autoattack import AutoAttack
from robust.attacks.cw import CW
from robust.attacks.deepfool import DeepFool
from robust.attacks.fab import FAB
from robust.attacks.jsma import JSMA
from robust.attacks.noise import Noise
from robust.attacks.pgd import PGD
from robust.attacks.square import Square
from robust.spec import configured, split_spec
from robust.threat import Threat

__all__ = ["ATTACKS", "NORM", "attack_named", "fgsm"]


def fgsm(threat: Threat) -> PGD:
    """Return the fast gradient sign method (arXiv 1412.6572): one step of length eps from the image."""
    return PGD(threat, steps=1, step_size=threat.eps or None, random_start=False)


ATTACKS: dict[str, Callable[[Threat], Any]] = {
    "fgsm": fgsm,
    "bim": lambda threat: PGD(threat, steps=10, step_size=threat.eps / 4 or None, random_start=False),
    "pgd": PGD,
    "pgd100": lambda threat: PGD(threat, steps=100),
    "pgd_ce_margin": lambda threat: PGD(threat, steps=20, objective="ce+margin"),
    "mim": lambda threat: PGD(threat, steps=20, step_size=threat.eps / 8 or None, random_start=False, momentum=1.0),
    "apgd_ce": APGD,
    "apgd_dlr": lambda threat: APGD(threat, loss="dlr"),
    "apgd_t": lambda threat: APGD(threat, loss="targeted"),
    "fab": FAB,
    "square": Square,
    "autoattack": AutoAttack,
    "cw": CW,
    "deepfool": DeepFool,
    "jsma": lambda threat: JSMA(),
    "noise": Noise,
}
"""name -> attack at a threat. `pgd` takes 10 steps; bim is PGD from the image (arXiv 1607.02533), mim with momentum 1
(arXiv 1710.06081)."""

NORM = {"cw": "l2", "deepfool": "l2"}
"""the norm of those that have one only"""


def attack_named(spec: str, threat: Threat) -> Any:
    """Return the attack of a spec.

    Args:
        spec: "NAME" or "NAME:field=value,...", NAME of ATTACKS.
        threat: the ball; JSMA, which counts pixels, has none.

    Raises:
        ValueError: an unknown name or field, a value out of range, or a norm that the attack does not have.
    """
    name, options = split_spec(spec)
    if name not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}; choose from {', '.join(ATTACKS)}")
    return configured(ATTACKS[name](threat), options, f"attack {name}", fixed=("threat",))
