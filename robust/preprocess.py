"""Preprocessing as the first layer of a model, so that images outside it are pixels in [0, 1]."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Normalize"]


class Normalize(nn.Module):
    """(x - mean) / std per channel, for images (N, C, H, W).

    Raises:
        ValueError: mean and std differ in length, or a std is not > 0.

    >>> layer = Normalize([0.5], [0.25])
    >>> x = torch.rand(2, 1, 3, 3)
    >>> bool(torch.allclose(layer.inverse(layer(x)), x, atol=1e-6))
    True
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise ValueError(f"mean {tuple(mean)} and std {tuple(std)}: one of each per channel, std > 0")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.get_default_dtype()).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.get_default_dtype()).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return normalised images, (N, C, H, W) -> (N, C, H, W)."""
        return (images - self.mean) / self.std

    def inverse(self, normalized: Tensor) -> Tensor:
        """Return the pixels of normalised images, not clamped."""
        return normalized * self.std + self.mean

    def extra_repr(self) -> str:
        """Show the constants."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"
