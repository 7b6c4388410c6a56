"""The recipe of C2R."""

from dataclasses import replace
from functools import partial

from baselines.c2r.method import Config, check, distill, work
from baselines.rome.recipes import settings
from distill.data import Facts
from distill.experiment import Evaluation, Recipe
from distill.methods.method import Method, presets
from robust import loss_named

__all__ = ["METHODS"]


def _recipe(name: str, facts: Facts, ipc: int) -> Recipe:
    fields = settings(name, facts, ipc)
    fields["eta"] = 0.4 if ipc < 50 else 0.6
    if name == "quick":
        fields |= {"iterations": 150, "batch_syn": 200, "batch_anchors": 64}
    fields["pool_loss"] = loss_named(f"pgd_at:steps={10 if name == 'paper' else 3}@linf", facts.threats)
    students = 5 if name == "paper" else 3
    return Recipe(Config(**fields), Evaluation(students, test_images=None if name == "paper" else 2000))


_smoke = partial(
    replace,
    iterations=3,
    batch_syn=8,
    batch_anchors=8,
    batch_train=16,
    queue=4,
    nearest=2,
    pool_start=2,
    pool_every=2,
    pool_steps=2,
    factor=1,
    backbone="convnet:width=8,depth=2",
)

METHODS = (
    Method(
        "c2r",
        "ROME's pool with a curriculum by robust margins and a contrast of clean and attacked features",
        "Li et al., ICML 2026, arXiv 2605.20606",
        "c2r",
        presets(_recipe, smoke=_smoke),
        distill=distill,
        work=work,
        check=check,
        why_one="the networks of its pool train one after the other",
        in_benchmark=False,
        strength="--pool-loss pgd_at:steps=3@{2/255,4/255,8/255}",
    ),
)
