"""Gradients in float16, whose smallest normal number is 6e-5: smaller ones lose digits, below 6e-8 they are zero."""

import torch
from torch import Tensor

__all__ = ["lift"]

LIFT = 256.0


def lift(inputs: Tensor) -> float:
    """Return the factor for a loss before its gradient by the inputs is computed: 256 in float16 autocast, else 1.

    The gradient of the inputs, in float32, is divided by it afterwards.
    """
    device = inputs.device.type
    half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return LIFT if half else 1.0
