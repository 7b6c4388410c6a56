import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from robust import CurvatureRegularizedLoss, GradientNorm, Loss, Normalize, cross_entropy, curvature_penalty, loss_named
from robust.losses import InPixels
from robust.losses.curvature import losses_and_gradients

PENALTIES = ["squared", "norm", "loss_difference"]
DIRECTIONS = ["grad", "sign"]
MODES = ["eval", "train"]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def first_value(outputs, _targets):
    return outputs


def convnet(*middle):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), *middle, nn.Softplus(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )


def bn_frozen():
    """A net in training whose first BatchNorm the user put in evaluation mode."""
    net = convnet(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.3))
    net[1].eval()
    net[0].weight.requires_grad_(False)
    return net


NETS = {
    "batchnorm": lambda: convnet(nn.BatchNorm2d(4)),
    "groupnorm": lambda: convnet(nn.GroupNorm(2, 4)),
    "dropout": lambda: convnet(nn.Dropout(0.5)),
    "dropout_batchnorm": lambda: convnet(nn.Dropout(0.5), nn.BatchNorm2d(4)),
    "partly_frozen_dropout": bn_frozen,
    "evaluating": lambda: convnet(nn.BatchNorm2d(4), nn.Dropout(0.5)).eval(),
}


def batch(n=6, dtype=torch.float32):
    return torch.randn(n, 2, 6, 6, dtype=dtype), torch.randint(3, (n,))


