"""How the arithmetic of the stages runs: number type, memory format, compiler. Results differ by rounding."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

__all__ = ["Compute"]


@dataclass(frozen=True)
class Compute:
    """One choice for all stages."""

    amp: Literal["none", "bf16", "fp16"] = "none"
    """type of convolutions and matrix products: float32, bfloat16, or float16 with a loss scaler"""
    channels_last: bool = False
    """whether images lie in memory pixel by pixel, which tensor cores like"""
    compile: bool = False
    """whether networks are compiled by torch.compile (the passes of second derivatives are not)"""

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context of forward passes."""
        dtype = torch.float16 if self.amp == "fp16" else torch.bfloat16
        return torch.autocast(device.type, dtype, enabled=self.amp != "none")

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Return the loss scaler, which does nothing where the type is not float16."""
        return torch.amp.GradScaler(device.type, enabled=self.amp == "fp16")

    def place(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Put a network on a device in the memory format, in place; return it."""
        return network.to(device, memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

    def faster(self, network: nn.Module) -> nn.Module:
        """Return the network, compiled where that is asked for; it shares the weights."""
        return torch.compile(network) if self.compile else network
