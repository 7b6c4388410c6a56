"""How many images to look at in one pass: as many as fit in about a gigabyte, by what a network keeps of one image.

What autograd saves of one image's forward pass is measured once for each network and shape of images; as much again is
counted for gradients and work space. The number depends on the network and the images alone, not on the machine's free
memory, so that attacks whose randomness is the batch's (Square) find the same everywhere.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robust.network.expectation import Expected
from robust.network.modes import Model, evaluating, inside, keeping_buffers
from robust.ranges import Count, check_number

__all__ = ["MOST", "images_at_once", "kept_bytes"]

MOST = 500
"""images of a pass, however small the network"""
ALLOWED = 2**30
"""bytes of a pass on a CPU"""
ALLOWED_ON_A_DEVICE = 2**32
"""bytes of a pass on a GPU"""
GRADIENTS = 2
"""by how much a pass with gradients needs more than it keeps"""

_KEPT: "weakref.WeakKeyDictionary[Any, dict[Any, int]]" = weakref.WeakKeyDictionary()


def images_at_once(
    model: Model,
    images: Tensor,
    asked: int | None = None,
    *,
    most: int = MOST,
    copies: int = 1,
    others: tuple[Model | None, ...] = (),
) -> int:
    """Return how many images to take in one pass, >= 1.

    Args:
        model: maps (N, ...) to outputs.
        images: (N, ...), of which the first is looked at.
        asked: the caller's own number, which is taken as it is.
        most: images at most.
        copies: how many times the graph of a forward pass is held, such as by second derivatives.
        others: further networks that see the images in the same pass; None for none.

    Raises:
        ValueError: a number asked for that is no whole number >= 1.

    >>> images_at_once(torch.nn.Linear(4, 3), torch.rand(1000, 4, generator=torch.Generator()))
    500
    """
    if asked is not None:
        check_number("batch_size", asked, Count)
        return asked
    if len(images) < 2:
        return most
    allowed = ALLOWED if images.device.type == "cpu" else ALLOWED_ON_A_DEVICE
    kept = max(kept_bytes(each, images) for each in (model, *others) if each is not None)
    return min(most, max(1, allowed // max(1, GRADIENTS * copies * kept)))


def kept_bytes(model: Model, images: Tensor) -> int:
    """Return the bytes that autograd saves of one image's forward pass; 0 where the model does not take two or three.

    Measured from copies of the first image, with the model in evaluation mode, its buffers and torch's random state
    untouched. What does not grow with the images, such as weights, is not counted.
    """
    model = inside(model.model if isinstance(model, Expected) else model)
    place = (images.shape[1:], images.dtype, images.device, torch.is_autocast_enabled(images.device.type))
    try:
        known = _KEPT.setdefault(model, {})
    except TypeError:  # without a weak reference or a hash
        known = {}
    if place not in known:
        known[place] = _measured(model, images)
    return known[place]


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
    except Exception:  # the real pass says what is wrong, if anything is
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
        outputs = model(images.requires_grad_())  # alive until all is counted, so that no memory is counted twice
        total = sum(found.values())
    del outputs
    return total
