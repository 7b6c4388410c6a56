"""Neural tangent kernels of infinitely wide networks: fully connected networks, and the ConvNet of KIP.

NTK parameterisation: a layer is z = w_std / sqrt(fan in) W a + b_std b, with entries of W and b from N(0, 1). With c
the covariance of two preactivations, p and q their variances, and t the tangent kernel (Jacot et al., NeurIPS 2018,
arXiv 1806.07572; Cho & Saul, NeurIPS 2009; for convolutions Arora et al., NeurIPS 2019, arXiv 1904.11955):

    layer   c <- w_std^2 mean c + b_std^2,   t <- w_std^2 mean t + c       (mean over the inputs of the two units)
    relu    c <- (s + (pi - a) c) / (2 pi),  t <- t (pi - a) / (2 pi),   s = sqrt(p q - c^2),   a = atan2(s, c)

The ConvNet ("ConvNet" and "ConvNet3" of Nguyen et al. 2021b): optionally a 3x3 convolution (zero padding) and relu,
then `depth` times convolution, relu and 2x2 mean pooling, and a linear layer on all pixels. Its covariances are between
pixel i of one image and pixel j of the other. A convolution only mixes pairs with the same offset j - i, and the last
layer only needs offset 0; pooling computes offset o from the offsets 2 o - 1, 2 o and 2 o + 1. Offsets of at most 1, 3
and 7 on each axis therefore suffice before the last, second last and third last pooling: at 32 px exactly 225 of the
1024 pairs of a pixel. A tensor is (A, B, 2 r + 1, 2 r + 1, H, W): vertical offset, horizontal offset, pixel; a
convolution is a box filter on the last two axes. Pairs with a pixel outside the image are 0.

Gradient at a = 0 or pi, as on the diagonal: t has a kink there (the derivative by c grows as 1 / s). The code uses the
symmetric choice, 0, which is correct for the kernel of a point with itself, where a is always 0.
"""

from collections.abc import Callable
from math import pi
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from distill.errors import InputError

__all__ = ["Kernel", "convnet", "fully_connected", "pair_bytes", "relu"]

Kernel = Callable[[Tensor, Tensor], Tensor]
"""(A, C, H, W), (B, C, H, W) -> (A, B)"""

TENSORS_PER_PAIR = 40
"""tensors of first-layer size per pair during the gradient, from the measured growth of a process at 16 and 32 px"""


# --- relu --------------------------------------------------------------------------------------------------------


class _Relu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, c: Tensor, t: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        product = p * q
        s = product.addcmul(c, c, value=-1)
        s.masked_fill_(s <= product.mul_(16 * torch.finfo(c.dtype).eps), 0.0).sqrt_()  # smaller: rounding error
        slope = torch.atan2(s, c).mul_(-0.5 / pi).add_(0.5)
        ctx.save_for_backward(c, t, p, q, s, slope)
        return (s * (0.5 / pi)).addcmul_(slope, c), t * slope

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_c: Tensor, by_t: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        c, t, p, q, s, slope = ctx.saved_tensors
        by_angle = (by_t * t).div_(s).masked_fill_(s == 0, 0.0)
        of_variances = (by_c * s).addcmul_(by_angle, c, value=-1)
        by_p, by_q = (
            of_variances.sum_to_size(v.shape) / (4 * pi * v).clamp(min=torch.finfo(v.dtype).tiny) if needed else None
            for v, needed in zip((p, q), ctx.needs_input_grad[2:], strict=True)
        )
        return (by_c * slope).add_(by_angle, alpha=0.5 / pi), by_t * slope, by_p, by_q


