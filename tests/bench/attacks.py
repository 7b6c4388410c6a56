"""Robust accuracy under PGD-10: ours, on examples that stand and while they do, against torchattacks' and textbook.

On a student of ten real images a class: CIFAR-10 where DATA_DIR has it (about 30 % clean), else digits.
"""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
import torchattacks
from torch import Tensor, nn

from distill.data import ImageSet, load
from distill.errors import InputError
from distill.models import build
from distill.training.students import Training, train_student
from robust import PGD, Normalize, Threat, accuracy, robust_accuracy
from tests.bench.side_by_side import Row, compare

CASES = {"cifar10": (1 / 255, 2 / 255, 8 / 255), "digits": (0.03, 0.1, 0.3)}

SECONDS = 35.0
"""of the rounds of a case"""
GOAL = "goal < 1: the same steps, of fewer images"


def bench() -> list[Row]:
    """Return times of ten steps at each eps."""
    train, test = real_data()
    channels, size, _ = train.image_shape
    generator = torch.Generator().manual_seed(0)
    shape = {"channels": channels, "image_size": size, "num_classes": 10}
    network = build("convnet:width=64,depth=2" if size == 8 else "convnet:width=64", **shape, generator=generator)
    normalize = Normalize(train.mean, train.std)
    images, labels = (torch.cat(parts) for parts in zip(*(sample(train, c) for c in range(10)), strict=True))
    train_student(network, normalize(images), labels, Training(epochs=100), generator)
    model = nn.Sequential(normalize, network).eval()
    x, y = test.images, test.labels
    rows = []
    for eps in CASES[train.name]:
        attack = PGD(Threat("linf", eps), steps=10)
        library = torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=10)
        ways = {
            "torchattacks": lambda a=library: of_library(model, x, y, a),
            "textbook": lambda e=eps: textbook(model, x, y, e),
            "ours": lambda a=attack: robust_accuracy(model, x, y, a, generator=torch.Generator().manual_seed(0)),
        }
        title = f"attacks: PGD-10, linf {eps:.3g}, {len(x)} images of {train.name}, clean {accuracy(model, x, y):.1f} %"
        rows += compare(title, ways, seconds=SECONDS, goals={"ours": GOAL})
        print("  robust accuracy: " + ", ".join(f"{name} {way():.1f}" for name, way in ways.items()))
    return rows


def real_data() -> tuple[ImageSet, ImageSet]:
    """Return train and test images, 500 of these at most."""
    try:
        train, test = load("cifar10", Path(os.environ.get("DATA_DIR", "data")), None)
    except InputError:
        train, test = load("digits", Path("data"), None)
    return train, test.subset(500)


def sample(train: ImageSet, class_: int) -> tuple[Tensor, Tensor]:
    """Return ten images of a class and their labels."""
    return train.sample(class_, 10, torch.Generator().manual_seed(class_)), torch.full((10,), class_)


def of_library(model: nn.Module, x: Tensor, y: Tensor, attack: torchattacks.PGD) -> float:
    """Return the robust accuracy in percent, as torchattacks is usually used."""
    right = 0
    for images, labels in zip(x.split(500), y.split(500), strict=True):
        with torch.random.fork_rng(devices=[]):
            adversarial = attack(images, labels)
        with torch.no_grad():
            right += (model(adversarial).argmax(1) == labels).sum().item()
    return 100 * right / len(x)


def textbook(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> float:
    """Return the robust accuracy in percent, as PGD is usually coded."""
    right = 0
    for images, labels in zip(x.split(500), y.split(500), strict=True):
        points = (images + torch.empty_like(images).uniform_(-eps, eps)).clamp(0, 1)
        for _ in range(10):
            points.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(points), labels), points)
            points = points.detach() + eps / 4 * gradient.sign()
            points = (images + (points - images).clamp(-eps, eps)).clamp(0, 1)
        with torch.no_grad():
            right += (model(points).argmax(1) == labels).sum().item()
    return 100 * right / len(x)
