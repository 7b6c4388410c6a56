"""The loss on what other people have: inputs of any shape, soft labels, weights, criteria, models of any output."""

import copy
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from robust import (
    PGD,
    CurvatureRegularizedLoss,
    Normalize,
    RobustTeacher,
    Threat,
    curvature_penalty,
    logits_of,
    robust_accuracy,
    smoothed,
)
from robust.losses import InPixels
from robust.network.modes import is_training, network_inside


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def gradients(value, network):
    return torch.autograd.grad(value, list(network.parameters()))


def by_hand(network, x, y, weight, h, weights=None, criterion=F.cross_entropy):
    """Equation 8 an example at a time; y (N,) or (N, K)."""
    total = 0.0
    for i in range(len(x)):

        def loss(point, i=i):
            with sdpa_kernel(SDPBackend.MATH):
                return criterion(network(point), y[i : i + 1])

        point = x[i : i + 1].clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(point), point, create_graph=True)
        z = (g / g.square().sum().sqrt()).detach()
        (moved,) = torch.autograd.grad(loss(point + h * z), point, create_graph=True)
        share = 1.0 if weights is None else weights[i]
        total = total + share * (loss(point) + weight * (moved - g).square().sum())
    return total / len(x)


class Attention(nn.Module):
    """Embedded tokens (N, T, D) -> logits (N, 3)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, activation="gelu")
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(5, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


KINDS = {
    "table": (lambda: nn.Sequential(nn.Linear(7, 9), nn.GroupNorm(3, 9), nn.Tanh(), nn.Linear(9, 3)), (7,)),
    "one number": (lambda: nn.Sequential(nn.Linear(1, 9), nn.Tanh(), nn.Linear(9, 3)), (1,)),
    "signal": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.Flatten(), nn.Linear(28, 3)),
        (2, 9),
    ),
    "tokens": (Attention, (6, 8)),
    "sequence": (Recurrent, (4, 5)),
    "volume": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.GroupNorm(1, 2), nn.Softplus(), nn.Flatten(), nn.Linear(54, 3)),
        (1, 4, 4, 4),
    ),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.long
def test_inputs_of_any_shape(name):
    make, shape = KINDS[name]
    network = make().double().eval()
    x, y = torch.randn(4, *shape, dtype=torch.float64), torch.tensor([0, 2, 1, 2])
    found = CurvatureRegularizedLoss(weight=2.0, h=0.5)(network, x, y)
    expected = by_hand(network, x, y, 2.0, 0.5)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, network), gradients(expected, network))


@pytest.mark.parametrize("shape", [(7,), (7, 1), (1, 7), (7, 1, 1, 1)])
def test_the_penalty_of_a_quadratic_does_not_depend_on_the_shape(shape):
    matrix = torch.randn(7, 7, dtype=torch.float64)
    matrix = matrix + matrix.T
    x = torch.randn(5, *shape, dtype=torch.float64)
    g = x.flatten(1) @ matrix
    expected = 0.3**2 * (F.normalize(g) @ matrix).square().sum(1)
    _, found = curvature_penalty(
        lambda x: (x.flatten(1) @ matrix * x.flatten(1)).sum(1) / 2, x, x, h=0.3, criterion=lambda out, _: out
    )
    torch.testing.assert_close(found, expected)


def table():
    make, shape = KINDS["table"]
    return make().double(), torch.randn(6, *shape, dtype=torch.float64), torch.tensor([0, 2, 1, 2, 0, 0])


def test_soft_labels_by_the_formula_of_softmax_regression():
    """Cross-entropy of softmax(Wx) with probabilities q has the input gradient (p - q) W."""
    network = nn.Linear(5, 3).double()
    x, q = torch.randn(4, 5, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64).softmax(1)

    def loss_and_gradient(x):
        p = (x @ network.weight.T + network.bias).softmax(1)
        return -(q * p.log()).sum(1), (p - q) @ network.weight

    losses, g = loss_and_gradient(x)
    moved = loss_and_gradient(x + 1.5 * F.normalize(g))[1]
    expected = (losses + 0.7 * (moved - g).square().sum(1)).mean()
    torch.testing.assert_close(CurvatureRegularizedLoss(weight=0.7, h=1.5)(network, x, q), expected)


def test_label_smoothing_is_torch_s():
    network, x, y = table()

    def criterion(outputs, targets):
        return F.cross_entropy(outputs, targets, label_smoothing=0.2)

    expected = by_hand(network, x, y, 2.0, 0.5, criterion=criterion)
    loss = CurvatureRegularizedLoss(weight=2.0, h=0.5)
    torch.testing.assert_close(loss(network, x, smoothed(y, 3, 0.2).double()), expected, rtol=1e-6, atol=1e-7)
    each = nn.CrossEntropyLoss(reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(loss(network, x, y, criterion=each), expected)
    with pytest.raises(ValueError, match=r"smoothing is 1\.5"):
        smoothed(y, 3, 1.5)


def test_mixup_and_cutmix_of_torchvision():
    from torchvision.transforms import v2

    _, x, y = table()
    images = x[:, None, None].repeat(1, 1, 4, 1)
    onto = nn.Sequential(nn.Flatten(), nn.Linear(28, 3)).double()
    for mix in (v2.MixUp(num_classes=3), v2.CutMix(num_classes=3)):
        mixed, soft = mix(images.float(), y)
        mixed, soft = mixed.double(), soft.double()
        found = CurvatureRegularizedLoss(weight=2.0, h=0.5)(onto, mixed, soft)
        torch.testing.assert_close(found, by_hand(onto, mixed, soft, 2.0, 0.5))
    a, b = smoothed(y, 3, 0.0), smoothed(y.flip(0), 3, 0.0)
    torch.testing.assert_close(a.argmax(1), y)
    torch.testing.assert_close((0.3 * a + 0.7 * b).sum(1), torch.ones(6))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_weights_multiply_each_example(training, fraction):
    network, x, y = table()
    network.insert(1, nn.BatchNorm1d(9).double()).train(training)
    w = torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0, 1.0], dtype=torch.float64)
    loss = CurvatureRegularizedLoss(weight=2.0, h=0.5, fraction=fraction)
    found = loss(copy.deepcopy(network), x, y, weights=w)
    part, evaluated = round(6 * fraction), copy.deepcopy(network).eval()
    plain = (w * F.cross_entropy(copy.deepcopy(network)(x), y, reduction="none")).mean()
    _, penalties = curvature_penalty(evaluated, x[:part], y[:part], h=0.5)
    torch.testing.assert_close(found, plain + 2.0 * (w[:part] * penalties).mean())
    if not training and fraction == 1.0:
        torch.testing.assert_close(found, by_hand(network, x, y, 2.0, 0.5, w))
    ones = loss(copy.deepcopy(network), x, y, weights=torch.ones_like(w))
    torch.testing.assert_close(ones, loss(copy.deepcopy(network), x, y))
    zero = CurvatureRegularizedLoss(weight=0.0)(copy.deepcopy(network), x, y, weights=w)
    torch.testing.assert_close(zero, plain)


def test_any_criterion_of_each_example():
    """Regression by squared error: the loss of a linear model is quadratic, so the penalty is h^2 ||H z||^2."""
    network = nn.Linear(5, 2).double()
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    hessian = 2 * network.weight.T @ network.weight
    residual = network(x) - y
    g = 2 * residual @ network.weight
    expected = (residual.square().sum(1) + 3.0 * 0.25 * (F.normalize(g) @ hessian).square().sum(1)).mean()
    loss = CurvatureRegularizedLoss(weight=3.0, h=0.5)
    found = loss(network, x, y, criterion=lambda out, y: (out - y).square().sum(1))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("training", [True, False])
def test_a_criterion_that_takes_a_mean_is_refused(weight, training):
    """Its gradients would carry 1/N, and the penalty would depend on the size of the batch."""
    network, x, y = table()
    with pytest.raises(ValueError, match=r"criterion returns one number; .* reduction='none'"):
        CurvatureRegularizedLoss(weight)(network.train(training), x, y, criterion=nn.CrossEntropyLoss())


def test_losses_and_weights_of_another_shape_are_refused():
    """(N,) weights of (N, 1) losses would be (N, N) products."""
    x, y = torch.rand(6, 4), torch.randint(2, (6, 1)).float()
    loss, each = CurvatureRegularizedLoss(1.0), nn.BCEWithLogitsLoss(reduction="none")
    with pytest.raises(ValueError, match=r"criterion returns \(6, 1\); it must return each example's loss \(N,\)"):
        loss(nn.Linear(4, 1), x, y, criterion=each, weights=torch.ones(6))
    with pytest.raises(ValueError, match=r"weights are \(1,\); they must be \(N,\)"):
        loss(nn.Linear(4, 2), x, y.flatten().long(), weights=torch.ones(1))


# Models that return more than logits

Pair = namedtuple("Pair", ["logits", "auxiliary"])


@dataclass
class Output:
    logits: torch.Tensor
    loss: None = None


SHAPES = {
    "tensor": (lambda out: out, None),
    "tuple": (lambda out: (out, out * 2), None),
    "position": (lambda out: [out * 2, out], 1),
    "named tuple": (lambda out: Pair(out, out * 2), None),
    "dict": (lambda out: {"loss": None, "logits": out}, None),
    "key": (lambda out: {"logits": out * 2, "values": out}, "values"),
    "dataclass": (Output, None),
    "attribute": (lambda out: SimpleNamespace(scores=out), "scores"),
}


class Returning(nn.Module):
    def __init__(self, network, wrap):
        super().__init__()
        self.network, self.wrap = network, wrap

    def forward(self, x):
        return self.wrap(self.network(x))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_logits_of_any_output(name, training):
    wrap, key = SHAPES[name]
    network, x, y = table()
    network.insert(1, nn.BatchNorm1d(9).double()).train(training)
    twin = copy.deepcopy(network)
    model = Returning(network, wrap).train(training)
    loss = CurvatureRegularizedLoss(weight=2.0, h=0.5)
    found, expected = loss(logits_of(model, key), x, y), loss(twin, x, y)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(gradients(found, network), gradients(expected, twin), rtol=0, atol=0)
    torch.testing.assert_close(network.state_dict(), twin.state_dict(), rtol=0, atol=0)
    assert all(module.training is training for module in model.modules())


def test_an_adaptor_has_the_model_s_mode():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    adaptor = logits_of(model.eval())
    assert not is_training(adaptor)
    model.train()
    assert is_training(adaptor)
    adaptor.eval()
    assert not is_training(model)
    adaptor.train()
    assert model[1].training
    assert not is_training(logits_of(lambda x: (x,)))


def test_a_loss_in_pixels_sees_the_mode_of_the_network_alone():
    """GUARD's loss takes two passes if the network is in evaluation mode, whatever mode its preprocessing is in."""
    passes = []

    class Counting(nn.Linear):
        def forward(self, x):
            passes.append(len(x))
            return super().forward(x.flatten(1))

    network, normalize = Counting(4, 3).eval(), Normalize([0.5], [0.25])
    x, y = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    InPixels(CurvatureRegularizedLoss(h=0.1), normalize.train())(network, x, y)
    assert passes == [5, 5]
    InPixels(CurvatureRegularizedLoss(h=0.1), normalize)(network.train(), x, y)
    assert passes == [5] * 5
    assert network.training
    assert normalize.training


