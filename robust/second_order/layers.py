r"""Second derivatives of convolution and group norm (so instance and layer norm of ConvNets) at the cost of first ones.

PyTorch's second derivatives are correct but slow: the second derivative of a convolution in its weights is computed as
a convolution with a kernel as large as the image, and the second derivative of group norm in about twenty passes over
memory whose results are all stored. Here, the former is the ordinary weight gradient at other arguments, and the latter
a closed form (`group_norm.py`). On a CPU, ReLU and average pooling take fewer passes over memory too (`pooling.py`).

Higher derivatives are correct too, by ordinary autograd through these formulas.

Hard sigmoid, whose backward pass has no derivative in PyTorch, is computed by relu6, which gives the same values.
"""

from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from robust.second_order.group_norm import group_norm
from robust.second_order.pooling import average_pool, is_covered_pool, is_covered_relu, relu

__all__ = ["SecondOrder"]

aten: Any = torch.ops.aten
HARD_SIGMOIDS = (F.hardsigmoid, torch._C._nn.hardsigmoid)  # pyright: ignore[reportAttributeAccessIssue]
NO_DERIVATIVE = ("torch::autograd::NotImplemented", "torch::autograd::Error")


class SecondOrder(TorchFunctionMode):
    """While entered, `conv2d`, `group_norm`, `relu` and `avg_pool2d` record themselves for a fast second derivative.

    Values are the values of PyTorch. Calls that the closed forms do not cover (autocast, other dtypes than float32 and
    float64, padding by name, `torch.func`, other layers) are left to PyTorch, and `gradient` refuses operations without
    a second derivative.

    Args:
        points: a leaf at which `gradient` is taken. Its gradient is not computed in later backward passes.

    >>> conv, x = torch.nn.Conv2d(1, 2, 3), torch.randn(1, 1, 5, 5, requires_grad=True)
    >>> with SecondOrder(x) as layers:
    ...     value = conv(x).square().sum()
    >>> layers.gradient(value, x).sum().backward()
    >>> conv.weight.grad.shape, x.grad
    (torch.Size([2, 1, 3, 3]), None)
    """

    def __init__(self, points: Tensor | None = None):
        super().__init__()
        self.points: Tensor | None = points
        self.weights: bool = True

    def gradient(self, value: Tensor, points: Tensor) -> Tensor:
        """Return the differentiable gradient of a scalar, without computing gradients of the parameters.

        Raises:
            ValueError: an operation whose backward pass cannot be differentiated.
        """
        self.weights = False
        try:
            (gradient,) = torch.autograd.grad(value, points, create_graph=True)
        finally:
            self.weights = True
        _check_differentiable(gradient)
        return gradient

    def wanted(self, needs: tuple[bool, ...], points: bool) -> tuple[bool, bool, bool]:
        """Return which gradients (input, weight, bias) the current backward pass has to compute.

        Args:
            needs: the gradients that autograd may need.
            points: whether the layer's input is `points`.
        """
        inner = not self.weights
        return needs[0] and (inner or not points), needs[1] and not inner, needs[2] and not inner

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the calls that the closed forms cover."""
        kwargs = kwargs or {}
        if func is torch.conv2d and not kwargs and len(args) == 7 and _covered(*args[:3]) and args[0].ndim == 4:
            x, weight, bias, stride, padding, dilation, groups = args
            if not isinstance(padding, str):
                options = (_pair(stride), _pair(padding), _pair(dilation), False, [0, 0], groups)
                return _Convolution.apply(x, weight, bias, options, self)
        if func is F.group_norm and len(args) == 2 and kwargs["weight"] is not None and kwargs["bias"] is not None:
            (x, groups), weight, bias = args, kwargs["weight"], kwargs["bias"]
            if _covered(x, weight, bias):
                return group_norm(x.contiguous(), weight, bias, groups, kwargs["eps"], self)
        if is_covered_relu(func, args, kwargs):
            return relu(*args, **kwargs)
        if is_covered_pool(func, args, kwargs):
            return average_pool(args[0], self)
        if func in HARD_SIGMOIDS:
            return _hard_sigmoid(*args, **kwargs)
        return func(*args, **kwargs)


def _hard_sigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    found = F.relu6(input + 3) / 6
    return input.copy_(found) if inplace else found


def _check_differentiable(gradient: Tensor) -> None:
    """Refuse a gradient through an operation whose missing derivative would only show in the caller's backward pass."""
    seen: set[Any] = {None}
    waiting = [gradient.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in seen or node is None:
            continue
        seen.add(node)
        if node.name() in NO_DERIVATIVE:
            raise ValueError(
                "the network has an operation whose backward pass cannot be differentiated; replace it, or take a loss "
                "that needs no second derivative, such as CurvatureRegularizedLoss(penalty='loss_difference')"
            )
        waiting += [following for following, _ in node.next_functions]


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))


def _covered(x: Tensor, *parameters: Tensor | None) -> bool:
    if torch._C._are_functorch_transforms_active() or torch.is_autocast_enabled(x.device.type):
        return False
    same = all(p is None or p.dtype == x.dtype for p in parameters)
    return same and x.dtype in (torch.float32, torch.float64) and x.numel() > 0


class _Convolution(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...], mode: SecondOrder
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options, ctx.mode, ctx.points = options, mode, x is mode.points
        return aten.convolution(x, weight, bias, *options)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        (dy,) = grad_outputs
        mask = ctx.mode.wanted(ctx.needs_input_grad, ctx.points)
        return *_ConvolutionBackward.apply(dy, *ctx.saved_tensors, ctx.options, mask), None, None


class _ConvolutionBackward(Function):
    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, x: Tensor, weight: Tensor, options: tuple[Any, ...], mask: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(dy, x, weight)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return aten.convolution_backward(dy, x, weight, [len(weight)], *options, list(mask))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        """The backward pass of a convolution is bilinear in dy and x or weight, so first-order kernels suffice."""
        vx, vweight, vbias = grad_outputs
        (dy, x, weight), options = ctx.saved_tensors, ctx.options
        to_dy = to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            terms = [aten.convolution(vx, weight, None, *options)] if vx is not None else []
            terms += [aten.convolution(x, vweight, None, *options)] if vweight is not None else []
            terms += [vbias.view(1, -1, 1, 1).expand_as(dy)] if vbias is not None else []
            to_dy = reduce(torch.add, terms) if terms else None
        if ctx.needs_input_grad[1] and vweight is not None:
            to_x = aten.convolution_backward(dy, x, vweight, [0], *options, [True, False, False])[0]
        if ctx.needs_input_grad[2] and vx is not None:
            to_weight = aten.convolution_backward(dy, vx, weight, [0], *options, [False, True, False])[1]
        return to_dy, to_x, to_weight, None, None
