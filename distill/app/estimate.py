"""How long a run will take: its kinds of steps, each timed here for a moment, times how often they are taken.

seconds = sum over kinds of count x seconds of one step

Steps are timed on random images in the network and at the size of the run, at most PROBE images at once (above that,
time grows with the number of images). Checked against whole runs in docs/cost.md.
"""

import time
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from distill.evaluation.column_kinds import AttackColumn, Column
from distill.evaluation.columns import columns
from distill.experiment import Recipe
from distill.methods.method import StudentWorkOf, WorkOf
from distill.models import build
from distill.training.students import TOGETHER, fits_together
from distill.training.work import PROBE, STEPS, Step, training_steps
from robust import loss_named
from robust.spec import split_spec

__all__ = ["estimate", "human"]

STANDING = 0.6  # of the test images are attacked through all steps: students misclassify many, and attacks stop early
GRADIENTS = {  # of the attacks that have no steps of their own; looks without a gradient count a third
    "autoattack": 2000,  # a hundred times (APGD-CE, nine targets, FAB of nine targets), 5,000 looks; most fall before
    "jsma": 100,
    "noise": 1,
    "corruptions": 25,
    "certified": 370,
    "worst": 0,
}
ELSEWHERE = 11  # of an attack of another package: as many as PGD's


def estimate(
    recipe: Recipe,
    work: WorkOf,
    ipc: int,
    shape: tuple[int, int, int],
    num_classes: int,
    examples: int,
    tests: int,
    student_work: StudentWorkOf | None = None,
) -> float:
    """Return the seconds a recipe takes on the CPU.

    Args:
        recipe: what is run.
        work: the method's.
        ipc: images per class.
        shape: (C, H, W) of an image.
        num_classes: classes of the data set.
        examples: size of the training set.
        tests: size of the test set.
        student_work: (config, ipc, num_classes) -> what the training of one student consists of in the method's own
            way; None where that is about the standard one.
    """
    channels, size, _ = shape

    def built(backbone: str) -> nn.Module:
        fresh = torch.Generator()
        return build(backbone, channels=channels, image_size=size, num_classes=num_classes, generator=fresh)

    network = built(recipe.config.backbone)
    evaluation = recipe.evaluation
    tests = min(tests, evaluation.test_images or tests)
    batch = min(evaluation.student.batch_size, ipc * num_classes, PROBE)
    asked = columns(evaluation, channels, size)
    epochs, attacks = evaluation.student.epochs + 1, sum(map(_gradients, asked))
    at_once = evaluation.student.loss == "cross_entropy" and fits_together(network, torch.empty(batch, *shape), batch)
    together = min(evaluation.students, TOGETHER) if at_once else 1
    train = partial(training_steps, images=batch, networks=together)
    students_steps = evaluation.students * epochs * ipc * num_classes / batch
    training = [(students_steps * loss_named(evaluation.student.loss).passes / STEPS / together, train)]
    if evaluation.protocol == "own" and student_work is not None:
        one = student_work(recipe.config, ipc, num_classes)
        training = [(evaluation.students * count, step) for count, step in one]
    items = [
        *work(recipe.config, ipc, num_classes, examples),
        *training,
        (evaluation.students * tests * attacks * STANDING / PROBE, _attack_step),
    ]
    surrogates = {column.base.partition(":")[0] for column in asked}
    if "transfer" in surrogates:
        epoch = partial(training_steps, images=PROBE)
        items.append((evaluation.surrogate_epochs * examples / PROBE / STEPS, epoch))
    seconds = sum(count * _seconds(step, network, shape) for count, step in items if count)
    if "transfer_student" in surrogates:
        count = epochs * ipc * num_classes / batch / STEPS
        seconds += count * _seconds(partial(training_steps, images=batch), built(evaluation.transfer_backbone), shape)
    return seconds


def _gradients(column: Column) -> int:
    """Return about how many gradients an image of a column costs; a look before and one after are one."""
    name = split_spec(column.base)[0]
    if name in GRADIENTS or not isinstance(column, AttackColumn):
        return GRADIENTS[name]
    attack: Any = column.attack
    if ":" in name:  # of another package, whose fields nobody knows here
        return ELSEWHERE
    if name == "square":
        return attack.queries // 3
    rounds = getattr(attack, "search_steps", 1) * getattr(attack, "restarts", 1)
    return 1 + getattr(attack, "steps", 1) * rounds * (9 if name in ("apgd_t", "fab", "deepfool") else 1)


def _attack_step(network: nn.Module, shape: tuple[int, int, int]) -> None:
    x = torch.randn(PROBE, *shape, requires_grad=True)
    torch.autograd.grad(F.cross_entropy(network.eval()(x), torch.zeros(PROBE, dtype=torch.long)), x)


def _seconds(step: Step, network: nn.Module, shape: tuple[int, int, int]) -> float:
    """Return the median of five steps, or of as many as half a second allows, after one to warm up.

    A first step of a second and more is taken at its word: next to it warming up is little, and others would make the
    user wait.
    """

    def timed() -> float:
        start = time.perf_counter()
        step(network, shape)
        return time.perf_counter() - start

    if (first := timed()) >= 1:
        return first
    times: list[float] = []
    while len(times) < 5 and sum(times) < 0.5:
        times.append(timed())
    return sorted(times)[len(times) // 2]


def human(seconds: float) -> str:
    """Return a duration for people.

    >>> [human(s) for s in (40, 150, 9000, 300000)]
    ['40 seconds', '2.5 minutes', '2.5 hours', '3.5 days']
    """
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.0f} seconds"
