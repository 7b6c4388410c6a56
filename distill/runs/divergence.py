"""Detects an optimisation that diverged in the iteration in which it shows, and reports it in one line."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distill.errors import InputError
from robust import Loss

__all__ = ["check_finite", "diverged", "is_finite", "remedy_of"]


def diverged(what: str, step: int, found: str, remedy: str, unit: str = "iteration") -> InputError:
    """Make the error for an optimisation that diverged.

    Args:
        what: the optimisation, such as "the matching".
        step: number of the step, from 0.
        found: the values that show the divergence.
        remedy: the flags to make smaller, "--lr-img or --lr-net".
        unit: of the steps.

    Returns:
        the error, to be raised.

    >>> print(diverged("the matching", 3, "loss nan", "--lr-img"))
    the matching diverged in iteration 3 (loss nan); take a smaller --lr-img
    """
    return InputError(f"{what} diverged in {unit} {step} ({found}); take a smaller {remedy}")


def check_finite(what: str, step: int, values: Mapping[str, Any], remedy: str, unit: str = "iteration") -> None:
    """Refuse an optimisation with a value that is not finite.

    Args:
        what: the optimisation.
        step: number of the step, from 0.
        values: numbers, tensors, or dicts and lists of them, by name; the message shows single numbers.
        remedy: the flags to make smaller.
        unit: of the steps.

    Raises:
        InputError: a value is not finite.
    """
    if all(map(is_finite, values.values())):
        return
    numbers = {name: value for name, value in values.items() if _is_number(value)}
    shown = [f"{name} {float(torch.as_tensor(value).detach()):.3g}" for name, value in numbers.items()]
    shown += [f"{name} not finite" for name, value in values.items() if name not in numbers and not is_finite(value)]
    raise diverged(what, step, ", ".join(shown), remedy, unit)


def remedy_of(flags: tuple[str, ...], flag: str, loss: Loss) -> str:
    """Return the flags to make smaller where an optimisation with a loss diverges, for the functions above.

    Args:
        flags: those beside the loss.
        flag: the flag that takes the loss.
        loss: whose strength counts too.

    >>> from robust import TRADES, CrossEntropy, Threat
    >>> remedy_of(("--lr-img", "--lr-net"), "--real-loss", TRADES(Threat("linf", 0.1)))
    '--lr-img, --lr-net or beta of --real-loss'
    >>> remedy_of(("--lr-img", "--lr-net"), "--real-loss", CrossEntropy())
    '--lr-img or --lr-net'
    """
    names = [*flags, f"{loss.traits.strength} of {flag}"] if loss.traits.strength else list(flags)
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def is_finite(value: Any) -> bool:
    """Return whether a number, or every tensor in dicts and lists, is finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, (dict, list, tuple)):
        return all(map(is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or abs(value) < float("inf")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
