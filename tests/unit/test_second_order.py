"""The closed forms against PyTorch's own second (and third) derivatives."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from robust import TRADES, CompiledGradients, CurvatureRegularizedLoss, GradientNorm, Threat, correct
from robust.second_order.blocks import blocks, in_blocks
from robust.second_order.layers import SecondOrder
from robust.theory.hessian import hessian_vector_product

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
    "relu": nn.ReLU,
    "average pooling": lambda: nn.AvgPool2d(2),
    "average pooling after relu": lambda: nn.Sequential(
        nn.Conv2d(4, 4, (1, 2)), nn.ReLU(inplace=True), nn.AvgPool2d(2)
    ),
    "a block of a ConvNet": lambda: nn.Sequential(
        nn.Conv2d(4, 4, (3, 2), padding=(1, 0)), nn.GroupNorm(4, 4), nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Tanh()
    ),
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
        layers = (nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU())
        names = [type(layer(x).grad_fn).__name__ for layer in layers]
        assert names == ["_ConvolutionBackward", "_GroupNormBackward", "_ReLUBackward"]
        even = layers[2](layers[0](x)[:, :, :4, :4] + 0)
        assert type(nn.AvgPool2d(2)(even).grad_fn).__name__ == "_AveragePoolBackward"
        for pool in (nn.AvgPool2d(3), nn.AvgPool2d(2, padding=1), nn.AvgPool2d(2, 1), nn.AvgPool2d(2, ceil_mode=True)):
            assert type(pool(even).grad_fn).__name__ == "AvgPool2DBackward0"
        with torch.autocast("cpu"):
            assert type(nn.Conv2d(4, 4, 3)(x).grad_fn).__name__ == "ConvolutionBackward0"
    assert type(nn.Conv2d(4, 4, 3)(x).grad_fn).__name__ == "ConvolutionBackward0"


class Pooled(nn.Module):
    """ReLU and pooling after each other, with `use` of the images between them."""

    def __init__(self, use: Callable[[Tensor], Tensor | None], inplace: bool):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Linear(4, 3)
        self.use, self.inplace = use, inplace

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)), inplace=self.inplace)
        more = self.use(x)
        x = F.avg_pool2d(x, 2).tanh()
        return self.head(x.mean((2, 3)) if more is None else x.mean((2, 3)) + more)


USES: dict[str, Callable[[Tensor], Tensor | None]] = {
    "no use": lambda x: None,
    "another path": lambda x: x.square().mean((2, 3)),
    "a hook with a norm": lambda x: x.register_hook(lambda g: g / g.norm()) and None,
    "a kept gradient": lambda x: x.retain_grad(),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("use", USES)
def test_pooling_after_relu_has_the_bits_of_pytorch(use: str, inplace: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network, (x, y) = Pooled(USES[use], inplace).eval(), (torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1]))
    loss, found = CurvatureRegularizedLoss(h=0.5), []
    for covered in (True, False):
        monkeypatch.setattr("robust.second_order.pooling._is_covered", lambda x, covered=covered: covered)
        value = loss(network, x, y)
        found.append([value.detach(), *torch.autograd.grad(value, list(network.parameters()))])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_the_gradient_at_a_relu_of_the_network_is_the_true_one() -> None:
    """The masked gradient is inside the loss alone: where a ReLU is 0, the gradient at its output need not be."""
    torch.manual_seed(0)
    outputs: list[Tensor] = []
    network, (x, y) = Pooled(outputs.append, inplace=False).eval(), (torch.randn(5, 3, 8, 8), torch.arange(5) % 3)
    with SecondOrder():
        value = F.cross_entropy(network(x), y)
    (ours,) = torch.autograd.grad(value, outputs[0])
    (theirs,) = torch.autograd.grad(F.cross_entropy(network(x), y), outputs[1])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert ours[outputs[0] == 0].abs().max() > 0


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_blocks_have_the_bits_of_the_whole_batch(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.GroupNorm(groups, 4),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    x, y, found = torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1]), []
    for size in (1, 2, 5):
        monkeypatch.setattr("robust.second_order.blocks.BYTES", size * 4 * 64 * 4)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        assert size == len(range(5)[next(iter(blocks(torch.empty(5, 4, 8, 8))))])
        value = CurvatureRegularizedLoss()(network, x, y)
        found.append([value.detach(), *torch.autograd.grad(value, list(network.parameters()))])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_traced_and_counted_steps_are_pytorchs_operators() -> None:
    """A compiled program of the blocks would be slow, and the count of FLOPs would not see them."""
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    assert in_blocks(x)
    assert not in_blocks(x.to(memory_format=torch.channels_last))
    with FlopCounterMode(display=False):
        assert not in_blocks(x)


class Squeeze(nn.Module):
    """What MobileNetV3 is made of: hard swish, and a channel's weight by hard sigmoid."""

    def __init__(self, inplace: bool, exact: bool):
        super().__init__()
        self.conv, self.norm, self.gate = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.swish, self.sigmoid = nn.Hardswish(inplace), nn.Hardsigmoid(inplace)
        self.exact = exact

    def forward(self, x: Tensor) -> Tensor:
        x = self.swish(self.norm(self.conv(x)))
        gate = 3 * self.gate(x.mean((2, 3), keepdim=True))
        return (x * ((gate + 3).clamp(0, 6) / 6 if self.exact else self.sigmoid(gate))).mean((2, 3))


