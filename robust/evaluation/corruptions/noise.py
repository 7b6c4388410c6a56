"""Corruptions by noise, drawn for each value independently."""

import torch
from torch import Tensor

from robust.evaluation.corruptions.sampling import Streams, normal_noise, uniform_noise

__all__ = ["gaussian_noise", "impulse_noise", "shot_noise"]


def gaussian_noise(images: Tensor, streams: Streams, sigma: float) -> Tensor:
    """Add normal noise of standard deviation sigma."""
    return images + sigma * normal_noise(images, streams)


def shot_noise(images: Tensor, streams: Streams, photons: float) -> Tensor:
    """Draw a Poisson number of photons with mean pixel x `photons` for each value, and divide by `photons`."""
    counts = [torch.poisson(x * photons, generator=g) for x, g in zip(images.cpu(), streams, strict=True)]
    return torch.stack(counts).to(images) / photons


def impulse_noise(images: Tensor, streams: Streams, share: float) -> Tensor:
    """Set a share of the values to 0 or 1, half of them to each (salt and pepper)."""
    draws = uniform_noise(images, streams)
    return torch.where(draws < share, (draws < share / 2).to(images), images)
