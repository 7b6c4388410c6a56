"""Work on a few images at a time, on a CPU: its intermediate results stay in the cache of a core.

A result of the size of a batch passes through main memory, and its memory is often new to the process: the system then
maps and clears it page by page, which takes longer than the arithmetic. `new_memory` asks for large pages instead.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["blocks", "in_blocks", "new_memory"]

BYTES = 2**20
"""of one tensor of a block, for each thread"""
PAGE, LARGE_PAGE = 2**12, 2**21
MADV_HUGEPAGE = 14


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


def new_memory(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Return an uninitialised tensor of the dtype of `like`, in pages of 2 MiB where Linux offers them to who asks.

    The request concerns the memory of this tensor alone, and is what PyTorch makes if THP_MEM_ALLOC_ENABLE is 1.
    """
    found = like.new_empty(shape)
    size = found.numel() * found.element_size()
    advise = _advise()
    if advise is not None and size >= 2 * LARGE_PAGE:
        start = -(-found.data_ptr() // PAGE) * PAGE
        advise(start, (found.data_ptr() + size - start) // PAGE * PAGE, MADV_HUGEPAGE)
    return found


@cache
def _advise() -> Callable[[int, int, int], Any] | None:
    if sys.platform != "linux":
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return advise
