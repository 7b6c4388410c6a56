"""Short attacks that tell whether a model resists attacks only because its gradients are masked.

That an attack with an unlimited ball must succeed is from Athalye et al. 2018 (arXiv 1802.00420, section 3.1). No
paper has the comparison of PGD with noise, Square and the margin and its thresholds.
"""

from typing import Any

import torch
from torch import Tensor

from robust.attacks.noise import Noise
from robust.attacks.pgd import pgd
from robust.attacks.square import Square
from robust.evaluation.advice import ANY_STEP, MARGIN
from robust.evaluation.phrases import ball, count_of
from robust.evaluation.sign_test import FEW, LEVEL, sign_test
from robust.network.expectation import is_random
from robust.network.inference import outside_inference
from robust.network.modes import Model, evaluating
from robust.threat import Threat

__all__ = ["compare_attacks", "unbounded", "with_gradient_path"]

ANY_IMAGE = Threat("linf", 1.0)
"""the ball that contains every image"""
POINTS, POINTS_IF_UNSURE = 0.1, 0.05
"""share of the images that the margin must break more than cross-entropy: in general, and where logits are small"""
UNSURE = 0.5
"""median probability of the predicted class below which logits count as small: the gradient of cross-entropy then
points away from the mean of all classes"""
QUERIES, ATTACKED = 100, 50
"""of the short Square attack: queries, and images at most, taken from those that withstand PGD"""


def compare_attacks(model: Model, images: Tensor, targets: Tensor, threat: Threat, total: int, seed: int) -> list[str]:
    """Return a reason where a short attack of another kind breaks images that PGD on cross-entropy does not break.

    Args:
        model: maps pixels (N, ...) in [0, 1] to logits (N, K), in evaluation mode.
        images: (N, ...) pixels in [0, 1], all classified correctly.
        targets: (N,) class indices.
        threat: the ball.
        total: number of examined images, including the misclassified images.
        seed: of the attacks.
    """

    def breaks(found: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            return model(found).argmax(1) != labels

    step = {"threat": threat, "steps": 10, "step_size": threat.eps / 4}
    by_loss, by_margin = (
        breaks(
            pgd(model, images, targets, objective=each, generator=torch.Generator().manual_seed(seed), **step), targets
        )
        for each in ("ce", "margin")
    )
    wins, losses = int((by_margin & ~by_loss).sum()), int((by_loss & ~by_margin).sum())
    with torch.no_grad():
        unsure = model(images).softmax(1).amax(1).median() < UNSURE
    if sign_test(wins, losses) < LEVEL and wins - losses >= (POINTS_IF_UNSURE if unsure else POINTS) * total:
        weak = f"cross-entropy PGD is weak here: the margin loss breaks more, {wins} to {losses}"
        return [f"{weak}: attack the margin or DLR, use {MARGIN}"]
    withstand = (~by_loss & ~by_margin).nonzero().flatten()
    withstand = withstand[:: max(1, -(-len(withstand) // ATTACKED))]
    for name, attack in (("noise", Noise(threat, draws=10)), ("black-box square", Square(threat, queries=QUERIES))):
        if len(withstand) < FEW:
            break
        x, y = images[withstand], targets[withstand]
        try:
            found = attack(model, x, y, generator=torch.Generator().manual_seed(seed))
        except (ValueError, ModuleNotFoundError):  # images that Square does not take, or no torchattacks
            continue
        broken = int(breaks(found, y).sum())
        if broken >= max(FEW, 0.1 * len(withstand)):
            return [f"{name} breaks {broken} of {len(withstand)} images that withstand PGD: {ANY_STEP}"]
    return []


@outside_inference
def unbounded(
    model: Model, images: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
) -> tuple[str, ...]:
    """Return a reason where an attack that may choose any image still fails: then gradients are masked.

    The attack is 100 steps of PGD of length 0.1 on cross-entropy at linf 1.0. Every network with useful gradients loses
    every image to it (Athalye et al. 2018, section 3.1). Images that withstand it are attacked on the margin too, which
    tells whether cross-entropy is at fault. No reason is returned for a model with random answers, since a single
    random answer at the final point shows nothing.

    Args:
        model: as in `suspect_model`.
        images: (N, ...) pixels in [0, 1], all attacked in one batch.
        targets: (N,) class indices.
        generator: CPU generator of the random starts.

    Raises:
        ValueError: images outside [0, 1].
    """
    if is_random(model, images):
        return ()

    def withstand(x: Tensor, y: Tensor, **objective: Any) -> Tensor:
        attack = {"threat": ANY_IMAGE, "steps": 100, "step_size": 0.1, "generator": generator}
        found = pgd(with_gradient_path(model), x, y, **attack, **objective)
        return (model(found).argmax(1) == y) | ~found.isfinite().flatten(1).all(1)

    with evaluating(model), torch.no_grad():
        standing = withstand(images, targets)
        if not standing.any():
            return ()
        reason = f"{count_of(standing)} images stand at {ball(ANY_IMAGE)}: masked gradients"
        by_margin = not withstand(images[standing], targets[standing], objective="margin").any()
    return (f"{reason}, not the margin's: use {MARGIN}" if by_margin else reason,)


def with_gradient_path(model: Model) -> Model:
    """Return the model with a gradient of zero where its output has no gradient path to the images."""
    return lambda x: model(x) + 0 * x.flatten(1).sum(1, keepdim=True)
