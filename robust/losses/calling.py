"""How a loss is called: with the network, since it calls it at other points than the images."""

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
    """Return a loss's `__call__` that says how it is meant where it is called as a criterion, `loss(net(x), y)`.

    Caches of the network are kept (`keeping_caches`), and inference mode is left (`outside_inference`).

    Raises:
        TypeError: when called with other things than a network, inputs and targets, in this order.
    """
    within = outside_inference(call)

    @wraps(call)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        loss, *given = args
        named = dict(zip(NAMES, given, strict=False)) | {name: kwargs[name] for name in NAMES if name in kwargs}
        _check(type(loss).__name__, [named[name] for name in NAMES if name in named], own="criterion" in kwargs)
        with keeping_caches(named["model"]):  # pyright: ignore[reportArgumentType]
            return within(*args, **kwargs)

    return checked


def _check(loss: str, given: list[Any], own: bool) -> None:
    """Refuse what cannot be meant; `own`: a criterion of the caller's, which takes targets of any kind."""
    right = len(given) == 3 and callable(given[0]) and not isinstance(given[0], Tensor) and isinstance(given[1], Tensor)
    if right and not own:
        right = isinstance(given[2], Tensor) and given[2].is_floating_point() <= given[1].is_floating_point()
    if not right:
        said = ", ".join(map(_word, given))
        raise TypeError(
            f"{loss} is called as loss(network, images, labels), not loss({said}): it calls the network itself, at "
            "other points than the images; give it the network, not what the network returned"
        )


def _word(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, nn.Module) or callable(value):
        return "a network" if isinstance(value, nn.Module) else "a function"
    return f"a {type(value).__name__}"
