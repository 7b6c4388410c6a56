"""Blocks after which a model's train/eval modes, buffers and caches are restored; and the network inside a wrapper."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["evaluating", "is_training", "keeping_buffers", "keeping_caches", "network_inside", "uncompiled"]

Model = Callable[[Tensor], Tensor]

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def is_training(model: Model) -> bool:
    """Tell whether any module of the model is in training mode (False for a plain function)."""
    return isinstance(model, nn.Module) and any(module.training for module in model.modules())


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Put every module in evaluation mode inside the block; afterwards every module has its previous mode."""
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
    """Restore the caches that modules which override `train` fill in the block, such as LeViT's attention biases.

    Such a module empties its cache when its `train` is called. The functions here set the mode without that call, so a
    later pass would find tensors of older parameters, or of a graph that is freed.
    """
    modules = model.modules() if isinstance(model, nn.Module) and not torch.compiler.is_compiling() else ()
    overriding = [vars(module) for module in modules if type(module).train is not nn.Module.train]
    saved = [
        (attributes, name, value, dict(value) if isinstance(value, dict) else None)
        for attributes in overriding
        for name, value in attributes.items()
        if name not in _OF_EVERY_MODULE and (value is None or isinstance(value, (dict, Tensor)))
    ]
    try:
        yield
    finally:
        for attributes, name, value, entries in saved:
            if entries is not None and isinstance(value, dict) and len(value) != len(entries):
                value.clear()
                value.update(entries)
            elif isinstance(attributes.get(name), Tensor):
                attributes[name] = value


@contextmanager
def keeping_buffers(model: Model) -> Iterator[None]:
    """Replace the buffers by copies inside the block; afterwards the model has its own buffers, unchanged."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    saved = [(m._buffers, name, b) for m in modules for name, b in m._buffers.items() if b is not None]
    for buffers, name, buffer in saved:
        buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for buffers, name, buffer in saved:
            buffers[name] = buffer


def network_inside(model: Model) -> Model:
    """Return the network inside a DistributedDataParallel or a compiled model.

    DistributedDataParallel allows one forward pass in a step, so further passes call the network inside. Programs of
    `torch.compile` have no second derivative. An adapter (`LogitsOf`, `Expected`, the preprocessing of `InPixels`) is
    rebuilt around that network.
    """
    model = model.module if isinstance(model, DistributedDataParallel) else model
    return _rebuilt(getattr(model, "_orig_mod", model), network_inside)


def uncompiled(model: Model) -> Model:
    """Return the model without `torch.compile`, whose programs have no second derivative.

    Unlike `network_inside` it keeps a DistributedDataParallel, for the one forward pass that it allows in a step.
    """
    return _rebuilt(getattr(model, "_orig_mod", model), uncompiled)


def _rebuilt(model: Model, unwrapped: Callable[[Model], Model]) -> Model:
    """Return an adapter around the unwrapped network, another model unchanged."""
    rebuilt_around = getattr(model, "rebuilt_around", None)
    return model if rebuilt_around is None else rebuilt_around(unwrapped)
