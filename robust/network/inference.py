"""Gradients inside `torch.inference_mode()`, where PyTorch turns them off and `torch.enable_grad()` has no effect."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["outside_inference"]

P = ParamSpec("P")
R = TypeVar("R")


def outside_inference(call: Callable[P, R]) -> Callable[P, R]:
    """Return a function that takes gradients as one that works inside `torch.inference_mode()` too.

    Arguments that were created in inference mode are copied, as no gradient flows through such tensors.

    Raises:
        ValueError: when the function is called, if the parameters of a network were created in inference mode.

    >>> @outside_inference
    ... def slope(x):
    ...     with torch.enable_grad():
    ...         x = x.detach().requires_grad_()
    ...         return torch.autograd.grad(x.square().sum(), x)[0]
    >>> with torch.inference_mode():
    ...     slope(torch.ones(2))
    tensor([2., 2.])
    """

    @wraps(call)
    def outside(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return call(*args, **kwargs)
        values = (*args, *kwargs.values())
        for value in values:
            _refuse(value)
        if not torch.is_inference_mode_enabled():
            if not any(map(_is_inference, values)):
                return call(*args, **kwargs)
            return call(*map(_usable, args), **{name: _usable(value) for name, value in kwargs.items()})  # pyright: ignore[reportCallIssue]
        with torch.inference_mode(False), torch.no_grad():
            return call(*map(_usable, args), **{name: _usable(value) for name, value in kwargs.items()})  # pyright: ignore[reportCallIssue]

    return outside


def _is_inference(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_inference()


def _usable(value: Any) -> Any:
    return value.clone() if _is_inference(value) else value


def _refuse(value: Any) -> None:
    """Refuse a network, or an object with one, whose parameters were created in inference mode."""
    network = value if isinstance(value, nn.Module) else getattr(value, "network", None)
    if isinstance(network, nn.Module) and any(p.is_inference() for p in network.parameters()):
        raise ValueError(
            f"the parameters of {type(network).__name__} were made inside torch.inference_mode(), so they can have no "
            "gradient; build or load the network outside of it"
        )
