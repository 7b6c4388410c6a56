"""Training of a network on a small set in memory: students on a distilled set, and DC's network between matchings.

`train_student` is the standard protocol (`evaluate_synset` of the DatasetCondensation code): SGD with momentum 0.9 and
weight decay 5e-4, E + 1 epochs, the learning rate divided by ten, with fresh momentum, after epoch E/2 + 1.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from distill.training.augment import Augmentation
from distill.training.sgd import SGD
from robust import loss_named
from robust.losses.named import METAVAR
from robust.ranges import Count, NonNegative, Positive, UpToOne, check_ranges, shown

__all__ = [
    "TOGETHER",
    "LossText",
    "Training",
    "fits_together",
    "overhead_bound",
    "train_epochs",
    "train_student",
    "train_together",
]

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
LossText = Annotated[str, tyro.conf.arg(metavar=METAVAR)]
"""the text of a loss, which the threats of a data set turn into a loss later"""

TOGETHER = 10
"""most students that are trained in one pass, and most classes whose synthetic gradients are computed in one pass"""
SMALL = 3000
"""images x height x width of a step up to which a CPU trains ten ConvNets faster together (run.sh bench students)"""


@dataclass(frozen=True)
class Training:
    """How a student is trained.

    Raises:
        ValueError: a field is out of its range.
    """

    epochs: Count = 1000
    """passes over the set, E; as in the official code E + 1 are run, and the learning rate falls to a tenth after epoch
    E/2 + 1"""
    lr: Positive = 0.01
    """learning rate of SGD"""
    momentum: UpToOne = 0.9
    """of SGD"""
    weight_decay: NonNegative = 5e-4
    """L2 penalty of SGD"""
    batch_size: Count = 256
    """images a step"""
    loss: LossText = "cross_entropy"
    """loss of a student; h, eps and sigma in pixels of [0, 1]"""

    def __post_init__(self) -> None:
        check_ranges(self)
        try:
            loss = loss_named(self.loss)
        except ValueError as error:
            raise ValueError(f"loss is {shown(self.loss)}: {error}") from None
        if loss.scheduled:
            raise ValueError(f"loss is {shown(self.loss)}: a student has one h; h_warmup is for teachers")


def train_epochs(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer | SGD,
    *,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    augmentation: Augmentation | None = None,
    loss: Loss | None = None,
    each_epoch: Callable[[], object] | None = None,
) -> None:
    """Train a network in place, in training mode, over shuffled epochs.

    Args:
        network: from images as they are, (N, C, H, W), to logits (N, K).
        images: (N, C, H, W), normalised.
        labels: (N,) classes or (N, K) probabilities.
        optimizer: over the network's parameters.
        epochs: passes over the images.
        batch_size: images per step; a set that fits in one batch is not shuffled, as its mean loss has no order.
        generator: CPU generator of the order and of the augmentation.
        augmentation: drawn again for every batch, with separate parameters for each image.
        loss: (network, images, labels) -> scalar; None is cross-entropy.
        each_epoch: called after each epoch, such as to move a progress bar.
    """
    loss = loss or (lambda network, x, y: F.cross_entropy(network(x), y))
    network.train()
    for _ in range(epochs):
        for x, y in _epoch(images, labels, batch_size, generator, augmentation):
            optimizer.zero_grad()
            loss(network, x, y).backward()
            optimizer.step()
        if each_epoch is not None:
            each_epoch()


def _epoch(
    images: Tensor, labels: Tensor, batch_size: int, generator: torch.Generator, augmentation: Augmentation | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of an epoch, in an order and with an augmentation that the generator draws."""
    if len(images) <= batch_size:
        batches = [slice(None)]
    else:
        order = torch.randperm(len(images), generator=generator)
        batches = order.to(images.device, non_blocking=True).split(batch_size)
    for batch in batches:
        x = images[batch]
        if augmentation is not None:
            x = augmentation.apply(x, augmentation.sample(len(x), tuple(x.shape[1:]), generator))
        yield x, labels[batch]


def _phases(training: Training) -> tuple[tuple[float, int], ...]:
    """Return (learning rate, epochs) of the two phases."""
    first = training.epochs // 2 + 2
    return (training.lr, first), (0.1 * training.lr, training.epochs + 1 - first)


def train_student(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    training: Training,
    generator: torch.Generator,
    augmentation: Augmentation | None = None,
    loss: Loss | None = None,
    each_epoch: Callable[[], object] | None = None,
) -> None:
    """Train a student in place by the standard protocol; arguments as in `train_epochs`."""
    for lr, epochs in _phases(training):
        optimizer = SGD(network.parameters(), lr=lr, momentum=training.momentum, weight_decay=training.weight_decay)
        train_epochs(
            network,
            images,
            labels,
            optimizer,
            epochs=epochs,
            batch_size=training.batch_size,
            generator=generator,
            augmentation=augmentation,
            loss=loss,
            each_epoch=each_epoch,
        )


def train_together(
    networks: Sequence[nn.Module],
    images: Tensor,
    labels: Tensor,
    training: Training,
    generators: Sequence[torch.Generator],
    augmentation: Augmentation | None = None,
) -> None:
    """Train several students in place, each step once for all of them.

    The results equal those of `train_student` for each network, within float tolerance.

    Args:
        networks: of one architecture that `fits_together`.
        images: (N, C, H, W), normalised.
        labels: (N,) classes or (N, K) probabilities.
        training: the protocol.
        generators: CPU generator of each network's order and augmentation.
        augmentation: as in `train_epochs`.
    """
    base = networks[0].train()
    stacked = {name: p.detach().requires_grad_() for name, p in stack_module_state(list(networks))[0].items()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(base, parameters, (x,)), y)

    losses = vmap(loss)
    for lr, epochs in _phases(training):
        optimizer = SGD(stacked.values(), lr=lr, momentum=training.momentum, weight_decay=training.weight_decay)
        for _ in range(epochs):
            each = [_epoch(images, labels, training.batch_size, generator, augmentation) for generator in generators]
            for batches in zip(*each, strict=True):
                x, y = (torch.stack(part) for part in zip(*batches, strict=True))
                optimizer.zero_grad()
                losses(stacked, x, y).sum().backward()
                optimizer.step()
    with torch.no_grad():
        for number, network in enumerate(networks):
            for name, parameter in network.named_parameters():
                parameter.copy_(stacked[name][number])


def fits_together(network: nn.Module, images: Tensor, batch_size: int) -> bool:
    """Return whether `train_together` can train such networks, and faster than one after another.

    The networks must have no buffers (BatchNorm) and no dropout, and a step must be limited by its overhead. On a CPU
    networks are trained one by one: together they gain a tenth at most, and processes train several at a time.
    """
    alone = any(True for _ in network.buffers()) or "Drop" in repr(network)
    return not alone and images.device.type != "cpu" and overhead_bound(images[:batch_size])


def overhead_bound(images: Tensor) -> bool:
    """Return whether a step on images (N, C, H, W) spends more time on overhead than on arithmetic.

    True on a GPU for the size of a distilled set (not measured), and on a CPU up to SMALL pixels.
    """
    return images.device.type != "cpu" or len(images) * images.shape[2] * images.shape[3] <= SMALL
