"""The kernels of KIP's regression, in tiles which the processes divide.

A tile has some images, real or distilled, as rows, and some distilled images as columns. Its gradient is computed by
its columns alone: the kernel is symmetric, so that with G the gradient by K_ss = k(x_i, x_j)

    d/dx_j sum over a, b of G_ab k(x_a, x_b)  =  sum over i of (G_ij + G_ji) d/dx_j k(x_i, x_j),     x_i constant.

With S distilled images of n values and T real images, a step gathers the kernels, 8 S (S + T) bytes in float64, and
the gradient of the distilled images, 8 S n bytes (up to UNITS times as much for few images, whose rows are in several
parts).
"""

from collections.abc import Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from baselines.kip.kernels import Kernel
from distill.runs.divided import block, blocks, gathered

__all__ = ["kernels"]

UNITS = 16
"""least number of units (a part of the rows, for some columns) that the processes divide, with as many rows"""

Unit = tuple[Sequence[int], Sequence[int]]
"""consecutive numbers of rows and of columns"""


def kernels(kernel: Kernel, images: Tensor, targets: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Return the kernels of the distilled images with themselves and with real images, once differentiable by images.

    The backward pass computes each tile again, except where all pairs fit into one tile.

    Args:
        kernel: the symmetric kernel of two batches.
        images: (S, C, H, W), distilled.
        targets: (T, C, H, W), real; they have no gradient.
        chunk: number of pairs per tile, >= 1.

    Returns:
        the kernels (S, S) and (T, S), the same in every process.
    """
    k_ss, k_ts = _Kernels.apply(images, targets, kernel, chunk).split([len(images), len(targets)])
    return k_ss, k_ts


class _Kernels(torch.autograd.Function):
    """(S, C, H, W), (T, C, H, W) -> (S + T, S)."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, targets: Tensor, kernel: Kernel, chunk: int) -> Tensor:
        ctx.save_for_backward(images, targets)
        ctx.kernel, (ctx.units, ctx.down) = kernel, _units(len(images), len(images) + len(targets), chunk)
        keeps = ctx.needs_input_grad[0] and len(images) * (len(images) + len(targets)) <= chunk
        ctx.kept, values = [], [images.new_zeros(0)]
        for rows, columns in block(ctx.units):
            with torch.set_grad_enabled(keeps):
                leaf = _rows(images, columns).detach().requires_grad_(keeps)
                tiles = [kernel(_rows_of_both(images, targets, each), leaf) for each in _split(rows, ctx.down)]
            values += [tile.detach().flatten() for tile in tiles]
            if keeps:
                ctx.kept.append((leaf, tiles))
        sizes = [sum(len(rows) * len(columns) for rows, columns in each) for each in blocks(ctx.units)]
        flat = gathered(torch.cat(values), sizes).split([len(rows) * len(columns) for rows, columns in ctx.units])
        k = images.new_empty(len(images) + len(targets), len(images))
        for (rows, columns), of_unit in zip(ctx.units, flat, strict=True):
            k[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = of_unit.view(len(rows), len(columns))
        return k

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_k: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        images, targets = ctx.saved_tensors
        count = len(images)
        by_k = torch.cat([by_k[:count] + by_k[:count].T, by_k[count:]])
        gradients, (kept, ctx.kept) = [images[:0].detach()], (ctx.kept, [])  # a graph serves once
        for number, (rows, columns) in enumerate(block(ctx.units)):
            leaf, tiles = kept[number] if kept else (_rows(images, columns).detach().requires_grad_(), None)
            total = torch.zeros_like(leaf)
            for tile, each in enumerate(_split(rows, ctx.down)):
                with torch.enable_grad():
                    value = tiles[tile] if tiles else ctx.kernel(_rows_of_both(images, targets, each), leaf)
                weights = by_k[each[0] : each[-1] + 1, columns[0] : columns[-1] + 1]
                total += torch.autograd.grad(value, leaf, weights)[0]
            gradients.append(total)
        sizes = [sum(len(columns) for _, columns in each) for each in blocks(ctx.units)]
        parts = gathered(torch.cat(gradients), sizes).split(count)  # each part of the rows has all columns, in order
        return sum(parts, torch.zeros_like(images)), None, None, None


def _units(columns: int, rows: int, chunk: int) -> tuple[list[Unit], int]:
    """Return the units, and the most rows of a tile; neither depends on the number of processes.

    >>> _units(5, 9, 6)[0][:3]
    [(range(0, 1), range(0, 1)), (range(0, 1), range(1, 3)), (range(0, 1), range(3, 5))]
    """
    across = min(columns, isqrt(chunk))  # nearly square tiles, because each image of a tile adds a fixed cost
    of_columns = blocks(range(columns), -(-columns // across))
    parts = blocks(range(rows), min(rows, -(-UNITS // len(of_columns))))
    return [(part, each) for part in parts for each in of_columns], chunk // across


def _split(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _rows(images: Tensor, numbers: Sequence[int]) -> Tensor:
    return images[numbers[0] : numbers[-1] + 1]


def _rows_of_both(images: Tensor, targets: Tensor, numbers: Sequence[int]) -> Tensor:
    """Return rows of the images followed by the targets, without a copy of all of them."""
    first, end, count = numbers[0], numbers[-1] + 1, len(images)
    return torch.cat([images[first:end], targets[max(0, first - count) : max(0, end - count)]])
