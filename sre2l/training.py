"""Training a network of several processes: the schedule, the processes, and a step whose batch is taken in parts.

What `squeeze` and `validate` share.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distill.ranks import world
from sre2l.precision import Compute

__all__ = ["cosine", "descend", "of_all_processes"]


def cosine(peak: float, epoch: int, epochs: int, warmup: int) -> float:
    """Return the learning rate of an epoch, 0 for the first: linear from a tenth in the warm-up, then cosine to 0.

    >>> [round(cosine(1.0, epoch, 6, 2), 2) for epoch in range(6)]
    [0.1, 0.55, 1.0, 0.85, 0.5, 0.15]
    """
    if epoch < warmup:
        return peak * (0.1 + 0.9 * epoch / warmup)
    share = (epoch - warmup) / max(1, epochs - warmup)
    return 0.5 * peak * (1 + math.cos(math.pi * share))


def of_all_processes(module: nn.Module, device: torch.device) -> nn.Module:
    """Return the module, its gradients averaged over all processes where there are several."""
    if world() == 1:
        return module
    return DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)


def descend(
    module: nn.Module,
    parts: Sequence[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    scale: torch.amp.GradScaler,
    compute: Compute,
) -> Tensor:
    """Take one step on parts of a batch, whose gradients add up.

    Args:
        module: what the loss calls; processes talk about the last part only.
        parts: inputs and targets of each.
        loss: (inputs, targets) -> the part's share of the loss, a scalar.
        optimizer: of the module's parameters.
        scale: the loss scaler.
        compute: how the arithmetic runs.

    Returns:
        the sum of the parts' losses, a scalar without gradient.
    """
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=parts[0][0].device)
    for number, (x, y) in enumerate(parts, 1):
        alone = number < len(parts) and isinstance(module, DistributedDataParallel)
        with module.no_sync() if alone else nullcontext():
            with compute.autocast(x.device):
                value = loss(x, y)
            scale.scale(value).backward()
        total += value.detach()
    scale.step(optimizer)
    scale.update()
    return total
