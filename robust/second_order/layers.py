r"""Second derivatives of convolution and group norm (so instance and layer norm of ConvNets) at the cost of first ones.

PyTorch's second derivatives are correct but slow: the second derivative of a convolution in its weights is computed as
a convolution with a kernel as large as the image, and the second derivative of group norm in about twenty passes over
memory whose results are all stored. Here, the former is the ordinary weight gradient at other arguments, and the latter
a closed form. With u = weight * dy, n = (x - mean) r the normalised input, r = 1 / std and means over a group, the
input gradient of group norm is

    dx = r (u - mean(u) - n mean(u n))

and, for a cotangent v of dx, with a = mean(u n) and b = mean(v n),

    d<v, dx>/dy = r weight (v - mean(v) - n b)
    d<v, dx>/dx = -r^2 [ n (mean(u v) - mean(u) mean(v) - 3 a b) + b (u - mean(u)) + a (v - mean(v)) ]

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

from robust.second_order.blocks import blocks, in_blocks
from robust.second_order.pooling import average_pool, is_covered_pool, is_covered_relu, relu

__all__ = ["SecondOrder"]

aten: Any = torch.ops.aten
HARD_SIGMOIDS = (F.hardsigmoid, torch._C._nn.hardsigmoid)  # pyright: ignore[reportAttributeAccessIssue]
NO_DERIVATIVE = ("torch::autograd::NotImplemented", "torch::autograd::Error")


class SecondOrder(TorchFunctionMode):
    """While entered, `conv2d` and `group_norm` calls record themselves for a fast second derivative.

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
                return _GroupNorm.apply(x.contiguous(), weight, bias, groups, kwargs["eps"], self)
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


class _GroupNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, mode: SecondOrder
    ) -> Tensor:
        n, channels = x.shape[:2]
        y, mean, r = aten.native_group_norm(x, weight, bias, n, channels, x[0, 0].numel(), groups, eps)
        ctx.save_for_backward(x, weight, mean, r)
        ctx.groups, ctx.eps, ctx.mode, ctx.points = groups, eps, mode, x is mode.points
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        (dy,) = grad_outputs
        mask = ctx.mode.wanted(ctx.needs_input_grad, ctx.points)
        gradients = _GroupNormBackward.apply(dy.contiguous(), *ctx.saved_tensors, ctx.groups, ctx.eps, mask)
        return *gradients, None, None, None


