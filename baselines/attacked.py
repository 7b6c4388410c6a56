"""Attacked real images: methods whose real side has the loss of adversarial training where GUARD has its penalty.

GUARD's penalty is an approximation: the loss rises little where the gradient changes little. These methods minimise
what it approximates, the loss at the points that an attack on the current network finds:

    at_METHOD        mean of l(x + delta), delta by PGD from a random start (Madry et al., ICLR 2018, arXiv 1706.06083)
    fast_at_METHOD   the same with one step of 1.25 eps (Wong, Rice, Kolter, ICLR 2020, arXiv 2001.03994)
    trades_METHOD    l(x) + beta KL(f(x) || f(x + delta)) (Zhang et al., ICML 2019, arXiv 1901.08573)

METHOD is dc, dsa, dcc, dsac (real batches that gradients match), cafe, cafe_dsa (the discrimination term), dm (training
of its extractor), dd, sldd (the real batch after the unrolled training) or kip (the real batch of the regression). The
synthetic side stays plain, and so do the students. One field of the recipe differs from that of guard_METHOD, or of
METHOD. No paper has these combinations; they are the controls that GUARD's cost has to beat. In passes through the
network (`Loss.passes`) fast_at costs 1.7, at with five steps 4.3, trades 5.7, and GUARD's penalty 7
(beside a training pass; in gradient matching about 4).
"""

import re
from dataclasses import replace
from functools import partial

from baselines import dcc
from baselines.cafe import recipes as cafe
from baselines.dd import recipes as dd
from baselines.dm import recipes as dm
from baselines.kip import recipes as kip
from distill.data import Facts
from distill.experiment import Recipe, RecipeOf
from distill.methods import dc_recipes as dc
from distill.methods.method import Method
from robust import loss_named, threat_named

__all__ = ["KINDS", "METHODS", "attacked", "named"]

KINDS = {
    "at": ("pgd_at:steps=5", "PGD", "Madry et al., ICLR 2018, arXiv 1706.06083"),
    "fast_at": ("fast_at", "one step", "Wong, Rice, Kolter, ICLR 2020, arXiv 2001.03994"),
    "trades": ("trades:steps=5", "TRADES", "Zhang et al., ICML 2019, arXiv 1901.08573"),
}
"""prefix of the name -> the loss without its threat, the attack in words, the paper"""
RADII = "{1/255,2/255,4/255}"
"""strengths: half, once and twice the paper's `linf` of colour images"""
BASES = {method.name: method for module in (dc, dcc, cafe, dm, dd, kip) for method in module.METHODS}
NAME = re.compile(rf"(?P<kind>{'|'.join(KINDS)})_(?P<base>dc|dsa|dcc|dsac|cafe|cafe_dsa|dm|dd|sldd)")
UNROLLED = ("dd", "sldd")
"""methods whose real batch has the field outer_loss"""
WHERE = {"dm": "a feature extractor trained on", "cafe": "the discrimination term on", "dd": "the outer loss on"}
WHERE |= {"cafe_dsa": WHERE["cafe"], "sldd": WHERE["dd"]}
"""METHOD -> what sees the attacked images, where that is not the loss whose gradients are matched"""


def attacked(kind: str, base: str) -> Method:
    """Return a method with attacked real images.

    Args:
        kind: a key of KINDS.
        base: a method with a loss on its real side.

    >>> attacked("fast_at", "dsa").name
    'fast_at_dsa'
    """
    text, attack, paper = KINDS[kind]
    flag = "outer-loss" if base in UNROLLED else "real-loss"
    recipes = BASES.get(f"guard_{base}", BASES[base]).recipes
    return replace(
        BASES[base],
        name=f"{kind}_{base}",
        summary=f"{base.upper()} with {WHERE.get(base, 'the loss on')} attacked real images ({attack})",
        paper=f"no paper; loss of {paper}",
        page="attacked",
        recipes={name: partial(_recipe, recipe, flag.replace("-", "_"), text) for name, recipe in recipes.items()},
        strength=f"--{flag} {text}@{RADII}",
        in_benchmark=False,
    )


def _recipe(base: RecipeOf, field: str, text: str, facts: Facts, ipc: int) -> Recipe:
    """Return a recipe with another loss in a field, in the `linf` ball of the data set."""
    recipe = base(facts, ipc)
    return replace(recipe, config=replace(recipe.config, **{field: loss_named(f"{text}@linf", facts.threats)}))


def _of_kip(base: RecipeOf, facts: Facts, ipc: int) -> Recipe:
    recipe = base(facts, ipc)
    return replace(recipe, config=replace(recipe.config, attack=threat_named("linf", facts.threats).written))


def named(name: str) -> Method | None:
    """Return KIND_METHOD for the methods with a loss on their real side, such as trades_dsa; None for other names.

    >>> [method and method.name for method in map(named, ("trades_dsa", "fast_at_cafe", "at_mtt"))]
    ['trades_dsa', 'fast_at_cafe', None]
    """
    found = NAME.fullmatch(name)
    return attacked(found["kind"], found["base"]) if found else None


METHODS = (
    attacked("at", "dc"),
    attacked("fast_at", "dc"),
    attacked("trades", "dc"),
    attacked("at", "dsa"),
    attacked("at", "dm"),
    attacked("at", "dd"),
    replace(
        BASES["kip"],
        name="at_kip",
        summary="KIP with attacked real images (PGD on the regression)",
        paper="Tsilivis, Su, Kempe 2022, arXiv 2207.11727",
        page="attacked",
        recipes={name: partial(_of_kip, recipe) for name, recipe in BASES["kip"].recipes.items()},
        strength=f"--attack {RADII}",
        in_benchmark=False,
    ),
)
