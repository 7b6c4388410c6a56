"""Training with Gaussian noise, as in randomised smoothing (Cohen et al. 2019, arXiv 1902.02918)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.losses.calling import takes_network
from robust.losses.cross_entropy import cross_entropy
from robust.losses.traits import Loss, Named, Traits
from robust.network.modes import Model
from robust.ranges import NonNegative, check_ranges

__all__ = ["GaussianNoise"]


@dataclass(frozen=True)
class GaussianNoise(Loss):
    """Mean cross-entropy at inputs + sigma x N(0, 1), not clamped.

    Raises:
        ValueError: sigma is not a finite number >= 0.
    """

    traits: ClassVar[Traits] = Traits("pixels", random=True, strength="sigma")

    sigma: NonNegative = 0.25
    """standard deviation, in pixels of [0, 1]"""

    def __post_init__(self) -> None:
        check_ranges(self)

    @takes_network
    def __call__(
        self, model: Model, inputs: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the mean loss, a scalar.

        Args:
            model: maps pixels to logits (N, K).
            inputs: (N, ...) pixels.
            targets: (N,) class indices or (N, K) probabilities.
            generator: CPU generator of the noise; None is torch's default.
        """
        noise = torch.randn(inputs.shape, generator=generator).to(inputs)
        return cross_entropy(model(inputs + self.sigma * noise), targets).mean()


NAMED: Named = {"noise": lambda threat: GaussianNoise()}
