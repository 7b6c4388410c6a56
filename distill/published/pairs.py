"""Images and labels in no particular format: a tuple, a list, a dict or an .npz of the two."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.errors import InputError

__all__ = ["pair_in", "pixels_or_unsaid", "with_channels_first"]

IMAGES = ("images", "image", "imgs", "img", "x", "data", "inputs")
"""keys of the images, in lower case"""
LABELS = ("labels", "label", "y", "targets", "target")
"""keys of the labels"""
FAR = 0.05
"""images are pixels if at most this share of their values is outside [0, 1] by more than this"""


def pair_in(content: Any) -> tuple[tuple[Any, Any], str] | None:
    """Return images and labels, and the names of the other entries of a dict; None if there are no such two tensors.

    >>> x, y = torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])
    >>> [pair_in(each) is not None for each in ((x, y), {"x": x, "Y": y}, (x, y, y), {"data": [[x, y]]}, x)]
    [True, True, False, False, False]
    """
    if isinstance(content, (list, tuple)) and len(content) == 2 and all(map(_is_array, content)):
        return (content[0], content[1]), ""
    if not isinstance(content, Mapping):
        return None
    named = {key.lower(): key for key in content if isinstance(key, str) and _is_array(content[key])}
    ours, theirs = (next((named[n] for n in names if n in named), None) for names in (IMAGES, LABELS))
    if ours is None or theirs is None:
        return None
    return (content[ours], content[theirs]), ", ".join(str(key) for key in content if key not in (ours, theirs))


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def with_channels_first(path: Path, images: Tensor) -> Tensor:
    """Return images as (N, C, H, W), of (N, C, H, W), (N, H, W, C) or, grey, (N, H, W); C is 1 or 3.

    Raises:
        InputError: the images have another shape.
    """
    shape = tuple(images.shape)
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and shape[1] in (1, 3) and shape[2] == shape[3]:
        return images
    if images.ndim == 4 and shape[3] in (1, 3) and shape[1] == shape[2]:
        return images.permute(0, 3, 1, 2).contiguous()
    raise InputError(
        f"{path} has images of {shape}; expected squares as (N, C, H, H) or (N, H, H, C), C 1 or 3, or (N, H, H)"
    )


def pixels_or_unsaid(images: Tensor) -> tuple[Tensor, str, str]:
    """Return images (N, C, H, W) float32 with their space, "pixels" or "unsaid", and a note for the message.

    Whole numbers from 0 to 255 are read as bytes.
    """
    low, high = images.min().item(), images.max().item()
    images = images.float()
    if low >= 0 and 2 < high <= 255 and torch.equal(images, images.round()):
        return images / 255, "pixels", ", bytes, divided by 255"
    outside = ((images < -FAR) | (images > 1 + FAR)).float().mean().item()
    return images, "pixels" if outside <= FAR else "unsaid", ""
