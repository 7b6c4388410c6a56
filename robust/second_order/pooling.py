"""ReLU and 2x2 average pooling on a CPU, with fewer passes over memory in the first and the second derivative.

PyTorch's gradient of average pooling clears the result and then adds to it, ReLU's gradient reads and writes it again,
and the derivatives of both in the images are tensors of zeros. Where a pooling follows a ReLU, the gradient within
`SecondOrder.gradient` is spread and masked at once, and so is its derivative. All results have the bits of PyTorch's.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from robust.second_order.blocks import blocks, in_blocks

__all__ = ["average_pool", "is_covered_pool", "is_covered_relu", "relu"]

aten: Any = torch.ops.aten
AVERAGE_POOL: Any = F.avg_pool2d
RELUS = (F.relu, torch.relu, torch.Tensor.relu)
PAIRS = (2, (2, 2), [2, 2])
NONE = (0, (0, 0), [0, 0])


def is_covered_relu(func: Any, args: Any, kwargs: Any) -> bool:
    """Tell whether a call is a ReLU that `relu` computes."""
    return func in RELUS and len(args) == 1 and kwargs.keys() <= {"inplace"} and _is_covered(args[0])


def is_covered_pool(func: Any, args: Any, kwargs: Any) -> bool:
    """Tell whether a call is a 2x2 average pooling, of images with even sides, that `average_pool` computes."""
    if func is not AVERAGE_POOL or kwargs or not _is_covered(args[0]) or args[0].ndim != 4:
        return False
    kernel, stride, padding, ceil, _, divisor = (*args[1:], *(None, None, 0, False, True, None)[len(args) - 1 :])
    windows = kernel in PAIRS and (stride is None or stride in PAIRS) and padding in NONE
    return windows and not ceil and divisor is None and not (args[0].shape[2] % 2 or args[0].shape[3] % 2)


def _is_covered(x: Tensor) -> bool:
    if x.dtype not in (torch.float32, torch.float64) or not in_blocks(x) or not x.requires_grad:
        return False
    return not x._is_view() and torch.is_grad_enabled()


def relu(x: Tensor, inplace: bool = False) -> Tensor:
    """Return max(x, 0), written to x if `inplace`."""
    return _ReLU.apply(x, inplace)  # pyright: ignore[reportReturnType]


def average_pool(x: Tensor, mode: Any) -> Tensor:
    """Return the means of 2x2 pixels, (N, C, H / 2, W / 2); `mode` is the `SecondOrder` around the call."""
    watched = x._backward_hooks or x.retains_grad  # the gradient at x must be of x alone
    follows = isinstance(x.grad_fn, _ReLU._backward_cls) and not watched  # pyright: ignore[reportAttributeAccessIssue]
    return _AveragePool.apply(x, x.grad_fn if follows else None, mode)  # pyright: ignore[reportReturnType]


class _ReLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        y = x.relu_() if inplace else x.relu()
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        (dy,) = grad_outputs
        if getattr(dy.grad_fn, "relu", None) is ctx:  # from the pooling alone, which has masked it
            return dy, None
        return _Mask.apply(dy, *ctx.saved_tensors), None  # pyright: ignore[reportReturnType]


class _Mask(Function):
    """The gradient where y > 0, and zero elsewhere. PyTorch's derivative in y is a tensor of zeros, here it is None."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return aten.threshold_backward(dy, y, 0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        return _Mask.apply(grad_outputs[0], *ctx.saved_tensors), None  # pyright: ignore[reportReturnType]


class _AveragePool(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, relu: Any, mode: Any) -> Tensor:
        ctx.relu, ctx.mode = relu, mode
        if relu is not None:
            ctx.save_for_backward(x)
        return aten.avg_pool2d(x, [2, 2], [2, 2])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        (dy,) = grad_outputs
        if ctx.relu is None or ctx.mode.weights:  # somebody may want the gradient at the output of the ReLU
            return _AveragePoolBackward.apply(dy.contiguous(), None, None), None, None
        return _AveragePoolBackward.apply(dy.contiguous(), *ctx.saved_tensors, ctx.relu), None, None


class _AveragePoolBackward(Function):
    @staticmethod
    def forward(ctx: Any, dy: Tensor, y: Tensor | None, relu: Any) -> Tensor:
        ctx.relu = relu
        ctx.save_for_backward(y)
        return _spread(dy, y)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        ((v,), (y,)) = grad_outputs, ctx.saved_tensors
        if torch.is_grad_enabled() or not in_blocks(v):
            return F.avg_pool2d(v if y is None else _Mask.apply(v, y), 2), None, None  # pyright: ignore[reportArgumentType]
        return _pooled(v, y), None, None


def _spread(dy: Tensor, y: Tensor | None) -> Tensor:
    """Return a quarter of dy at each of its four pixels, where y > 0 if y is given."""
    n, c, h, w = dy.shape
    found = dy.new_empty(n, c, 2 * h, 2 * w)
    for part in blocks(found):
        quarter = dy[part] / 4
        row = torch.empty(*quarter.shape, 2, dtype=dy.dtype)
        row[..., 0] = quarter
        row[..., 1] = quarter
        rows = row.view(-1, c, h, 1, 2 * w).expand(-1, -1, -1, 2, -1)
        into = found[part].view_as(rows)
        if y is None:
            into.copy_(rows)
        else:
            aten.threshold_backward.grad_input(rows, y[part].view_as(rows), 0, grad_input=into)
    return found


def _pooled(v: Tensor, y: Tensor | None) -> Tensor:
    """Return the means of 2x2 pixels of v, or of v where y > 0 and zero elsewhere; summed in the order of PyTorch."""
    n, c, h, w = v.shape
    found = v.new_empty(n, c, h // 2, w // 2)
    for part in blocks(v):
        block = v[part] if y is None else aten.threshold_backward(v[part], y[part], 0)
        means = torch.add(block[..., 0::2, 0::2], block[..., 0::2, 1::2], out=found[part])
        means.add_(block[..., 1::2, 0::2]).add_(block[..., 1::2, 1::2]).div_(4)
    return found
