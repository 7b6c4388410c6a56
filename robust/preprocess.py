"""Preprocessing as the first layer of a model, so that images outside it are pixels in [0, 1]."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robust.ranges import shown

__all__ = ["Normalize"]


class Normalize(nn.Module):
    """(x - mean) / std per channel, for images (N, C, H, W).

    Args:
        mean: (C,) or (C, 1, 1), of pixels in [0, 1]: a list, an array or a tensor.
        std: as `mean`, > 0.

    Raises:
        ValueError: mean and std differ in length, a number is not finite, or a std is not > 0.
        TypeError: mean or std are no numbers.

    >>> layer = Normalize([0.5], [0.25])
    >>> x = torch.rand(2, 1, 3, 3)
    >>> bool(torch.allclose(layer.inverse(layer(x)), x, atol=1e-6))
    True
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor):
        super().__init__()
        means, stds = _numbers("mean", mean), _numbers("std", std)
        both = torch.stack([means, stds]).to(torch.get_default_dtype()) if len(means) == len(stds) else None
        if both is None or both.numel() == 0 or not both.isfinite().all() or not (both[1] > 0).all():
            m, s = shown(means.tolist()), shown(stds.tolist())
            raise ValueError(f"mean is {m} and std {s}; give a finite number per channel of each, std > 0")
        for name, value in (("mean", mean), ("std", std)):
            constants = torch.as_tensor(value, dtype=torch.get_default_dtype()).detach()
            self.register_buffer(name, constants.reshape(-1, 1, 1).clone())

    def forward(self, images: Tensor) -> Tensor:
        """Return normalised images, (N, C, H, W) -> (N, C, H, W)."""
        return (images - self.mean) / self.std

    def inverse(self, normalized: Tensor) -> Tensor:
        """Return the pixels of normalised images, not clamped."""
        return normalized * self.std + self.mean

    def extra_repr(self) -> str:
        """Return mean and std, for `repr`."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


def _numbers(name: str, value: Any) -> Tensor:
    """Return a list, an array or a tensor as numbers (C,) on the CPU, for any default device."""
    try:
        return torch.as_tensor(value, dtype=torch.float64, device="cpu").detach().flatten()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is {shown(value)}; give a number per channel: a list, an array or a tensor") from None
