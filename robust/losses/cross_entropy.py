"""Cross-entropy: per example as a function, averaged as a `Loss`."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from robust.modes import Model

__all__ = ["CrossEntropy", "cross_entropy"]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each example.

    Args:
        logits: (N, K).
        targets: (N,) class indices or (N, K) class probabilities.

    Returns:
        (N,), in nats.

    >>> import torch
    >>> cross_entropy(torch.zeros(1, 4), torch.tensor([2])).exp().round().tolist()
    [4.0]
    """
    return F.cross_entropy(logits, targets, reduction="none")


@dataclass(frozen=True)
class CrossEntropy:
    """The plain loss: mean cross-entropy of the batch."""

    def __call__(self, model: Model, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss, a scalar, of `model(inputs)` (N, K) against targets (N,) or (N, K)."""
        return cross_entropy(model(inputs), targets).mean()
