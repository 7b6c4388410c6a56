"""Cross-entropy: per example as a function, averaged as a `Loss`."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from robust.losses.calling import takes_network
from robust.losses.traits import Loss, Named, Traits
from robust.network.modes import Model
from robust.ranges import Fraction, UpToOne, check_number, check_ranges

__all__ = ["CrossEntropy", "cross_entropy", "smoothed"]


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of each example.

    Args:
        logits: (N, K).
        targets: (N,) class indices or (N, K) class probabilities.
        smoothing: share of the targets that is spread evenly over all classes, in [0, 1], as `smoothed` does.

    Returns:
        (N,), in nats.

    >>> import torch
    >>> cross_entropy(torch.zeros(1, 4), torch.tensor([2])).exp().round().tolist()
    [4.0]
    """
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)


def smoothed(targets: Tensor, num_classes: int, smoothing: float = 0.1) -> Tensor:
    """Return smoothed labels: class probabilities of which a share is spread evenly over all classes.

    MixUp and CutMix are lam * smoothed(a, K, s) + (1 - lam) * smoothed(b, K, s), for the classes a and b of a pair.

    Args:
        targets: (N,) class indices.
        num_classes: K.
        smoothing: the share, in [0, 1]; 0 gives one-hot labels.

    Returns:
        (N, K), in torch's default dtype.

    Raises:
        ValueError: the share is outside [0, 1].

    >>> import torch
    >>> smoothed(torch.tensor([1]), 2, smoothing=0.5)
    tensor([[0.2500, 0.7500]])
    """
    check_number("smoothing", smoothing, Fraction)
    return (1 - smoothing) * F.one_hot(targets, num_classes) + smoothing / num_classes


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """The plain loss: mean cross-entropy of the batch, with smoothed labels on request.

    Raises:
        ValueError: a field is out of its range.

    >>> CrossEntropy(smoothing=0.1).smoothing
    0.1
    """

    traits: ClassVar[Traits] = Traits()

    smoothing: UpToOne = field(default=0.0, metadata={"later": True})
    """label smoothing (Szegedy et al., CVPR 2016): the share of each label that is spread evenly over all classes;
    class probabilities are mixed with the uniform distribution in the same way"""

    def __post_init__(self) -> None:
        check_ranges(self)

    @takes_network
    def __call__(self, model: Model, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss, a scalar, of `model(inputs)` (N, K) against targets (N,) or (N, K)."""
        return cross_entropy(model(inputs), targets, self.smoothing).mean()


NAMED: Named = {"cross_entropy": lambda threat: CrossEntropy()}