class _GroupNormBackward(Function):
    @staticmethod
    def forward(
        ctx: Any,
        dy: Tensor,
        x: Tensor,
        weight: Tensor,
        mean: Tensor,
        r: Tensor,
        groups: int,
        eps: float,
        mask: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(dy, x, weight, mean, r)
        ctx.groups, ctx.eps = groups, eps
        ctx.set_materialize_grads(False)
        n, channels = x.shape[:2]
        pixels = x[0, 0].numel()
        return aten.native_group_norm_backward(dy, x, mean, r, weight, n, channels, pixels, groups, list(mask))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        """The header's formulas, as sums over pixels (n, groups, channels of a group) and two linear combinations."""
        vx, vweight, vbias = grad_outputs
        dy, x, weight, mean, r = ctx.saved_tensors
        shape = (len(x), ctx.groups, x.shape[1] // ctx.groups, -1)
        w = weight.view(1, *shape[1:3])
        g, bias = (None if v is None else v.view_as(w) for v in (vweight, vbias))
        recorded = torch.is_grad_enabled()
        if recorded:  # a third derivative: the statistics depend on x
            grouped = x.view(*shape[:2], -1)
            mean, r = grouped.mean(-1), (grouped.var(-1, correction=0) + ctx.eps).rsqrt()
        of_images = dy.view(shape), x.view(shape), None if vx is None else vx.reshape(shape)
        of_images = *of_images, mean.view(*shape[:2], 1), r.view(*shape[:2], 1)
        wanted = ctx.needs_input_grad[:2]
        if recorded or not in_blocks(x):
            to_dy, to_x, of_weight = _norm_derivatives(*of_images, w, g, bias, wanted, (None, None))
        else:
            to_dy, to_x = (torch.empty_like(of_images[1]) if want else None for want in wanted)
            of_weight = None if vx is None else x.new_empty(shape[:3])
            for part in blocks(x):
                block = (None if t is None else t[part] for t in of_images)
                into = tuple(None if t is None else t[part] for t in (to_dy, to_x))
                *_, of_block = _norm_derivatives(*block, w, g, bias, wanted, into)
                if of_weight is not None:
                    of_weight[part] = of_block
        to_dy, to_x = (None if t is None else t.view_as(x) for t in (to_dy, to_x))
        to_weight = None if of_weight is None else of_weight.sum(0).view_as(weight)
        return to_dy, to_x, to_weight, None, None, None, None, None


def _norm_derivatives(
    y: Tensor,
    x: Tensor,
    v: Tensor | None,
    mean: Tensor,
    r: Tensor,
    w: Tensor,
    g: Tensor | None,
    bias: Tensor | None,
    wanted: tuple[bool, bool],
    into: tuple[Tensor | None, Tensor | None],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the derivatives of group norm's gradient in dy and x, and that in the weight for each image.

    Args:
        y: dy, as x and v of shape (n, groups, channels of a group, pixels).
        x: the input.
        v: the cotangent of dx; None for zero.
        mean: (n, groups, 1).
        r: 1 / std, (n, groups, 1).
        w: the weight, (1, groups, channels of a group).
        g: the cotangent of the weight's gradient, as w; None for zero.
        bias: the cotangent of the bias's gradient, as w; None for zero.
        wanted: whether the derivatives in dy and in x are needed.
        into: where they are written; None for new memory.
    """
    normalised = (x - mean.unsqueeze(-1)).mul_(r.unsqueeze(-1))  # normalised, since sums of x itself lose digits
    size = x[0, 0].numel()

    def average(sums: Tensor) -> Tensor:
        return sums.sum(2, keepdim=True) / size

    sum_y, sum_yn = y.sum(-1), (y * normalised).sum(-1)
    y_v = y_n = y_1 = x_v = x_n = x_y = x_1 = torch.zeros_like(r)  # d/dy = y_v v + y_n n + y_1, d/dx = x_v v + ...
    of_weight = to_dy = to_x = None
    if v is not None:
        sum_v, sum_vn, sum_vy = v.sum(-1), (v * normalised).sum(-1), (v * y).sum(-1)
        mean_u, mean_v, a, b = average(sum_y * w), average(sum_v), average(sum_yn * w), average(sum_vn)
        y_v, y_n, y_1 = r * w, -r * w * b, -r * w * mean_v
        x_v, x_y, x_1 = -r * r * a, -r * r * b * w, r * r * (b * mean_u + a * mean_v)
        x_n = -r * r * (average(sum_vy * w) - mean_u * mean_v - 3 * a * b)
        of_weight = r * (sum_vy - mean_v * sum_y - b * sum_yn)
    if g is not None:  # of the sum of dy n, whose d/dy is n, and whose d/dx has the form of dx in the header
        y_n = y_n + g
        x_y, x_n, x_1 = x_y + r * g, x_n - r * average(sum_yn * g), x_1 - r * average(sum_y * g)
    if bias is not None:
        y_1 = y_1 + bias
    if wanted[0]:
        to_dy = _combined((v, y_v), (normalised, y_n), constant=y_1, into=into[0])
    if wanted[1]:
        to_x = _combined((y, x_y), (v, x_v), (normalised, x_n), constant=x_1, into=into[1])
    return to_dy, to_x, of_weight


def _combined(*terms: tuple[Tensor | None, Tensor], constant: Tensor, into: Tensor | None) -> Tensor:
    """Return the sum of tensor * factor and of the constant, (N, groups, C / groups, pixels)."""
    present = [(tensor, factor.unsqueeze(-1)) for tensor, factor in terms if tensor is not None]
    total = torch.mul(*present[0], out=into)
    for tensor, factor in present[1:]:
        total.addcmul_(tensor, factor)
    return total.add_(constant.unsqueeze(-1))
