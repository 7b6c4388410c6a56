"""Recipes of DM and GUARD on DM."""

from dataclasses import replace
from functools import partial
from typing import Any

from baselines.dm.method import Config, distill, work
from distill.data import Facts
from distill.experiment import Evaluation, Recipe
from distill.methods.initial import check_initial
from distill.methods.method import Method, presets
from distill.models.convnet import convnet_for
from distill.training.augment import dsa_strategy
from robust import CrossEntropy, CurvatureRegularizedLoss

__all__ = ["METHODS"]

# Weight of the extractor's loss at h = 3; no text that we could read gives a weight. Measured on an extractor of width
# 16 (4 epochs of 6,000 images of CIFAR-10, batch 64, evaluated on 500 test images, one seed), clean / PGD-10 at linf
# 2/255 in percent: 48.8 / 25.2 at weight 0, 49.0 / 29.8 at 1, 41.2 / 30.0 at 10, 31.4 / 23.4 at 100.
WEIGHT = 1.0


def _recipe(name: str, method: str, facts: Facts, ipc: int) -> Recipe:
    fields: dict[str, Any] = {"augment": dsa_strategy(facts.flips)}
    if ipc >= 100 and facts.name == "cifar10":
        fields["lr_img"] = 10.0  # the official readme
    guard = method == "guard_dm"
    real_loss = CurvatureRegularizedLoss(WEIGHT, h=3.0) if guard else CrossEntropy()
    if name == "paper":  # the official code; students as in section 7.1 of GUARD
        fields["backbone"] = convnet_for(facts.depth)
        fields["extractor_epochs"] = 50 if guard else 0
        return Recipe(Config(real_loss, **fields), Evaluation(students=50))
    fields |= {"batch_real": 64, "batch_train": 64, "backbone": convnet_for(facts.depth, 32), "iterations": 500}
    if guard:
        fields["extractor_epochs"] = 20 if facts.examples < 5000 else 1  # digits has 1,438 images, others far more
    return Recipe(Config(real_loss, **fields), Evaluation(students=3, test_images=2000))


def _smoke(config: Config) -> Config:
    epochs = min(1, config.extractor_epochs)
    small = {"batch_real": 8, "batch_train": 16, "backbone": "convnet:width=8,depth=2"}
    return replace(config, iterations=3, extractor_epochs=epochs, **small)


_method = partial(Method, distill=distill, work=work, check=check_initial, processes="divided")

METHODS = (
    _method(
        "dm",
        "distribution matching: mean features in random networks match the real ones",
        "Zhao, Bilen, WACV 2023, arXiv 2110.04181",
        "dm",
        presets(_recipe, "dm", smoke=_smoke),
    ),
    _method(
        "guard_dm",
        "DM with a feature extractor trained by the curvature-regularised loss (a negative result)",
        "Xue et al., arXiv 2403.10045, appendix B",
        "guard",
        presets(_recipe, "guard_dm", smoke=_smoke),
    ),
)
