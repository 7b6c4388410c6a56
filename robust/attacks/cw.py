"""Carlini & Wagner's L2 attack (arXiv 1608.04644, section V-A), which searches the nearest adversarial image.

Adam minimises |x' - x|^2 + c max(confidence - margin, 0) over w, with x' = (tanh w + 1)/2. The constant c is searched
for each example: it is multiplied by ten until the attack succeeds, then bisected, as in the authors' code.

Differences from the authors' code: each example has its own constant and its own best point, so the result does not
depend on the batch. w starts at atanh((1 - 1e-4)(2x - 1)), since at a pixel of exactly 0 or 1 (half of the pixels of
MNIST) atanh is infinite, and an infinite w does not move; with the authors' 1 - 1e-6, such pixels hardly move in 100
steps. The learning rate 0.03 and the first constant 1 are for 100 steps and nine searches (the authors: 0.01 and 0.001
for 10,000 steps): with a smaller rate saturated pixels hardly move, and with a smaller constant most searches end
before the first success.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.pgd import check_pixels
from robust.losses.margin import margin
from robust.network.inference import outside_inference
from robust.network.modes import Model, evaluating
from robust.per_example import norms
from robust.ranges import Count, NonNegative, Positive, check_number, check_ranges
from robust.registry import Named
from robust.threat import Threat

__all__ = ["CW", "cw"]

INSIDE = 1e-4
"""distance of tanh w from -1 and 1 at the start of a saturated pixel"""


@outside_inference
def cw(
    model: Model,
    images: Tensor,
    targets: Tensor,
    *,
    confidence: float = 0.0,
    search_steps: int = 9,
    steps: int = 100,
    lr: float = 0.03,
    initial_constant: float = 1.0,
) -> Tensor:
    """Return for each image the nearest misclassified point of all steps, or the image where no point is misclassified.

    Args:
        model: maps pixels (N, ...) in [0, 1] to logits (N, K), normalisation inside; its train/eval mode is unchanged.
        images: (N, ...) pixels in [0, 1].
        targets: (N,) class indices.
        confidence: margin of the logits that counts as success, >= 0.
        search_steps: constants tried for each example, >= 1.
        steps: steps of Adam for each constant, >= 1.
        lr: learning rate of Adam, > 0, in the units of w.
        initial_constant: the first constant, > 0.

    Returns:
        (N, ...) in [0, 1]; images that are misclassified from the start by more than `confidence` unchanged.

    Raises:
        ValueError: images outside [0, 1], or a number out of its range.

    For a linear model the distance to the nearest point of another class is known, here 0.2 / sqrt(2):

    >>> model = lambda x: torch.stack([x.sum(1), -x.sum(1) + 2.0], 1)
    >>> image = torch.tensor([[0.7, 0.5]])
    >>> round((cw(model, image, torch.tensor([0])) - image).norm().item(), 2)
    0.14
    """
    _check_options(confidence, search_steps, steps, lr, initial_constant)
    check_pixels(images)
    images = images.detach()
    best = images.clone()
    if len(images) == 0:
        return best
    with torch.no_grad():
        logits = model(images)
        # the second condition for two equal logits, a margin of 0, of which argmax takes one
        correct = ((margin(logits, targets) < confidence) | (logits.argmax(1) == targets)).nonzero().flatten()
    clean, labels = images[correct], targets[correct]
    nearest, least = clean.clone(), torch.full_like(labels, torch.inf, dtype=clean.dtype)
    low, high = torch.zeros_like(least), torch.full_like(least, torch.inf)
    constant = torch.full_like(least, initial_constant)
    for _ in range(search_steps if len(correct) else 0):
        found, distance = _minimise(model, clean, labels, constant, confidence, steps, lr)
        succeeded = distance.isfinite()
        nearer = distance < least
        nearest[nearer], least[nearer] = found[nearer], distance[nearer]
        high = torch.where(succeeded, torch.minimum(high, constant), high)
        low = torch.where(succeeded, low, torch.maximum(low, constant))
        constant = torch.where(high.isinf(), 10 * constant, (low + high) / 2)
    best[correct] = nearest
    return best


def _minimise(
    model: Model, clean: Tensor, labels: Tensor, constant: Tensor, confidence: float, steps: int, lr: float
) -> tuple[Tensor, Tensor]:
    """Return the nearest misclassified point that Adam passes at these constants, and its distance (else infinity)."""
    w = torch.atanh((2 * clean - 1) * (1 - INSIDE)).requires_grad_()
    adam = torch.optim.Adam([w], lr=lr)  # elementwise, so examples do not influence each other
    found, least = clean.clone(), torch.full_like(constant, torch.inf)
    for step in range(steps + 1):
        with torch.enable_grad():
            points = (w.tanh() + 1) / 2
            success = margin(model(points), labels)
            squares = (points - clean).square().flatten(1).sum(1)
            objective = (squares + constant * (confidence - success).clamp_min(0)).sum()
        distance = norms(points.detach() - clean).to(least)
        nearer = (success.detach() > 0) & (success.detach() >= confidence) & (distance < least)
        found = torch.where(nearer.view(-1, *[1] * (clean.ndim - 1)), points.detach(), found)
        least = torch.where(nearer, distance, least)
        if step < steps:
            (w.grad,) = torch.autograd.grad(objective, w)
            adam.step()
    return found, least


def _check_options(confidence: float, search_steps: int, steps: int, lr: float, constant: float) -> None:
    check_number("confidence", confidence, NonNegative)
    check_number("search_steps", search_steps, Count)
    check_number("steps", steps, Count)
    check_number("lr", lr, Positive)
    check_number("initial_constant", constant, Positive)


@dataclass(frozen=True)
class CW:
    """Carlini & Wagner's L2 attack as an `Attack`. It searches the nearest point, independent of eps.

    Raises:
        ValueError: a threat in another norm, or a field out of its range.
    """

    minimum_norm: ClassVar[bool] = True
    """an example counts as broken if its point is misclassified and within `threat.eps`"""

    threat: Threat
    """the l2 ball in which a misclassified point counts as a success"""
    confidence: NonNegative = 0.0
    """margin of the logits that counts as success"""
    search_steps: Count = 9
    """constants tried for each example"""
    steps: Count = 100
    """steps of Adam for each constant"""
    lr: Positive = 0.03
    """learning rate of Adam, in the units of w"""
    initial_constant: Positive = 1.0
    """the first constant"""

    def __post_init__(self) -> None:
        if self.threat.norm != "l2":
            raise ValueError(f"cw: norm is {self.threat.norm!r}; CW minimises l2, write a threat such as l2:0.5")
        check_ranges(self)

    def __call__(
        self, model: Model, images: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return nearest adversarial images (N, ...) in [0, 1] for pixels and classes (N,); no randomness is drawn."""
        with evaluating(model):
            return cw(
                model,
                images,
                targets,
                confidence=self.confidence,
                search_steps=self.search_steps,
                steps=self.steps,
                lr=self.lr,
                initial_constant=self.initial_constant,
            )


NAMED: Named = {"cw": CW}
NORM = {"cw": "l2"}
