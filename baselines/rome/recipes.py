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

# Settings by data set and ipc: command.txt of the released code of ROME (zhouzhengqd/ROME, 2ceed90) and of IDM
# (uitrbn/IDM): weight of the cross-entropy, steps of a network of the pool, interval of its new networks, and real
# images of a class and step. IDM's ImageNet subset has no row. Other data sets have the rows of CIFAR-10, or of
# CIFAR-100 from 100 classes on; an ipc between two rows has the row of the smaller.
NAMES = ("performance_weight", "pool_steps", "pool_every", "batch_real")
Rows = dict[tuple[str, int], tuple[float, int, int, int]]
ROME: Rows = {
    ("cifar10", 1): (0.5, 10, 5, 5000),
    ("cifar10", 10): (0.5, 10, 30, 256),
    ("cifar10", 50): (0.1, 10, 30, 256),
    ("cifar100", 1): (0.5, 10, 5, 5000),
    ("cifar100", 10): (0.1, 50, 30, 256),
    ("cifar100", 50): (0.1, 50, 30, 256),
}
IDM: Rows = ROME | {
    ("cifar100", 50): (0.1, 10, 30, 256),
    ("tiny_imagenet", 1): (0.5, 10, 30, 256),
    ("tiny_imagenet", 10): (0.5, 10, 30, 256),
    ("tiny_imagenet", 50): (0.8, 50, 30, 256),
}


def _row(rows: Rows, facts: Facts, ipc: int) -> dict[str, Any]:
    """Return the fields of a row."""
    similar = "cifar100" if facts.classes >= 100 else "cifar10"
    name = facts.name if (facts.name, 1) in rows else similar
    row = rows[name, max(least for known, least in rows if known == name and least <= ipc)]
    return dict(zip(NAMES, row, strict=True))


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
    if name == "paper":
        row = _row(ROME, facts, ipc)
        pool = {field: row[field] for field in ("pool_steps", "pool_every")}
        return fields | pool | {"backbone": convnet_for(facts.depth)}
    fields |= {"backbone": convnet_for(facts.depth, 32), "iterations": 300, "batch_train": 64}
    return fields | {"pool_most": 5, "pool_every": 50, "pool_members": 1, "attack_steps": 3}


def _recipe(name: str, method: str, facts: Facts, ipc: int) -> Recipe:
    fields = settings(name, facts, ipc)
    fields |= {"batch_real": 32} if name == "quick" else _row(IDM if method == "idm" else ROME, facts, ipc)
    if method == "idm":
        fields |= {"pool_loss": CrossEntropy(), "distance": "mean", "robust_weight": None, "percent": True}
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
