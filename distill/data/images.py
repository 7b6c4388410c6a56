"""The common interface of a tensor of images and of images that stay in files."""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Images"]


class Images(Protocol):
    """Images (N, C, H, W), float32: a Tensor, `Shards` of safetensors files, or `ImageFiles` decoded when read.

    `images[:]` is the tensor of all of them, in memory.
    """

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        ...

    @property
    def ndim(self) -> int:
        """Number of dimensions, 4."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Type of the tensors that indexing returns."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the tensors that indexing returns."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, which: int | slice | Tensor, /) -> Tensor:
        """Return one image (C, H, W), or several (n, C, H, W) by slice, indices (n,) or mask (N,)."""
        ...

    def split(self, size: int, /) -> Iterable[Tensor]:
        """Return the images in chunks of `size`; the last chunk may be smaller."""
        ...

    def to(self, device: torch.device | str, /) -> "Images":
        """Return the same images on a device."""
        ...

    def numel(self) -> int:
        """Return N * C * H * W."""
        ...
