"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083), with results that do not depend on the batch.

Differences from the usual implementations: each example has its own random stream and its own record of the best
point, so the result does not depend on the other examples of the batch; a misclassified example is dropped from the
batch; restarts attack only the examples that are not misclassified yet.

A model with random answers is attacked through its expected answer (`eot`): gradients are averaged over several passes,
and no example is dropped, since the next random answer at a misclassified point may be correct.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from robust.attacks.bpda import BPDA
from robust.attacks.gradient import input_gradient
from robust.attacks.record import Ascended, Iterate, Record
from robust.losses.cross_entropy import cross_entropy
from robust.losses.margin import difference_of_logits_ratio, margin
from robust.network.expectation import Expected
from robust.network.inference import outside_inference
from robust.network.modes import Model
from robust.per_example import streams
from robust.ranges import Count, NonNegative, StepSize, check_number, check_ranges
from robust.threat import Threat

__all__ = ["PGD", "check_pixels", "pgd"]

Objective = Literal["ce", "margin", "dlr", "ce+margin"]
OBJECTIVES: dict[str, tuple[Ascended, ...]] = {
    "ce": (cross_entropy,),
    "margin": (margin,),
    "dlr": (difference_of_logits_ratio,),
    "ce+margin": (cross_entropy, margin),
}
"""name -> the objectives of a restart, ascended one after another from the same start, each on the standing examples"""


