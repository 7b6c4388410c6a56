"""A verdict on each accuracy: "ok", or "suspicious:" and the reasons that lie in the model and in the results."""

import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robust.attacks.autoattack import AutoAttack
from robust.attacks.gradient import SuspiciousModelWarning
from robust.attacks.noise import Noise
from robust.attacks.pgd import PGD
from robust.attacks.square import Square
from robust.attacks.transfer import Transfer
from robust.evaluation.advice import concerns
from robust.evaluation.checks import AttackResult, Kind, suspect_results, verdict
from robust.evaluation.short_attacks import unbounded
from robust.evaluation.sign_test import FEW
from robust.evaluation.suspicion import EXAMINED, not_finite, suspect_model
from robust.network.batches import images_at_once
from robust.network.expectation import is_random
from robust.network.inference import outside_inference
from robust.network.modes import Model
from robust.threat import Threat

__all__ = ["doubts_about", "examine", "result_of", "verdicts_of", "warn_if_suspicious"]

UNBOUNDED = 100
"""images on which an attack without bounds must succeed"""
USUAL = Threat("linf", 8 / 255)
"""the ball in which a model is examined where an attack has no threat"""


@outside_inference
def examine(
    model: Model,
    images: Tensor,
    targets: Tensor,
    threat: Threat,
    *,
    generator: torch.Generator | None = None,
    at_most: int = EXAMINED,
) -> tuple[str, ...]:
    """Return why attacks by gradients may fail on a model: `suspect_model`, and `unbounded` on the first 100 images.

    Args:
        model: maps pixels (N, ...) in [0, 1] to logits (N, K), normalisation inside; in evaluation mode meanwhile.
        images: (N, ...) pixels in [0, 1].
        targets: (N,) class indices.
        threat: of the attacks.
        generator: CPU generator of the checks' randomness; None takes torch's default.
        at_most: images that are examined in one batch, evenly spread; fewer where the network is large.
    """
    at_most = min(at_most, images_at_once(model, images[:2], most=EXAMINED))
    every = -(-len(images) // at_most)
    first = slice(0, min(UNBOUNDED, at_most))
    reasons = suspect_model(model, images[::every], targets[::every], threat=threat, generator=generator)
    return reasons + unbounded(model, images[first], targets[first], generator=generator)


def result_of(name: str, bools: Tensor, attack: Any, threat: Threat) -> AttackResult:
    """Return an entry for `suspect_results` with the kind of the attack; an attack of another library is a white box.

    Args:
        name: of the attack.
        bools: (N,), the examples that withstand the attack.
        attack: of this library or another.
        threat: its ball.
    """
    kind: Kind = "white"
    if isinstance(attack, PGD):
        kind = "white" if attack.steps > 1 else "single_step"
    elif isinstance(attack, (Square, Transfer)):
        kind = "black"
    elif isinstance(attack, Noise):
        kind = "noise"
    elif isinstance(attack, AutoAttack):
        kind = "ensemble"
    steps = attack.steps * attack.restarts if isinstance(attack, PGD) and kind == "white" else 0
    return AttackResult(name, bools, threat, kind, "pgd" if steps else "", steps)


def doubts_about(attack: Any, of_model: Sequence[str]) -> tuple[str, ...]:
    """Return the reasons to doubt a model that apply to the accuracy under this attack (see `concerns`)."""
    return tuple(reason for reason in of_model if concerns(reason, attack))


def verdicts_of(
    model: Model,
    images: Tensor,
    targets: Tensor,
    clean: Tensor,
    results: Mapping[str, tuple[Any, Tensor]],
    *,
    generator: torch.Generator | None = None,
    at_most: int = EXAMINED,
) -> dict[str, str]:
    """Return the verdict on the clean accuracy and on the accuracy under each attack, by name.

    Args:
        model: as in `examine`.
        images: (N, ...) pixels in [0, 1].
        targets: (N,) class indices.
        clean: bools (N,), the examples that are classified correctly.
        results: by name, the attack and bools (N,), the examples that withstand it.
        generator: CPU generator of the checks' randomness; None takes torch's default.
        at_most: images that are examined in one batch.

    Returns:
        "clean" first; "ok" for all where there are no images.
    """
    if len(images) == 0:
        return dict.fromkeys(["clean", *results], "ok")
    threats = {name: getattr(attack, "threat", None) for name, (attack, _) in results.items()}
    balls = {name: threat for name, threat in threats.items() if isinstance(threat, Threat)}
    largest = max(balls.values(), key=lambda threat: threat.eps, default=USUAL)
    of_model = examine(model, images, targets, largest, generator=generator, at_most=at_most) if results else ()
    rows = [result_of(name, results[name][1], results[name][0], ball) for name, ball in balls.items() if ball.eps > 0]
    of_results = suspect_results(clean, rows, random=is_random(model, images))
    found = {"clean": verdict(not_finite(model, images[:: -(-len(images) // at_most)]))}
    for name, (attack, _) in results.items():
        nothing = name in balls and balls[name].eps == 0
        found[name] = (
            found["clean"] if nothing else verdict((*of_results.get(name, ()), *doubts_about(attack, of_model)))
        )
    return found


@dataclass
class _Examined:
    """Results of the examinations of one model."""

    reasons: dict[Threat, tuple[Any, tuple[str, ...]]] = field(default_factory=dict)
    """by threat, the state of the model's tensors, and the reasons"""
    warned: set[tuple[str, ...]] = field(default_factory=set)
    """the reasons of earlier warnings"""


_EXAMINED: weakref.WeakKeyDictionary[Any, _Examined] = weakref.WeakKeyDictionary()


def warn_if_suspicious(model: Model, images: Tensor, targets: Tensor, attack: Any, *, at_most: int = EXAMINED) -> None:
    """Warn, once for a model and reason, that the accuracy under an attack may be too high.

    A module is examined once for each threat, and again when its parameters have changed; a plain function, behind
    which parameters may change unseen, each time. Fewer than 7 images are not examined.

    Args:
        model: as in `examine`.
        images: (N, ...) pixels in [0, 1].
        targets: (N,) class indices.
        attack: whose result is doubted.
        at_most: images that are examined in one batch.
    """
    threat = getattr(attack, "threat", None)
    threat = threat if isinstance(threat, Threat) else USUAL
    if len(images) < FEW or threat.eps == 0:
        return
    try:
        known = _EXAMINED.setdefault(model, _Examined())
    except TypeError:  # a model without a weak reference or a hash is examined each time
        known = _Examined()
    state = _state(model)
    if threat not in known.reasons or known.reasons[threat][0] != state or not isinstance(model, nn.Module):
        generator = torch.Generator().manual_seed(0)
        reasons = examine(model, images, targets, threat, generator=generator, at_most=at_most)
        known.reasons[threat] = state, reasons
    reasons = doubts_about(attack, known.reasons[threat][1])
    if reasons and reasons not in known.warned:
        known.warned.add(reasons)
        warnings.warn(f"robust accuracy is {verdict(reasons)}", SuspiciousModelWarning, stacklevel=4)


def _state(model: Model) -> tuple[Any, ...]:
    """Return a value that changes when a model's tensors are written to or replaced."""
    tensors = (*model.parameters(), *model.buffers()) if isinstance(model, nn.Module) else ()
    try:
        return tuple((id(tensor), tensor._version) for tensor in tensors)
    except RuntimeError:  # tensors made in inference mode have no version
        return ()
