"""The saliency map attack JSMA (Papernot et al. 2016, arXiv 1511.07528, algorithms 2 and 3): few values change.

While an image is classified correctly, two values move by theta: the pair whose joint increase raises the logit of a
goal class and lowers the sum of the other logits most (the saliency of a pair is the product of both changes). The
attack is targeted; here it runs towards several goals at the same time, the wrong classes of the highest logits, and
stops when the first of them leaves the true class, which is after the fewest changed pairs.

Why torchattacks 3.5.1 is not used: its goal is (label + 1) % 10 for any number of classes, it changes a value only once
for any theta, it changes value 0 when no pair raises the goal's logit and lowers the others, it changes one pair more
than gamma allows, it fills `.grad` of the parameters, and it stores several tables of all D * D pairs (9.4 million for
3x32x32), one image after another. The pair chosen here is the same, from few candidates (see `best_pairs`).

Deviations from the paper: values that cannot move any further are no candidates from the start; any wrong class is a
success. As in the paper's experiments, derivatives of the logits are used.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from robust.attacks.pgd import check_pixels
from robust.network.batches import images_at_once
from robust.network.inference import outside_inference
from robust.network.modes import Model, evaluating
from robust.ranges import Count, Fraction, Range, check_number
from robust.registry import Named

__all__ = ["JSMA", "best_pairs", "jsma"]

Step = Annotated[float, Range(least=-1, most=1)]

ROWS = 512
"""images times goals of a forward pass, at most (fewer for a large network); the result does not depend on it"""
PAIRS = 2**24
"""pairs whose scores are computed at once, at most, unless a single row has more"""


def best_pairs(rise: Tensor, fall: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pair p, q of largest (rise_p + rise_q) * (fall_p + fall_q), both factors > 0, of each row.

    For a fixed p, the product grows in rise_q and in fall_q. A value that two others equal or exceed in both can
    therefore be replaced in every pair without loss. This leaves a few candidates whose pairs are compared: the result
    is exact without all D * D pairs.

    Args:
        rise: (R, D) increase of the goal's logit when a value changes; -inf for a value that may not change.
        fall: (R, D) decrease of the sum of the other logits when a value changes; -inf likewise.

    Returns:
        pairs (R, 2) of indices, and whether the row has such a pair, bools (R,).

    >>> best_pairs(torch.tensor([[1.0, 2.0, -1.0, 0.5]]), torch.tensor([[1.0, -0.5, 2.0, 0.5]]))
    (tensor([[0, 3]]), tensor([True]))
    """
    rows, size = rise.shape
    if size < 2:
        return torch.zeros(rows, 2, dtype=torch.long, device=rise.device), rise.new_zeros(rows, dtype=torch.bool)
    order = rise.sort(dim=1, descending=True, stable=True).indices
    sorted_fall = fall.gather(1, order)
    record = sorted_fall.cummax(1).values
    second = torch.minimum(sorted_fall[:, 1:], record[:, :-1]).cummax(1).values  # second largest so far
    useful = torch.ones_like(order, dtype=torch.bool)
    useful[:, 2:] = sorted_fall[:, 2:] > second[:, :-1]
    most = int(useful.sum(1).amax()) if rows else 2
    first = useful.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :most]
    candidates, useful = order.gather(1, first), useful.gather(1, first)
    rise, fall = (t.gather(1, candidates).masked_fill(~useful, -torch.inf) for t in (rise, fall))
    pairs, found = [], []
    for a, c in zip(*(t.split(max(1, PAIRS // most**2)) for t in (rise, fall)), strict=True):
        a, c = (t[:, :, None] + t[:, None, :] for t in (a, c))
        score = torch.where((a > 0) & (c > 0), a * c, -torch.inf)
        score.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        value, index = score.flatten(1).max(1)
        pairs.append(torch.stack([index // most, index % most], 1))
        found.append(value > 0)
    return candidates.gather(1, torch.cat(pairs)), torch.cat(found)


@outside_inference
def jsma(
    model: Model, images: Tensor, targets: Tensor, *, theta: float = 1.0, gamma: float = 0.1, goals: int = 9
) -> Tensor:
    """Return misclassified images that differ in few values, or the images where no goal was reached.

    Args:
        model: maps pixels (N, ...) in [0, 1] to logits (N, K), normalisation inside; its train/eval mode is unchanged.
        images: (N, ...) pixels in [0, 1].
        targets: (N,) class indices.
        theta: added to the two values of a pair at each step, in [-1, 1], not 0; they stay in [0, 1].
        gamma: share of an image's values that may change, in [0, 1].
        goals: number of goal classes, the wrong classes of the highest logits, >= 1.

    Returns:
        (N, ...) in [0, 1]; images that are misclassified from the start unchanged.

    Raises:
        ValueError: images outside [0, 1], or a number out of its range.

    >>> model = lambda x: torch.stack([4 - x @ torch.arange(4.0), x @ torch.arange(4.0)], 1)
    >>> jsma(model, torch.zeros(1, 4), torch.tensor([0]), gamma=0.5)
    tensor([[0., 0., 1., 1.]])
    """
    _check_options(theta, gamma, goals)
    check_pixels(images)
    found = images.detach().clone()
    if len(found) == 0:
        return found
    with torch.no_grad():
        rows = images_at_once(model, found, most=ROWS)
        logits = torch.cat([model(part) for part in found.split(rows)])
    goals = min(goals, logits.shape[1] - 1)
    goal_classes = logits.scatter(1, targets[:, None], -torch.inf).topk(goals).indices
    standing = (logits.argmax(1) == targets).nonzero().flatten()
    for batch in standing.split(max(1, rows // max(1, goals))) if goals and len(standing) else ():
        found[batch] = _towards_goals(model, found[batch], targets[batch], goal_classes[batch], theta, gamma)
    return found


def _towards_goals(model: Model, images: Tensor, targets: Tensor, goals: Tensor, theta: float, gamma: float) -> Tensor:
    """Return the images, changed in the fewest pairs towards one of their goals (N, goals), or unchanged."""
    found = images.clone()
    sign = 1.0 if theta > 0 else -1.0
    owners = torch.arange(len(images), device=images.device).repeat_interleave(goals.shape[1])
    points, goals = images[owners], goals.flatten()
    done = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for _ in range(int(gamma * images[0].numel() / 2 + 1e-9)):
        rise, fall = _forward_derivatives(model, points, goals)
        stuck = (points >= 1 if theta > 0 else points <= 0).flatten(1)
        rise, fall = ((sign * t).masked_fill(stuck, -torch.inf) for t in (rise, fall))
        pairs, possible = best_pairs(rise, fall)
        points, goals, owners, pairs = (t[possible] for t in (points, goals, owners, pairs))
        if len(points) == 0:
            break
        values = points.flatten(1)
        points = values.scatter(1, pairs, (values.gather(1, pairs) + theta).clamp(0.0, 1.0)).view_as(points)
        with torch.no_grad():
            broken = model(points).argmax(1) != targets[owners]
        winners = owners[broken]
        first = torch.ones_like(winners, dtype=torch.bool)
        first[1:] = winners[1:] != winners[:-1]  # several goals may be reached in the same step
        found[winners[first]] = points[broken][first]
        done[winners] = True
        left = ~done[owners]
        points, goals, owners = points[left], goals[left], owners[left]
        if len(points) == 0:
            break
    return found


def _forward_derivatives(model: Model, points: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
    """Return d logit_goal / dx and -d (sum of the other logits) / dx, (R, D) each."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        logits = model(points)
        towards = logits.gather(1, goals[:, None]).sum()
        difference = towards - logits.sum()
    if not logits.requires_grad:
        return torch.zeros_like(points).flatten(1), torch.zeros_like(points).flatten(1)
    (rise,) = torch.autograd.grad(towards, points, retain_graph=True)
    (fall,) = torch.autograd.grad(difference, points)
    return rise.flatten(1).nan_to_num(), fall.flatten(1).nan_to_num()


def _check_options(theta: float, gamma: float, goals: int) -> None:
    check_number("theta", theta, Step)
    check_number("gamma", gamma, Fraction)
    check_number("goals", goals, Count)
    if theta == 0:
        raise ValueError(f"theta is {theta}; it must be in [-1, 1] and not 0")


@dataclass(frozen=True)
class JSMA:
    """JSMA as an `Attack`. It counts changed values (l0), so it has no threat; `gamma` is its budget.

    A value is one channel of one pixel.

    Raises:
        ValueError: a field is out of its range.
    """

    minimum_norm: ClassVar[bool] = True
    """an example counts as broken if its point is misclassified and no further than `eps`"""

    theta: Step = 1.0
    """added to the two values of a pair at each step; a negative theta lowers them"""
    gamma: Fraction = 0.1
    """share of an image's values that may change"""
    goals: Count = 9
    """number of goal classes, the wrong classes of the highest logits"""

    def __post_init__(self) -> None:
        _check_options(self.theta, self.gamma, self.goals)

    @property
    def eps(self) -> float:
        """The budget as a distance: `gamma`."""
        return self.gamma

    def distance(self, points: Tensor, images: Tensor) -> Tensor:
        """Return the share of values that differ, (N,) in [0, 1]."""
        return (points != images).flatten(1).to(torch.promote_types(images.dtype, torch.float32)).mean(1)

    def __call__(
        self, model: Model, images: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return adversarial images (N, ...) in [0, 1] for pixels (N, ...) in [0, 1] and classes (N,).

        The model is in evaluation mode meanwhile; no random numbers are drawn.
        """
        with evaluating(model):
            return jsma(model, images, targets, theta=self.theta, gamma=self.gamma, goals=self.goals)


NAMED: Named = {"jsma": lambda threat: JSMA()}
