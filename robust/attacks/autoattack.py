"""AutoAttack (Croce & Hein 2020, arXiv 2003.01690): each attack runs on the examples that withstand all before it.

The standard version is APGD on cross-entropy, 100 steps; targeted APGD, 100 steps for each of 9 classes; targeted FAB,
100 steps for each of 9; Square, 5000 queries. The version "rand", for models with random answers, is APGD on
cross-entropy, then on the difference of logits ratio, 100 steps each, gradients averaged over 20 forward passes; an
image keeps the point of the larger expected margin.
Steps and queries are no fields, since an attack with fewer steps is not AutoAttack. (torchattacks' class of that name
takes 10 steps; `torchattacks_runner` lists further differences.)

Below four classes the targeted ratio of logits is not defined, and the second attack is APGD on cross-entropy from
another start. With K < 10 classes, both targeted attacks try all K - 1 wrong classes.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from robust.attacks.apgd import APGD
from robust.attacks.fab import FAB
from robust.attacks.pgd import check_pixels
from robust.attacks.record import Cascade
from robust.attacks.square import Square
from robust.network.expectation import PASSES, Expected
from robust.network.inference import outside_inference
from robust.network.modes import Model, evaluating
from robust.registry import Named
from robust.threat import Threat

__all__ = ["AutoAttack"]

Version = Literal["standard", "rand"]


@dataclass(frozen=True)
class AutoAttack:
    """AutoAttack as an `Attack`. The standard version takes images (N, C, H, W), as Square does.

    Raises:
        ValueError: an unknown version.
    """

    threat: Threat
    """the ball"""
    version: Version = "standard"
    """"standard", or "rand" for models with random answers"""

    def __post_init__(self) -> None:
        if self.version not in get_args(Version):
            raise ValueError(f"version is {self.version!r}; choose from {', '.join(get_args(Version))}")

    @property
    def eot(self) -> int:
        """Forward passes that gradients and answers are averaged over."""
        return PASSES if self.version == "rand" else 1

    def members(self) -> tuple[APGD | FAB | Square, ...]:
        """Return the attacks of the cascade in their order."""
        if self.version == "rand":
            return tuple(APGD(self.threat, loss=loss, steps=100, restarts=1, eot=PASSES) for loss in ("ce", "dlr"))
        return (
            APGD(self.threat, loss="ce", steps=100, restarts=1),
            APGD(self.threat, loss="targeted", steps=100, restarts=1, targets=9),
            FAB(self.threat, steps=100, restarts=1, targeted=True, targets=9),
            Square(self.threat, queries=5000, restarts=1),
        )

    @outside_inference
    def __call__(
        self, model: Model, images: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return a misclassified point of the ball for each image, or the image where no attack finds one.

        Args:
            model: maps pixels (N, C, H, W) in [0, 1] to logits (N, K), normalisation inside; in evaluation mode
                meanwhile.
            images: (N, C, H, W) pixels in [0, 1].
            targets: (N,) class indices.
            generator: CPU generator of the seeds of the attacks; None takes torch's default.

        Returns:
            (N, C, H, W) in [0, 1] and in the ball; images that are misclassified from the start unchanged.

        Raises:
            ValueError: images outside [0, 1], or of a shape that Square does not take.
            ModuleNotFoundError: torchattacks is not installed.
        """
        check_pixels(images)
        images = images.detach()
        members = self.members()
        for member in members:
            if isinstance(member, Square):
                member.check_shape(images)
        if self.threat.eps == 0 or len(images) == 0:
            return images.clone()
        expected_model = Expected(model, self.eot) if self.eot > 1 and not isinstance(model, Expected) else model
        with evaluating(model), torch.no_grad():
            cascade = Cascade(images, targets, expected_model(images), isinstance(expected_model, Expected))
        for member in members:
            standing = cascade.standing
            if len(standing) == 0:
                break
            points = member(model, images[standing], targets[standing], generator=generator)
            with evaluating(model), torch.no_grad():
                cascade.update(points, expected_model(points))
        return cascade.images


NAMED: Named = {"autoattack": AutoAttack}
