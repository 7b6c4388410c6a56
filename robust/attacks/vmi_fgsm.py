"""VMI-FGSM (Wang & He, CVPR 2021, arXiv 2103.15571): signed steps with momentum, tuned by the gradients nearby.

With g = grad l(x_t), the step t + 1 follows the sign of

    m_(t+1) = momentum m_t + (g + v_t) / mean |g + v_t|
    v_(t+1) = mean_i grad l(x_t + r_i) - g,      r_i uniform in [-radius eps, radius eps] for each value

from m_0 = v_0 = 0 and x_0 the image. Without neighbours, or with radius 0, v is 0 and this is MI-FGSM (`mim`). The
paper divides by the l1 norm; the mean differs by the number of values, which no sign shows. Neighbours may leave
[0, 1], in the paper too.

Differences from torchattacks 3.5.1 (and so from DD-RobustBench): the fields default to the paper's, 20 neighbours
instead of 5 and steps of eps / steps instead of 2/255. Each example has its own random stream, and by default leaves
the batch at its first misclassified point; with `iterate="last"`, the textbook attack, all examples take all steps. An
example whose gradients are all zero does not move (theirs becomes NaN). The neighbours of the last point, and of points
of examples that have left, are not evaluated.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robust.attacks.pgd import check_pixels
from robust.attacks.record import Iterate
from robust.attacks.signed_steps import check_box, gradients_of, signed_steps
from robust.losses.cross_entropy import cross_entropy
from robust.network.inference import outside_inference
from robust.network.modes import Model
from robust.per_example import streams
from robust.ranges import Count, NonNegative, StepSize, Whole, check_ranges
from robust.registry import Named
from robust.threat import Threat

__all__ = ["VMIFGSM"]


@dataclass(frozen=True)
class VMIFGSM:
    """VMI-FGSM as an `Attack`: ascends cross-entropy from the image, in linf. Inputs of any shape.

    Raises:
        ValueError: a threat in another norm, or a field out of its range.
    """

    threat: Threat
    """the ball, in linf"""
    steps: Count = 10
    """signed steps"""
    step_size: StepSize = None
    """length of a step; None is eps / steps (Wang & He)"""
    momentum: NonNegative = 1.0
    """weight of the last direction in the next"""
    neighbours: Whole = 20
    """random points around each iterate whose mean gradient tunes the next step; torchattacks takes 5"""
    radius: NonNegative = 1.5
    """largest distance of a neighbour in each value, in eps"""
    iterate: Iterate = "worst"
    """the point to return: the "worst", or the "last" as in the paper (see `signed_steps`)"""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_box("vmifgsm", self.threat, self.iterate)

    @outside_inference
    def __call__(
        self, model: Model, images: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return adversarial images for pixels, (N, ...) -> (N, ...), both in [0, 1].

        Args:
            model: maps pixels (N, ...) to logits (N, K), normalisation inside; its train/eval mode is unchanged.
            images: (N, ...) pixels in [0, 1].
            targets: (N,) class indices.
            generator: CPU generator of the neighbours' random streams, one for each example; None takes torch's
                default.

        Raises:
            ValueError: images outside [0, 1].
        """
        check_pixels(images)
        images = images.detach()
        if self.threat.eps == 0 or len(images) == 0:
            return images.clone()
        generators = streams(len(images), generator)
        directions, before, slopes = (torch.zeros_like(images) for _ in range(3))
        moved = False

        def slope(points: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
            return gradients_of(model, points, lambda _, logits: cross_entropy(logits, targets[indices]))

        def variance(indices: Tensor) -> Tensor:
            """Return the mean gradient around the last points less the gradient at them."""
            centres, distance, own = before[indices], self.radius * self.threat.eps, indices.tolist()
            total = torch.zeros_like(centres)
            for _ in range(self.neighbours):
                draws = torch.stack([torch.rand(images.shape[1:], generator=generators[i]) for i in own])
                total += slope(centres + distance * (2 * draws - 1).to(images), indices)[0]
            return total / self.neighbours - slopes[indices]

        def direction(points: Tensor, gradients: Tensor, indices: Tensor) -> Tensor:
            nonlocal moved
            tuned = gradients
            if moved and self.neighbours and len(indices):
                tuned = gradients + variance(indices)
            moved = True
            size = tuned.abs().mean(tuple(range(1, tuned.ndim)), keepdim=True)
            followed = self.momentum * directions[indices] + tuned / size.clamp_min(torch.finfo(size.dtype).tiny)
            directions[indices], before[indices], slopes[indices] = followed, points, gradients
            return followed

        return signed_steps(
            model,
            images,
            targets,
            images,
            threat=self.threat,
            steps=self.steps,
            step_size=self.threat.eps / self.steps if self.step_size is None else self.step_size,
            iterate=self.iterate,
            slope=slope,
            direction=direction,
            objective=cross_entropy,
        )


NAMED: Named = {"vmifgsm": VMIFGSM}
NORM = {"vmifgsm": "linf"}
