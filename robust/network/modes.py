"""Borrow a model: train/eval modes, buffers and caches come back as they were."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["evaluating", "inside", "is_training", "keeping_buffers", "keeping_caches"]

Model = Callable[[Tensor], Tensor]

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def is_training(model: Model) -> bool:
    """Tell whether any module of the model is in training mode (False for a plain function)."""
    return isinstance(model, nn.Module) and any(module.training for module in model.modules())


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Put every module in evaluation mode inside the block; afterwards each has its own mode again."""
    training = [module for module in model.modules() if module.training] if isinstance(model, nn.Module) else []
    for module in training:
        module.training = False
    try:
        with keeping_caches(model):
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def keeping_caches(model: Model) -> Iterator[None]:
    """Put back what modules with a `train` of their own cache in the block, such as LeViT's biases in evaluation mode.

    They empty such a cache when `train` is called, which the functions here do not; a later pass would meet tensors of
    older parameters, or of a graph that is freed.
    """
    modules = model.modules() if isinstance(model, nn.Module) and not torch.compiler.is_compiling() else ()
    own = [vars(module) for module in modules if type(module).train is not nn.Module.train]
    kept = [
        (attributes, name, value, dict(value) if isinstance(value, dict) else None)
        for attributes in own
        for name, value in attributes.items()
        if name not in _OF_EVERY_MODULE and (value is None or isinstance(value, (dict, Tensor)))
    ]
    try:
        yield
    finally:
        for attributes, name, value, entries in kept:
            if entries is not None and isinstance(value, dict) and len(value) != len(entries):
                value.clear()
                value.update(entries)
            elif isinstance(attributes.get(name), Tensor):
                attributes[name] = value


@contextmanager
def keeping_buffers(model: Model) -> Iterator[None]:
    """Give the block's forward passes copies of the buffers; afterwards the model has its own again, untouched."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    kept = [(m._buffers, name, b) for m in modules for name, b in m._buffers.items() if b is not None]
    for buffers, name, buffer in kept:
        buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for buffers, name, buffer in kept:
            buffers[name] = buffer


def inside(model: Model) -> Model:
    """Return the network of a DistributedDataParallel, which wants one forward pass a step, the first, and of
    `torch.compile`, whose programs have no second derivative; an adaptor keeps what it does around that network.
    """
    model = model.module if isinstance(model, DistributedDataParallel) else model
    model = getattr(model, "_orig_mod", model)
    return model.around_inside() if hasattr(model, "around_inside") else model  # pyright: ignore[reportFunctionMemberAccess]
