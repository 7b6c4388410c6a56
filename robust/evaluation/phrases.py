"""Phrases that the reasons of verdicts have in common."""

from torch import Tensor

from robust.threat import Threat

__all__ = ["ball", "count_of"]


def count_of(bools: Tensor) -> str:
    """Return how many of a tensor of bools (N,) are true, in words.

    >>> import torch
    >>> count_of(torch.tensor([True, False, True]))
    '2 of 3'
    """
    return f"{int(bools.sum())} of {len(bools)}"


def ball(threat: Threat) -> str:
    """Return a threat in words.

    >>> ball(Threat("linf", 8 / 255))
    'linf 0.03137'
    """
    return f"{threat.norm} {threat.eps:.4g}"
