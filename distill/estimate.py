"""How long a run will take, from its arithmetic and a short measurement of this machine. Good to a factor of two."""

import time
from typing import Any

import torch
import torch.nn.functional as F

from distill.experiment import Recipe
from distill.models import build

__all__ = ["estimate", "human"]

ATTACK_STEPS = 12  # ten steps of PGD, one look at the clean images and one at the result


def estimate(recipe: Recipe, passes: Any, ipc: int, shape: tuple[int, int, int], num_classes: int, tests: int) -> float:
    """Return the seconds a recipe takes on the CPU.

    Args:
        recipe: what is run.
        passes: the method's own count of passes, (config, ipc, num_classes) -> images that pass a network once.
        ipc: images per class.
        shape: (C, H, W) of an image.
        num_classes: classes of the data set.
        tests: size of the test set.
    """
    evaluation = recipe.evaluation
    tests = min(tests, evaluation.test_images or tests)
    training = evaluation.student.epochs * ipc * num_classes * 3
    attacking = tests * (1 + 2 * ATTACK_STEPS * len(evaluation.attack_names))
    work = passes(recipe.config, ipc, num_classes) + evaluation.students * (training + attacking)
    return work * _seconds_per_pass(recipe.config.backbone, shape, num_classes)


def _seconds_per_pass(backbone: str, shape: tuple[int, int, int], num_classes: int) -> float:
    channels, size, _ = shape
    network = build(backbone, channels=channels, image_size=size, num_classes=num_classes, generator=torch.Generator())
    images, labels = torch.zeros(32, *shape), torch.zeros(32, dtype=torch.long)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        torch.autograd.grad(F.cross_entropy(network(images), labels), list(network.parameters()))
        best = min(best, time.perf_counter() - start)
    return best / (3 * len(images))


def human(seconds: float) -> str:
    """Return a duration for people.

    >>> [human(s) for s in (40, 150, 9000, 300000)]
    ['40 seconds', '2.5 minutes', '2.5 hours', '3.5 days']
    """
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.0f} seconds"
