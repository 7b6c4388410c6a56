"""Recipes of DiM."""

from dataclasses import replace
from functools import partial
from typing import Any

from baselines.dim.generated import protocol
from baselines.dim.method import OFFICIAL_POOL, Config, distill, student_work, work
from distill.data import Facts
from distill.experiment import Evaluation, Recipe
from distill.methods.method import Method, presets
from distill.models.convnet import convnet_for

__all__ = ["METHODS"]


def _recipe(name: str, method: str, facts: Facts, ipc: int) -> Recipe:
    if name == "paper":  # the defaults of the official code, the same for its four data sets
        convnet = convnet_for(facts.depth)
        return Recipe(Config(backbone=convnet, pool=(convnet, *OFFICIAL_POOL[1:])), Evaluation(students=50))
    # Far too short for images of objects: the generator makes blurs with the colours of the class. Selected with
    # --split validation on cifar10 16 px, ipc 10, seed 0, one student of 150 epochs, 1,000 images. Clean accuracy in
    # percent of students on new images / on the set: 25.2 / 23.7 after the first stage, 29.3 / 26.5 after both stages;
    # first stage with 650 steps of 32 images instead: 23.3 / 20.3. This recipe, on 2,000 test images, three students:
    # 23.5 / 21.2.
    convnet = convnet_for(facts.depth, 32)
    fields: dict[str, Any] = {"backbone": convnet, "pool": (convnet,), "width": 32}
    fields |= {"gan_epochs": 1, "gan_epoch_steps": 400, "gan_batch": 64, "gan_lr": 1e-3}
    fields |= {"match_epochs": 4, "match_epoch_steps": 25, "match_batch": 64, "match_lr": 1e-4, "net_steps": 4}
    fields |= {"student_epochs": 300}
    return Recipe(Config(**fields), Evaluation(students=3, test_images=2000))


_smoke = partial(
    replace,
    width=4,
    gan_epochs=1,
    gan_epoch_steps=2,
    gan_batch=8,
    match_epochs=1,
    match_epoch_steps=2,
    match_batch=8,
    net_steps=1,
    student_epochs=3,
    backbone="convnet:width=8,depth=2",
    pool=("convnet:width=8,depth=2",),
)

METHODS = (
    Method(
        "dim",
        "distils a generator instead of images",
        "Wang et al. 2023, arXiv 2303.04707",
        "dim",
        presets(
            _recipe,
            "dim",
            smoke=_smoke,
        ),
        distill=distill,
        work=work,
        protocol=protocol,
        student_work=student_work,
        why_one="each step of generator and critic needs the one before, and BatchNorm needs the whole batch",
        more_than_class=True,
    ),
)
