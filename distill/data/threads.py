"""Work on many files in threads, with progress."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info
from tqdm import tqdm

from distill.runs.progress import progress
from distill.runs.threads import cores

__all__ = ["file_bar", "in_threads"]

_CHUNK = 256
"""blocks of files submitted to the threads at a time, so that a list of millions of files takes no extra memory"""
_MANY = 2000
"""more files than this show a progress bar"""
_MOST_THREADS = 16
"""more threads would wait for Python's global lock"""


def file_bar(description: str, total: int) -> tqdm:
    """Return a progress bar over files, which shows nothing for few of them."""
    return progress(description, total, unit="file") if total > _MANY else tqdm(disable=True)


def in_threads(function: Callable, items: Sequence[Any] | np.ndarray) -> Iterator:
    """Yield a function of each item, in order, computed in several threads if several cores are available."""
    count = min(_threads(), len(items))
    if count <= 1:
        yield from map(function, items)
        return
    block = max(1, min(16, len(items) // (4 * count)))  # submitting small images singly costs more than decoding

    def of_block(begin: int) -> list:
        return [function(item) for item in items[begin : begin + block]]

    begins = range(0, len(items), block)
    with ThreadPoolExecutor(count) as pool:
        for at in range(0, len(begins), _CHUNK):
            for done in pool.map(of_block, begins[at : at + _CHUNK]):
                yield from done


def _threads() -> int:
    """Return the number of threads for decoding."""
    return 1 if get_worker_info() is not None else min(_MOST_THREADS, cores())
