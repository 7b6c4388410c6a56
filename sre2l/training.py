"""Training of a network by several processes, for `squeeze` and `validate`: schedule, gradients, and steps in parts."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distill.errors import InputError
from distill.runs.ranks import world_size
from sre2l.precision import Compute

__all__ = ["cosine", "data_parallel", "optimizer_step", "require_batch_of_one", "seeded", "split_batch"]


def cosine(peak: float, epoch: int, epochs: float, warmup: int, start: float = 0.1) -> float:
    """Return the learning rate of an epoch (from 0): linear from `start` x `peak` in the warm-up, then cosine to 0.

    >>> [round(cosine(1.0, epoch, 6, 2), 2) for epoch in range(6)]
    [0.1, 0.55, 1.0, 0.85, 0.5, 0.15]
    """
    if epoch < warmup:
        return peak * (start + (1 - start) * epoch / warmup)
    share = (epoch - warmup) / max(1, epochs - warmup)
    return 0.5 * peak * (1 + math.cos(math.pi * share))


def data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """Return the module with gradients averaged over all processes; with a single process the module itself."""
    if world_size() == 1:
        return module
    return DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)


@contextmanager
def seeded(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Seed torch's default generators inside the block, since dropout and similar layers take no generator.

    Args:
        generator: CPU generator of the seed.
        device: where the block draws; the state of torch's generators of this device and the CPU is restored.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield


def require_batch_of_one(network: nn.Module, shape: tuple[int, ...], what: str) -> None:
    """Refuse a network that cannot be trained on a single image: BatchNorm has no statistics of one value per channel.

    Args:
        network: on any device; unchanged.
        shape: (C, H, W) of an image.
        what: reason for a step on a single image and what to change, for the error.

    Raises:
        InputError: the network cannot be trained on a single image.
    """
    device = next(network.parameters()).device
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            deepcopy(network).train()(torch.zeros(1, *shape, device=device))
    except ValueError as error:
        if "more than 1 value" not in str(error):
            raise
        raise InputError(f"BatchNorm of {type(network).__name__} cannot train on one image: {what}") from None


def split_batch(images: Tensor, targets: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """Return a batch in `count` parts, or in fewer parts if a part would have a single image.

    >>> [len(x) for x, _ in split_batch(torch.zeros(7), torch.zeros(7), 3)]
    [3, 2, 2]
    >>> [len(x) for x, _ in split_batch(torch.zeros(3), torch.zeros(3), 3)]
    [3]
    """
    count = max(1, min(count, len(images) // 2))
    return list(zip(images.tensor_split(count), targets.tensor_split(count), strict=True))


def optimizer_step(
    module: nn.Module,
    parts: Sequence[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    scale: torch.amp.GradScaler,
    compute: Compute,
) -> Tensor:
    """Take one step on parts of a batch, whose gradients add up.

    Args:
        module: the module that the loss calls; processes exchange gradients in the last part only.
        parts: inputs and targets of each part.
        loss: (inputs, targets) -> share of the part in the loss of the batch, a scalar.
        optimizer: of the module's parameters.
        scale: the loss scaler.
        compute: how the arithmetic runs.

    Returns:
        the sum of the losses of the parts, a scalar without gradient.
    """
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=parts[0][0].device)
    for number, (x, y) in enumerate(parts, 1):
        last = number == len(parts)
        with module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext():
            with compute.autocast(x.device):
                value = loss(x, y)
            scale.scale(value).backward()
        total += value.detach()
    scale.step(optimizer)
    scale.update()
    return total
