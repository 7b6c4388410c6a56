"""Robust accuracy under PGD: ours, which drops an example once it is fooled, against all steps on all examples."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.data import load
from distill.models import build
from distill.students import Training, train_student
from robust import PGD, Normalize, Threat, robust_accuracy
from tests.bench.side_by_side import Row, compare

EPS = (0.03, 0.1, 0.3)  # of pixels in [0, 1]: most, half and none of the digits withstand


def bench() -> list[Row]:
    """Return times of ten and of fifty steps at each eps, for a student of 100 digits."""
    train, test = load("digits", Path("data"), None)
    generator = torch.Generator().manual_seed(0)
    network = build("convnet:width=64,depth=2", channels=1, image_size=8, num_classes=10, generator=generator)
    normalize = Normalize(train.mean, train.std)
    train_student(network, normalize(train.images[:100]), train.labels[:100], Training(epochs=100), generator)
    model = nn.Sequential(normalize, network).eval()
    x, y = test.images, test.labels
    rows = []
    for steps in (10, 50):
        for eps in EPS:
            attack = PGD(Threat("linf", eps), steps=steps)
            ways = {
                "textbook": lambda e=eps, s=steps: textbook(model, x, y, e, s),
                "ours": lambda a=attack: robust_accuracy(model, x, y, a, generator=torch.Generator().manual_seed(0)),
            }
            title = f"attacks: {steps} steps of PGD, linf {eps}, {len(x)} digits"
            rows += compare(title, ways)
            found = [way() for way in ways.values()]
            print(f"  robust accuracy {found[0]:.1f} (the last point), {found[1]:.1f} (the worst point)")
    return rows


def textbook(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> float:
    """Return the robust accuracy in percent, as PGD is usually coded."""
    right = 0
    for images, labels in zip(x.split(500), y.split(500), strict=True):
        points = (images + torch.empty_like(images).uniform_(-eps, eps)).clamp(0, 1)
        for _ in range(steps):
            points.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(points), labels), points)
            points = points.detach() + 2.5 * eps / steps * gradient.sign()
            points = (images + (points - images).clamp(-eps, eps)).clamp(0, 1)
        with torch.no_grad():
            right += (model(points).argmax(1) == labels).sum().item()
    return 100 * right / len(x)
