"""Distrust of a model: why attacks by gradients may fail on it although it is not robust, in words.

The signs of masked gradients are from Athalye et al. 2018 (arXiv 1802.00420, section 3.1) and Carlini et al. 2019
(arXiv 1902.06705), those of models that standard attacks do not fit from RobustBench (arXiv 2010.09670) and AutoAttack.

Deviation: a gradient is zero where it says nothing of the logits in their own precision, on a share of the images
(AutoAttack warns of one image and of exact zeros): an undefended network has a few such images, and a loss of exactly 0
on many. That a gradient must predict the change under small noise, and the short attacks, are ours.
"""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robust.attacks.gradient import SuspiciousModelWarning
from robust.attacks.noise import Noise
from robust.attacks.pgd import check_pixels, pgd
from robust.attacks.square import Square
from robust.evaluation.advice import ANY_STEP, AVERAGED, MARGIN
from robust.evaluation.sign_test import FEW, LEVEL, sign_test
from robust.losses.cross_entropy import cross_entropy
from robust.losses.margin import margin
from robust.network.batches import images_at_once
from robust.network.expectation import Expected, is_random
from robust.network.inference import outside_inference
from robust.network.modes import Model, evaluating, keeping_buffers
from robust.threat import Threat

__all__ = ["EXAMINED", "not_finite", "suspect_model", "unbounded"]

EXAMINED = 200
"""images, at most, that a model is looked at with"""
ANY_IMAGE = Threat("linf", 1.0)
"""the ball that holds every image"""
SMALL = (1e-3, 1e-2)
"""noise under which the gradient must predict the change of the margin, in pixels of [0, 1]: below 1e-3 the rounding of
inputs to 16 bits counts, above 1e-2 the curvature of ordinary networks; the mean of both correlations decides"""
DRAWS = 2
"""of that noise, of each size"""
PREDICTS = 0.5
"""the least rank correlation of prediction and change: ordinary networks have 0.8 to 1, masked ones 0 to 0.2"""
PAIRS = 30
"""of predictions and changes that a correlation is taken of, at least"""
POINTS, POINTS_IF_UNSURE = 0.1, 0.05
"""shares of the images that the margin must break more than cross-entropy: in general, and where logits are small"""
UNSURE = 0.5
"""median probability of the predicted class below which logits are small: cross-entropy's gradient then points away
from the mean of all classes"""
QUERIES, ATTACKED = 100, 50
"""of the short Square attack: queries, and images (that withstand PGD) at most"""


