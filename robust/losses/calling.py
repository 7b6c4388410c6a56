"""Check how a loss is called: it takes the network, which it evaluates at further points beside the images."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

from torch import Tensor, nn

from robust.network.inference import outside_inference
from robust.network.modes import keeping_caches

__all__ = ["takes_network"]

P = ParamSpec("P")
NAMES = ("model", "inputs", "targets")


def takes_network(call: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Return a loss's `__call__` with a check of arguments, whose error explains the call as `loss(net(x), y)`.

    Caches of the network are preserved (`keeping_caches`), and inference mode is disabled (`outside_inference`).

    Raises:
        TypeError: the arguments are not a network, inputs and targets, in this order.
    """
    within = outside_inference(call)

    @wraps(call)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        loss, *positional = args
        named = dict(zip(NAMES, positional, strict=False)) | {name: kwargs[name] for name in NAMES if name in kwargs}
        _check(type(loss).__name__, [named[name] for name in NAMES if name in named], any_targets="criterion" in kwargs)
        with keeping_caches(named["model"]):  # pyright: ignore[reportArgumentType]
            return within(*args, **kwargs)

    return checked


def _check(loss: str, values: list[Any], any_targets: bool) -> None:
    """Refuse arguments of wrong types; `any_targets`: the caller has a criterion, which may take any targets."""
    valid = len(values) == 3 and callable(values[0])
    valid = valid and not isinstance(values[0], Tensor) and isinstance(values[1], Tensor)
    if valid and not any_targets:
        valid = isinstance(values[2], Tensor) and values[2].is_floating_point() <= values[1].is_floating_point()
    if not valid:
        words = ", ".join(map(_word, values))
        raise TypeError(
            f"{loss} is called as loss(network, images, labels), not loss({words}): it calls the network itself, at "
            "other points than the images; pass the network, not the output of the network"
        )


def _word(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, nn.Module) or callable(value):
        return "a network" if isinstance(value, nn.Module) else "a function"
    return f"a {type(value).__name__}"
