"""CAFE's inner loop: a network is trained on S until its accuracy on real images has changed.

Several processes divide the classes whose accuracy is measured. The main process trains, and hands the network out.
"""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor, nn

from distill.runs.divided import block, blocks, gathered, network_from_main
from distill.runs.ranks import is_main_process
from distill.training.augment import Augmentation
from distill.training.sgd import SGD
from distill.training.students import train_epochs

__all__ = ["accuracy_of", "span", "train_until_accuracy_changes"]


def span(values: deque[float]) -> float:
    """Return the largest value less the smallest.

    >>> span(deque([3.0, 1.0, 2.0]))
    2.0
    """
    return max(values) - min(values)


@torch.no_grad()
def accuracy_of(network: nn.Module, real_batch: Callable[[int], Tensor], num_classes: int) -> float:
    """Return the accuracy of the network, averaged over classes, in [0, 1].

    Args:
        network: in evaluation mode.
        real_batch: class -> real images of the class (N, C, H, W), normalised.
        num_classes: K; the processes divide the classes.
    """
    rates = [(network(real_batch(c)).argmax(1) == c).float().mean() for c in block(range(num_classes))]
    mine = torch.stack(rates) if rates else next(network.parameters()).new_zeros(0, dtype=torch.float)
    return gathered(mine, [len(each) for each in blocks(range(num_classes))]).mean().item()


def train_until_accuracy_changes(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    lr: float,
    batch_size: int,
    most: int,
    window: int,
    change: float,
    generator: Callable[[int], torch.Generator],
    accuracy: Callable[[int], float],
    augment: Augmentation | None,
) -> int:
    """Train a network on S, epoch by epoch, until its last accuracies span more than a number.

    Args:
        network: is trained in place.
        images: (N, C, H, W), normalised.
        labels: (N,).
        lr: learning rate of SGD.
        batch_size: images per step.
        most: epochs, >= 1.
        window: number of accuracies whose span counts, >= 2.
        change: span above which the training ends, in [0, 1].
        generator: epoch -> random generator of the epoch.
        accuracy: epoch -> accuracy on real images after the epoch, the same in every process.
        augment: augmentation of the images, or None.

    Returns:
        the number of epochs.
    """
    optimizer = SGD(network.parameters(), lr)
    options = {"epochs": 1, "batch_size": batch_size, "augmentation": augment}
    accuracies: deque[float] = deque(maxlen=window)
    for epoch in range(most):
        if is_main_process():
            train_epochs(network, images, labels, optimizer, generator=generator(epoch), **options)
        network_from_main(network)
        accuracies.append(accuracy(epoch))
        if len(accuracies) == window and span(accuracies) > change:
            return epoch + 1
    return most
