"""CAFE's two losses on features of real and synthetic images, and their gradient with respect to the synthetic images.

    sum over layers l and classes k of  w_l || mean f_l(S_k) - mean f_l(T_k) ||^2
    + inner * sum over real images (x, y) of  loss( f_L(x) . c_k(S), y ),      c_k(S) = mean f_L(S_k)

f_l are the `taps` of a network; f_L is the last tap. S enters the second term only through the centres c. The gradient
with respect to c is computed first, over real images in chunks, and then propagated to S by groups of classes. No graph
holds more than one chunk or one group.

Several processes divide the classes, real and synthetic. The classes meet in the centres and in the gradient by the
centres, a sum over real classes: one sum for each of at most SUMS blocks of classes is gathered. With D features, K
classes and V values in the taps of an image, a step gathers 4 K (D + V + D min(K, SUMS)) bytes, and four bytes for each
value of the synthetic images.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.runs.divided import block, blocks, gathered
from distill.training.augment import Augmentation
from distill.training.features import embedding, taps
from distill.training.real_side import siamese_view
from distill.training.students import overhead_bound
from robust import Loss
from robust.losses.traits import Called, drawing_from

__all__ = ["Weights", "align"]

CHUNK = 64
"""real images whose graph is in memory at once"""
GROUP = 5
"""most classes whose synthetic images go through the network in one pass; processes divide groups"""
SUMS = 64
"""most blocks of real classes; the gradients by the centres are summed within a block, which bounds the memory"""


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
    units = blocks(range(len(images)), min(len(images), SUMS))  # of real classes
    of_units, of_classes = [len(each) for each in blocks(units)], [sum(map(len, each)) for each in blocks(units)]
    groups = torch.arange(len(images)).split(GROUP if overhead_bound(images[0]) else 1)

    def view(class_: int, batch: Tensor) -> Tensor:
        return siamese_view(class_, batch, siamese, generator)

    def of_all(rows: list[Tensor], counts: list[int], *shape: int) -> Tensor:
        return gathered(torch.stack(rows) if rows else images.new_zeros(0, *shape), counts)

    with torch.no_grad():
        sizes = [layer.numel() for layer in taps(network, images[0, :1])]
        own = [embedding(network, view(c, images[c])).mean(0) for unit in block(units) for c in unit]
    centres = of_all(own, of_classes, sizes[-1])
    means, values, by_centres = [], [], []
    for unit in block(units):
        value, gradient = images.new_zeros(()), torch.zeros_like(centres)
        for class_ in unit:
            batch = view(class_, real_batch(class_))
            means.append(torch.cat([mean.flatten() for mean in _means(network, batch)]))
            of_class = loss if draws is None else drawing_from(loss, draws(class_))
            terms = _centre_loss(network, batch, class_, centres, of_class, weights.inner)
            value, gradient = value + terms[0], gradient + terms[1]
        values.append(value)
        by_centres.append(gradient)
    targets = of_all(means, of_classes, sum(sizes))
    discrimination = sum(of_all(values, of_units), images.new_zeros(()))
    by_centres = sum(of_all(by_centres, of_units, *centres.shape), torch.zeros_like(centres))

    gradients, alignments = [images[:0]], []
    for group in block(groups):
        numbers = group.tolist()
        leaf = images[numbers[0] : numbers[-1] + 1].detach().requires_grad_()
        synthetic = torch.cat([view(c, x) for c, x in zip(numbers, leaf, strict=True)])
        layers = [layer.unflatten(0, leaf.shape[:2]).mean(1).flatten(1) for layer in taps(network, synthetic)]
        weighted = zip(weights.of(len(layers)), layers, targets[numbers].split(sizes, 1), strict=True)
        alignment = torch.stack([w * (mean - target).square().sum() for w, mean, target in weighted]).sum()
        gradients += torch.autograd.grad(alignment + (by_centres[numbers] * layers[-1]).sum(), leaf)
        alignments.append(alignment.detach())
    alignment = sum(of_all(alignments, [len(each) for each in blocks(groups)]), images.new_zeros(()))
    gradient = gathered(torch.cat(gradients), [sum(map(len, each)) for each in blocks(groups)])
    return gradient, torch.stack([alignment, discrimination])


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