@pytest.mark.parametrize(
    ("output", "key", "message"),
    [
        ({"scores": 1}, None, "no 'logits'; choose from 'scores'"),
        ((torch.zeros(1),), 3, "no 3; choose from positions 0 to 0"),
        (Pair(1, 2), "loss", "no 'loss'; choose from 'logits', 'auxiliary'"),
        (Output(torch.zeros(1)), "scores", "no 'scores'; choose from the attributes of Output"),
        (None, None, "no 'logits'; choose from the attributes of NoneType"),
    ],
)
def test_an_output_without_that_part_is_refused(output, key, message):
    with pytest.raises(ValueError, match=message):
        logits_of(lambda x: output, key)(torch.zeros(1))


def test_an_argument_by_name_and_others_with_it():
    network, x, y = table()

    def model(ids=None, *, embedded=None, mask=None):
        assert ids is None
        return {"logits": network(embedded * mask)}

    mask = torch.rand(6, 7, dtype=torch.float64)
    adaptor = logits_of(model, argument="embedded", mask=mask)
    loss = CurvatureRegularizedLoss(weight=2.0, h=0.5)
    torch.testing.assert_close(loss(adaptor, x, y), loss(lambda x: network(x * mask), x, y))


def test_attacks_and_teachers_take_adaptors():
    network, x, y = table()
    network, x = network.float(), torch.rand(6, 7)
    model = logits_of(Returning(network, lambda out: (out, None)))
    attack = PGD(Threat("linf", 0.3))
    ours = robust_accuracy(model, x, y, attack, generator=torch.Generator().manual_seed(0))
    assert ours == robust_accuracy(network, x, y, attack, generator=torch.Generator().manual_seed(0))
    for a, b in zip(RobustTeacher(model).gradients(x, y), RobustTeacher(network).gradients(x, y), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_an_adaptor_around_distributed_data_parallel_takes_one_pass_of_it(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        network, x, y = table()
        wrapped = DistributedDataParallel(Returning(copy.deepcopy(network), lambda out: {"logits": out}))
        passes = []
        wrapped.register_forward_pre_hook(lambda *_: passes.append(1))
        loss, adaptor = CurvatureRegularizedLoss(weight=2.0, h=0.5), logits_of(wrapped)
        for _ in range(2):
            loss(adaptor, x, y).backward()
            loss(network, x, y).backward()
        assert len(passes) == 2
        for ours, theirs in zip(wrapped.parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
        assert network_inside(adaptor).model is wrapped.module
    finally:
        torch.distributed.destroy_process_group()
