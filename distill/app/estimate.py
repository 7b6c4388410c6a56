"""Estimate the time of a run: each kind of step is timed briefly and multiplied by the number of such steps.

seconds = sum over kinds of count x seconds of one step

Steps are timed on random images with the network and the image size of the run, at most PROBE images at once (above
that number, time grows with the number of images). Checked against whole runs in docs/cost.md.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from distill.evaluation.column_kinds import AttackColumn, Column
from distill.evaluation.columns import columns
from distill.experiment import Evaluation, Recipe
from distill.methods.method import StudentWorkOf, WorkOf
from distill.models import build
from distill.training.work import PROBE, STEPS, Step, Work, training_steps
from robust import loss_named
from robust.spec import split_spec

__all__ = ["estimate", "estimate_students"]

STANDING = 0.6  # share of test images attacked through all steps: many are misclassified, and attacks stop early
GRADIENTS = {  # per image, for attacks without a field `steps`; a forward pass alone counts as a third
    # 100 times (APGD-CE, nine targets, FAB with nine targets), 5,000 queries; most images are fooled before the end
    "autoattack": 2000,
    "jsma": 100,
    "noise": 1,
    "corruptions": 25,
    "certified": 370,
    "worst": 0,
}
ELSEWHERE = 11  # gradients per image of an attack from another package: as PGD


def estimate(
    recipe: Recipe,
    work: WorkOf,
    ipc: int,
    shape: tuple[int, int, int],
    num_classes: int,
    examples: int,
    tests: int,
    student_work: StudentWorkOf | None = None,
    *,
    distils: int = 1,
    evaluates: int = 1,
    by_itself: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> float:
    """Return the seconds a recipe takes on the CPU.

    Args:
        recipe: the recipe to be run.
        work: the method's function from config and sizes to (count, step) pairs.
        ipc: images per class.
        shape: (C, H, W) of an image.
        num_classes: classes of the data set.
        examples: size of the training set.
        tests: size of the test set.
        student_work: (config, ipc, num_classes) -> (count, step) pairs for training one student with the authors'
            protocol; None if the cost is about that of the standard protocol.
        distils: number of processes that divide the distillation.
        evaluates: number of processes that train and attack students.
        by_itself: gives a distillation that one process does its threads, in a block.
    """
    channels, size, _ = shape

    def built(backbone: str) -> nn.Module:
        fresh = torch.Generator()
        return build(backbone, channels=channels, image_size=size, num_classes=num_classes, generator=fresh)

    network = built(recipe.config.backbone)
    evaluation = recipe.evaluation
    tests = min(tests, evaluation.test_images or tests)
    batch = min(evaluation.student.batch_size, ipc * num_classes, PROBE)
    requested = columns(evaluation, channels, size)
    epochs, attacks = evaluation.student.epochs + 1, sum(map(_gradients, requested))
    train = partial(training_steps, images=batch)
    students_steps = evaluation.students * epochs * ipc * num_classes / batch
    training = [(students_steps * loss_named(evaluation.student.loss).passes / STEPS, train)]
    if evaluation.protocol == "own" and student_work is not None:
        per_student = student_work(recipe.config, ipc, num_classes)
        training = [(evaluation.students * count, step) for count, step in per_student]

    def total(items: Sequence[Work], network: nn.Module = network) -> float:
        return sum(count * _seconds(step, network, shape) for count, step in items if count)

    with by_itself():
        of_distilling = total(work(recipe.config, ipc, num_classes, examples))
    of_training = total(training) / min(evaluates, evaluation.students)
    of_attacks = total([(evaluation.students * tests * attacks * STANDING / PROBE, _attack_step)]) / evaluates
    surrogates = {column.base.partition(":")[0] for column in requested}
    if "transfer" in surrogates:
        epochs_on_real = evaluation.surrogate_epochs * examples / PROBE / STEPS
        of_training += total([(epochs_on_real, partial(training_steps, images=PROBE))])
    if "transfer_student" in surrogates:
        count = epochs * ipc * num_classes / batch / STEPS
        of_training += total([(count, partial(training_steps, images=batch))], built(evaluation.transfer_backbone))
    return of_distilling / distils + of_training + of_attacks


@dataclass(frozen=True)
class _Students:
    """A config of which only the students' network is used."""

    backbone: str


def estimate_students(
    backbone: str,
    evaluation: Evaluation,
    images: int,
    shape: tuple[int, int, int],
    num_classes: int,
    examples: int,
    tests: int,
    *,
    evaluates: int = 1,
) -> float:
    """Return the seconds of training and attacking students of the standard protocol on the CPU.

    Args:
        backbone: the students' network.
        evaluation: of the students.
        images: size of the distilled set.
        shape: (C, H, W) of an image.
        num_classes: classes of the data set.
        examples: size of the training set.
        tests: size of the test set.
        evaluates: number of processes.
    """
    recipe, ipc = Recipe(_Students(backbone), evaluation), -(-images // num_classes)
    return estimate(recipe, lambda *_: [], ipc, shape, num_classes, examples, tests, evaluates=evaluates)


def _gradients(column: Column) -> int:
    """Return the approximate gradients per image of a column; a forward pass before and one after count as one."""
    name = split_spec(column.base)[0]
    if name in GRADIENTS or not isinstance(column, AttackColumn):
        return GRADIENTS[name]
    attack: Any = column.attack
    if ":" in name:  # an attack from another package: its fields are unknown
        return ELSEWHERE
    if name == "square":
        return attack.queries // 3
    rounds = (
        getattr(attack, "search_steps", 1) * getattr(attack, "restarts", 1) * (1 + getattr(attack, "neighbours", 0))
    )
    return 1 + getattr(attack, "steps", 1) * rounds * (9 if name in ("apgd_t", "fab", "deepfool") else 1)


def _attack_step(network: nn.Module, shape: tuple[int, int, int]) -> None:
    x = torch.randn(PROBE, *shape, requires_grad=True)
    torch.autograd.grad(F.cross_entropy(network.eval()(x), torch.zeros(PROBE, dtype=torch.long)), x)


def _seconds(step: Step, network: nn.Module, shape: tuple[int, int, int]) -> float:
    """Return the median time of three steps, or of as many as fit in a tenth of a second, after one warm-up step.

    A first step of at least three seconds is returned directly: the warm-up, in which torch may import packages for a
    second, is then small, and the user need not wait.
    """

    def timed() -> float:
        start = time.perf_counter()
        step(network, shape)
        return time.perf_counter() - start

    if (first := timed()) >= 3:
        return first
    times: list[float] = []
    while len(times) < 3 and sum(times) < 0.1:
        times.append(timed())
    return sorted(times)[len(times) // 2]
