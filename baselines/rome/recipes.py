"""Recipes of ROME and of IDM, its plain form."""

from dataclasses import replace
from functools import partial
from typing import Any

from baselines.rome.method import Config, check, distill, work
from distill.data import Facts
from distill.experiment import Evaluation, Recipe
from distill.methods.method import Method, presets
from distill.models.convnet import convnet_for
from distill.training.augment import dsa_strategy
from robust import CrossEntropy, loss_named

__all__ = ["METHODS", "evaluation", "pool_method", "settings", "smoke"]


def settings(name: str, facts: Facts, ipc: int) -> dict[str, Any]:
    """Return the fields that ROME's recipes for a data set share with those built on them.

    Args:
        name: "paper" or "quick".
        facts: of the data set.
        ipc: images per class.
    """
    # a small set has too few real images to fill four corners; classes may be smaller than the mean
    factor = 2 if facts.size % 2 == 0 and facts.examples >= 8 * ipc * facts.classes else 1
    fields: dict[str, Any] = {"augment": dsa_strategy(facts.flips), "factor": factor}
    if name == "paper":  # command.txt and the defaults of the released code
        fields |= {"backbone": convnet_for(facts.depth), "pool_every": 5 if ipc == 1 else 30}
        fields |= {"pool_steps": 50 if facts.classes >= 100 and ipc >= 10 else 10}
        return fields
    fields |= {"backbone": convnet_for(facts.depth, 32), "iterations": 300, "batch_train": 64}
    return fields | {"pool_most": 5, "pool_every": 50, "pool_members": 1, "attack_steps": 3}


def _recipe(name: str, method: str, facts: Facts, ipc: int) -> Recipe:
    fields = settings(name, facts, ipc)
    if name == "quick":
        fields["batch_real"] = 32
    elif ipc > 1 and (ipc > 10 or facts.classes >= 100):
        fields["performance_weight"] = 0.1
    if method == "idm":
        fields |= {"pool_loss": CrossEntropy(), "distance": "mean"}
    else:  # 8/255 on colour images, as in the code, and 0.3 on grey ones
        fields["pool_loss"] = loss_named(f"pgd_at:steps={10 if name == 'paper' else 3}@linf_star", facts.threats)
    return Recipe(Config(**fields), evaluation(name))


def evaluation(name: str) -> Evaluation:
    """Return the evaluation of a recipe, "paper" or "quick"."""
    return Evaluation(students=5) if name == "paper" else Evaluation(students=3, test_images=2000)


smoke = partial(
    replace,
    iterations=3,
    batch_train=16,
    pool_start=2,
    pool_every=2,
    pool_steps=2,
    factor=1,
    backbone="convnet:width=8,depth=2",
)
"""settings of a recipe quick -> those of seconds on small images"""
pool_method = partial(
    Method,
    check=check,
    why_one="the networks of its pool train one after the other",
    in_benchmark=False,
)
_method = partial(pool_method, distill=distill, work=work)
_smoke = partial(smoke, batch_real=8)

METHODS = (
    _method(
        "idm",
        "DM in a pool of networks of all ages, with several images in each stored one",
        "Zhao et al., CVPR 2023, arXiv 2307.09742",
        "rome",
        presets(_recipe, "idm", smoke=_smoke),
    ),
    _method(
        "rome",
        "IDM whose networks train on attacked images, and whose targets are features of attacked images",
        "Zhou et al., ICML 2025",
        "rome",
        presets(_recipe, "rome", smoke=_smoke),
        strength="--pool-loss pgd_at:steps=3@{2/255,4/255,8/255}",
    ),
)