@outside_inference
def pgd(
    model: Model,
    images: Tensor,
    targets: Tensor,
    *,
    threat: Threat,
    steps: int,
    step_size: float,
    restarts: int = 1,
    random_start: bool = True,
    iterate: Iterate = "worst",
    objective: Objective = "ce",
    momentum: float = 0.0,
    eot: int = 1,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return adversarial images: ascend the objective, project, repeat.

    Args:
        model: maps pixels (N, ...) in [0, 1] to logits (N, K), normalisation inside; its train/eval mode is unchanged.
            A model whose output has no gradient path to the pixels is attacked only by the random starts, with a
            `SuspiciousModelWarning`.
        images: (N, ...) pixels in [0, 1].
        targets: (N,) class indices.
        threat: the ball.
        steps: gradient steps of each restart, >= 1.
        step_size: length of a step in the norm of the threat, pixels in [0, 1].
        restarts: random starts, each on the examples that are not misclassified yet.
        random_start: begin at a uniform point of the ball, else at the image (all restarts are then the same).
        iterate: "worst" returns for each example the first misclassified point, else the point of highest loss (the
            clean image counts as a point, so the loss never falls below its clean value); "last" returns the last
            iterate of the first restart whose last iterate is misclassified, else of the last restart (the textbook
            attack).
        objective: function to ascend: "ce" cross-entropy, "margin" of the logits, "dlr" the margin over the scale of
            the logits; "ce+margin" cross-entropy, then the margin on the examples that are not misclassified yet, which
            breaks every image that either of them breaks.
        momentum: weight of the last direction in the next, with gradients of unit mean size (MIM, arXiv 1710.06081).
        eot: forward passes that gradients and answers are averaged over, for models with random answers; above 1 the
            point of the highest loss of the expected answer is returned, and no example stops early.
        start: (N, ...) points to begin at in place of random starts, projected on the ball.
        generator: CPU generator of the random starts; None takes torch's default.

    Returns:
        (N, ...) in [0, 1] and in the ball.

    Raises:
        ValueError: images outside [0, 1], a count below 1, a step that is not > 0, momentum < 0, or an unknown name.

    On a linear model the distance to the boundary is known, and the attack succeeds exactly when eps exceeds it:

    >>> model = lambda x: torch.stack([x.sum(1), -x.sum(1) + 2.0], 1)  # class 0 where the pixels sum to more than 1
    >>> image, label = torch.tensor([[0.7, 0.5]]), torch.tensor([0])   # linf margin 0.1
    >>> for eps in (0.099, 0.101):
    ...     adversarial = pgd(model, image, label, threat=Threat("linf", eps), steps=5, step_size=eps / 2)
    ...     print(model(adversarial).argmax(1).item())
    0
    1
    """
    _check_options(steps, restarts, step_size if threat.eps else None, iterate, objective, momentum, eot)
    check_pixels(images)
    if isinstance(model, Expected):
        model, eot = model.model, max(eot, model.passes)
    images = images.detach()
    if threat.eps == 0 or len(images) == 0:
        return images.clone()
    generators = streams(len(images), generator) if random_start else []
    ascended = OBJECTIVES[objective]
    record = Record(images, targets, ascended[-1], final=eot == 1)
    answer = model if eot == 1 else Expected(model, eot)
    if iterate == "worst":
        with torch.no_grad():
            record.update(images, answer(images))
    for _ in range(restarts):
        indices = record.standing()
        if len(indices) == 0:
            break
        if start is not None:
            begin = threat.project(start, images)
        else:
            begin = images.clone()
            if random_start:
                begin[indices] = threat.random_start(images[indices], [generators[i] for i in indices.tolist()])
        for objective_ in ascended:
            indices = record.standing()
            if len(indices) == 0:
                break
            clean, labels, points = images[indices], targets[indices], begin[indices]
            velocity = torch.zeros_like(clean)
            for _ in range(steps):
                gradients, logits = _gradients(model, points, labels, objective_, eot)
                if momentum:
                    dims = tuple(range(1, gradients.ndim))
                    size = gradients.abs().mean(dims, keepdim=True).clamp_min(torch.finfo(gradients.dtype).tiny)
                    gradients = velocity = momentum * velocity + gradients / size
                moved = threat.project(points + step_size * threat.ascent(gradients), clean)
                if iterate == "worst":
                    # positions once, since each index by bools would make the host wait for a device
                    stands = record.update(points, logits, indices).nonzero().flatten()
                    indices, clean, labels = indices[stands], clean[stands], labels[stands]
                    moved, velocity = moved[stands], velocity[stands]
                points = moved
                if len(indices) == 0:
                    break
            else:
                with torch.no_grad():
                    record.update(points, answer(points), indices, replace=iterate == "last")
    return record.images


def _gradients(model: Model, points: Tensor, labels: Tensor, ascended: Ascended, eot: int) -> tuple[Tensor, Tensor]:
    """Return the mean gradient of the objective over `eot` passes, zero where not finite, and the answer, (N, K)."""
    total, answers = torch.zeros_like(points), []
    for _ in range(eot):
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            logits = model(points)
            gradients = input_gradient(ascended(logits, labels).sum(), points)
        total = total + gradients.nan_to_num(0.0, 0.0, 0.0)  # a point without a direction does not move
        answers.append(logits.detach())
    if eot == 1:
        return total, answers[0]
    return total / eot, torch.stack([each.log_softmax(1) for each in answers]).logsumexp(0)


def _check_options(
    steps: int, restarts: int, step_size: float | None, iterate: str, objective: str, momentum: float, eot: int
) -> None:
    for name, count in (("steps", steps), ("restarts", restarts), ("eot", eot)):
        check_number(name, count, Count)
    check_number("step_size", step_size, StepSize)
    check_number("momentum", momentum, NonNegative)
    _check_names(iterate, objective)


def _check_names(iterate: str, objective: str) -> None:
    for name, value, choices in (("iterate", iterate, Iterate), ("objective", objective, Objective)):
        if value not in get_args(choices):
            raise ValueError(f"{name} is {value!r}; choose from {', '.join(get_args(choices))}")


def check_pixels(images: Tensor) -> None:
    """Refuse images that are not pixels in [0, 1] in float32 or float64.

    Raises:
        ValueError: with the type or the range found.
    """
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; attacks take floating-point pixels in [0, 1]")
    if images.dtype in (torch.float16, torch.bfloat16):  # near 1 bfloat16 has steps of 1/256, half of an eps of 2/255
        raise ValueError(f"images are {images.dtype}, too coarse for a ball; give float32, and cast inside the model")
    low, high = (images.min().item(), images.max().item()) if images.numel() else (0.0, 1.0)
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(
            f"images range over [{low:.4g}, {high:.4g}]; attacks take pixels in [0, 1]: put Normalize inside the model"
        )


@dataclass(frozen=True)
class PGD:
    """PGD as an `Attack`: its settings, called as `attack(model, images, targets, generator=...)`.

    Raises:
        ValueError: a field is out of its range.
    """

    threat: Threat
    """the ball"""
    steps: Count = 10
    """gradient steps of a restart"""
    step_size: StepSize = None
    """length of a step in the threat's norm; None is 2.5 * eps / steps (Madry et al.)"""
    restarts: Count = 1
    """random starts, each on the examples that are not misclassified yet"""
    random_start: bool = True
    """whether to start at a uniform point of the ball, else at the image"""
    iterate: Iterate = "worst"
    """the point to return: the "worst" or the "last" (see `pgd`)"""
    objective: Objective = "ce"
    """function to ascend: "ce", "margin", "dlr" (the margin below four classes), or "ce+margin", one after the other"""
    momentum: NonNegative = 0.0
    """weight of the last direction; MIM uses 1"""
    eot: Count = 1
    """forward passes that gradients and answers are averaged over, for models with random answers"""
    bpda: Callable[[Tensor], Tensor] | None = field(default=None, repr=False, metadata={"written": False})
    """a model whose gradients replace the gradients of an attacked model that has none (see `robust.bpda`)"""

    def __post_init__(self) -> None:
        check_ranges(self)
        _check_names(self.iterate, self.objective)

    def __call__(
        self, model: Model, images: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return adversarial images (N, ...) in [0, 1] for pixels (N, ...) in [0, 1] and classes (N,)."""
        if self.bpda is not None:
            random = isinstance(model, Expected)
            model = Expected(BPDA(model.model, self.bpda), model.passes) if random else BPDA(model, self.bpda)
        return pgd(
            model,
            images,
            targets,
            threat=self.threat,
            steps=self.steps,
            step_size=2.5 * self.threat.eps / self.steps if self.step_size is None else self.step_size,
            restarts=self.restarts,
            random_start=self.random_start,
            iterate=self.iterate,
            objective=self.objective,
            momentum=self.momentum,
            eot=self.eot,
            generator=generator,
        )