@outside_inference
def suspect_model(
    model: Model, images: Tensor, targets: Tensor, *, threat: Threat, generator: torch.Generator | None = None
) -> tuple[str, ...]:
    """Return why attacks by gradients may fail on a model although it is not robust; empty where nothing is seen.

    Looked for: logits or gradients that are not finite, probabilities for logits, logits that differ from pass to pass,
    with the other images of the batch, or not at all; gradients taken inside the forward pass; input gradients that are
    zero, far below what noise does, or of no use to predict what small noise does; cross-entropy's gradient vanished
    (saturated softmax) where the margin's is not.

    Where nothing of this is seen, short attacks are compared. Ten steps of PGD on the margin must not break a tenth of
    the images more than on cross-entropy (a twentieth, if the logits are of small scale); 100 queries of Square (on
    images (N, C, H, W), where torchattacks is installed) or ten draws of noise not a tenth of what withstands both.

    Args:
        model: maps pixels (N, ...) in [0, 1] to logits (N, K), normalisation inside; in evaluation mode meanwhile.
        images: (N, ...) pixels in [0, 1]; at most 200 are taken, evenly spread, in one batch with gradients
            (fewer where the network is large, see `robust.batches`).
        targets: (N,) class indices.
        threat: whose ball the noise is drawn from, and whose norm is that of a step.
        generator: CPU generator of the noise; None takes torch's default.

    Raises:
        ValueError: images outside [0, 1], none, not as many as targets, fewer than two logits, or a class without one.

    A step function has no gradient to follow, and is not robust for that:

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
        with _Watch() as watch:
            logits = model(images).detach()
        _check_classes(logits, targets)
        reasons = ["takes gradients inside its forward pass: needs an attack of its own"] * watch.differentiates
        moved = model(noisy).detach()
        finite = logits.isfinite().all(1) & moved.isfinite().all(1)
        if not finite.all():
            return (*reasons, f"logits are not finite on {_share(~finite)} images")
        random = _suspect_answers(model, images, logits, moved, reasons)
        anything = torch.rand(images.shape, generator=torch.Generator().manual_seed(seeds[0])).to(images)
        spread = torch.cat([logits, model(anything).detach()]) - logits[0]
        if (spread.abs() <= _resolution(logits).amax()).all():
            return (*reasons, "logits do not depend on the image: no attack can act")
        totals = [f(_attached(model)(images.requires_grad_()), targets).sum() for f in (margin, cross_entropy)]
        of_margin, of_loss = (torch.autograd.grad(total, images)[0].double() for total in totals)
    finite = (of_margin.isfinite() & of_loss.isfinite()).flatten(1).all(1)
    if not finite.all():
        return (*reasons, f"input gradients are not finite on {_share(~finite)} images")
    right = logits.argmax(1) == targets
    change = (margin(moved, targets) - margin(logits, targets)).abs()
    moves = (change > _resolution(logits)) & (not random)
    slope = of_margin.abs().flatten(1).sum(1)  # change of the margin when every pixel moves by 1 as it likes
    flat = slope < _resolution(logits)
    expected = (of_margin * (noisy - images.detach())).abs().flatten(1).sum(1)
    blind = flat | (moves & (change > 100 * expected))
    zero, n = blind & right, int(right.sum())
    if zero.any() and zero.sum() >= max(3, 0.05 * n):
        moving = int((zero & moves).sum())
        acts = f", though noise moves the logits of {moving}: {ANY_STEP}" if moving else ""
        size = "far too small" if (zero & ~flat).any() else "zero"
        reasons.append(f"input gradient is {size} on {int(zero.sum())} of {n} images{acts}")
    # the ratio is about 1 - p of the target: below the precision the loss is 0, and its gradient may lead nowhere
    vanished = of_loss.abs().flatten(1).sum(1) < torch.finfo(logits.dtype).eps * slope
    taken, best = ((of_margin * threat.ascent(g)).flatten(1).sum(1) for g in (of_loss, of_margin))
    lost = right & ~blind & vanished & (taken < best / 2)
    if lost.sum() >= max(3, 0.1 * n):
        saturated = f"cross-entropy gradient vanishes on {int(lost.sum())} of {n} images (saturated softmax)"
        reasons.append(f"{saturated}, the margin's does not: attack the margin or DLR, use {MARGIN}")
    if reasons:
        return tuple(reasons)
    images = images.detach()
    with torch.no_grad(), evaluating(model), keeping_buffers(model):
        who = ~blind
        where = (images[who], targets[who], of_margin[who])
        reasons += _suspect_direction(model, *where, margin(logits, targets)[who], _resolution(logits)[who], seeds[0])
    if right.any() and threat.eps > 0 and not reasons:
        with evaluating(model), keeping_buffers(model):
            reasons += _compare_attacks(model, images[right], targets[right], threat, len(images), seeds[-1])
    return tuple(reasons)


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
        if moves.sum() >= PAIRS:  # else the model does not see noise so small, and there is nothing to predict
            found.append(_rank_correlation(predicted[moves], changed[moves]))
    mean = sum(found) / max(1, len(found))
    if not found or mean >= PREDICTS:
        return []
    return [f"the input gradient does not predict the margin (correlation {mean:.2f}): {ANY_STEP}"]


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    """Return Spearman's correlation of two (N,): a few kinks of the network do not count for more than others."""
    ranks = torch.stack([each.argsort().argsort().double() for each in (a, b)])
    return torch.corrcoef(ranks)[0, 1].item()


