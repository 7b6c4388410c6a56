"""PGD with the settings of papers: the three attacks of GUARD, and named attacks that are PGD with other fields."""

from robust.attacks.pgd import PGD
from robust.registry import Named
from robust.threat import PAPER_THREATS, Threat

__all__ = ["fgsm", "paper_attacks"]

_PAPER_STEPS = {
    "mnist": {"linf_star": 0.1, "linf": 0.03, "l2": 0.3},
    "cifar10": {"linf_star": 2 / 255, "linf": 0.5 / 255, "l2": 0.05},
}


def paper_attacks(family: str) -> dict[str, PGD]:
    """Return the paper's three attacks: 10 steps of PGD at `PAPER_THREATS[family]`, with its step sizes (section 7.2).

    Args:
        family: "mnist" or "cifar10".

    Raises:
        ValueError: another family.

    The paper states neither the start nor which iterate is evaluated. Random starts and the worst iterate are used
    here; both only strengthen the attack.
    """
    if family not in PAPER_THREATS:
        raise ValueError(f"no threats for {family!r}; choose from {', '.join(PAPER_THREATS)}")
    sizes = _PAPER_STEPS[family]
    return {name: PGD(threat, steps=10, step_size=sizes[name]) for name, threat in PAPER_THREATS[family].items()}


def fgsm(threat: Threat) -> PGD:
    """Return the fast gradient sign method (arXiv 1412.6572): one step of length eps from the image."""
    return PGD(threat, steps=1, step_size=threat.eps or None, random_start=False)


NAMED: Named = {
    "fgsm": fgsm,
    "bim": lambda threat: PGD(threat, steps=10, step_size=threat.eps / 4 or None, random_start=False),
    "pgd": PGD,
    "pgd100": lambda threat: PGD(threat, steps=100),
    "pgd_ce_margin": lambda threat: PGD(threat, steps=20, objective="ce+margin"),
    "mim": lambda threat: PGD(threat, steps=20, step_size=threat.eps / 8 or None, random_start=False, momentum=1.0),
}
"""`pgd` takes 10 steps; bim is PGD from the image (arXiv 1607.02533), mim with momentum 1 (arXiv 1710.06081)."""
