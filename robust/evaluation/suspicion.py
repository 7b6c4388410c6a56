"""Reasons why attacks by gradients may fail on a model although the model is not robust.

The signs of masked gradients are from Athalye et al. 2018 (arXiv 1802.00420, section 3.1) and Carlini et al. 2019
(arXiv 1902.06705), the signs of models that standard attacks do not fit from RobustBench (arXiv 2010.09670) and
AutoAttack.

Deviations: a gradient counts as zero where the change of logits that it predicts is below the precision of the logits,
and is reported only on a share of the images. (AutoAttack warns of a single image and of exact zeros, but an undefended
network has a few such images, and a loss of exactly 0 on many.) That a gradient must predict the change under small
noise, and the short attacks, are not from these papers.
"""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robust.attacks.gradient import SuspiciousModelWarning
from robust.attacks.pgd import check_pixels
from robust.evaluation.advice import ANY_STEP, AVERAGED, MARGIN
from robust.evaluation.phrases import count_of
from robust.evaluation.short_attacks import compare_attacks, with_gradient_path
from robust.losses.cross_entropy import cross_entropy
from robust.losses.margin import margin
from robust.network.batches import images_at_once
from robust.network.expectation import Expected
from robust.network.inference import outside_inference
from robust.network.modes import Model, evaluating, keeping_buffers
from robust.threat import Threat

__all__ = ["EXAMINED", "not_finite", "suspect_model"]

EXAMINED = 200
"""images, at most, on which a model is examined"""
SMALL = (1e-3, 1e-2)
"""size of the noise under which the gradient must predict the change of the margin, in pixels of [0, 1]. Below 1e-3 the
rounding of inputs to 16 bits matters, above 1e-2 the curvature of ordinary networks; the mean of both correlations
decides"""
DRAWS = 2
"""noise vectors of each size"""
PREDICTS = 0.5
"""least rank correlation of prediction and change: ordinary networks reach 0.8 to 1, masked networks 0 to 0.2"""
PAIRS = 30
"""predictions and changes that a correlation needs, at least"""


