"""Recipes of FRePo."""

from dataclasses import replace
from functools import partial
from typing import Any

from baselines.frepo.method import Config, distill, student_work, work
from baselines.frepo.students import protocol
from distill.data import Facts
from distill.experiment import Evaluation, Recipe
from distill.methods.method import Method, presets
from distill.models.convnet import convnet_for
from distill.training.augment import dsa_strategy

__all__ = ["METHODS"]

# Learning rates of quick: accuracy in percent on 2,000 held-out training images of CIFAR-10 at 16 px (ipc 1, 500
# iterations, seed 0, two students with --protocol own), at (lr_img, lr_net): 33.6 (0.01, 1e-3), 31.3 (0.01, 3e-3), 31.1
# (0.01, 0.01), 24.3 (0.03, 3e-3).


def _recipe(name: str, facts: Facts, ipc: int) -> Recipe:
    """Return paper or quick; as in the official code, without mirrored images for grey sets and sets of many images."""
    fields: dict[str, Any] = {"augment": dsa_strategy(not facts.grey)}  # closest to the authors' augmentation
    fields["student_augment"] = f"{'' if facts.grey else 'flip_'}color_crop_rotate_translate_cutout"
    fields["zca"] = "frepo" in facts.whitened  # not for sets of 128 px and more: see the deviations
    many = facts.classes >= 1000 or (facts.classes >= 100 and ipc > 1)
    fields["use_flip"] = not (facts.grey or many)
    if name == "paper":  # script/distill.py and the commands and five students of the readme
        fields["backbone"] = f"frepo_{convnet_for(facts.depth)}"
        return Recipe(Config(**fields), Evaluation(students=5))
    fields |= {"backbone": f"frepo_{convnet_for(facts.depth, 16)}", "iterations": 800, "batch_real": 256}
    fields |= {"lr_img": 0.01, "lr_net": 1e-3, "num_nn_state": 5, "max_online_updates": 50}
    fields |= {"student_steps": 500, "student_lr": 3e-3}
    return Recipe(Config(**fields), Evaluation(students=3, test_images=2000))


_smoke = partial(
    replace,
    iterations=3,
    batch_real=16,
    num_nn_state=2,
    student_steps=5,
    backbone="frepo_convnet:width=8,depth=2",
)

METHODS = (
    Method(
        "frepo",
        "ridge regression on the features of a pool of networks, with learned labels",
        "Zhou, Nezhadarya, Ba, NeurIPS 2022, arXiv 2206.00719",
        "frepo",
        presets(
            _recipe,
            smoke=_smoke,
        ),
        distill=distill,
        work=work,
        protocol=protocol,
        student_work=student_work,
        processes="divided",
    ),
)
