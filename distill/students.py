"""Training a network on a small set held in memory: students on a distilled set, and DC's network between matchings.

`train_student` is the field's protocol (`evaluate_synset` of the DatasetCondensation code): SGD with momentum 0.9 and
weight decay 5e-4, E + 1 epochs, the learning rate divided by ten, with fresh momentum, after epoch E/2 + 1.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.augment import Augmentation

__all__ = ["Training", "train_epochs", "train_student"]


@dataclass(frozen=True)
class Training:
    """How a student is trained.

    Raises:
        ValueError: a field is out of its range.
    """

    epochs: int = 1000
    """E; as in the official code E + 1 epochs are run, the learning rate falling to a tenth after epoch E/2 + 1"""
    lr: float = 0.01
    """learning rate of SGD"""
    momentum: float = 0.9
    """of SGD"""
    weight_decay: float = 5e-4
    """L2 penalty of SGD"""
    batch_size: int = 256
    """images a step"""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs is {self.epochs} and batch_size is {self.batch_size}; both must be >= 1")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; it must be > 0")


def train_epochs(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    augmentation: Augmentation | None = None,
) -> None:
    """Train a network in place, in training mode, by cross-entropy over shuffled epochs.

    Args:
        network: takes images as given, (N, C, H, W), to logits (N, K).
        images: (N, C, H, W), normalised.
        labels: (N,) classes or (N, K) probabilities.
        optimizer: over the network's parameters.
        epochs: passes over the images.
        batch_size: images a step; a set that fits in one batch is not shuffled, as its mean loss has no order.
        generator: CPU generator of the order and of the augmentation.
        augmentation: drawn anew, one parameter set an image, for every batch.
    """
    network.train()
    for _ in range(epochs):
        if len(images) <= batch_size:
            batches = [slice(None)]
        else:
            batches = torch.randperm(len(images), generator=generator).to(images.device).split(batch_size)
        for batch in batches:
            x, y = images[batch], labels[batch]
            if augmentation is not None:
                x = augmentation.apply(x, augmentation.sample(len(x), tuple(x.shape[1:]), generator))
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(network(x), y).backward()
            optimizer.step()


def train_student(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    training: Training,
    generator: torch.Generator,
    augmentation: Augmentation | None = None,
) -> None:
    """Train a student in place by the field's protocol; arguments as in `train_epochs`."""
    first = training.epochs // 2 + 2
    for lr, epochs in ((training.lr, first), (0.1 * training.lr, training.epochs + 1 - first)):
        optimizer = torch.optim.SGD(
            network.parameters(), lr=lr, momentum=training.momentum, weight_decay=training.weight_decay
        )
        train_epochs(
            network,
            images,
            labels,
            optimizer,
            epochs=epochs,
            batch_size=training.batch_size,
            generator=generator,
            augmentation=augmentation,
        )
