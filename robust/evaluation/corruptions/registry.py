"""Common corruptions at five severities: the kinds of CIFAR-10-C (Hendrycks & Dietterich 2019, arXiv 1903.12261).

`COMMON` names the fifteen kinds of the benchmark. `CORRUPTIONS` has `saturate` too, one of the authors' four extra
kinds, which needs colour images. Levels are those of the authors' code for 32 px (hendrycks/robustness,
make_cifar_c.py). On larger images, lengths (radii, displacements, flakes) grow with the side of the image. Each example
has its own random stream, so that its corruption does not depend on the batch.

Deviations from the authors' code: frost adds a generated texture, not a photograph of ice (see `frost`); kernels of the
blurs are sampled bilinearly; fog is a sum of octaves of noise, not a diamond-square fractal; nothing is rounded to 8
bits between two steps; a grey pixel stays grey when saturated (in the authors' code it turns red); JPEG is Pillow's.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from robust.attacks.pgd import check_pixels
from robust.evaluation.corruptions.blur import defocus_blur, glass_blur, motion_blur, zoom_blur
from robust.evaluation.corruptions.digital import elastic_transform, jpeg, pixelate
from robust.evaluation.corruptions.light import brightness, contrast, saturate
from robust.evaluation.corruptions.noise import gaussian_noise, impulse_noise, shot_noise
from robust.evaluation.corruptions.weather import fog, frost, snow
from robust.per_example import streams

__all__ = ["COMMON", "CORRUPTIONS", "SEVERITIES", "corrupt", "corruptions_for"]

SEVERITIES = (1, 2, 3, 4, 5)

Levels = Sequence[Sequence[float]]

COMMON = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg",
)
"""the fifteen kinds that the mean corruption error averages over, in the order of the paper's tables"""

CORRUPTIONS: dict[str, tuple[Callable[..., Tensor], Levels]] = {
    "gaussian_noise": (gaussian_noise, [(0.04,), (0.06,), (0.08,), (0.09,), (0.10,)]),
    "shot_noise": (shot_noise, [(500,), (250,), (100,), (75,), (50,)]),
    "impulse_noise": (impulse_noise, [(0.01,), (0.02,), (0.03,), (0.05,), (0.07,)]),
    "defocus_blur": (defocus_blur, [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)]),
    "glass_blur": (glass_blur, [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)]),
    "motion_blur": (motion_blur, [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)]),
    "zoom_blur": (zoom_blur, [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)]),
    "snow": (
        snow,
        [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
    ),
    "frost": (frost, [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)]),
    "fog": (fog, [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)]),
    "brightness": (brightness, [(0.05,), (0.10,), (0.15,), (0.20,), (0.30,)]),
    "contrast": (contrast, [(0.75,), (0.50,), (0.40,), (0.30,), (0.15,)]),
    "saturate": (saturate, [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)]),
    "elastic_transform": (
        elastic_transform,
        [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
    ),
    "pixelate": (pixelate, [(0.95,), (0.90,), (0.85,), (0.75,), (0.65,)]),
    "jpeg": (jpeg, [(80,), (65,), (58,), (50,), (40,)]),
}
"""name -> (function, its parameters at severities 1 to 5)"""


def corrupt(images: Tensor, name: str, severity: int, generator: torch.Generator | None = None) -> Tensor:
    """Return corrupted images.

    Args:
        images: (N, C, H, W) pixels in [0, 1].
        name: of CORRUPTIONS.
        severity: 1 to 5.
        generator: CPU generator of the randomness; None is torch's default.

    Returns:
        (N, C, H, W) in [0, 1].

    Raises:
        ValueError: an unknown name or severity, images outside [0, 1] or not (N, C, H, W), or saturation of grey ones.
        ModuleNotFoundError: `jpeg` without Pillow.

    >>> grey = torch.full((1, 1, 2, 2), 0.5)
    >>> round(corrupt(grey, "brightness", 5).max().item(), 3)
    0.8
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"unknown corruption {name!r}; choose from {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity is {severity}; choose from {', '.join(map(str, SEVERITIES))}")
    check_pixels(images)
    if images.ndim != 4:
        raise ValueError(f"images are {tuple(images.shape)}; corruptions take (N, C, H, W)")
    if name not in corruptions_for(images.shape[1]):
        raise ValueError(f"{name} does nothing to grey images; choose from {', '.join(corruptions_for(1))}")
    generators = streams(len(images), generator)
    if not generators:
        return images.clone()
    function, levels = CORRUPTIONS[name]
    with torch.no_grad():
        return function(images, generators, *levels[severity - 1]).clamp(0.0, 1.0)


def corruptions_for(channels: int) -> tuple[str, ...]:
    """Return the names of the corruptions that change images of this number of channels."""
    return tuple(name for name in CORRUPTIONS if name != "saturate" or channels > 1)
