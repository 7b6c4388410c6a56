"""Students trained together are those trained singly."""

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from distill.evaluation.student_tasks import TRAINING as UNITS
from distill.evaluation.student_tasks import StudentTasks
from distill.experiment import Evaluation
from distill.models import build
from distill.training.augment import augmentation
from distill.training.students import Training, fits_together, train_student, train_together

TRAINING = Training(epochs=4, lr=0.05, batch_size=5)


def students(n: int = 3, spec: str = "convnet:width=4,depth=2") -> list[torch.nn.Module]:
    generators = [torch.Generator().manual_seed(k) for k in range(n)]
    return [build(spec, channels=3, image_size=8, num_classes=3, generator=g).double() for g in generators]


def generators(n: int = 3) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + k) for k in range(n)]


@pytest.mark.parametrize("n", [4, 12])  # one batch; three, shuffled
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("policy", ["", "color_crop_cutout_flip_scale_rotate"])
def test_together_is_singly(n: int, soft: bool, policy: str) -> None:
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(n, 3, 8, 8, generator=draws, dtype=torch.double)
    labels: Tensor = torch.rand(n, 3, generator=draws, dtype=torch.double).softmax(1) if soft else torch.arange(n) % 3
    together, singly, ours, theirs = students(), students(), generators(), generators()
    train_together(together, images, labels, TRAINING, ours, augmentation(policy))
    for network, generator in zip(singly, theirs, strict=True):
        train_student(network, images, labels, TRAINING, generator, augmentation(policy))
    for a, b, start in zip(together, singly, students(), strict=True):
        for p, q, before in zip(a.parameters(), b.parameters(), start.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10)
            assert not torch.equal(p, before)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.get_state(), b.get_state())


@pytest.mark.parametrize(("device", "fits"), [("meta", True), ("cpu", False)])  # meta stands for a GPU
def test_what_fits_together(device: str, fits: bool) -> None:
    (network,), images = students(1), torch.zeros(10, 3, 8, 8, device=device)
    assert fits_together(network, images, 256) == fits
    assert not fits_together(students(1, "convnet:width=4,depth=2,norm=batch")[0], images, 256)
    dropping = torch.nn.Sequential(copy.deepcopy(network), torch.nn.Dropout(0.5))
    assert not fits_together(dropping, images, 256)


@pytest.mark.parametrize("epochs", [1, 7, 20])
def test_each_epoch_is_told_so_that_a_bar_moves_within_the_training(epochs: int) -> None:
    """A bar stood still for minutes while a student was trained."""
    told: list[int] = []
    images, labels = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double(), torch.arange(4) % 3
    training, generator = Training(epochs=epochs), torch.Generator().manual_seed(0)
    train_student(students(1)[0], images, labels, training, generator, each_epoch=lambda: told.append(1))
    assert len(told) == epochs + 1  # the field's protocol counts from 0


@pytest.mark.parametrize("epochs", [1, 3, 20, 1000])
def test_the_training_of_a_student_moves_the_bar_by_its_units(epochs: int) -> None:
    moved: list[int] = []
    tasks = StudentTasks.__new__(StudentTasks)
    tasks.move = moved.append

    def train(group: range, each_epoch: Callable[[], object]) -> None:
        for _ in range(epochs + 1):
            each_epoch()

    tasks.trained = SimpleNamespace(evaluation=Evaluation(student=Training(epochs=epochs)), train=train)  # type: ignore[assignment]
    tasks._train(range(1), {})
    assert sum(moved) == UNITS
    assert min(moved) >= 0
