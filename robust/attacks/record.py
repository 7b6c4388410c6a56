"""What an attack keeps for each example: of many steps the first misclassified point, else the highest loss (`Record`);
of several attacks in a row the point that succeeds (`Cascade`).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from robust.losses.margin import margin

__all__ = ["Ascended", "Cascade", "Iterate", "Record"]

Iterate = Literal["worst", "last"]
"""the point that an attack returns: the first that is misclassified (else that of the highest loss), or the last"""
Ascended = Callable[[Tensor, Tensor], Tensor]
"""an objective: logits (N, K) and classes (N,) to values (N,)"""


class Record:
    """The best adversarial point so far for each example."""

    def __init__(self, images: Tensor, targets: Tensor, objective: Ascended, final: bool = True):
        self.images: Tensor = images.clone()
        self.targets = targets
        self.objective = objective
        self.final = final  # whether a misclassified point stays misclassified: the answers are not random
        self.loss: Tensor = torch.full((len(images),), -torch.inf, device=images.device)
        self.fooled: Tensor = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def standing(self) -> Tensor:
        """Return the indices of examples that are not misclassified yet."""
        return (~self.fooled).nonzero().flatten()

    def update(self, points: Tensor, logits: Tensor, indices: Tensor | None = None, replace: bool = False) -> Tensor:
        """Store the points that are misclassified or of higher loss, or all points.

        Args:
            points: (n, ...).
            logits: (n, K) of the points.
            indices: (n,) indices of their examples; None for all examples.
            replace: whether to store all points.

        Returns:
            bools (n,), which of these examples are not misclassified.
        """
        indices = torch.arange(len(points), device=points.device) if indices is None else indices
        targets, logits = self.targets[indices], logits.detach()
        loss = self.objective(logits, targets).to(self.loss.dtype)
        fooled = (logits.argmax(1) != targets) & self.final
        better = (fooled | (loss > self.loss[indices]) | replace).nonzero().flatten()
        self.images[indices[better]] = points.detach()[better]
        self.loss[indices[better]] = loss[better]
        self.fooled[indices] = fooled
        return ~fooled


class Cascade:
    """The points of attacks that follow one another, each on the examples that withstand all before it.

    An example keeps its image until a point is misclassified. The next answer of a random model may be another: there
    it keeps the point of the largest expected margin.
    """

    def __init__(self, images: Tensor, targets: Tensor, logits: Tensor, random: bool):
        self.images: Tensor = images.clone()
        self.targets = targets
        self.random = random
        self.margins: Tensor = margin(logits, targets)
        self.standing: Tensor = (logits.argmax(1) == targets).nonzero().flatten()

    def update(self, points: Tensor, logits: Tensor) -> None:
        """Take the points (n, ...) of the standing examples, and the model's answers (n, K) at them."""
        labels = self.targets[self.standing]
        fooled, reached = logits.argmax(1) != labels, margin(logits, labels)
        better = reached > self.margins[self.standing] if self.random else fooled
        indices = self.standing[better]
        self.images[indices], self.margins[indices] = points[better], reached[better]
        self.standing = self.standing[~fooled]
