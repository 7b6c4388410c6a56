"""CAFE's two losses on features of real and synthetic images, and their gradient with respect to the synthetic images.

    sum over layers l and classes k of  w_l || mean f_l(S_k) - mean f_l(T_k) ||^2
    + inner * sum over real images (x, y) of  loss( f_L(x) . c_k(S), y ),      c_k(S) = mean f_L(S_k)

f_l are the `taps` of a network; f_L is the last tap. S enters the second term only through the centres c. The gradient
with respect to c is computed first, over real images in chunks, and then propagated to S by groups of classes. No graph
holds more than one chunk or one group.
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
    """Weights of the two terms."""

    layers: tuple[float, ...]
    """weights of the last taps; the first weight also applies to all earlier taps"""
    inner: float
    """weight of the second term"""

    def of(self, count: int) -> tuple[float, ...]:
        """Return the weights of `count` taps.

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
    """Return the gradient of the sum of both terms with respect to the synthetic images.

    Args:
        network: in evaluation mode.
        images: (K, ipc, C, H, W), normalised.
        loss: loss on real images, which the centres classify.
        weights: weights of the two terms.
        real_batch: class -> real images of the class (N, C, H, W), normalised.
        siamese: augmentation of both batches of a class, or None.
        generator: class -> generator for the parameters of the augmentation.
        draws: class -> generator for a random loss; None for a loss without randomness.

    Returns:
        the gradient, shaped like `images`, and the two terms (2,).

    Raises:
        InputError: the network has no activation layers, or no features before a linear classifier.
    """
    count, shape = len(images), tuple(images.shape[2:])
    parameters = [None if siamese is None else siamese.sample(None, shape, generator(c)) for c in range(count)]

    def augmented(class_: int, batch: Tensor) -> Tensor:
        return batch if siamese is None else siamese.apply(batch, parameters[class_])

    with torch.no_grad():
        centres = torch.stack([embedding(network, augmented(c, x)).mean(0) for c, x in enumerate(images)])
    real_means, terms, by_centres = [], images.new_zeros(2), torch.zeros_like(centres)
    for class_ in range(count):
        batch = augmented(class_, real_batch(class_))
        real_means.append(_means(network, batch))
        value, gradient = _centre_loss(
            network, batch, class_, centres, loss if draws is None else drawing_from(loss, draws(class_)), weights.inner
        )
        terms[1] += value
        by_centres += gradient

    gradients = []
    for classes in torch.arange(count).split(TOGETHER if overhead_bound(images[0]) else 1):
        group = slice(int(classes[0]), int(classes[-1]) + 1)
        leaf = images[group].detach().requires_grad_()
        synthetic = torch.cat([augmented(c, x) for c, x in zip(classes.tolist(), leaf, strict=True)])
        means = [layer.unflatten(0, leaf.shape[:2]).mean(1) for layer in taps(network, synthetic)]
        targets = [torch.stack(same) for same in zip(*real_means[group], strict=True)]
        weighted = zip(weights.of(len(means)), means, targets, strict=True)
        alignment = torch.stack([w * (mean - target).square().sum() for w, mean, target in weighted]).sum()
        gradients += torch.autograd.grad(alignment + (by_centres[group] * means[-1]).sum(), leaf)
        terms[0] += alignment.detach()
    return torch.cat(gradients), terms


@torch.no_grad()
def _means(network: nn.Module, batch: Tensor) -> list[Tensor]:
    """Return the mean of each tap over the images."""
    chunks = ([layer.sum(0) for layer in taps(network, chunk)] for chunk in batch.split(CHUNK))
    return [torch.stack(sums).sum(0) / len(batch) for sums in zip(*chunks, strict=True)]


def _centre_loss(
    network: nn.Module,
    batch: Tensor,
    class_: int,
    centres: Tensor,
    loss: Called,
    weight: float,
) -> tuple[Tensor, Tensor]:
    """Return the weighted loss of a class's real images, classified by the centres, and its gradient by the centres."""
    total, gradient = batch.new_zeros(()), torch.zeros_like(centres)
    if weight == 0:
        return total, gradient
    leaf = centres.detach().requires_grad_()
    for chunk in batch.split(CHUNK):
        targets = torch.full((len(chunk),), class_, device=chunk.device)
        value = weight * len(chunk) * loss(lambda x: embedding(network, x) @ leaf.T, chunk, targets)  # mean to sum
        total += value.detach()
        gradient += torch.autograd.grad(value, leaf)[0]
    return total, gradient
