"""The precision of autocast, and gradients in float16.

The smallest normal number of float16 is 6e-5: smaller gradients lose digits, below 6e-8 they are zero.
"""

import torch
from torch import Tensor

__all__ = ["autocast_dtype", "lift"]

LIFT = 256.0


def autocast_dtype(inputs: Tensor) -> torch.dtype | None:
    """Return the type in which autocast computes on the device of the inputs, None where it is off."""
    device = inputs.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def lift(inputs: Tensor) -> float:
    """Return the factor for a loss before its gradient by the inputs is computed: 256 in float16 autocast, else 1.

    The gradient of the inputs, in float32, is divided by it afterwards.
    """
    return LIFT if autocast_dtype(inputs) == torch.float16 else 1.0
