"""Random noise of the size of an attack: the baseline that every attack must beat."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robust.attacks.pgd import check_pixels
from robust.network.inference import outside_inference
from robust.network.modes import Model
from robust.per_example import streams, unit
from robust.ranges import Count, check_ranges
from robust.registry import Named
from robust.threat import Threat

__all__ = ["Noise"]


@dataclass(frozen=True)
class Noise:
    """A random point of the ball's surface, cut to [0, 1]: linf +-eps in each pixel, l2 a uniform direction.

    Raises:
        ValueError: draws < 1.
    """

    threat: Threat
    """the ball"""
    draws: Count = 1
    """random points tried for each image; the first misclassified point is returned, else the last"""

    def __post_init__(self) -> None:
        check_ranges(self)

    @torch.no_grad()
    @outside_inference
    def __call__(
        self, model: Model, images: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return noisy images (N, ...) in [0, 1] for pixels (N, ...) in [0, 1] and classes (N,).

        Each example has its own random stream, seeded by the CPU generator (None is torch's default).
        """
        check_pixels(images)
        generators = streams(len(images), generator)
        result, standing = images.clone(), torch.arange(len(images), device=images.device)
        for _ in range(self.draws):
            if len(standing) == 0:
                break
            draws = [torch.randn(images.shape[1:], generator=generators[i]) for i in standing.tolist()]
            noise = torch.stack(draws).to(images)
            shift = self.threat.eps * (noise.sign() if self.threat.norm == "linf" else unit(noise))
            result[standing] = (images[standing] + shift).clamp(0.0, 1.0)
            standing = standing[model(result[standing]).argmax(1) == targets[standing]]
        return result


NAMED: Named = {"noise": Noise}
