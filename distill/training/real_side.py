"""The real side of gradient matching: a class's real batch, its gradients, and how far a loss moves them."""

from collections.abc import Callable

import torch
from torch import Tensor

from distill.training.augment import Augmentation
from distill.training.matching import Gradient, gradients_by_class
from robust import RobustTeacher

__all__ = ["real_side", "share_moved"]


def real_side(
    class_: int,
    synthetic: Tensor,
    teacher: RobustTeacher,
    real_batch: Callable[[int], Tensor],
    siamese: Augmentation | None,
    generator: Callable[[int], torch.Generator],
    draws: Callable[[int], torch.Generator] | None = None,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return a class's synthetic images, augmented as its real batch, and that batch's loss and gradients.

    Args:
        class_: whose.
        synthetic: (ipc, C, H, W), normalised, the images of the class.
        teacher: the network, in evaluation mode, with the loss of the real batches.
        real_batch: class -> its real images (N, C, H, W), normalised.
        siamese: augmentation of both batches of a class, or None.
        generator: class -> generator of its augmentation's parameters.
        draws: class -> generator of a random loss; None where the loss is not random.
    """
    batch = real_batch(class_)
    if siamese is not None:
        drawn = siamese.sample(None, tuple(synthetic.shape[1:]), generator(class_))
        batch, synthetic = siamese.apply(batch, drawn), siamese.apply(synthetic, drawn)
    drawn_from = None if draws is None else draws(class_)
    return synthetic, *teacher.value_and_gradients(batch, _all(class_, batch), generator=drawn_from)


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
    augmented, _, target = real_side(0, synthetic, regularised, real_batch, siamese, generator, draws)
    _, _, without = real_side(0, synthetic, plain, real_batch, siamese, generator)
    ours = gradients_by_class(regularised.network, augmented[None], _all(0, augmented)[None])
    return (distance(without, target) / distance([g[0].detach() for g in ours], target)).item()


def _all(class_: int, images: Tensor) -> Tensor:
    return torch.full((len(images),), class_, device=images.device)