def relu(c: Tensor, t: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Return covariance and tangent kernel after a relu; once differentiable, also where p q = c^2.

    Args:
        c: covariances of preactivations.
        t: tangent kernel of the preactivations, shaped like c.
        p: variances of the first preactivations, in a shape that broadcasts to c.
        q: variances of the second preactivations, in a shape that broadcasts to c.

    >>> one = torch.ones(())
    >>> [round(float(value), 4) for value in relu(0 * one, one, one, one)]  # E max(u, 0) E max(v, 0), P(u, v > 0)
    [0.1592, 0.25]
    """
    return _Relu.apply(c, t, p, q)


# --- fully connected networks ------------------------------------------------------------------------------------


def fully_connected(x: Tensor, y: Tensor, *, depth: int, w_std: float, b_std: float) -> Tensor:
    """Return the kernel of a network with `depth` hidden relu layers and a linear output layer.

    Args:
        x: (A, ...) inputs, flattened to vectors.
        y: (B, ...) inputs, flattened to vectors.
        depth: number of hidden layers; 0 is a linear model.
        w_std: standard deviation of weights.
        b_std: standard deviation of biases.

    Returns:
        the kernel (A, B).

    >>> fully_connected(torch.ones(1, 4), torch.ones(1, 4), depth=0, w_std=1.0, b_std=1.0)
    tensor([[2.]])
    """
    x, y = x.flatten(1), y.flatten(1)
    wide, bias = w_std**2, b_std**2
    c, p, q = (wide * product / x.shape[1] + bias for product in (x @ y.T, x.square().sum(1), y.square().sum(1)))
    t = c
    for _ in range(depth):
        c, t = relu(c, t, p[:, None], q[None])
        c, p, q = (wide * variance + bias for variance in (c, p / 2, q / 2))
        t = wide * t + c
    return t


# --- the ConvNet -------------------------------------------------------------------------------------------------


class _Convolved(torch.autograd.Function):
    """scale x (sum over 3x3 pixels, zero padding) + added."""

    @staticmethod
    def forward(ctx: Any, c: Tensor, scale: Tensor, added: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return torch.addcmul(added, _box(c), scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_c: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (scale,) = ctx.saved_tensors
        return _box(by_c * scale), None, by_c if ctx.needs_input_grad[2] else None  # the box is its own transpose


def _box(c: Tensor) -> Tensor:
    """Return the sums over 3x3 pixels, with zero padding."""
    for axis in (-1, -2):
        last, summed = c.shape[axis] - 1, c.clone()
        summed.narrow(axis, 1, last).add_(c.narrow(axis, 0, last))
        summed.narrow(axis, 0, last).add_(c.narrow(axis, 1, last))
        c = summed
    return c


def _pooled(c: Tensor, mask: Tensor) -> Tensor:
    """Return means over 2x2 pixels of both images where the mask is 1: sides halved, offsets up to (r - 1) / 2."""
    for offset, pixel in ((-4, -2), (-3, -1)):
        size, span = c.shape[pixel] // 2, c.shape[offset]
        even, odd = (_every_second(c, pixel, start, 2 * size + start - 1) for start in (0, 1))
        c = _every_second(even + odd, offset, 1, span)  # both pixels of a pair are even, or both odd
        c = c + _every_second(odd, offset, 0, span - 2) + _every_second(even, offset, 2, span)
    return c / 16 * mask


def _every_second(c: Tensor, axis: int, start: int, stop: int) -> Tensor:
    return c[(..., slice(start, stop, 2), *(slice(None),) * (-axis - 1))]


def _shifted(images: Tensor, radius: int) -> Tensor:
    """Return for each pixel the pixel at each offset, 0 outside: (B, H, W) -> (B, 2 r + 1, 2 r + 1, H, W)."""
    return F.pad(images, (radius,) * 4).unfold(-2, images.shape[-2], 1).unfold(-2, images.shape[-1], 1).contiguous()


def _radius(depth: int, level: int) -> int:
    """Return the largest offset needed after `level` of `depth` poolings."""
    return 2 ** (depth - level) - 1


def _masks(images: Tensor, depth: int, last: int) -> list[Tensor]:
    """Return masks after 0, 1, ..., `last` poolings: 1 where the offset from a pixel is inside the image, else 0."""
    ones = torch.ones_like(images[:1, 0])
    return [
        _shifted(ones[:, :side, :side], _radius(depth, n))[0] for n in range(last + 1) for side in [len(ones[0]) >> n]
    ]


def _variances(images: Tensor, depth: int, prepend: bool, wide: float, bias: float) -> list[Tensor]:
    """Return the variance of each pixel before each relu, (N, H, W), from covariances, which pooling requires."""
    found, masks = [], _masks(images, depth - 1, depth - 1)
    products = (channel[:, None, None] * _shifted(channel, _radius(depth - 1, 0)) for channel in images.unbind(1))
    c = sum(products, images.new_zeros(())) / images.shape[1]
    for level, mask in enumerate(masks):
        radius = _radius(depth - 1, level)
        c = c if level == 0 else _pooled(c, mask)
        for _ in range(1 + (prepend and level == 0)):
            c = _Convolved.apply(c, wide / 9 * mask, bias * mask)
            found.append(c[:, radius, radius])
            c, _ = relu(c, c, found[-1][:, None, None], _shifted(found[-1], radius))
    return found


def convnet(x: Tensor, y: Tensor, *, depth: int, prepend: bool, w_std: float, b_std: float) -> Tensor:
    """Return the kernel of the ConvNet.

    Args:
        x: (A, C, H, H) images.
        y: (B, C, H, H) images.
        depth: number of blocks of convolution, relu and pooling, >= 1.
        prepend: whether a convolution and a relu come before the blocks.
        w_std: standard deviation of weights.
        b_std: standard deviation of biases.

    Returns:
        the kernel (A, B).

    Raises:
        InputError: images are too small for `depth` poolings.
    """
    size, wide, bias = x.shape[-1], w_std**2, b_std**2
    if size >> depth < 1:
        raise InputError(f"images of {size} px are halved to nothing by depth {depth}; take a smaller --depth")
    ps, qs = (iter(_variances(images, depth, prepend, wide, bias)) for images in (x, y))
    masks = _masks(x, depth, depth)
    pairs = zip(x.unbind(1), y.unbind(1), strict=True)
    products = (one[:, None, None, None] * _shifted(other, _radius(depth, 0)) for one, other in pairs)
    c = sum(products, x.new_zeros(())) / x.shape[1]
    t = torch.zeros_like(c)
    for level in range(depth):
        scale = wide / 9 * masks[level]
        for _ in range(1 + (prepend and level == 0)):
            c = _Convolved.apply(c, scale, bias * masks[level])
            t = _Convolved.apply(t, scale, c)
            c, t = relu(c, t, next(ps)[:, None, None, None], _shifted(next(qs), _radius(depth, level)))
        c, t = (_pooled(each, masks[level + 1]) for each in (c, t))
    c, t = (wide * each[:, :, 0, 0].mean((-2, -1)) for each in (c, t))
    return t + c + bias


def pair_bytes(size: int, depth: int, dtype: torch.dtype) -> int:
    """Return the approximate memory, in bytes, of the gradient of the ConvNet's kernel for one pair of images."""
    span = min(2 * _radius(depth, 0) + 1, 2 * size - 1)
    return TENSORS_PER_PAIR * span**2 * size**2 * dtype.itemsize
