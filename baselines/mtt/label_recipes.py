"""Recipes of trajectory matching with learned labels: DATM, and MTT and TESLA with labels that a teacher starts."""

from dataclasses import replace
from functools import partial
from typing import Any

from baselines.mtt.method import Config
from baselines.mtt.recipes import method, recipe, similar, smoke
from baselines.robust_labels.labels import labels_recipe
from distill.data import Facts
from distill.experiment import Recipe
from distill.methods.method import presets

__all__ = ["METHODS"]

# DATM's settings by data set and ipc: configs/*/ConvIN/*.yaml of the official code (NUS-HPC-AI-Lab/DATM, 97ae510). All
# have 10,000 iterations, experts of 100 epochs (command in the readme), M = 2 (CIFAR-100 with one image: 3), ZCA, an
# initial learning rate of 0.01 for students, and real images that an expert classifies correctly (CIFAR-100 with 50
# images: any). A row without an expansion has no order of difficulty. batch_syn None: all images.
NAMES = ("syn_steps", "min_start_epoch", "current_max_start_epoch", "max_start_epoch", "expansion_end_epoch")
NAMES += ("lr_img", "lr_lr", "lr_labels", "batch_syn")
Row = tuple[int, int, int | None, int, int | None, float, float, float, int | None]
DATM: dict[tuple[str, int], Row] = {
    ("cifar10", 1): (80, 0, None, 4, None, 100.0, 1e-7, 5.0, None),
    ("cifar10", 10): (80, 0, 10, 20, 1000, 100.0, 1e-5, 2.0, None),
    ("cifar10", 50): (80, 0, 20, 40, 2000, 1000.0, 1e-5, 2.0, None),
    ("cifar10", 500): (40, 40, None, 60, None, 50.0, 1e-5, 10.0, 1000),
    ("cifar10", 1000): (100, 40, None, 60, None, 50.0, 1e-5, 10.0, 1000),
    ("cifar100", 1): (40, 0, 10, 20, 1000, 1000.0, 1e-5, 10.0, None),
    ("cifar100", 10): (80, 0, 30, 50, 2000, 1000.0, 1e-5, 10.0, None),
    ("cifar100", 50): (80, 20, None, 70, None, 1000.0, 1e-5, 10.0, 1000),
    ("cifar100", 100): (80, 30, None, 70, None, 50.0, 1e-5, 10.0, 1000),
    ("tiny_imagenet", 1): (40, 0, 15, 20, 2000, 10_000.0, 1e-4, 10.0, None),
    ("tiny_imagenet", 10): (40, 10, None, 50, None, 100.0, 1e-4, 10.0, 500),
    ("tiny_imagenet", 50): (20, 40, None, 70, None, 100.0, 1e-4, 10.0, 1000),
}


def _row(facts: Facts, ipc: int) -> dict[str, Any]:
    """Return the fields of a row of DATM's table; a data set without a published row is not whitened."""
    key = similar(facts, ipc, DATM, "tiny_imagenet")
    fields: dict[str, Any] = dict(zip(NAMES, DATM[key], strict=True))
    if fields["expansion_end_epoch"] is None:
        del fields["current_max_start_epoch"], fields["expansion_end_epoch"]
    else:
        fields["order"] = "easy_first"
    fields |= {"expert_epochs": 3 if key == ("cifar100", 1) else 2, "lr_init": 0.01, "zca": key[0] == facts.name}
    if key == ("cifar100", 50):
        fields |= {"init": "real", "labels_start": "first_expert"}
    else:
        fields["init"] = "correct"
    return fields | {"threshold": 1.1 if key == ("cifar10", 1) else 1.0}


def _datm(name: str, facts: Facts, ipc: int) -> Recipe:
    base = recipe(name, "mtt", facts, ipc)
    fields: dict[str, Any] = {"labels": "learned", "labels_start": "expert"}
    if name == "paper":
        fields |= {"iterations": 10_000, "train_epochs": 100} | _row(facts, ipc)
    else:  # the bound of start epochs is 2 of 5 at first, and rises for half of the iterations
        fields |= {"init": "correct", "order": "easy_first", "current_max_start_epoch": 2}
        fields |= {"expansion_end_epoch": base.config.iterations // 2}
    return replace(base, config=replace(base.config, **fields))


def _from_teacher(name: str, base: str, facts: Facts, ipc: int) -> Recipe:
    """Return the recipe of `base` with learned labels that start at those of an adversarially trained teacher."""
    found = recipe(name, base, facts, ipc)
    lr_labels = DATM[similar(facts, ipc, DATM, "tiny_imagenet")][NAMES.index("lr_labels")]
    fields = {"labels": "learned", "labels_start": "teacher", "lr_labels": lr_labels}
    fields["label_teacher"] = labels_recipe(name, facts)
    return replace(found, config=replace(found.config, **fields))


def _smoke(config: Config) -> Config:
    """Return the settings of a recipe quick for seconds on small images."""
    batch_size = min(16, config.label_teacher.teacher_batch_size)
    teacher = replace(config.label_teacher, teacher_epochs=2, teacher_batch_size=batch_size)
    return smoke(config, label_teacher=teacher, current_max_start_epoch=1, expansion_end_epoch=2)


_presets = partial(presets, smoke=_smoke)
_method = partial(method, in_benchmark=False)

METHODS = (
    _method(
        "datm",
        "MTT with learned soft labels, and trajectories in the order of their difficulty",
        "Guo et al., ICLR 2024, arXiv 2310.05773",
        "datm",
        _presets(_datm),
    ),
    _method(
        "mtt_learned_labels",
        "MTT with soft labels that are learned from those of an adversarially trained teacher",
        "no paper; labels are learned as in DATM, Guo et al., ICLR 2024, arXiv 2310.05773",
        "mtt",
        _presets(_from_teacher, "mtt"),
    ),
    _method(
        "tesla_learned_labels",
        "TESLA with soft labels that are learned from those of an adversarially trained teacher",
        "no paper; labels are learned as in DATM, Guo et al., ICLR 2024, arXiv 2310.05773",
        "tesla",
        _presets(_from_teacher, "tesla"),
    ),
)