def used(net):
    """The net with BatchNorm statistics as after some training."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net


def parameter_gradients(loss, net):
    return torch.autograd.grad(loss, list(net.parameters()))


# Closed forms


@pytest.mark.parametrize("h", [1e-3, 0.1, 1.0, 3.0, 50.0])
@pytest.mark.parametrize("direction", [*DIRECTIONS, "given"])
def test_every_penalty_is_exact_on_a_quadratic(h, direction):
    matrix = torch.randn(7, 7, dtype=torch.float64)
    matrix = matrix + matrix.T
    x = torch.randn(5, 7, dtype=torch.float64)
    g = x @ matrix
    given = F.normalize(torch.randn(5, 7, dtype=torch.float64))
    z = {"grad": g / g.norm(dim=1, keepdim=True), "sign": g.sign() / 7**0.5, "given": given}[direction]
    expected = {
        "squared": h**2 * (z @ matrix).square().sum(1),
        "norm": h * (z @ matrix).norm(dim=1),
        "loss_difference": h * (g * z).sum(1) + h**2 / 2 * (z @ matrix * z).sum(1),
    }
    for penalty, value in expected.items():
        losses, penalties = curvature_penalty(
            lambda x: (x @ matrix * x).sum(1) / 2,
            x,
            x,
            h=h,
            direction=given if direction == "given" else direction,
            penalty=penalty,
            criterion=first_value,
        )
        torch.testing.assert_close(losses, (x @ matrix * x).sum(1) / 2)
        torch.testing.assert_close(penalties, value, rtol=1e-6, atol=0)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_loss_is_exact_on_softmax_regression(direction):
    net = nn.Linear(5, 3).double()
    x, y, weight, h = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 2, 1, 2]), 0.7, 1.5
    one_hot = F.one_hot(y, 3)

    def loss_and_gradient(x):  # of the cross-entropy of softmax(Wx + b), by hand
        p = (x @ net.weight.T + net.bias).softmax(1)
        return -(p * one_hot).sum(1).log(), (p - one_hot) @ net.weight

    losses, g = loss_and_gradient(x)
    z = g if direction == "grad" else g.sign()
    moved_losses, moved_g = loss_and_gradient(x + h * z / z.norm(dim=1, keepdim=True))
    expected = {
        "squared": (moved_g - g).square().sum(1),
        "norm": (moved_g - g).norm(dim=1),
        "loss_difference": moved_losses - losses,
    }
    for penalty, value in expected.items():
        loss = CurvatureRegularizedLoss(weight=weight, h=h, direction=direction, penalty=penalty)
        torch.testing.assert_close(loss(net, x, y), (losses + weight * value).mean())


@pytest.mark.parametrize("penalty", PENALTIES)
def test_gradcheck_with_the_direction_given(penalty):
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    names, parameters = zip(*net.named_parameters(), strict=True)
    x, y, z = torch.randn(3, 4).double(), torch.tensor([0, 2, 1]), F.normalize(torch.randn(3, 4).double())

    def losses_and_penalties(x, *parameters):
        def model(x):
            return functional_call(net, dict(zip(names, parameters, strict=True)), (x,))

        return curvature_penalty(model, x, y, h=0.8, direction=z, penalty=penalty)

    assert torch.autograd.gradcheck(losses_and_penalties, (x.requires_grad_(), *parameters))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_direction_is_a_constant(direction, penalty):
    net, (x, y) = NETS["groupnorm"]().double(), batch(dtype=torch.float64)
    x.requires_grad_()
    (g,) = torch.autograd.grad(cross_entropy(net(x), y).sum(), x)
    z = g if direction == "grad" else g.sign()
    z = z / z.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    losses, penalties = curvature_penalty(net, x, y, h=2.0, direction=z, penalty=penalty)
    expected = (losses + 3.0 * penalties).mean()
    found = CurvatureRegularizedLoss(weight=3.0, h=2.0, direction=direction, penalty=penalty)(net, x, y)
    torch.testing.assert_close(found, expected)
    wanted = [x, *net.parameters()]
    torch.testing.assert_close(torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted))


# No side effects


@pytest.mark.parametrize("batchnorm", MODES)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("graph", [True, False])
def test_leaves_the_model_as_one_plain_forward_pass_does(name, batchnorm, penalty, graph):
    net, (x, y) = used(NETS[name]()), batch()
    *others, last = net.parameters()
    last.grad = torch.ones(3)
    buffers = [b.data_ptr() for b in net.buffers()]
    plain = copy.deepcopy(net)
    state = torch.get_rng_state()
    plain(x)
    after_plain = torch.get_rng_state()
    torch.set_rng_state(state)
    with torch.set_grad_enabled(graph):
        CurvatureRegularizedLoss(batchnorm=batchnorm, penalty=penalty)(net, x, y)
    if batchnorm == "eval" or "dropout" not in name:
        assert torch.equal(torch.get_rng_state(), after_plain)
    torch.testing.assert_close(net.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert [b.data_ptr() for b in net.buffers()] == buffers
    assert [m.training for m in net.modules()] == [m.training for m in plain.modules()]
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in plain.parameters()]
    assert all(p.grad is None for p in others)
    assert torch.equal(last.grad, torch.ones(3))
    assert x.grad is None
    assert not x.requires_grad


def test_modes_come_back_when_the_model_fails():
    net, (x, y) = NETS["batchnorm"]().train(), batch()
    calls = []

    def second_pass_fails(module, _inputs):
        calls.append(module.training)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    net.register_forward_pre_hook(second_pass_fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        CurvatureRegularizedLoss()(net, x, y)
    assert calls == [False, False]
    assert all(module.training for module in net.modules())


def test_backward_changes_the_parameters_gradients_only():
    net, (x, y) = NETS["batchnorm"](), batch()
    CurvatureRegularizedLoss()(net, x, y).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert x.grad is None


# Independence of the batch


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("net", [NETS["evaluating"], NETS["groupnorm"]])
def test_the_split_of_the_batch_changes_nothing(net, penalty):
    net, (x, y) = used(net()).double(), batch(dtype=torch.float64)
    loss = CurvatureRegularizedLoss(weight=2.0, penalty=penalty)
    whole = loss(net, x, y)
    for sizes in ([1, 5], [2, 2, 2], [1] * 6):
        parts = zip(sizes, x.split(sizes), y.split(sizes), strict=True)
        total = sum(n / 6 * loss(net, part, labels) for n, part, labels in parts)
        torch.testing.assert_close(total, whole)
        torch.testing.assert_close(parameter_gradients(total, net), parameter_gradients(loss(net, x, y), net))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_an_example_does_not_feel_the_others(penalty):
    net, (x, y) = used(NETS["evaluating"]()).double(), batch(dtype=torch.float64)
    others = x.clone()
    others[1:] = 100 * torch.randn_like(x[1:])
    losses, penalties = curvature_penalty(net, x, y, h=3.0, penalty=penalty)
    other_losses, other_penalties = curvature_penalty(net, others, y, h=3.0, penalty=penalty)
    torch.testing.assert_close(losses[0], other_losses[0])
    torch.testing.assert_close(penalties[0], other_penalties[0])
    assert (penalties[1:] - other_penalties[1:]).abs().min() > 0


def penalty_by_hand(model, x, y, h):
    x = x.detach().requires_grad_()
    (g,) = torch.autograd.grad(cross_entropy(model(x), y).sum(), x, create_graph=True)
    moved = x.detach() + h * g.detach() / g.detach().flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    moved.requires_grad_()
    (moved_g,) = torch.autograd.grad(cross_entropy(model(moved), y).sum(), moved, create_graph=True)
    return (moved_g - g).flatten(1).square().sum(1)


@pytest.mark.parametrize("batchnorm", MODES)
def test_batchnorm_mode_decides_which_statistics_the_penalty_sees(batchnorm):
    net, (x, y) = used(NETS["batchnorm"]()).double(), batch(dtype=torch.float64)
    before = copy.deepcopy(net)  # "eval" sees the running statistics without this batch

    def with_its_own_buffers(x):  # so that this pass neither sees nor makes any change
        buffers = {name: b.clone() for name, b in before.named_buffers()}
        return functional_call(net, {**dict(net.named_parameters()), **buffers}, (x,))

    expected = cross_entropy(with_its_own_buffers(x), y).mean()
    net.train(batchnorm == "train")
    expected = expected + 2.0 * penalty_by_hand(with_its_own_buffers, x, y, h=3.0).mean()
    net.train()
    wanted = parameter_gradients(expected, net)
    found = CurvatureRegularizedLoss(weight=2.0, h=3.0, batchnorm=batchnorm)(net, x, y)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(parameter_gradients(found, net), wanted)


# Uses


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("training", [True, False])
def test_weight_zero_is_cross_entropy(penalty, training):
    net, (x, y) = used(NETS["batchnorm"]()).train(training), batch()
    for targets in (y, torch.rand(6, 3).softmax(1)):
        found, expected = (
            CurvatureRegularizedLoss(0.0, penalty=penalty)(net, x, targets),
            F.cross_entropy(net(x), targets),
        )
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(parameter_gradients(found, net), parameter_gradients(expected, net))


def test_the_value_is_linear_in_the_weight():
    net, (x, y) = NETS["groupnorm"]().double(), batch(dtype=torch.float64)
    losses, penalties = curvature_penalty(net, x, y, h=3.0)
    for weight in (0.1, 1.0, 100.0):
        found = CurvatureRegularizedLoss(weight)(net, x, y)
        torch.testing.assert_close(found, losses.mean() + weight * penalties.mean())


def test_h_warmup_is_h_of_the_first_epochs():
    net, (x, y) = NETS["groupnorm"](), batch()
    loss = CurvatureRegularizedLoss(weight=2.0, h=3.0, direction="sign", h_warmup=(0.1, 1.0))
    for epoch, h in enumerate((0.1, 1.0, 3.0, 3.0)):
        expected = CurvatureRegularizedLoss(weight=2.0, h=h, direction="sign")(net, x, y)
        assert loss.at(epoch)(net, x, y).item() == expected.item()
    assert loss(net, x, y).item() == expected.item()  # outside `at` the warm-up has no say


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("name", ["evaluating", "batchnorm"])
def test_without_grad_it_gives_the_value_and_no_graph(name, penalty):
    net, (x, y) = used(NETS[name]()), batch()
    loss = CurvatureRegularizedLoss(penalty=penalty)
    expected = loss(copy.deepcopy(net), x, y)
    with torch.no_grad():
        found = loss(net, x, y)
        assert not torch.is_grad_enabled()
    assert not found.requires_grad
    assert expected.requires_grad
    assert found.item() == expected.item()


@pytest.mark.parametrize("penalty", PENALTIES)
def test_gradient_flows_into_inputs_that_ask_for_it(penalty):
    net, (x, y) = NETS["groupnorm"]().double(), batch(dtype=torch.float64)
    loss = CurvatureRegularizedLoss(penalty=penalty)
    plain = loss(net, x, y)
    leaf = x.clone().requires_grad_()
    value = loss(net, leaf, y)
    value.backward()
    torch.testing.assert_close(value, plain)
    assert leaf.grad.abs().flatten(1).amax(1).min() > 0
    half = (x / 2).requires_grad_()
    loss(net, 2 * half, y).backward()
    torch.testing.assert_close(half.grad, 2 * leaf.grad)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_one_hot_targets_are_hard_targets(penalty):
    net, (x, y) = NETS["groupnorm"]().double(), batch(dtype=torch.float64)
    loss = CurvatureRegularizedLoss(penalty=penalty)
    hard, soft = loss(net, x, y), loss(net, x, F.one_hot(y, 3).double())
    torch.testing.assert_close(hard, soft)
    torch.testing.assert_close(parameter_gradients(hard, net), parameter_gradients(soft, net))


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_example_without_gradient_has_no_penalty_and_harms_no_other(penalty, direction):
    net = nn.Linear(4, 3)
    net.weight.data[0] = 1.0
    x, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    x[0] = 1000.0  # logit 0 ahead by hundreds: softmax is exactly one-hot in float32
    net.weight.data[1:].clamp_(max=0.5)
    options = {"h": 1.0, "penalty": penalty, "direction": direction}
    losses, penalties = curvature_penalty(net, x, y, **options)
    assert losses[0] == penalties[0] == 0
    _, alone = curvature_penalty(net, x[1:], y[1:], **options)
    torch.testing.assert_close(penalties[1:], alone)
    for got, expected in zip(
        parameter_gradients(penalties.sum(), net), parameter_gradients(alone.sum(), net), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_a_confident_example_keeps_its_direction():
    logits = torch.tensor([[60.0, 0.0, 0.0]])  # gradient 1e-26: its square is 0 in float32
    _, penalty = curvature_penalty(lambda x: x, logits, torch.tensor([0]), h=90.0)
    _, exact = curvature_penalty(lambda x: x, logits.double(), torch.tensor([0]), h=90.0)
    assert exact > 0.1
    assert penalty.item() == pytest.approx(exact.item(), rel=1e-4)


# Where others put it


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.long
def test_compiled_equals_eager(penalty):
    net, (x, y) = used(NETS["evaluating"]()), batch()
    loss = CurvatureRegularizedLoss(weight=2.0, penalty=penalty)

    def step(parameters, x, y):
        return torch.func.grad(lambda p: loss(lambda x: functional_call(net, p, (x,)), x, y))(parameters)

    parameters = dict(net.named_parameters())
    # aot_eager traces and differentiates as inductor does; it only leaves out making the kernels, which takes 30 s
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(parameters, x, y)
    expected = dict(zip(parameters, parameter_gradients(loss(net, x, y), net), strict=True))
    torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_autocast_stays_within_the_precision_of_bfloat16(training):
    net, (x, y) = used(NETS["batchnorm"]()).train(training), batch(32)
    loss = CurvatureRegularizedLoss(weight=10.0)
    exact = loss(copy.deepcopy(net), x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(net, x, y)
    assert found.dtype == torch.float32
    assert found.item() != exact.item()  # autocast reached the model
    assert found.item() == pytest.approx(exact.item(), rel=0.02)  # 8 bits of mantissa: 0.4 % an operation


def test_a_training_step_under_autocast_with_a_gradient_scaler():
    net, (x, y) = used(NETS["batchnorm"]()), batch(32)
    loss = CurvatureRegularizedLoss(weight=10.0)
    exact = copy.deepcopy(net)
    loss(exact, x, y).backward()
    optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.01), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = [p.detach().clone() for p in net.parameters()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(net, x, y)
    scaler.scale(value).backward()
    scaler.step(optimizer)
    scaler.update()
    steps = torch.cat([(b - p.detach()).flatten() / 0.01 for b, p in zip(before, net.parameters(), strict=True)])
    gradients = torch.cat([p.grad.flatten() for p in exact.parameters()])
    assert scaler.get_scale() == 2.0**10  # no overflow found
    assert (steps - gradients).norm() < 0.05 * gradients.norm()


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("batchnorm", MODES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_distributed_data_parallel_equals_the_bare_model(process_group, training, batchnorm, penalty):
    net, (x, y) = used(NETS["batchnorm"]()).train(training), batch()
    loss = CurvatureRegularizedLoss(weight=2.0, batchnorm=batchnorm, penalty=penalty)
    wrapped = DistributedDataParallel(copy.deepcopy(net)).train(training)
    passes = []
    wrapped.register_forward_pre_hook(lambda *_: passes.append(1))
    for _ in range(2):  # DistributedDataParallel complains about a step's mistake in the next step
        expected, found = loss(net, x, y), loss(wrapped, x, y)
        expected.backward()
        found.backward()
        torch.testing.assert_close(found, expected)
    assert len(passes) == 2  # its reducer wants one forward pass a step
    for ours, theirs in zip(wrapped.module.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(wrapped.module.state_dict(), net.state_dict())


def test_gradient_accumulation_equals_the_whole_batch():
    net, (x, y) = NETS["groupnorm"]().double(), batch(dtype=torch.float64)
    loss = CurvatureRegularizedLoss(weight=2.0)
    expected = parameter_gradients(loss(net, x, y), net)
    for part, labels in zip(x.split(2), y.split(2), strict=True):
        (loss(net, part, labels) / 3).backward()
    torch.testing.assert_close(tuple(p.grad for p in net.parameters()), expected)


@pytest.mark.parametrize("batchnorm", MODES)
def test_losses_summed_before_backward_equal_losses_one_by_one(batchnorm):
    net, (x, y) = used(NETS["batchnorm"]()).double(), batch(dtype=torch.float64)
    loss, twin = CurvatureRegularizedLoss(weight=2.0, batchnorm=batchnorm), copy.deepcopy(net)
    for part, labels in zip(x.split(3), y.split(3), strict=True):
        loss(twin, part, labels).backward()
    sum(loss(net, part, labels) for part, labels in zip(x.split(3), y.split(3), strict=True)).backward()
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_gradient_matching_loop_gets_gradients_it_can_compare():
    """DC: the gradients of the loss on real images are a constant, those on synthetic ones have a graph."""
    net, (x, y) = NETS["groupnorm"]().double(), batch(dtype=torch.float64)
    synthetic = torch.randn_like(x).requires_grad_()
    real = parameter_gradients(CurvatureRegularizedLoss()(net, x, y), net)
    own = torch.autograd.grad(F.cross_entropy(net(synthetic), y), list(net.parameters()), create_graph=True)
    sum((a - b).square().sum() for a, b in zip(real, own, strict=True)).backward()
    assert not any(g.requires_grad for g in real)
    assert synthetic.grad.abs().flatten(1).amax(1).min() > 0
    assert all(p.grad is not None for p in net.parameters())  # by the backward above, not by the loss


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("batchnorm", MODES)
def test_training_lowers_the_loss(name, batchnorm):
    net, (x, y) = NETS[name](), batch(12)
    loss = CurvatureRegularizedLoss(weight=1.0, batchnorm=batchnorm)
    optimizer = torch.optim.Adam((p for p in net.parameters() if p.requires_grad), lr=0.02)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        value = loss(net, x, y)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-5:]) < 0.9 * sum(values[:5])


def test_a_vision_transformer_with_fused_attention():
    import timm

    net = timm.create_model("test_vit", num_classes=3, img_size=32).eval()
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    plain = copy.deepcopy(net)
    attention = [m for m in plain.modules() if hasattr(m, "fused_attn")]
    assert attention
    assert all(m.fused_attn for m in attention)
    for module in attention:
        module.fused_attn = False
    loss = CurvatureRegularizedLoss(weight=10.0)
    found, expected = loss(net, x, y), loss(plain, x, y)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        parameter_gradients(found, net), parameter_gradients(expected, plain), rtol=1e-3, atol=1e-5
    )


# Its fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": -1.0}, "weight is -1.0"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"weight": float("inf")}, "weight is inf"),
        ({"h": 0.0}, "h is 0.0"),
        ({"h": -3.0}, "h is -3.0"),
        ({"h": float("inf")}, "h is inf"),
        ({"h_warmup": (0.1, 0.0)}, r"h_warmup\[1\] is 0.0"),
        ({"direction": "gradient"}, "direction is 'gradient'; choose from grad, sign"),
        ({"penalty": "square"}, "penalty is 'square'; choose from squared, norm, loss_difference"),
        ({"batchnorm": True}, "batchnorm is True; choose from eval, train"),
    ],
)
def test_a_field_out_of_range_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        CurvatureRegularizedLoss(**fields)


def test_the_loss_is_its_own_config():
    loss = CurvatureRegularizedLoss(weight=2.0, h_warmup=(0.1,))
    assert loss == CurvatureRegularizedLoss(weight=2.0, h_warmup=(0.1,))
    assert loss != CurvatureRegularizedLoss(weight=3.0, h_warmup=(0.1,))
    assert eval(repr(loss)) == loss


@pytest.mark.parametrize("training", [False, True])
def test_a_fraction_is_the_penalty_of_the_first_examples(training: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    model = model.double().train(training)
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.arange(8) % 3
    part = CurvatureRegularizedLoss(weight=2.0, h=0.5, fraction=0.25)
    whole = CurvatureRegularizedLoss(weight=2.0, h=0.5)
    plain = torch.nn.functional.cross_entropy(copy.deepcopy(model)(x), y)
    evaluated = copy.deepcopy(model).eval()
    penalty = whole(evaluated, x[:2], y[:2]) - torch.nn.functional.cross_entropy(evaluated(x[:2]), y[:2])
    torch.testing.assert_close(part(model, x, y), plain + penalty)
    for fraction in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"fraction is {fraction}"):
            CurvatureRegularizedLoss(fraction=fraction)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_no_example_of_an_evaluated_network_is_passed_twice(penalty: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.arange(8) % 3
    sizes, parameters = [], [*model.parameters()]
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    value = CurvatureRegularizedLoss(weight=2.0, h=0.5, penalty=penalty, fraction=0.25)(model, x, y)
    assert sorted(sizes) == [2, 2, 6]  # two examples at x and at x + h z, six at x
    _, penalties = curvature_penalty(model, x[:2], y[:2], h=0.5, penalty=penalty)
    expected = F.cross_entropy(model(x), y) + 2.0 * penalties.mean()
    torch.testing.assert_close(value, expected)
    found, right = (torch.autograd.grad(each, parameters) for each in (value, expected))
    torch.testing.assert_close(found, right)


def test_small_gradients_survive_float16() -> None:
    """Input gradients of 1e-6 are below what float16 holds well; the loss lifts them while they run in it."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    x, y = torch.randn(64, 8), torch.arange(64) % 4
    with torch.no_grad():
        model[0].weight *= 2e-5  # so that the gradient by the inputs is
        model[0].weight.clamp_(-1e-5, 1e-5)
    _, gradients = losses_and_gradients(model, x, y)
    with torch.autocast("cpu", torch.float16):
        _, half = losses_and_gradients(model, x, y)
    error = (half - gradients).norm() / gradients.norm()
    assert gradients.abs().max() < 1e-4
    assert error < 0.02


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "loss",
    [
        CurvatureRegularizedLoss(weight=1.0, h=0.5),
        CurvatureRegularizedLoss(weight=1.0, h=0.5, batchnorm="train"),
        CurvatureRegularizedLoss(weight=1.0, h=0.5, fraction=0.5),
        GradientNorm(2.0),
        InPixels(CurvatureRegularizedLoss(weight=1.0, h=0.5), Normalize([0.5], [0.25])),
        InPixels(GradientNorm(2.0), Normalize([0.5], [0.25])),
    ],
    ids=["guard", "train", "fraction", "gradient norm", "guard in pixels", "gradient norm in pixels"],
)
def test_a_compiled_model_is_unwrapped_for_the_penalty(loss: Loss, training: bool) -> None:
    layers = torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.Tanh(), torch.nn.Linear(5, 2)
    model = torch.nn.Sequential(torch.nn.Flatten(), *layers)
    fresh = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager")  # which has no second derivative
    x, y = torch.randn(6, 1, 2, 2), torch.tensor([0, 1, 0, 1, 0, 1])
    ours = torch.autograd.grad(loss(compiled.train(training), x, y), list(model.parameters()))
    theirs = torch.autograd.grad(loss(fresh.train(training), x, y), list(fresh.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_the_released_variant_is_the_loss_s_own_difference() -> None:
    """Code of GUARD at ImageNet scale: CE + beta |mean CE(x + z) - mean CE(x)|, the step along the gradient."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double().eval()
    x, y = torch.randn(8, 6, dtype=torch.float64, requires_grad=True), torch.arange(8) % 3
    ce = torch.nn.functional.cross_entropy
    (g,) = torch.autograd.grad(ce(model(x), y), x)
    z = 0.75 * (g + 1e-7) / (g.norm(dim=1, keepdim=True) + 1e-7)
    expected = ce(model(x), y) + 1e-4 * (ce(model(x + z), y) - ce(model(x), y)).abs()
    torch.testing.assert_close(loss_named("guard_released")(model, x.detach(), y), expected, atol=1e-8, rtol=1e-6)
