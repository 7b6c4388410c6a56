"""The recipe of C2R."""

from functools import partial

from baselines.c2r.method import Config, distill, work
from baselines.rome.recipes import evaluation, pool_method, settings, smoke
from distill.data import Facts
from distill.experiment import Recipe
from distill.methods.method import presets
from robust import loss_named

__all__ = ["METHODS"]


def _recipe(name: str, facts: Facts, ipc: int) -> Recipe:
    fields = settings(name, facts, ipc)
    fields["eta"] = 0.4 if ipc < 50 else 0.6
    if name == "quick":
        fields |= {"iterations": 150, "batch_syn": 200, "batch_anchors": 64}
    fields["pool_loss"] = loss_named(f"pgd_at:steps={10 if name == 'paper' else 3}@linf", facts.threats)
    return Recipe(Config(**fields), evaluation(name))


METHODS = (
    pool_method(
        "c2r",
        "ROME's pool with a curriculum by robust margins and a contrast of clean and attacked features",
        "Li et al., ICML 2026, arXiv 2605.20606",
        "c2r",
        presets(_recipe, smoke=partial(smoke, batch_syn=8, batch_anchors=8, queue=4, nearest=2)),
        distill=distill,
        work=work,
        strength="--pool-loss pgd_at:steps=3@{2/255,4/255,8/255}",
    ),
)
