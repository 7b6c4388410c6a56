"""Work on a list of units, such as classes, divided among the processes of a run, and the results of all of them.

Each process has a block of consecutive units. A result is the same to the bit for any number of processes where the
work on a unit does not depend on the block that it is in, and where sums are taken after `gathered`, over all units in
their order.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distill.runs.ranks import rank, world_size

__all__ = ["block", "blocks", "every_nth", "from_main", "gathered", "network_from_main"]

Unit = TypeVar("Unit")


def blocks(units: Sequence[Unit], processes: int | None = None) -> list[Sequence[Unit]]:
    """Return the units of each process: consecutive ones, empty where processes outnumber them.

    Args:
        units: of the work.
        processes: their number; None for the processes of this run.

    >>> blocks("abcdef", 4)
    ['a', 'bc', 'd', 'ef']
    """
    count = world_size() if processes is None else processes
    ends = [len(units) * number // count for number in range(count + 1)]
    return [units[begin:end] for begin, end in pairwise(ends)]


def block(units: Sequence[Unit]) -> Sequence[Unit]:
    """Return the units of this process.

    >>> block([3, 4, 5])
    [3, 4, 5]
    """
    return blocks(units)[rank()]


def every_nth(units: list[Unit]) -> list[Unit]:
    """Return unit rank() and every world_size()-th after it: for units that start with the most expensive.

    >>> every_nth(["a", "b", "c"])
    ['a', 'b', 'c']
    """
    return units[rank() :: world_size()]


def gathered(mine: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the rows of all processes, in the order of the processes, in every process.

    Args:
        mine: (rows of this process, ...); where it has none, an empty tensor of the same further dimensions.
        sizes: the number of rows of each process, such as `[len(each) for each in blocks(units)]`.

    Returns:
        (rows, ...), on the device of `mine`.
    """
    if world_size() == 1:
        return mine
    padded = mine.new_zeros(max(sizes), *mine.shape[1:])  # collectives take tensors of one size
    padded[: len(mine)] = mine
    everything = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(everything, padded)
    return torch.cat([part[:size] for part, size in zip(everything, sizes, strict=True)])


def from_main(tensor: Tensor) -> Tensor:
    """Overwrite a tensor, which is contiguous, by the main process's in every process; return it."""
    if world_size() > 1:
        dist.broadcast(tensor, 0)
    return tensor


def network_from_main(network: nn.Module) -> None:
    """Give the parameters and buffers of the main process's network to the networks of all processes, in place.

    A network that is trained between two divided steps is trained once, so that processes on machines of several kinds
    go on with the same bits.
    """
    if world_size() == 1:
        return
    with torch.no_grad():
        tensors = [*network.parameters(), *network.buffers()]
        for kind in dict.fromkeys(tensor.dtype for tensor in tensors):  # in the same order in every process
            same = [tensor for tensor in tensors if tensor.dtype == kind]
            flat = from_main(torch.cat([tensor.flatten() for tensor in same]))
            for tensor, values in zip(same, flat.split([t.numel() for t in same]), strict=True):
                tensor.copy_(values.view_as(tensor))
