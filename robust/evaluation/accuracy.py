"""Accuracy, clean and under attack, as one bool for each example; callers take the averages.

A model whose answers are random (dropout or noise at evaluation) is attacked through its expected answer over 20 passes
(see `robust.network.expectation`). The adversarial images are classified by one random answer, as in AutoAttack's
version "rand".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robust.attacks.pgd import check_pixels
from robust.evaluation.checks import check_adversarial
from robust.evaluation.suspicion import EXAMINED
from robust.evaluation.verdicts import verdicts_of, warn_if_suspicious
from robust.network.batches import images_at_once
from robust.network.expectation import Expected, expected
from robust.network.inference import outside_inference
from robust.network.modes import Model, evaluating
from robust.threat import Threat

__all__ = ["Report", "accuracy", "correct", "evaluate", "least_distances", "radius", "robust_accuracy", "withstands"]

Attack = Callable[..., Tensor]


@dataclass(frozen=True)
class Report:
    """Whether each example is classified correctly, clean and under each attack: bools (N,), robust <= clean."""

    clean: Tensor
    attacks: dict[str, Tensor]
    verdicts: dict[str, str] = field(default_factory=dict)
    """by "clean" and name of the attack: "ok", or "suspicious:" and the reasons; empty where the checks are off"""

    def accuracy(self, attack: str = "clean") -> float:
        """Return the accuracy in percent, clean or under one attack."""
        return 100.0 * (self.clean if attack == "clean" else self.attacks[attack]).double().mean().item()

    def worst(self) -> Tensor:
        """Return which examples withstand every attack, bools (N,)."""
        return torch.stack([self.clean, *self.attacks.values()]).all(0)


@torch.no_grad()
def correct(model: Model, images: Tensor, targets: Tensor, *, batch_size: int | None = None) -> Tensor:
    """Return which examples are classified correctly, bools (N,), with the model in evaluation mode.

    Args:
        model: maps pixels in [0, 1] to logits (N, K), normalisation inside.
        images: (N, ...) pixels in [0, 1].
        targets: (N,) class indices.
        batch_size: images of one forward pass; None follows from the network (see `robust.network.batches`), at most
            500.

    Raises:
        ValueError: images outside [0, 1], or targets of another shape.
    """
    check_pixels(images)
    if targets.shape != images.shape[:1]:
        raise ValueError(f"targets are {tuple(targets.shape)}; they must be class indices ({len(images)},)")
    return _classified_correctly(model, images, targets, images_at_once(model, images, batch_size))


def _classified_correctly(model: Model, images: Tensor, targets: Tensor, batch_size: int) -> Tensor:
    with evaluating(model), torch.no_grad():
        batches = zip(images.split(batch_size), targets.split(batch_size), strict=True)
        return torch.cat([model(x).argmax(1) == y for x, y in batches])


@outside_inference
def withstands(
    model: Model,
    images: Tensor,
    targets: Tensor,
    attack: Attack,
    *,
    standing: Tensor | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Return which examples are classified correctly under the attack, bools (N,).

    Only standing examples are attacked. The attack's images are checked to lie in [0, 1] and in its ball, and are
    classified again. A minimum-norm attack may leave its ball; an example that it moves further than eps withstands it.

    Args:
        model: maps pixels in [0, 1] to logits (N, K), normalisation inside; put in evaluation mode meanwhile.
        images: (N, ...) pixels in [0, 1].
        targets: (N,) class indices.
        attack: (model, images, targets, *, generator) -> adversarial images.
        standing: bools (N,), the examples to attack; None for all correctly classified examples.
        generator: CPU generator of the attack's randomness.
        batch_size: images attacked together; None follows from the network (see `robust.network.batches`), at most
            500. The result of an attack with per-example randomness depends on it only by rounding.

    Raises:
        ValueError: images outside [0, 1].
        robust.evaluation.checks.ImpossibleResult: the attack leaves [0, 1] or its ball.
    """
    check_pixels(images)
    batch_size = _images_at_once(model, images, batch_size, attack)
    standing = correct(model, images, targets, batch_size=batch_size) if standing is None else standing
    if getattr(attack, "minimum_norm", False):
        options = {"standing": standing, "generator": generator, "batch_size": batch_size}
        return least_distances(model, images, targets, attack, **options) > radius(attack)
    result, attacked = torch.zeros_like(standing), _attacked_model(model, images, attack)
    with evaluating(model):
        for batch in standing.nonzero().flatten().split(batch_size) if standing.any() else ():
            adversarial = attack(attacked, images[batch], targets[batch], generator=generator)
            threat = getattr(attack, "threat", None)
            check_adversarial(f"{attack}", images[batch], adversarial, threat if isinstance(threat, Threat) else None)
            result[batch] = _classified_correctly(model, adversarial, targets[batch], batch_size)
    return result


