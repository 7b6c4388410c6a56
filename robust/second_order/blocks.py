"""Work on a few images at a time, on a CPU: its intermediate results stay in the cache of a core.

A result of the size of a batch passes through main memory, and its memory is often new to the process: the system then
maps and clears it page by page, which takes longer than the arithmetic.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["blocks", "in_blocks"]

BYTES = 2**20
"""of one tensor of a block, for each thread"""


def in_blocks(x: Tensor) -> bool:
    """Tell whether work on `x` pays in blocks: memory of a CPU in rows, and nothing that traces or counts operators."""
    if x.device.type != "cpu" or not x.is_contiguous() or x.numel() == 0:
        return False
    return not (torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active())


def blocks(x: Tensor) -> Iterator[slice]:
    """Return slices of the first dimension that cover it.

    >>> [range(5)[part] for part in blocks(torch.empty(5, BYTES * torch.get_num_threads() // 8))]
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    images = max(1, BYTES * torch.get_num_threads() // (x[0].numel() * x.element_size()))
    return (slice(start, start + images) for start in range(0, len(x), images))
