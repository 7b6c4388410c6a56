"""The closed forms against PyTorch's own second (and third) derivatives."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robust.second_order import SecondOrder

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "conv without bias": lambda: nn.Conv2d(4, 6, 3, bias=False),
    "strided, dilated, grouped": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=(1, 2), dilation=(2, 1), groups=2),
    "padding by name": lambda: nn.Conv2d(4, 6, 3, padding="same"),
    "reflecting": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "instance norm": lambda: nn.GroupNorm(4, 4),
    "group norm": lambda: nn.GroupNorm(2, 4, eps=0.1),
    "layer norm": lambda: nn.GroupNorm(1, 4),
    "no affine": lambda: nn.GroupNorm(2, 4, affine=False),
    "a stack": lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(4, 4), nn.Tanh(), nn.Conv2d(4, 6, 3)),
}


def layer_and_input(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(len(name))
    layer = LAYERS[name]().double()
    for parameter in layer.parameters():
        parameter.data = torch.randn_like(parameter)
    return layer, torch.randn(3, 4, 6, 5, dtype=torch.double, requires_grad=True)


def gradients(layer: nn.Module, x: Tensor, fast: bool) -> list[Tensor]:
    """Return first, second and third derivatives of a curved function of the layer, input and parameters."""
    wanted = [x, *layer.parameters()]
    with SecondOrder() if fast else torch.enable_grad():
        value = layer(x).tanh().square().sum()
    found = []
    for _ in range(3):
        derivatives = torch.autograd.grad(value, wanted, create_graph=True)
        found += derivatives
        value = sum((d * torch.linspace(-1, 1, d.numel(), dtype=d.dtype).view_as(d)).sum().sin() for d in derivatives)
    return found


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_three_derivatives_are_pytorchs(name: str, channels_last: bool) -> None:
    layer, x = layer_and_input(name)
    if channels_last:
        x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    for ours, theirs in zip(gradients(layer, x, True), gradients(layer, x, False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_one_derivative_at_a_time(name: str) -> None:
    """Each cotangent on its own: others are None in the backward pass."""
    layer, x = layer_and_input(name)
    wanted = [x, *layer.parameters()]
    for first in wanted:
        for fast in (True, False):
            with SecondOrder() if fast else torch.enable_grad():
                value = layer(x).tanh().sum()
            (g,) = torch.autograd.grad(value, first, create_graph=True)
            second = torch.autograd.grad(g.square().sum(), wanted, allow_unused=True, materialize_grads=True)
            if fast:
                ours = second
        torch.testing.assert_close(ours, second, rtol=1e-9, atol=1e-9)


def test_nothing_is_computed_that_nobody_wants() -> None:
    conv, x = nn.Conv2d(2, 3, 3), torch.randn(1, 2, 5, 5, requires_grad=True)
    with SecondOrder(x) as layers:
        value = conv(x).square().sum()
    assert layers.wanted((True, True, True), points=True) == (False, True, True)
    assert layers.wanted((True, True, False), points=False) == (True, True, False)
    gradient = layers.gradient(value, x)
    gradient.square().sum().backward()
    assert x.grad is None
    assert conv.weight.grad is not None


def test_the_closed_forms_are_taken() -> None:
    """Otherwise the tests above compare PyTorch with itself."""
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    with SecondOrder():
        names = [type(layer(x).grad_fn).__name__ for layer in (nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4))]
        assert names == ["_ConvolutionBackward", "_GroupNormBackward"]
        with torch.autocast("cpu"):
            assert type(nn.Conv2d(4, 4, 3)(x).grad_fn).__name__ == "ConvolutionBackward0"
    assert type(nn.Conv2d(4, 4, 3)(x).grad_fn).__name__ == "ConvolutionBackward0"
