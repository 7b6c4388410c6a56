"""Ten students on a distilled set: together, one after another, and the usual loop with a DataLoader."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from distill.models import build
from distill.training.students import Training, fits_together, train_student, train_together
from tests.bench.side_by_side import Row, compare

CASES = (  # network, channels, pixels, ipc
    ("convnet:width=64,depth=2", 1, 8, 1),
    ("convnet:width=64,depth=2", 1, 8, 10),
    ("convnet:width=32", 3, 16, 1),
    ("convnet:width=32", 3, 16, 10),
    ("convnet:width=128", 3, 32, 1),
    ("convnet:width=128", 3, 32, 10),
)
TRAINING = Training(epochs=2)
SECONDS = 15.0
"""of the rounds of a case"""
GOAL = "goal <= 1: the same convolutions"


def bench() -> list[Row]:
    """Return times for each case."""
    rows = []
    for backbone, channels, size, ipc in CASES:
        x = torch.randn(10 * ipc, channels, size, size)
        y = torch.arange(10).repeat_interleave(ipc)

        def networks(spec=backbone, channels=channels, size=size) -> list[nn.Module]:
            seeds = (torch.Generator().manual_seed(k) for k in range(10))
            return [build(spec, channels=channels, image_size=size, num_classes=10, generator=g) for g in seeds]

        def singly(x=x, y=y, networks=networks) -> None:
            for network in networks():
                train_student(network, x, y, TRAINING, torch.Generator())

        def together(x=x, y=y, networks=networks) -> None:
            train_together(networks(), x, y, TRAINING, [torch.Generator() for _ in range(10)])

        ways = {"DataLoader loop": lambda x=x, y=y, n=networks: textbook(n(), x, y), "singly": singly}
        ways["together"] = together
        chosen = "together" if fits_together(networks()[0], x, TRAINING.batch_size) else "singly"
        rows += compare(
            f"students: ten {backbone}, {size} px, ipc {ipc}, {TRAINING.epochs + 1} epochs (taken here: {chosen})",
            ways,
            repeats=3,
            seconds=SECONDS,
            goals={chosen: GOAL},
        )
    return rows


def textbook(networks: list[nn.Module], x: Tensor, y: Tensor) -> None:
    """Train each network as the DatasetCondensation code does, without the change of the learning rate."""
    for network in networks:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        loader = DataLoader(TensorDataset(x, y), batch_size=256, shuffle=True)
        network.train()
        for _ in range(TRAINING.epochs + 1):
            right = 0
            for images, labels in loader:
                output = network(images)
                loss = F.cross_entropy(output, labels)
                right += (output.argmax(1) == labels).sum().item()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