@outside_inference
def suspect_model(
    model: Model, images: Tensor, targets: Tensor, *, threat: Threat, generator: torch.Generator | None = None
) -> tuple[str, ...]:
    """Return why attacks by gradients may fail on a model although it is not robust; empty without such a reason.

    The reasons: logits or gradients that are not finite; probabilities in place of logits; logits that differ from pass
    to pass, depend on the other images of the batch, or do not depend on the image; gradients taken inside the forward
    pass; input gradients that are zero, far smaller than the effect of noise, or do not predict the effect of small
    noise; a gradient of cross-entropy that vanishes (saturated softmax) where the gradient of the margin does not.

    Without any of these, short attacks are compared with PGD of ten steps on cross-entropy. PGD on the margin must not
    break a tenth of the images more (a twentieth, if the logits are small). 100 queries of Square (on images
    (N, C, H, W), where torchattacks is installed) or ten draws of noise must not break a tenth of the images that
    withstand both.

    Args:
        model: maps pixels (N, ...) in [0, 1] to logits (N, K), normalisation inside; in evaluation mode meanwhile.
        images: (N, ...) pixels in [0, 1]; at most 200 are used, evenly spread, in one batch with gradients
            (fewer where the network is large, see `robust.network.batches`).
        targets: (N,) class indices.
        threat: the ball that noise is drawn from; its norm is also the norm of a step.
        generator: CPU generator of the noise; None takes torch's default.

    Raises:
        ValueError: images outside [0, 1] or none, a different number of targets, fewer than two logits, or a class
            without a logit.

    A step function has no gradient to follow, which does not make it robust:

    >>> g = torch.Generator().manual_seed(0)
    >>> images = torch.rand(20, 6, generator=g)
    >>> coarse = lambda x: (x * 8).round() @ torch.eye(6)[:, :3]
    >>> suspect_model(coarse, images, coarse(images).argmax(1), threat=Threat("linf", 0.1), generator=g)
    ('input gradient is zero on 20 of 20 images, though noise moves the logits of 8: use BPDA (robust.bpda) or square',)
    """
    check_pixels(images)
    if len(images) != len(targets) or len(images) == 0:
        raise ValueError(f"{len(images)} images and {len(targets)} targets; give as many of each, at least one")
    every = -(-len(images) // images_at_once(model, images, most=EXAMINED))
    images, targets = images[::every].detach().clone(), targets[::every]
    seeds = torch.randint(2**62, (len(images),), generator=generator).tolist()
    noisy = threat.random_start(images, [torch.Generator().manual_seed(seed) for seed in seeds])
    model = model.model if isinstance(model, Expected) else model
    with torch.enable_grad(), evaluating(model), keeping_buffers(model), warnings.catch_warnings():
        warnings.simplefilter("ignore", SuspiciousModelWarning)
        with _DetectsGradients() as detector:
            logits = model(images).detach()
        _check_classes(logits, targets)
        reasons = ["takes gradients inside its forward pass: needs an attack of its own"] * detector.differentiates
        moved = model(noisy).detach()
        finite = logits.isfinite().all(1) & moved.isfinite().all(1)
        if not finite.all():
            return (*reasons, f"logits are not finite on {count_of(~finite)} images")
        random = _suspect_answers(model, images, logits, moved, reasons)
        any_image = torch.rand(images.shape, generator=torch.Generator().manual_seed(seeds[0])).to(images)
        spread = torch.cat([logits, model(any_image).detach()]) - logits[0]
        if (spread.abs() <= _resolution(logits).amax()).all():
            return (*reasons, "logits do not depend on the image: no attack can act")
        totals = [f(with_gradient_path(model)(images.requires_grad_()), targets).sum() for f in (margin, cross_entropy)]
        of_margin, of_loss = (torch.autograd.grad(total, images)[0].double() for total in totals)
    images = images.detach()
    finite = (of_margin.isfinite() & of_loss.isfinite()).flatten(1).all(1)
    if not finite.all():
        return (*reasons, f"input gradients are not finite on {count_of(~finite)} images")
    correct = logits.argmax(1) == targets
    change = (margin(moved, targets) - margin(logits, targets)).abs()
    moves = (change > _resolution(logits)) & (not random)
    predicted = (of_margin * (noisy - images)).abs().flatten(1).sum(1)
    slope = of_margin.abs().flatten(1).sum(1)  # largest change of the margin when every pixel moves by 1
    flat = slope < _resolution(logits)
    useless = flat | (moves & (change > 100 * predicted))
    reasons += _suspect_size(useless & correct, flat, moves, int(correct.sum()))
    precision = torch.finfo(logits.dtype).eps
    reasons += _suspect_saturation(of_loss, of_margin, correct & ~useless, threat, precision, int(correct.sum()))
    if reasons:
        return tuple(reasons)
    with torch.no_grad(), evaluating(model), keeping_buffers(model):
        useful = ~useless
        seen, resolution = (images[useful], targets[useful], of_margin[useful]), _resolution(logits)[useful]
        reasons += _suspect_direction(model, *seen, margin(logits, targets)[useful], resolution, seeds[0])
    if correct.any() and threat.eps > 0 and not reasons:
        with evaluating(model), keeping_buffers(model):
            reasons += compare_attacks(model, images[correct], targets[correct], threat, len(images), seeds[-1])
    return tuple(reasons)


def _suspect_answers(model: Model, images: Tensor, logits: Tensor, moved: Tensor, reasons: list[str]) -> bool:
    """Append reasons that lie in the model's answers; return whether the answers are random."""
    coarse, scale = torch.finfo(logits.dtype).eps ** 0.5, logits.abs().amax()
    random = any(((model(images).detach() - logits).abs() > coarse * scale).any() for _ in range(4))
    if random:
        reasons.append(f"random: two passes differ: average attacks over the randomness, use {AVERAGED}")
    elif len(images) > 1:
        halves = torch.cat([model(half).detach() for half in images.tensor_split(2)])
        if ((halves - logits).abs() > max(coarse, 0.01) * scale).any():
            reasons.append("logits depend on the other images of the batch")
    if (logits >= 0).all() and ((logits.sum(1) - 1).abs() <= coarse).all():
        reasons.append(f"outputs are probabilities: give logits, or use {MARGIN}")
    elif all((each >= 0).all() and (each <= 1).all() for each in (logits, moved)) and (logits != logits[0, 0]).any():
        reasons.append(f"outputs lie in [0, 1]: give logits, or use {MARGIN}")
    return random


def _suspect_size(useless: Tensor, flat: Tensor, moves: Tensor, n: int) -> list[str]:
    """Return a reason where the gradients of the margin are zero or far too small.

    Args:
        useless: bools (N,): correctly classified images whose gradient predicts far less than noise does.
        flat: bools (N,): images whose gradient is zero within the precision of the logits.
        moves: bools (N,): images whose margin changes under noise.
        n: number of correctly classified images.
    """
    if not (useless.any() and useless.sum() >= max(3, 0.05 * n)):
        return []
    moving = int((useless & moves).sum())
    acts = f", though noise moves the logits of {moving}: {ANY_STEP}" if moving else ""
    size = "far too small" if (useless & ~flat).any() else "zero"
    return [f"input gradient is {size} on {int(useless.sum())} of {n} images{acts}"]


def _suspect_saturation(
    of_loss: Tensor, of_margin: Tensor, useful: Tensor, threat: Threat, precision: float, n: int
) -> list[str]:
    """Return a reason where the gradient of cross-entropy vanishes, and the gradient of the margin does not.

    Args:
        of_loss: (N, ...) input gradients of cross-entropy.
        of_margin: (N, ...) input gradients of the margin.
        useful: bools (N,): correctly classified images whose gradient of the margin is of use.
        threat: whose norm measures a step.
        precision: relative, of the logits.
        n: number of correctly classified images.
    """
    # The ratio of both is about 1 - p of the target. Below the precision the loss is 0, and its gradient is rounding.
    sizes, slopes = (each.abs().flatten(1).sum(1) for each in (of_loss, of_margin))
    vanished = sizes < precision * slopes
    gain, best = ((of_margin * threat.ascent(g)).flatten(1).sum(1) for g in (of_loss, of_margin))
    lost = useful & vanished & (gain < best / 2)
    if lost.sum() < max(3, 0.1 * n):
        return []
    saturated = f"cross-entropy gradient vanishes on {int(lost.sum())} of {n} images (saturated softmax)"
    return [f"{saturated}, the margin's does not: attack the margin or DLR, use {MARGIN}"]


def _suspect_direction(
    model: Model, images: Tensor, targets: Tensor, gradients: Tensor, margins: Tensor, resolution: Tensor, seed: int
) -> list[str]:
    """Return a reason where the margin's gradients do not predict how the margin changes under small noise."""
    found, generator = [], torch.Generator().manual_seed(seed)
    for size in SMALL:
        signs = torch.randint(2, (DRAWS, *images.shape), generator=generator).to(images) * 2 - 1
        points = (images + size * signs).clamp(0.0, 1.0)
        predicted = (gradients * (points - images)).flatten(2).sum(2)
        changed = torch.stack([margin(model(each), targets) for each in points]).double() - margins.double()
        moves = changed.abs() > resolution
        if moves.sum() >= PAIRS:  # otherwise noise of this size does not change the logits
            found.append(_rank_correlation(predicted[moves], changed[moves]))
    mean = sum(found) / max(1, len(found))
    if not found or mean >= PREDICTS:
        return []
    return [f"the input gradient does not predict the margin (correlation {mean:.2f}): {ANY_STEP}"]


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    """Return Spearman's correlation of two (N,), which a few large values at kinks of the network do not dominate."""
    ranks = torch.stack([each.argsort().argsort().double() for each in (a, b)])
    return torch.corrcoef(ranks)[0, 1].item()


def _resolution(logits: Tensor) -> Tensor:
    """Return the smallest difference of logits that is not rounding, (N,)."""
    return 16 * torch.finfo(logits.dtype).eps * logits.abs().amax(1)


class _DetectsGradients(TorchFunctionMode):
    """Records whether gradients are taken inside the block."""

    differentiates = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.autograd.grad, torch.autograd.backward, Tensor.backward):
            self.differentiates = True
        return func(*args, **(kwargs or {}))


def _check_classes(logits: Tensor, targets: Tensor) -> None:
    if logits.shape[:-1] != targets.shape or logits.shape[-1] < 2 or not logits.is_floating_point():
        raise ValueError(f"the model gives {logits.dtype} {tuple(logits.shape)}; logits are floats (N, classes >= 2)")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(f"targets range over {low}..{high}; the model has classes 0..{logits.shape[1] - 1}")


def not_finite(model: Model, images: Tensor) -> tuple[str, ...]:
    """Return a reason where logits are not finite: then no accuracy is meaningful, clean or under attack.

    Args:
        model: as in `suspect_model`.
        images: (N, ...) pixels in [0, 1]; at most 200 are used, evenly spread.
    """
    with torch.no_grad(), evaluating(model), keeping_buffers(model):
        every = max(1, -(-len(images) // images_at_once(model, images, most=EXAMINED)))
        finite = model(images[::every]).isfinite().all(1)
    return () if finite.all() else (f"logits are not finite on {count_of(~finite)} images",)
