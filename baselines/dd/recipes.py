"""Recipes of DD and SLDD."""

from dataclasses import replace
from functools import partial
from typing import Any

from baselines.dd.method import Config, distill, protocol, student_work, work
from distill.data import Facts
from distill.experiment import Evaluation, Recipe
from distill.methods.method import Method, presets

__all__ = ["METHODS"]


def _recipe(name: str, method: str, facts: Facts, ipc: int) -> Recipe:
    if name == "quick":
        return Recipe(_quick(method, ipc), Evaluation(students=3, test_images=2000))
    # Students as in section 7.1 of GUARD. --protocol own --students 200 trains students as in section 4 of DD.
    return Recipe(_paper(method, facts), Evaluation(students=50))


def _paper(method: str, facts: Facts) -> Config:
    """Return the papers' settings: those of MNIST for all grey data sets, those of CIFAR-10 for all others.

    Sources: the readme's commands (MNIST with LeNet, CIFAR-10 with AlexCifarNet and a smaller initial learning rate);
    all other settings from base_options.py, for SLDD from docs/scripts.txt. Two ranges of image sizes use another
    network: 128 px and more, as AlexCifarNet has 77 million weights at 224 px, and under 16 px, which LeNet rejects.
    """
    soft = method == "sldd"
    fields: dict[str, Any] = {"backbone": "lenet" if facts.grey else "alexcifarnet"}
    if facts.size >= 128:
        fields["backbone"] = "alexnet"
    elif facts.size < 16:
        fields["backbone"] = f"convnet:depth={facts.depth}"
    fields["crop_flip"] = not facts.grey and facts.size <= 32
    fields["distill_lr"] = 0.001 if not facts.grey else 0.01 if soft else 0.02
    if soft:
        fields |= {"labels": "learned", "epochs": 350, "decay_epochs": 35}
    return Config(**fields)


def _quick(method: str, ipc: int) -> Config:
    """Return about 20 steps of a small ConvNet (better than LeNet in so few steps) and 1/40 of the iterations."""
    count = max(count for count in range(1, 6) if ipc % count == 0)
    fields: dict[str, Any] = {"distill_steps": count, "distill_epochs": 20 // count, "distill_lr": 0.05}
    fields |= {"epochs": 10, "epoch_iterations": 60, "decay_epochs": 4, "batch_size": 128, "lr": 0.02}
    return Config("convnet:width=16,depth=2", **fields, labels="learned" if method == "sldd" else "hard")


_smoke = partial(
    replace,
    epochs=1,
    epoch_iterations=3,
    batch_size=16,
    distill_steps=1,
    distill_epochs=2,
    backbone="convnet:width=8,depth=2",
)

_method = partial(
    Method,
    distill=distill,
    work=work,
    protocol=protocol,
    student_work=student_work,
    why_one="each step of its unrolled training needs the one before",
)

METHODS = (
    _method(
        "dd",
        "unrolled training: a few gradient steps on the set make a network classify real images",
        "Wang et al. 2018, arXiv 1811.10959",
        "dd",
        presets(_recipe, "dd", smoke=_smoke),
    ),
    _method(
        "sldd",
        "DD with learned soft labels",
        "Sucholutsky, Schonlau, IJCNN 2021, arXiv 1910.02551",
        "sldd",
        presets(_recipe, "sldd", smoke=_smoke),
    ),
)
