"""The two losses of CAFE on the features of real and synthetic images, and their gradient by the synthetic ones.

    sum over layers l and classes k of  w_l || mean f_l(S_k) - mean f_l(T_k) ||^2
    + inner * sum over real images (x, y) of  loss( f_L(x) . c_k(S), y ),      c_k(S) = mean f_L(S_k)

f_l are a network's `taps`, f_L the last of them. S enters the second term by the centres c alone, so that its gradient
is taken by them first, real images in chunks, and goes on to S class by class: a graph is of one chunk, or one group
of classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.training.augment import Augmentation
from distill.training.features import embedding, taps
from distill.training.students import TOGETHER, overhead_bound
from robust import Loss
from robust.losses.traits import Called, drawing_from

__all__ = ["Weights", "align"]

CHUNK = 64
"""real images whose graph is in memory at once"""


@dataclass(frozen=True)
class Weights:
    """Weights of the terms."""

    layers: tuple[float, ...]
    """of the last taps; the first of these is that of all earlier ones too"""
    inner: float
    """of the second term"""

    def of(self, count: int) -> tuple[float, ...]:
        """Return the weight of each of `count` taps.

        >>> Weights((0.1, 1.0, 2.0), 0.01).of(5)
        (0.1, 0.1, 0.1, 1.0, 2.0)
        """
        return (self.layers[0],) * (count - len(self.layers)) + self.layers[-count:]


def align(
    network: nn.Module,
    images: Tensor,
    loss: Loss,
    weights: Weights,
    *,
    real_batch: Callable[[int], Tensor],
    siamese: Augmentation | None,
    generator: Callable[[int], torch.Generator],
    draws: Callable[[int], torch.Generator] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of both terms by the synthetic images.

    Args:
        network: in evaluation mode.
        images: (K, ipc, C, H, W), normalised.
        loss: of real images as the centres classify them.
        weights: of the terms.
        real_batch: class -> its real images (N, C, H, W), normalised.
        siamese: augmentation of both batches of a class, or None.
        generator: class -> generator of its augmentation's parameters.
        draws: class -> generator of a random loss; None where the loss is not random.

    Returns:
        the gradient, shaped as `images`, and the two terms (2,).

    Raises:
        InputError: the network has no activation layers, or no features before a linear classifier.
    """
    count, shape = len(images), tuple(images.shape[2:])
    drawn = [None if siamese is None else siamese.sample(None, shape, generator(c)) for c in range(count)]

    def augmented(class_: int, batch: Tensor) -> Tensor:
        return batch if siamese is None else siamese.apply(batch, drawn[class_])

    with torch.no_grad():
        centres = torch.stack([embedding(network, augmented(c, x)).mean(0) for c, x in enumerate(images)])
    theirs, terms, by_centres = [], images.new_zeros(2), torch.zeros_like(centres)
    for class_ in range(count):
        batch = augmented(class_, real_batch(class_))
        theirs.append(_means(network, batch))
        value, gradient = _classified(
            network, batch, class_, centres, loss if draws is None else drawing_from(loss, draws(class_)), weights.inner
        )
        terms[1] += value
        by_centres += gradient

    gradients = []
    for classes in torch.arange(count).split(TOGETHER if overhead_bound(images[0]) else 1):
        group = slice(int(classes[0]), int(classes[-1]) + 1)
        leaf = images[group].detach().requires_grad_()
        ours = torch.cat([augmented(c, x) for c, x in zip(classes.tolist(), leaf, strict=True)])
        means = [layer.unflatten(0, leaf.shape[:2]).mean(1) for layer in taps(network, ours)]
        targets = [torch.stack(same) for same in zip(*theirs[group], strict=True)]
        weighted = zip(weights.of(len(means)), means, targets, strict=True)
        alignment = torch.stack([w * (mine - target).square().sum() for w, mine, target in weighted]).sum()
        gradients += torch.autograd.grad(alignment + (by_centres[group] * means[-1]).sum(), leaf)
        terms[0] += alignment.detach()
    return torch.cat(gradients), terms


@torch.no_grad()
def _means(network: nn.Module, batch: Tensor) -> list[Tensor]:
    """Return the mean over images of each tap."""
    chunks = ([layer.sum(0) for layer in taps(network, part)] for part in batch.split(CHUNK))
    return [torch.stack(sums).sum(0) / len(batch) for sums in zip(*chunks, strict=True)]


def _classified(
    network: nn.Module,
    batch: Tensor,
    class_: int,
    centres: Tensor,
    loss: Called,
    weight: float,
) -> tuple[Tensor, Tensor]:
    """Return the weighted loss of a class's real images as the centres classify them, and its gradient by these."""
    total, gradient = batch.new_zeros(()), torch.zeros_like(centres)
    if weight == 0:
        return total, gradient
    leaf = centres.detach().requires_grad_()
    for part in batch.split(CHUNK):
        targets = torch.full((len(part),), class_, device=part.device)
        value = weight * len(part) * loss(lambda x: embedding(network, x) @ leaf.T, part, targets)  # a mean: the sum
        total += value.detach()
        gradient += torch.autograd.grad(value, leaf)[0]
    return total, gradient