@outside_inference
def least_distances(
    model: Model,
    images: Tensor,
    targets: Tensor,
    attack: Attack,
    *,
    standing: Tensor | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Return the distance of the adversarial image that a minimum-norm attack finds for each example, (N,).

    An example withstands the attack at eps if this distance is larger than eps.

    Args:
        model: as in `withstands`.
        images: (N, ...) pixels in [0, 1].
        targets: (N,) class indices.
        attack: has `distance(points, images) -> (N,)`, or a threat whose norm measures the distance.
        standing: as in `withstands`.
        generator: CPU generator of the attack's randomness.
        batch_size: as in `withstands`.

    Returns:
        0 for examples that are not standing, infinity where no misclassified point was found.
    """
    check_pixels(images)
    batch_size = _images_at_once(model, images, batch_size, attack)
    standing = correct(model, images, targets, batch_size=batch_size) if standing is None else standing
    result = torch.zeros(len(images), dtype=images.dtype, device=images.device)
    measure = getattr(attack, "distance", None) or attack.threat.distance  # pyright: ignore[reportFunctionMemberAccess]
    attacked = _attacked_model(model, images, attack)
    with evaluating(model):
        for batch in standing.nonzero().flatten().split(batch_size) if standing.any() else ():
            adversarial = attack(attacked, images[batch], targets[batch], generator=generator)
            check_pixels(adversarial)
            fooled = ~_classified_correctly(model, adversarial, targets[batch], batch_size)
            result[batch] = torch.where(fooled, measure(adversarial, images[batch]).to(result), torch.inf)
    return result


@outside_inference
def evaluate(
    model: Model,
    images: Tensor,
    targets: Tensor,
    attacks: Mapping[str, Attack],
    *,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    checks: bool = True,
) -> Report:
    """Return the report of a model under several attacks, each on all correctly classified examples.

    Args:
        model: as in `withstands`.
        images: (N, ...) pixels in [0, 1].
        targets: (N,) class indices.
        attacks: by name.
        generator: CPU generator of the attacks' randomness.
        batch_size: as in `withstands`.
        checks: whether to look for masked gradients, on at most 200 images, and give each accuracy a verdict.
    """
    clean = correct(model, images, targets, batch_size=batch_size)
    options = {"standing": clean, "generator": generator, "batch_size": batch_size}
    bools = {name: withstands(model, images, targets, attack, **options) for name, attack in attacks.items()}
    if not checks:
        return Report(clean, bools)
    results = {name: (attacks[name], found) for name, found in bools.items()}
    fixed = torch.Generator().manual_seed(0)
    at_most = _images_to_examine(model, images, batch_size)
    return Report(clean, bools, verdicts_of(model, images, targets, clean, results, generator=fixed, at_most=at_most))


def accuracy(model: Model, images: Tensor, targets: Tensor, *, batch_size: int | None = None) -> float:
    """Return the clean accuracy in percent, for pixels (N, ...) in [0, 1] and classes (N,)."""
    return 100.0 * correct(model, images, targets, batch_size=batch_size).double().mean().item()


@outside_inference
def robust_accuracy(
    model: Model,
    images: Tensor,
    targets: Tensor,
    attack: Attack,
    *,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    checks: bool = True,
) -> float:
    """Return the accuracy under an attack in percent: see `withstands`.

    Args:
        model: as in `withstands`.
        images: (N, ...) pixels in [0, 1].
        targets: (N,) class indices.
        attack: as in `withstands`.
        generator: CPU generator of the attack's randomness.
        batch_size: as in `withstands`.
        checks: whether to look for masked gradients, on at most 200 images, and to warn once
            (`SuspiciousModelWarning`) where the accuracy may be too high. A model is examined once for each threat, and
            again when its parameters have changed.
    """
    if checks:
        check_pixels(images)
        warn_if_suspicious(model, images, targets, attack, at_most=_images_to_examine(model, images, batch_size))
    bools = withstands(model, images, targets, attack, generator=generator, batch_size=batch_size)
    return 100.0 * bools.double().mean().item()


def _images_to_examine(model: Model, images: Tensor, batch_size: int | None) -> int:
    """Return with how many images the model is examined for masked gradients."""
    return min(EXAMINED, images_at_once(model, images, batch_size, most=EXAMINED))


def _images_at_once(model: Model, images: Tensor, batch_size: int | None, attack: Attack) -> int:
    """Return how many images to attack at once, which depends on the largest network that the attack evaluates."""
    others = (getattr(attack, "surrogate", None), getattr(attack, "bpda", None))
    return images_at_once(model, images, batch_size, others=others)


def _attacked_model(model: Model, images: Tensor, attack: Attack) -> Model:
    """Return the model, or its expected answer where its answers are random or the attack averages over passes."""
    passes = getattr(attack, "eot", 1)
    if passes > 1 and not isinstance(model, Expected):
        return Expected(model, passes)
    return expected(model, images)


def radius(attack: Attack) -> float:
    """Return the distance up to which a point of a minimum-norm attack is a success: eps of its threat or attack."""
    threat = getattr(attack, "threat", None)
    return threat.eps if isinstance(threat, Threat) else attack.eps  # pyright: ignore[reportFunctionMemberAccess]
