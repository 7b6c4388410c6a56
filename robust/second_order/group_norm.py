r"""The second derivative of group norm (so of instance and layer norm of ConvNets) in closed form.

With u = weight * dy, n = (x - mean) r the normalised input, r = 1 / std and means over a group, the input gradient is

    dx = r (u - mean(u) - n mean(u n))

and, for a cotangent v of dx, with a = mean(u n) and b = mean(v n),

    d<v, dx>/dy = r weight (v - mean(v) - n b)
    d<v, dx>/dx = -r^2 [ n (mean(u v) - mean(u) mean(v) - 3 a b) + b (u - mean(u)) + a (v - mean(v)) ]
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from robust.second_order.blocks import blocks, in_blocks

__all__ = ["group_norm"]

aten: Any = torch.ops.aten


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, mode: Any) -> Tensor:
    """Return `F.group_norm` of contiguous images (N, C, ...); `mode` is the `SecondOrder` around the call."""
    return _GroupNorm.apply(x, weight, bias, groups, eps, mode)  # pyright: ignore[reportReturnType]


class _GroupNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, mode: Any) -> Tensor:
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
            *found, of_weight = _derivatives(of_images, w, (g, bias), wanted, (None, None))
            to_dy, to_x = (None if t is None else t.view_as(x) for t in found)
        else:
            to_dy, to_x = (torch.empty_like(x) if want else None for want in wanted)
            of_weight = None if vx is None else x.new_empty(shape[:3])
            for part in blocks(x):
                block = tuple(None if t is None else t[part] for t in of_images)
                into = tuple(None if t is None else t.view(shape)[part] for t in (to_dy, to_x))
                *_, of_block = _derivatives(block, w, (g, bias), wanted, into)
                if of_weight is not None:
                    of_weight[part] = of_block
        to_weight = None if of_weight is None else of_weight.sum(0).view_as(weight)
        return to_dy, to_x, to_weight, None, None, None, None, None


def _derivatives(
    of_images: tuple[Any, ...],
    w: Tensor,
    cotangents: tuple[Tensor | None, Tensor | None],
    wanted: tuple[bool, bool],
    into: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the derivatives of the gradient in dy and x, and the derivative in the weight for each image.

    Args:
        of_images: dy, x and v, each (n, groups, channels of a group, pixels), mean and r, each (n, groups, 1). v, the
            cotangent of dx, is None for zero.
        w: the weight, (1, groups, channels of a group).
        cotangents: of the gradients in weight and bias, as w; None for zero.
        wanted: whether the derivatives in dy and in x are needed.
        into: where these are written; None for new memory.
    """
    y, x, v, mean, r = of_images
    g, bias = cotangents
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
