"""MAT: MTT whose experts are trained adversarially, and whose trajectories are averages of the experts' weights.

"Robust Dataset Distillation by Matching Adversarial Trajectories", Lai et al. 2025 (arXiv 2503.12069). We know the
abstract and no code. Experts train on attacked images; their raw weights move too fast from snapshot to snapshot to be
followed, so a trajectory stores an exponential moving average of them; students train plainly. Loss, radius, steps of
the attack and the length of the average are our choices: PGD of five steps in the ball of half the radius of the data
set's `linf`, and one epoch. Images are not whitened. The radius was chosen on the validation split, where the length of
the average makes no difference (the sweep is in docs/methods/mat.md).
"""

from dataclasses import replace

from baselines.mtt.recipes import method, recipe, smoke
from distill.data import Facts
from distill.experiment import Recipe
from distill.methods.method import presets
from robust import loss_named, threat_named

__all__ = ["METHODS"]

LOSS = "pgd_at:steps=5"


def _mat(name: str, facts: Facts, ipc: int) -> Recipe:
    base = recipe(name, "mtt", facts, ipc)
    ball = threat_named("linf", facts.threats)
    loss = loss_named(f"{LOSS}@{replace(ball, eps=ball.eps / 2).written}", facts.threats)
    return replace(base, config=replace(base.config, expert_loss=loss, expert_average=1.0, zca=False))


METHODS = (
    method(
        "mat",
        "MTT with adversarially trained experts, whose weights are averaged",
        "Lai et al. 2025, arXiv 2503.12069",
        "mat",
        presets(_mat, smoke=smoke),
        strength=f"--expert-loss {LOSS}@{{1/255,2/255,4/255}}",
        in_benchmark=False,
    ),
)
