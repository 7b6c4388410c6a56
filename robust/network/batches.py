"""How many images one pass takes: as many as fit in the allowed memory, by what a network needs for one image.

The memory that autograd saves in the forward pass of one image is measured once for each network and shape of images;
the same amount again is added for gradients and work space. The number depends only on the network and the images, not
on the free memory of the machine, so that attacks whose random numbers depend on the batch (Square) give the same
results on every machine.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robust.network.expectation import Expected
from robust.network.modes import Model, evaluating, keeping_buffers, network_inside
from robust.ranges import Count, check_number

__all__ = ["MOST", "images_at_once", "saved_bytes"]

MOST = 500
"""images of a pass, at most, also for a small network"""
ALLOWED = 2**27
"""bytes of a pass on a CPU"""
ALLOWED_ON_A_DEVICE = 2**32
"""bytes of a pass on a GPU"""
GRADIENTS = 2
"""memory of a pass with gradients relative to the memory that autograd saves"""

_SAVED: "weakref.WeakKeyDictionary[Any, dict[Any, int]]" = weakref.WeakKeyDictionary()


def images_at_once(
    model: Model,
    images: Tensor,
    batch_size: int | None = None,
    *,
    most: int = MOST,
    copies: int = 1,
    others: tuple[Model | None, ...] = (),
) -> int:
    """Return how many images to take in one pass, >= 1.

    Args:
        model: maps (N, ...) to outputs.
        images: (N, ...); only the first is used.
        batch_size: a number chosen by the caller, which is returned unchanged; None to compute it.
        most: images at most.
        copies: how many graphs of the size of a forward pass are in memory, such as for second derivatives.
        others: further networks that process the images in the same pass; None entries are ignored.

    Raises:
        ValueError: `batch_size` is no whole number >= 1.

    >>> images_at_once(torch.nn.Linear(4, 3), torch.rand(1000, 4, generator=torch.Generator()))
    500
    """
    if batch_size is not None:
        check_number("batch_size", batch_size, Count)
        return batch_size
    if len(images) < 2:
        return most
    allowed = ALLOWED if images.device.type == "cpu" else ALLOWED_ON_A_DEVICE
    saved = max(saved_bytes(each, images) for each in (model, *others) if each is not None)
    return min(most, max(1, allowed // max(1, GRADIENTS * copies * saved)))


def saved_bytes(model: Model, images: Tensor) -> int:
    """Return the bytes that autograd saves in the forward pass of one image.

    They are measured with copies of the first image, with the model in evaluation mode; its buffers and torch's random
    state do not change. Memory that does not grow with the number of images, such as weights, is not counted.

    Returns:
        bytes; 0 where a batch of two or three images raises an error.
    """
    model = network_inside(model.model if isinstance(model, Expected) else model)
    key = (images.shape[1:], images.dtype, images.device, torch.is_autocast_enabled(images.device.type))
    try:
        known = _SAVED.setdefault(model, {})
    except TypeError:  # a model without weak references or without a hash
        known = {}
    if key not in known:
        known[key] = _measured(model, images)
    return known[key]


def _measured(model: Model, images: Tensor) -> int:
    devices = [images.device] if images.device.type == "cuda" else []
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng(devices),
            evaluating(model),
            keeping_buffers(model),
        ):
            image = images[:1].detach().clone()
            two, three = (_saved(model, image.expand(n, *image.shape[1:]).clone()) for n in (2, 3))
    except Exception:  # the pass on the images themselves raises the same error with its full message
        return 0
    return max(0, three - two)


def _saved(model: Callable[[Tensor], Any], images: Tensor) -> int:
    """Return the bytes of all memory that a forward pass saves for its backward pass."""
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(images.requires_grad_())  # in memory until the sum, so that no address is used twice
        total = sum(found.values())
    del outputs
    return total