def _compare_attacks(model: Model, images: Tensor, targets: Tensor, threat: Threat, total: int, seed: int) -> list[str]:
    """Return a reason where a short attack of another kind breaks what PGD on cross-entropy does not.

    All images are classified right; `total` counts those that are not, too.
    """

    def breaks(found: Tensor, who: Tensor | slice = slice(None)) -> Tensor:
        with torch.no_grad():
            return model(found).argmax(1) != targets[who]

    step = {"threat": threat, "steps": 10, "step_size": threat.eps / 4}
    by_loss, by_margin = (
        breaks(pgd(model, images, targets, objective=each, generator=torch.Generator().manual_seed(seed), **step))
        for each in ("ce", "margin")
    )
    wins, losses = int((by_margin & ~by_loss).sum()), int((by_loss & ~by_margin).sum())
    with torch.no_grad():
        unsure = model(images).softmax(1).amax(1).median() < UNSURE
    if sign_test(wins, losses) < LEVEL and wins - losses >= (POINTS_IF_UNSURE if unsure else POINTS) * total:
        weak = f"cross-entropy PGD is weak here: the margin loss breaks more, {wins} to {losses}"
        return [f"{weak}: attack the margin or DLR, use {MARGIN}"]
    stand = (~by_loss & ~by_margin).nonzero().flatten()
    stand = stand[:: max(1, -(-len(stand) // ATTACKED))]
    for name, attack in (("noise", Noise(threat, draws=10)), ("black-box square", Square(threat, queries=QUERIES))):
        if len(stand) < FEW:
            break
        try:
            found = attack(model, images[stand], targets[stand], generator=torch.Generator().manual_seed(seed))
        except (ValueError, ModuleNotFoundError):  # images that Square does not take, or no torchattacks
            continue
        fallen = int(breaks(found, stand).sum())
        if fallen >= max(FEW, 0.1 * len(stand)):
            return [f"{name} breaks {fallen} of {len(stand)} images that withstand PGD: {ANY_STEP}"]
    return []


def _suspect_answers(model: Model, images: Tensor, logits: Tensor, moved: Tensor, reasons: list[str]) -> bool:
    """Add what is wrong with a model's answers; return whether they are random."""
    coarse, scale = torch.finfo(logits.dtype).eps ** 0.5, logits.abs().amax()
    random = any(((model(images).detach() - logits).abs() > coarse * scale).any() for _ in range(4))
    if random:
        reasons.append(f"random: two passes differ: average attacks over the randomness, use {AVERAGED}")
    elif len(images) > 1:
        alone = torch.cat([model(part).detach() for part in images.tensor_split(2)])
        if ((alone - logits).abs() > max(coarse, 0.01) * scale).any():
            reasons.append("logits depend on the other images of the batch")
    if (logits >= 0).all() and ((logits.sum(1) - 1).abs() <= coarse).all():
        reasons.append(f"outputs are probabilities: give logits, or use {MARGIN}")
    elif all((each >= 0).all() and (each <= 1).all() for each in (logits, moved)) and (logits != logits[0, 0]).any():
        reasons.append(f"outputs lie in [0, 1]: give logits, or use {MARGIN}")
    return random


def _resolution(logits: Tensor) -> Tensor:
    """Return the least difference of logits that is not rounding, (N,)."""
    return 16 * torch.finfo(logits.dtype).eps * logits.abs().amax(1)


class _Watch(TorchFunctionMode):
    """Tells whether gradients were taken inside the block."""

    differentiates = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.autograd.grad, torch.autograd.backward, Tensor.backward):
            self.differentiates = True
        return func(*args, **(kwargs or {}))


def _attached(model: Model) -> Model:
    """Return the model with a gradient of zero where it has none at all."""
    return lambda x: model(x) + 0 * x.flatten(1).sum(1, keepdim=True)


def _check_classes(logits: Tensor, targets: Tensor) -> None:
    if logits.shape[:-1] != targets.shape or logits.shape[-1] < 2 or not logits.is_floating_point():
        raise ValueError(f"the model gives {logits.dtype} {tuple(logits.shape)}; logits are floats (N, classes >= 2)")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(f"targets range over {low}..{high}; the model has classes 0..{logits.shape[1] - 1}")


@outside_inference
def unbounded(
    model: Model, images: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
) -> tuple[str, ...]:
    """Return a reason where an attack that may choose any image still fails: then gradients are masked.

    100 steps of PGD of length 0.1 on cross-entropy at linf 1.0, which every network with useful gradients loses on
    every image (Athalye et al. 2018, section 3.1). Who stands is attacked on the margin too, to tell which loss is at
    fault. Nothing is said of a model with random answers: a single one of them means nothing.

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

    def attacked(x: Tensor, y: Tensor, **objective: Any) -> Tensor:
        found = pgd(
            _attached(model), x, y, threat=ANY_IMAGE, steps=100, step_size=0.1, generator=generator, **objective
        )
        return (model(found).argmax(1) == y) | ~found.isfinite().flatten(1).all(1)

    with evaluating(model), torch.no_grad():
        stand = attacked(images, targets)
        if not stand.any():
            return ()
        reason = f"{_share(stand)} images stand at {_written(ANY_IMAGE)}: masked gradients"
        by_margin = not attacked(images[stand], targets[stand], objective="margin").any()
    return (f"{reason}, not the margin's: use {MARGIN}" if by_margin else reason,)


def not_finite(model: Model, images: Tensor) -> tuple[str, ...]:
    """Return a reason where logits are not finite: then no accuracy means anything, clean or under attack.

    Args:
        model: as in `suspect_model`.
        images: (N, ...) pixels in [0, 1]; at most 200 are taken, evenly spread.
    """
    with torch.no_grad(), evaluating(model), keeping_buffers(model):
        every = max(1, -(-len(images) // images_at_once(model, images, most=EXAMINED)))
        finite = model(images[::every]).isfinite().all(1)
    return () if finite.all() else (f"logits are not finite on {_share(~finite)} images",)


def _share(who: Tensor) -> str:
    return f"{int(who.sum())} of {len(who)}"


def _written(threat: Threat) -> str:
    return f"{threat.norm} {threat.eps:.4g}"
