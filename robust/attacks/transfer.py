"""A transfer attack: adversarial images of one network, the surrogate, are classified by another network."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robust.network.modes import Model, evaluating
from robust.threat import Threat

__all__ = ["Transfer"]


@dataclass(frozen=True)
class Transfer:
    """An attack on a surrogate, which never evaluates the attacked model.

    Raises:
        ValueError: the attack has iterate="worst", so that it stops at the first point that the surrogate
            misclassifies, or searches the nearest such point (CW, DeepFool, JSMA); such points transfer badly.
    """

    surrogate: Model = field(repr=False)
    """maps pixels to logits, normalisation inside; in evaluation mode meanwhile"""
    attack: Any
    """the attack on the surrogate, such as PGD with iterate="last" """

    def __post_init__(self) -> None:
        name, iterate = type(self.attack).__name__, getattr(self.attack, "iterate", "last")
        if iterate != "last":
            raise ValueError(f'iterate is {iterate!r}; a transfer attack takes {name} with iterate="last"')
        if getattr(self.attack, "minimum_norm", False):
            line = "it stops at the surrogate's boundary; a transfer attack takes one that stays in a ball, such as PGD"
            raise ValueError(f"attack is {name}; {line}")

    @property
    def threat(self) -> Threat:
        """The ball of the attack on the surrogate."""
        return self.attack.threat

    def __call__(
        self, model: Model, images: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the surrogate's adversarial images (N, ...) for pixels (N, ...) in [0, 1] and true classes (N,)."""
        with evaluating(self.surrogate):
            return self.attack(self.surrogate, images, targets, generator=generator)
