"""Number type, memory format and compiler of the stages. The choice changes results only by rounding."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Compute", "has_idle_taps"]


@dataclass(frozen=True)
class Compute:
    """How the arithmetic of all stages runs."""

    amp: Literal["none", "bf16", "fp16"] = "none"
    """type of convolutions and matrix products: float32, bfloat16, or float16 with a loss scaler"""
    channels_last: bool = False
    """whether images are stored pixel by pixel (channels last), which is faster on tensor cores"""
    compile: bool = False
    """whether networks are compiled by torch.compile (the passes of second derivatives are not)"""

    @contextmanager
    def autocast(self, device: torch.device) -> Iterator[None]:
        """Run forward passes in the number type of `amp`; on the CPU without convolutions that oneDNN gets wrong.

        Args:
            device: where the passes run.
        """
        dtype = torch.float16 if self.amp == "fp16" else torch.bfloat16
        with torch.autocast(device.type, dtype, enabled=self.amp != "none"):
            if self.amp == "none" or device.type != "cpu":
                yield
                return
            with _IdleTapsInFloat32():
                yield

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Return the loss scaler, which has no effect unless the type is float16."""
        return torch.amp.GradScaler(device.type, enabled=self.amp == "fp16")

    def place(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Move a network to a device and memory format in place; return it."""
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        return network.to(device=device, memory_format=memory_format)  # pyright: ignore[reportCallIssue]

    def faster(self, network: nn.Module) -> nn.Module:
        """Return the network, compiled if `compile` is set; the compiled network shares its weights."""
        return torch.compile(network) if self.compile else network  # pyright: ignore[reportReturnType]


class _IdleTapsInFloat32(TorchFunctionMode):
    """While entered, runs a convolution in float32 if an element (tap) of its kernel only meets padding.

    The gradient of such a tap is 0. In bfloat16, oneDNN (torch 2.14.1, AVX512) returns uninitialised memory for it,
    such as 1e31 or NaN. This happens with 3 x 3 kernels of stride 2 on maps of 1 x 1, in ResNets on images of 8 or
    16 px.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.conv2d or not has_idle_taps(*args, **(kwargs or {})):
            return func(*args, **(kwargs or {}))
        floats = [each.float() if isinstance(each, Tensor) else each for each in args]
        named = {name: each.float() if isinstance(each, Tensor) else each for name, each in (kwargs or {}).items()}
        with torch.autocast("cpu", enabled=False):
            return func(*floats, **named)


def has_idle_taps(
    input: Tensor,  # the names are those of torch.conv2d, as calls may use keywords
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> bool:
    """Return whether a tap of a convolution's kernel lies on padding at every position of the kernel.

    Args:
        input: (N, C, H, W).
        weight: (D, C / groups, kernel height, kernel width).
        bias: unused, as `groups`.
        stride: of the kernel, pixels.
        padding: pixels on each side, "valid" for 0, or "same".
        dilation: pixels between taps.
        groups: unused.

    >>> kernel = torch.zeros(1, 1, 3, 3)
    >>> has_idle_taps(torch.zeros(1, 1, 1, 1), kernel, stride=2, padding=1)
    True
    >>> has_idle_taps(torch.zeros(1, 1, 2, 2), kernel, stride=1, padding=1)
    False
    """
    for axis in (0, 1):
        size, taps = input.shape[axis - 2], weight.shape[axis - 2]
        step, apart = (each if isinstance(each, int) else each[axis % len(each)] for each in (stride, dilation))
        span = apart * (taps - 1)
        if isinstance(padding, str):
            before, both = (span // 2, span) if padding == "same" else (0, 0)
        else:
            before = padding if isinstance(padding, int) else padding[axis % len(padding)]
            both = 2 * before
        starts = range(-before, size + both - before - span, step)
        if not all(any(0 <= start + apart * tap < size for start in starts) for tap in range(taps)):
            return True
    return False
