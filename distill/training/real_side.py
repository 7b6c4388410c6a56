"""The real side of gradient matching: a class's real batch, its gradients, and how far a loss moves them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from distill.runs.divided import block, blocks, gathered
from distill.training.augment import Augmentation
from distill.training.matching import Gradient, gradients_by_class
from robust import RobustTeacher

__all__ = ["of_all", "real_gradients", "share_moved", "siamese_view"]


def siamese_view(
    class_: int, images: Tensor, siamese: Augmentation | None, generator: Callable[[int], torch.Generator]
) -> Tensor:
    """Return images of a class, augmented; the parameters are the same for the real and the synthetic batch.

    Args:
        class_: whose.
        images: (N, C, H, W), normalised.
        siamese: augmentation of both batches of a class, or None.
        generator: class -> generator of its augmentation's parameters.
    """
    if siamese is None:
        return images
    return siamese.apply(images, siamese.sample(None, tuple(images.shape[1:]), generator(class_)))


def real_gradients(
    teacher: RobustTeacher,
    real_batch: Callable[[int], Tensor],
    siamese: Augmentation | None,
    generator: Callable[[int], torch.Generator],
    draws: Callable[[int], torch.Generator] | None,
    class_: int,
) -> tuple[Tensor, Gradient]:
    """Return the loss of a class's real batch, and its gradients.

    Args:
        teacher: the network, in evaluation mode, with the loss of the real batches.
        real_batch: class -> its real images (N, C, H, W), normalised.
        siamese: augmentation of both batches of a class, or None.
        generator: class -> generator of its augmentation's parameters.
        draws: class -> generator of a random loss; None where the loss is not random.
        class_: whose.
    """
    batch = siamese_view(class_, real_batch(class_), siamese, generator)
    drawn_from = None if draws is None else draws(class_)
    return teacher.value_and_gradients(batch, _all(class_, batch), generator=drawn_from)


def of_all(
    gradients_of: Callable[[int], tuple[Tensor, Gradient]], network: nn.Module, count: int
) -> Callable[[int], tuple[Tensor, Gradient]]:
    """Return a function with the results of `gradients_of` for all units, which the processes divide.

    Args:
        gradients_of: number of a unit, such as a class -> the loss of its images, and its gradients.
        network: whose gradients they are.
        count: number of units.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    sizes = [p.numel() for p in parameters]
    rows = [parameters[0].new_zeros(0, 1 + sum(sizes))]
    for unit in block(range(count)):
        loss, gradients = gradients_of(unit)
        rows.append(torch.cat([loss.view(1), *(g.flatten() for g in gradients)])[None])
    found = gathered(torch.cat(rows).detach(), [len(each) for each in blocks(range(count))])

    def of_unit(unit: int) -> tuple[Tensor, Gradient]:
        loss, *gradients = found[unit].split([1, *sizes])
        return loss[0], [g.view_as(p) for g, p in zip(gradients, parameters, strict=True)]

    return of_unit


def share_moved(
    synthetic: Tensor,
    regularised: RobustTeacher,
    plain: RobustTeacher,
    distance: Callable[[Gradient, Gradient], Tensor],
    *,
    real_batch: Callable[[int], Tensor],
    siamese: Augmentation | None,
    generator: Callable[[int], torch.Generator],
    draws: Callable[[int], torch.Generator] | None = None,
) -> float:
    """Return how far a robust loss moves the real gradients of class 0, relative to the distance that is minimised.

    All randomness is addressed, so that a later matching step draws the same numbers with or without this call.

    Args:
        synthetic: (ipc, C, H, W), normalised, the images of class 0.
        regularised: the network, in evaluation mode, with the loss of the real batches; it does not change.
        plain: the same network with plain cross-entropy.
        distance: of two gradients, D.
        real_batch: class -> its real images (N, C, H, W), normalised.
        siamese: augmentation of both batches of a class, or None.
        generator: class -> generator of its augmentation's parameters.
        draws: class -> generator of a random loss; None where the loss is not random.

    Returns:
        D(plain real gradients, regularised ones) / D(synthetic gradients, regularised real ones), >= 0.
    """
    _, target = real_gradients(regularised, real_batch, siamese, generator, draws, 0)
    _, without = real_gradients(plain, real_batch, siamese, generator, None, 0)
    augmented = siamese_view(0, synthetic, siamese, generator)
    ours = gradients_by_class(regularised.network, augmented[None], _all(0, augmented)[None])
    return (distance(without, target) / distance([g[0].detach() for g in ours], target)).item()


def _all(class_: int, images: Tensor) -> Tensor:
    return torch.full((len(images),), class_, device=images.device)
