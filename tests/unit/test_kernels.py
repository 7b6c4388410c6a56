"""Tangent kernels: against wide networks, against all pairs of pixels, their gradient at its kinks, tiles."""

from collections.abc import Callable
from functools import partial
from math import pi

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.kip.kernels import Kernel, convnet, fully_connected, pair_bytes, relu
from baselines.kip.tiles import kernels
from distill.errors import InputError

W, B = 1.3, 0.2
DOUBLE = {"dtype": torch.float64}


def images(n: int, channels: int = 2, size: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed), **DOUBLE)


# --- wide networks


def finite_fc(x: Tensor, width: int, depth: int, normal: Callable[..., Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return what a network of the NTK parameterisation says of each input, and its weights."""
    weights, x = [], x.flatten(1)
    for last in [False] * depth + [True]:
        weights += [normal(1 if last else width, x.shape[1]), normal(1 if last else width)]
        x = W / x.shape[1] ** 0.5 * x @ weights[-2].T + B * weights[-1]
        x = x if last else x.relu()
    return x[:, 0], weights


def finite_convnet(x: Tensor, width: int, prepend: bool, normal: Callable[..., Tensor]) -> tuple[Tensor, list[Tensor]]:
    weights = []
    for layer in range(3 + prepend):
        weights += [normal(width, x.shape[1], 3, 3), normal(width)]
        x = F.conv2d(x, weights[-2] * (W / (9 * x.shape[1]) ** 0.5), B * weights[-1], padding=1).relu()
        x = x if prepend and layer == 0 else F.avg_pool2d(x, 2)
    x = x.flatten(1)
    weights += [normal(x.shape[1]), normal(1)]
    return W / x.shape[1] ** 0.5 * x @ weights[-2] + B * weights[-1], weights


def empirical(network: Callable[..., tuple[Tensor, list[Tensor]]], x: Tensor, width: int, seed: int) -> Tensor:
    """Return J J^T of one network."""
    generator = torch.Generator().manual_seed(seed)
    said, weights = network(x, width, lambda *s: torch.randn(*s, generator=generator, **DOUBLE).requires_grad_())
    rows = [torch.autograd.grad(each, weights, retain_graph=True) for each in said]
    jacobian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    return jacobian @ jacobian.T


def one_net(x: Tensor, width: int, normal: Callable[..., Tensor], kind: str) -> tuple[Tensor, list[Tensor]]:
    if kind.startswith("fc"):
        return finite_fc(x, width, int(kind[-1]), normal)
    return finite_convnet(x, width, kind == "ConvNet", normal)


KERNELS = {
    "fc1": partial(fully_connected, depth=1, w_std=W, b_std=B),
    "fc3": partial(fully_connected, depth=3, w_std=W, b_std=B),
    "ConvNet": partial(convnet, depth=3, prepend=True, w_std=W, b_std=B),
    "ConvNet3": partial(convnet, depth=3, prepend=False, w_std=W, b_std=B),
}


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.long
def test_wide_networks_have_the_kernel(kind: str) -> None:
    """The error of one network falls as 1 / sqrt(width); the mean of many is the kernel within its own error."""
    x, nets = images(3, size=8), 60 if kind.startswith("fc") else 24
    x[2] = 0.7 * x[1] + 0.3 * x[2]
    right, errors = KERNELS[kind](x, x), []
    for width in (32, 128, 512) if kind.startswith("fc") else (8, 32, 128):
        found = torch.stack([empirical(partial(one_net, kind=kind), x, width, seed) for seed in range(nets)])
        errors.append(((found - right).abs().mean() / right.abs().mean()).item())
    bias = found.mean(0) - right
    assert (bias.abs() < 4 * found.std(0) / nets**0.5 + 0.03 * right).all()
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.2
    assert 3 < errors[0] / errors[2] < 6  # 4 by the root of 16


@pytest.mark.parametrize("rho", [-1.0, -0.6, 0.0, 0.3, 1.0])
def test_relu_is_what_gaussians_say(rho: float) -> None:
    p, q = torch.tensor(1.7, **DOUBLE), torch.tensor(0.6, **DOUBLE)
    c = rho * (p * q).sqrt()
    u, v = torch.randn(2, 400_000, generator=torch.Generator().manual_seed(0), **DOUBLE)
    u, v = p.sqrt() * u, q.sqrt() * (rho * u + (1 - rho**2) ** 0.5 * v)
    covariance, both = relu(c, torch.ones_like(c), p, q)
    assert covariance.item() == pytest.approx((u.relu() * v.relu()).mean().item(), abs=5e-3)
    assert both.item() == pytest.approx(((u > 0) & (v > 0)).double().mean().item(), abs=3e-3)
    if rho in (-1, 0, 1):
        closed = {-1: (0, 0), 0: ((p * q).sqrt().item() / (2 * pi), 0.25), 1: ((p * q).sqrt().item() / 2, 0.5)}[rho]
        assert (covariance.item(), both.item()) == pytest.approx(closed, abs=1e-8)


# --- all pairs of pixels


def of_all_pixels(x: Tensor, y: Tensor, depth: int, prepend: bool) -> Tensor:
    """Return the ConvNet's kernel from the covariances of all pixels with all, (A, B, H, W, H, W), by arccos."""

    def convolved(c: Tensor) -> Tensor:
        size, padded = c.shape[2], F.pad(c, (1,) * 8)
        at = [slice(d, d + size) for d in range(3)]
        return sum(padded[:, :, down, across, down, across] for down in at for across in at) / 9

    def activated(c: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        norm = (p[:, None, :, :, None, None] * q[None, :, None, None]).sqrt()
        cosine = (c / norm).clamp(-1, 1)
        angle = cosine.arccos()
        return norm * (angle.sin() + (pi - angle) * cosine) / (2 * pi), (pi - angle) / (2 * pi)

    def pooled(c: Tensor) -> Tensor:
        half = c.shape[2] // 2
        c = c[:, :, : 2 * half, : 2 * half, : 2 * half, : 2 * half]
        for axis in (2, 4, 6, 8):
            c = c.unflatten(axis, (half, 2))
        return c.mean((3, 5, 7, 9))

    own = "aahwhw->ahw"
    xy, xx, yy = (torch.einsum("achw,bcij->abhwij", a, b) / x.shape[1] for a, b in ((x, y), (x, x), (y, y)))
    t = torch.zeros_like(xy)
    for block in range(depth):
        for _ in range(2 if prepend and block == 0 else 1):
            xy, xx, yy = (W**2 * convolved(c) + B**2 for c in (xy, xx, yy))
            t = W**2 * convolved(t) + xy
            p, q = torch.einsum(own, xx), torch.einsum(own, yy)
            xy, slope = activated(xy, p, q)
            t, xx, yy = t * slope, activated(xx, p, p)[0], activated(yy, q, q)[0]
        xy, xx, yy, t = map(pooled, (xy, xx, yy, t))
    t, c = (torch.einsum("abhwhw->ab", each) / each.shape[2] ** 2 for each in (t, xy))
    return W**2 * (t + c) + B**2


@pytest.mark.parametrize("prepend", [True, False])
@pytest.mark.parametrize(("size", "depth"), [(8, 3), (8, 1), (9, 3), (7, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_few_offsets_are_as_all_pixels(channels: int, size: int, depth: int, prepend: bool) -> None:
    x, y = images(2, channels, size), images(3, channels, size, seed=1)
    y[2] = x[0]
    found = convnet(x, y, depth=depth, prepend=prepend, w_std=W, b_std=B)
    torch.testing.assert_close(found, of_all_pixels(x, y, depth, prepend), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KERNELS)
def test_kernels_are_kernels(kind: str) -> None:
    x = images(6, size=8)
    k = KERNELS[kind](x, x)
    torch.testing.assert_close(k, k.T, rtol=1e-12, atol=1e-12)
    assert torch.linalg.eigvalsh(k).min() > 0
    single = KERNELS[kind](x.float(), x[:2].float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), k[:, :2], rtol=1e-4, atol=1e-5)


def test_without_bias_the_kernel_is_homogeneous() -> None:
    x, y = images(2), images(2, seed=1)
    for kernel in (partial(fully_connected, depth=2), partial(convnet, depth=2, prepend=True)):
        plain = kernel(x, y, w_std=W, b_std=0.0)
        torch.testing.assert_close(kernel(3 * x, y, w_std=W, b_std=0.0), 3 * plain)
        dark = kernel(torch.cat([x, 0 * x]), y, w_std=W, b_std=0.0)
        assert torch.equal(dark[2:], torch.zeros(2, 2, **DOUBLE))


# --- gradients

SMALL: dict[str, Kernel] = {
    "fc": partial(fully_connected, depth=2, w_std=W, b_std=B),
    "ConvNet": partial(convnet, depth=2, prepend=True, w_std=W, b_std=B),
    "ConvNet3": partial(convnet, depth=1, prepend=False, w_std=W, b_std=B),
}


@pytest.mark.parametrize("kind", SMALL)
def test_gradients_are_what_finite_differences_say(kind: str) -> None:
    x, y = images(1, 1), images(2, 1, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: SMALL[kind](x, y), y)
    assert torch.autograd.gradcheck(lambda y: SMALL[kind](y, y), y)  # each with itself: angle 0
    assert torch.autograd.gradcheck(SMALL[kind], (x.requires_grad_(), y))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", SMALL)
def test_gradients_are_finite_at_kinks(kind: str, dtype: torch.dtype) -> None:
    flat = torch.full((2, 1, 4, 4), 0.4, dtype=dtype)  # equal pixels, equal images; then opposite and dark ones
    for b_std in (0.0, B):
        for other in (flat, -flat, 0 * flat, flat * (1 + 1e-7)):
            y = flat.clone().requires_grad_()
            kernel = partial(SMALL[kind], b_std=b_std)
            (gradient,) = torch.autograd.grad(kernel(other, y).sum() + kernel(y, y).sum(), y)
            assert gradient.isfinite().all()
            assert gradient.abs().max() < 10


def test_the_kernel_with_itself_has_the_gradient_of_its_norm() -> None:
    """Without a bias k(x, x) of one hidden layer is w^4 |x|^2 / D: both relus pass half."""
    x = images(1).requires_grad_()
    (gradient,) = torch.autograd.grad(fully_connected(x, x, depth=1, w_std=W, b_std=0.0).sum(), x)
    torch.testing.assert_close(gradient, 2 * W**4 * x / x.numel())


# --- tiles


@pytest.mark.parametrize("chunk", [1, 2, 5, 6, 11, 20, 21, 1000])
def test_tiles_change_nothing(chunk: int) -> None:
    x, y, seen = images(4), images(3, seed=1).requires_grad_(), []

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        seen.append(len(a) * len(b))
        return SMALL["ConvNet"](a, b)

    whole = SMALL["ConvNet"](y, y), SMALL["ConvNet"](x, y)
    draw = torch.Generator().manual_seed(2)
    weights = [torch.randn(each.shape, generator=draw, **DOUBLE) for each in whole]
    found = kernels(kernel, y, x, chunk)
    torch.testing.assert_close(found, whole, rtol=1e-13, atol=1e-13)
    (right,) = torch.autograd.grad(sum((w * k).sum() for w, k in zip(weights, whole, strict=True)), y)
    (gradient,) = torch.autograd.grad(sum((w * k).sum() for w, k in zip(weights, found, strict=True)), y)
    torch.testing.assert_close(gradient, right, rtol=1e-12, atol=1e-13)
    assert max(seen) <= chunk
    assert sum(seen) == (21 if chunk >= 21 else 42)  # once more for the gradient


def test_memory_of_a_tile_is_bounded() -> None:
    """Between forward and backward only the images are held, and no graph."""
    x, held = images(8, size=8), []
    for chunk in (2, 1000):
        y, kept = images(2, size=8).requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, k=kept: k.append(t.nbytes) or t, lambda t: t):
            kernels(partial(convnet, depth=2, prepend=True, w_std=W, b_std=B), y, x, chunk)
        held.append(sum(kept))
    assert 0 < held[0] < held[1] / 50


def test_pairs_are_counted_in_bytes() -> None:
    assert pair_bytes(32, 3, torch.float64) == 2 * pair_bytes(32, 3, torch.float32) == 40 * 225 * 1024 * 8
    assert pair_bytes(224, 3, torch.float64) > 3 * 2**30


def test_images_too_small_are_refused() -> None:
    with pytest.raises(InputError, match="images of 4 px are halved to nothing by depth 3; take a smaller --depth"):
        convnet(images(1), images(1), depth=3, prepend=True, w_std=W, b_std=B)
