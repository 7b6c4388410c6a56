"""Corruptions by weather: snow, frost and fog."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robust.evaluation.corruptions.sampling import Streams, affine_grid, dragged, length_scale, warped

__all__ = ["fog", "frost", "snow"]


def snow(
    images: Tensor,
    streams: Streams,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    share: float,
) -> Tensor:
    """Whiten the image and add flakes, smeared along an angle of -135 to -45 degrees.

    Flakes are normal noise of `mean` and `deviation`, enlarged by `zoom`, where the noise is above the threshold; the
    layer of flakes is added twice, once turned by 180 degrees. A whitened pixel is share x pixel + (1 - share) x
    max(pixel, 1.5 x grey value + 0.5).

    Returns:
        (N, C, H, W).
    """
    scale, (height, width) = length_scale(images), images.shape[2:]
    noise = [torch.randn(1, height, width, generator=g) for g in streams]
    angles = -torch.stack([torch.rand((), generator=g) for g in streams]).to(images) * math.pi / 2 - math.pi / 4
    layer = mean + deviation * torch.stack(noise).to(images)
    layer = warped(layer, affine_grid(layer, zoom=zoom * scale))
    layer = torch.where(layer < threshold, 0.0, layer).clamp(0.0, 1.0)
    layer = dragged(layer, angles, 2 * math.ceil(radius * scale), sigma * scale)
    white = share * images + (1 - share) * torch.maximum(images, 1.5 * _grey(images) + 0.5)
    return white + layer + layer.flip(2, 3)


def frost(images: Tensor, streams: Streams, share: float, ice: float) -> Tensor:
    """Dim the image to a share and add ice: share x image + ice x texture.

    The weights are the authors'. The authors' texture is a random crop of one of five photographs; the texture here is
    generated, so that no download is needed. It is noise in streaks with the properties measured on the authors'
    photographs at their scale for 32 px: mean grey 0.48 to 0.81, standard deviation within 32 x 32 pixels 0.04 to 0.11,
    a power spectrum that falls with an exponent of 2.0 to 2.8, blue above red by 0.05 to 0.35.

    Returns:
        (N, C, H, W).
    """
    channels, height, width = images.shape[1:]
    texture = torch.stack([_ice(channels, height, width, g) for g in streams]).to(images)
    return share * images + ice * texture


def fog(images: Tensor, streams: Streams, strength: float, decay: float) -> Tensor:
    """Add a cloud to the image, then scale the image so that its brightest value is unchanged."""
    side = images.shape[-1]
    cloud, size, weight = torch.zeros(len(images), 1, *images.shape[2:]), 2, 1.0
    while size <= side:
        noise = torch.stack([torch.rand(1, size, size, generator=g) for g in streams])
        cloud += weight * F.interpolate(noise, images.shape[2:], mode="bilinear", align_corners=True)
        size, weight = 2 * size, weight / decay
    low, high = cloud.amin((1, 2, 3), keepdim=True), cloud.amax((1, 2, 3), keepdim=True)
    brightest = images.amax((1, 2, 3), keepdim=True)
    foggy = images + strength * ((cloud - low) / (high - low).clamp_min(1e-12)).to(images)
    return foggy * brightest / (brightest + strength)


def _grey(images: Tensor) -> Tensor:
    """Return (N, 1, H, W): luma of three channels, else their mean."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def _ice(channels: int, height: int, width: int, stream: torch.Generator) -> Tensor:
    """Return a texture of ice (channels, height, width) in [0, 1]; see `frost`."""
    level, contrast, tint, angle = torch.rand(4, generator=stream).tolist()
    noise = torch.randn(height, width, generator=stream)
    down = torch.fft.fftfreq(height)[:, None] * max(height, width)
    across = torch.fft.rfftfreq(width) * max(height, width)
    turn = math.pi * angle
    along, over = across * math.cos(turn) + down * math.sin(turn), down * math.cos(turn) - across * math.sin(turn)
    distance = ((2 * along).square() + (over / 2).square()).sqrt().clamp_min(1.0)  # streaks, four times as long as wide
    field = torch.fft.irfft2(torch.fft.rfft2(noise) * distance**-1.1, s=(height, width))  # power of exponent 2.2
    field = (field - field.mean()) / field.std().clamp_min(1e-12)
    grey = (0.48 + 0.33 * level) + (0.04 + 0.07 * contrast) * field
    if channels == 3:
        grey = grey + (0.05 + 0.3 * tint) * torch.tensor([-0.6, 0.2, 0.4])[:, None, None]
    return grey.expand(channels, height, width).clamp(0.0, 1.0)
