"""Recipes of KIP."""

from dataclasses import replace
from functools import partial

from baselines.kip.least_squares import protocol
from baselines.kip.method import Config, distill, student_work, work
from distill.data import Facts
from distill.experiment import Evaluation, Recipe
from distill.methods.initial import check_initial
from distill.methods.method import Method, presets
from distill.models.convnet import convnet_for

__all__ = ["METHODS"]


def _recipe(name: str, facts: Facts, ipc: int) -> Recipe:
    large = facts.size >= 128  # too large for the ConvNet kernel; at 224 px, 1000 images are 1.2 GB in float64
    if name == "quick":
        # Selected with --split validation, 16 px, ipc 1, seed 0, 2000 images, 3 students of width 32. Accuracy in
        # percent after 50, 100 and 300 steps: MNIST 68.5, 73.0, 63.9 (the regression itself 78.8, 85.0, 85.7), CIFAR-10
        # 21.9, 22.4, 21.9. With depth 1 after 100 steps: 65.8 and 20.6. The ConvNet's kernel on CIFAR-10 takes longer
        # and reaches 16.9 (3 blocks, batches of 50, 20 steps) and 17.0 (1 block, batches of 100, 40 steps).
        batch = max(1000 if large else 2000, facts.classes)
        fields = {"kernel": "fc", "depth": 3, "iterations": 100, "target_batch": batch, "student_steps": 1000}
        return Recipe(Config(convnet_for(facts.depth, 32), **fields), Evaluation(students=3, test_images=2000))
    # lr, batch and ridge are from the notebooks. Steps and whitening are those of the file that nn_training.ipynb loads
    # ("~ 1000 or more" steps). Its students are convnet:width=1024,norm=none; here they are the field's usual ConvNet,
    # as for every method.
    fields = {"kernel": "fc", "target_batch": max(1000, facts.classes)} if large else {}
    fields |= {"zca": "kip" in facts.whitened}
    return Recipe(Config(convnet_for(facts.depth), **fields), Evaluation(students=5))


_smoke = partial(
    replace,
    iterations=3,
    target_batch=20,
    student_steps=5,
    backbone="convnet:width=8,depth=2",
)

METHODS = (
    Method(
        "kip",
        "ridge regression by the kernel of an infinitely wide network",
        "Nguyen et al., NeurIPS 2021, arXiv 2107.13034",
        "kip",
        presets(
            _recipe,
            smoke=_smoke,
        ),
        distill=distill,
        check=check_initial,
        work=work,
        protocol=protocol,
        student_work=student_work,
        processes="divided",
    ),
)