@pytest.mark.parametrize("inplace", [False, True])
def test_hard_sigmoid_has_a_second_derivative(inplace: bool) -> None:
    """PyTorch's own has none; that of the same function written out is the reference."""
    torch.manual_seed(0)
    network = Squeeze(inplace, exact=False).double().eval()
    written = Squeeze(inplace=False, exact=True).double().eval()
    written.load_state_dict(network.state_dict())
    x, y = torch.randn(5, 4, 6, 6, dtype=torch.double), torch.tensor([0, 1, 2, 3, 0])
    for loss in (CurvatureRegularizedLoss(h=0.5), GradientNorm()):
        ours, theirs = (torch.autograd.grad(loss(net, x, y), list(net.parameters())) for net in (network, written))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    v = torch.randn_like(x)
    torch.testing.assert_close(hessian_vector_product(network, x, y, v), hessian_vector_product(written, x, y, v))
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def value(parameters: dict[str, Tensor]) -> Tensor:
        return GradientNorm()(lambda x: torch.func.functional_call(network, parameters, (x,)), x, y)

    for a, b in zip(torch.func.grad(value)(parameters).values(), written.parameters(), strict=True):
        (right,) = torch.autograd.grad(GradientNorm()(written, x, y), b)
        torch.testing.assert_close(a, right, rtol=1e-9, atol=1e-12)


class Biased(nn.Module):
    """A LeViT's habit: in evaluation mode it computes its biases once, with their graph, until `train` is called."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.bias, self.cache = nn.Linear(4, 3), nn.Parameter(torch.randn(3)), {}
        self.last: Tensor | None = None
        self.double()

    def train(self, mode: bool = True) -> "Biased":
        super().train(mode)
        if mode:
            self.cache = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            bias = self.bias.square()
        else:
            self.last = self.cache["bias"] = bias = self.cache.get("bias", self.bias.square())
        return self.body(x).tanh() * bias


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("loss", [CurvatureRegularizedLoss(h=0.5), TRADES(Threat("linf", 0.1), steps=2)])
def test_a_cache_of_the_network_is_of_no_older_graph_or_parameters(mode: bool, loss: nn.Module) -> None:
    torch.manual_seed(0)
    network, x, y = Biased().train(mode), torch.rand(5, 4, dtype=torch.double), torch.tensor([0, 1, 2, 0, 1])
    values, drawn = [], not isinstance(loss, CurvatureRegularizedLoss)
    for _ in range(2):
        options = {"generator": torch.Generator().manual_seed(0)} if drawn else {}
        value = loss(network, x, y, **options)
        value.backward()  # of a graph that is freed, the second time
        values.append(value.item())
        assert not network.cache
        assert network.last is None
    assert values[0] == values[1]
    before = correct(network, x, y)
    with torch.no_grad():
        network.bias.copy_(torch.tensor([0.0, 0.0, 100.0]))
    assert not torch.equal(correct(network, x, y), before)


@pytest.mark.parametrize("make", [lambda: Squeeze(inplace=False, exact=False), Biased])
@pytest.mark.long
def test_compiled_gradients_of_such_networks_are_those_of_the_eager_step(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network, loss, y = make().double().eval(), CurvatureRegularizedLoss(h=0.5), torch.tensor([0, 1, 2, 2, 0])
    x = torch.rand(5, 4, 6, 6, dtype=torch.double) if isinstance(network, Squeeze) else torch.rand(5, 4).double()
    step = CompiledGradients(backend="eager")
    for _ in range(2):
        value, gradients = step(loss, network, x, y)
        expected = loss(network, x, y)
        torch.testing.assert_close(value, expected.detach())
        for a, b in zip(gradients, torch.autograd.grad(expected, list(network.parameters())), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        return 2 * gradients[0] * ctx.saved_tensors[0]


def test_what_has_no_second_derivative_is_refused_in_words_that_help() -> None:
    net, x, y = nn.Linear(4, 3), torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
    with pytest.raises(ValueError, match=r"cannot be differentiated; replace it, or .*loss_difference"):
        CurvatureRegularizedLoss()(lambda x: Once.apply(net(x)), x, y)
    CurvatureRegularizedLoss(penalty="loss_difference")(lambda x: Once.apply(net(x)), x, y).backward()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("mobilenetv3_small_050", 64), ("levit_128s", 224)])
def test_networks_of_timm(name: str, size: int) -> None:
    timm = pytest.importorskip("timm")
    network, x, y = timm.create_model(name, num_classes=4), torch.rand(2, 3, size, size), torch.tensor([0, 1])
    for mode in (False, True):
        for _ in range(2):
            CurvatureRegularizedLoss(h=0.5)(network.train(mode), x, y).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
