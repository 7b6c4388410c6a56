"""Corruptions of light and colour: brightness, contrast and saturation."""

import torch
from torch import Tensor

from robust.evaluation.corruptions.sampling import Streams

__all__ = ["brightness", "contrast", "saturate"]


def brightness(images: Tensor, streams: Streams, more: float) -> Tensor:
    """Add `more` to the value of HSV; hue and saturation are unchanged."""
    value = images.amax(1, keepdim=True)
    return torch.where(value > 0, images / value.clamp_min(1e-12), 1.0) * (value + more).clamp_max(1.0)


def contrast(images: Tensor, streams: Streams, factor: float) -> Tensor:
    """Scale the distance of each pixel from the mean of its channel."""
    mean = images.mean((2, 3), keepdim=True)
    return mean + factor * (images - mean)


def saturate(images: Tensor, streams: Streams, factor: float, more: float) -> Tensor:
    """Scale and shift the saturation of HSV; hue and value are unchanged."""
    value, least = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    saturation = (value - least) / value.clamp_min(1e-12)
    wanted = (factor * saturation + more).clamp(0.0, 1.0)
    ratio = torch.where(saturation > 0, wanted / saturation.clamp_min(1e-12), 1.0)
    return value - ratio * (value - images)
