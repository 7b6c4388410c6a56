"""Borrow a model: train/eval modes and buffers come back as they were."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

__all__ = ["evaluating", "is_training", "keeping_buffers"]

Model = Callable[[Tensor], Tensor]


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
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def keeping_buffers(model: Model) -> Iterator[None]:
    """Undo what the block's forward passes do to the buffers of modules in training mode (running statistics)."""
    training = [module for module in model.modules() if module.training] if isinstance(model, nn.Module) else []
    kept = [(buffer, buffer.clone()) for module in training for buffer in module.buffers(recurse=False)]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)
