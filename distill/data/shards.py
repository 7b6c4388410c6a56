"""Images of a set that is larger than memory: rows of safetensors files, read on demand."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from distill.errors import InputError
from distill.runs.foreign import brief, refuse_irregular

__all__ = ["Shards"]


class Shards:
    """The tensors `images` (n, C, H, W) of several files, used like one tensor (N, C, H, W).

    Args:
        paths: the files, whose rows are concatenated.
        rows: (N,) indices of the selected rows, in order; None for all rows.
        device: device of the tensors that are read.

    Raises:
        InputError: a file is missing or damaged, or shapes differ.
    """

    dtype = torch.float32
    ndim = 4

    def __init__(self, paths: Sequence[Path], rows: Tensor | None = None, device: torch.device | str = "cpu"):
        self.paths, self.device = list(paths), torch.device(device)
        self._begins = [0]
        shapes: dict[tuple[int, ...], Path] = {}
        shape: list[int] = []
        for path in self.paths:
            count, *shape = self._shape_of(path)
            shapes[tuple(shape)] = path
            self._begins.append(self._begins[-1] + count)
        if len(shapes) != 1:
            found = " and ".join(f"{file.name} {shape}" for shape, file in shapes.items()) or "no file"
            raise InputError(f"the images of a set must be of one shape; {found[:200]}")
        self.rows = torch.arange(self._begins[-1]) if rows is None else rows.cpu()
        self.shape = torch.Size([len(self.rows), *shape])

    @staticmethod
    def _shape_of(path: Path) -> list[int]:
        refuse_irregular(path)
        try:
            with safe_open(path, "pt") as file:
                shape = file.get_slice("images").get_shape()
        except Exception as error:  # safetensors has one exception class for all errors, which is not public
            raise InputError(f"{path} is not a whole file of images ({brief(error)})") from None
        if len(shape) != 4:
            raise InputError(f"{path} is not a whole file of images (they are {tuple(shape)}, not (N, C, H, W))")
        return shape

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: slice | Tensor | int) -> Tensor:
        if isinstance(which, int):
            return self._read(self.rows[which : which + 1 or None])[0]
        return self._read(self.rows[which.cpu() if isinstance(which, Tensor) else which])

    def _read(self, rows: Tensor) -> Tensor:
        out = torch.empty(len(rows), *self.shape[1:])
        by_file: dict[int, list[int]] = {}
        for index, row in enumerate(rows.tolist()):
            by_file.setdefault(bisect_right(self._begins, row) - 1, []).append(index)
        for number, indices in by_file.items():
            with safe_open(self.paths[number], "pt") as file:
                images = file.get_slice("images")
                for index in indices:
                    at = int(rows[index]) - self._begins[number]
                    out[index] = images[at : at + 1][0]
        return out.to(self.device)

    def split(self, n: int) -> Iterator[Tensor]:
        """Yield the images in chunks of n."""
        for begin in range(0, len(self), n):
            yield self[begin : begin + n]

    def to(self, device: torch.device | str) -> "Shards":
        """Return the same images, with tensors read to another device."""
        return Shards(self.paths, self.rows, device)

    def numel(self) -> int:
        """Return N * C * H * W."""
        return self.shape.numel()
