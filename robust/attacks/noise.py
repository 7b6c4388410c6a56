"""Random noise of the size of an attack: what any attack must beat."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robust.attacks.pgd import check_pixels
from robust.network.inference import outside_inference
from robust.network.modes import Model
from robust.per_example import unit
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
    """points tried; the first that is misclassified counts, else the last"""

    def __post_init__(self) -> None:
        check_ranges(self)

    @torch.no_grad()
    @outside_inference
    def __call__(
        self, model: Model, images: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return noisy images (N, ...) in [0, 1] for pixels (N, ...) in [0, 1] and classes (N,).

        Each example has a stream of its own, drawn from the CPU generator (None is torch's default).
        """
        check_pixels(images)
        seeds = torch.randint(2**62, (len(images),), generator=generator).tolist()
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        result, standing = images.clone(), torch.ones(len(images), dtype=torch.bool, device=images.device)
        for _ in range(self.draws):
            who = standing.nonzero().flatten()
            if len(who) == 0:
                break
            noise = torch.stack([torch.randn(images.shape[1:], generator=streams[i]) for i in who.tolist()]).to(images)
            shift = self.threat.eps * (noise.sign() if self.threat.norm == "linf" else unit(noise))
            result[who] = (images[who] + shift).clamp(0.0, 1.0)
            standing[who] = model(result[who]).argmax(1) == targets[who]
        return result


NAMED: Named = {"noise": Noise}
