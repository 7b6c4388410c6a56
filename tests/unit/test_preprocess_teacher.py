import copy

import numpy as np
import pytest
import torch
from torch import nn

from robust import CrossEntropy, CurvatureRegularizedLoss, Normalize, RobustTeacher


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def net():
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)]
    return nn.Sequential(*layers).double()


def batch():
    return torch.randn(5, 3, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])


MEAN, STD = (0.5, 0.25, 0.0), (0.25, 0.5, 2.0)


def test_normalize_is_affine_per_channel():
    layer = Normalize(MEAN, STD)
    images = torch.ones(2, 3, 4, 5)
    expected = torch.tensor([2.0, 1.5, 0.5]).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    torch.testing.assert_close(layer(images), expected)
    torch.testing.assert_close(layer.inverse(expected), images)


def test_normalize_and_its_inverse_undo_each_other():
    layer, images = Normalize(MEAN, STD).double(), torch.rand(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(layer.inverse(layer(images)), images)
    torch.testing.assert_close(layer(layer.inverse(images)), images)
    far = torch.full((1, 3, 1, 1), 100.0, dtype=torch.float64)
    assert layer.inverse(far).max() > 1  # not clamped


def test_normalize_travels_with_the_model_and_is_not_trained():
    model = nn.Sequential(Normalize(MEAN, STD))
    assert list(model.parameters()) == []
    fresh = nn.Sequential(Normalize([0, 0, 0], [1, 1, 1]))  # integers, as people write them
    fresh.load_state_dict(model.state_dict())
    images = torch.rand(1, 3, 2, 2)
    assert torch.equal(fresh(images), model(images))
    assert model.double()(images.double()).dtype == torch.float64


@pytest.mark.parametrize("loss", [CrossEntropy(), CurvatureRegularizedLoss(weight=5.0)])
def test_a_teachers_gradients_are_autograds(net, loss):
    net.eval()
    x, y = batch()
    net[0].bias.requires_grad_(False)
    trainable = [p for p in net.parameters() if p.requires_grad]
    expected = torch.autograd.grad(loss(net, x, y), trainable)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    found = RobustTeacher(net, loss).gradients(x, y)
    torch.testing.assert_close(found, expected)
    assert not any(g.requires_grad for g in found)
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    assert all(p.grad is None for p in net.parameters() if p is not net[0].weight)


def test_a_parameter_out_of_reach_gets_zeros():
    net = nn.ModuleDict({"used": nn.Linear(4, 3), "unused": nn.Linear(2, 2)})
    net.forward = lambda x: net["used"](x)
    found = RobustTeacher(net).gradients(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    assert [g.shape for g in found] == [p.shape for p in net.parameters()]
    assert [bool((g != 0).any()) for g in found] == [True, True, False, False]


def test_the_training_loss_follows_the_warm_up(net):
    net.eval()
    x, y = batch()
    teacher = RobustTeacher(net, CurvatureRegularizedLoss(weight=5.0, h=3.0, h_warmup=(0.1, 1.0)))
    found = [teacher.training_loss(x, y, epoch).item() for epoch in range(4)]
    assert found == [CurvatureRegularizedLoss(weight=5.0, h=h)(net, x, y).item() for h in (0.1, 1.0, 3.0, 3.0)]
    assert len(set(found)) == 3
    assert teacher.training_loss(x, y).item() == found[0]
    assert RobustTeacher(net, CrossEntropy()).training_loss(x, y, 1).item() == CrossEntropy()(net, x, y).item()


def test_the_training_loss_trains(net):
    teacher = RobustTeacher(net, CurvatureRegularizedLoss(h_warmup=(0.1,)))
    teacher.training_loss(*batch()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for name, p in net.named_parameters() if name != "0.bias")


@pytest.mark.parametrize("temperature", [0.1, 1.0, 20.0])
def test_soft_labels_are_the_tempered_softmax_of_the_evaluating_network(net, temperature):
    x, _ = batch()
    teacher, evaluating = RobustTeacher(net), copy.deepcopy(net).eval()
    net[1].eval()
    modes, before = [m.training for m in net.modules()], copy.deepcopy(net.state_dict())
    labels = teacher.soft_labels(x, temperature)
    torch.testing.assert_close(labels.sum(1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(labels.log() * temperature, evaluating(x).div(temperature).log_softmax(1) * temperature)
    assert not labels.requires_grad
    assert [m.training for m in net.modules()] == modes
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(net, temperature):
    with pytest.raises(ValueError, match=f"temperature is {temperature}; it must be .*> 0"):
        RobustTeacher(net).soft_labels(batch()[0], temperature)


def test_the_default_loss_is_guards(net):
    assert RobustTeacher(net).loss == CurvatureRegularizedLoss()


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, np.array, lambda v: torch.tensor(v).view(-1, 1, 1)])
def test_normalize_takes_lists_arrays_and_tensors_without_a_warning(kind):
    made = Normalize(kind(MEAN), kind(STD))  # warnings are errors here
    assert made.mean.shape == made.std.shape == (3, 1, 1)
    assert made.mean.dtype == torch.get_default_dtype()
    assert torch.equal(made.mean, Normalize(MEAN, STD).mean)


def test_normalize_keeps_constants_of_its_own():
    mean = torch.tensor([0.5], requires_grad=True)
    layer = Normalize(mean, torch.tensor([0.25]))
    with torch.no_grad():
        mean.fill_(9.0)
    assert layer.mean.item() == 0.5
    assert not layer.mean.requires_grad
    with torch.device("meta"):
        assert Normalize([0.5], [0.25]).mean.is_meta


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([0.5], [0.25, 0.25]),
        ([0.5], [0.0]),
        ([0.5], [-1.0]),
        ([0.5], [float("nan")]),
        ([0.5], [float("inf")]),
        ([float("nan")], [0.25]),
        ([1e300], [0.25]),
        ([], []),
    ],
)
@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_normalize_refuses_constants_that_are_none(mean, std, kind):
    with pytest.raises(ValueError, match=r"^mean is .* and std .*; give a finite number per channel of each, std > 0$"):
        Normalize(kind(mean), kind(std))


def test_normalize_says_the_numbers_as_they_are_written():
    with pytest.raises(ValueError, match=r"^mean is \[0.5, 0.5\] and std \[0.1, -0.1\]; give"):
        Normalize([0.5, 0.5], [0.1, -0.1])


@pytest.mark.parametrize("mean", [None, ["a"], "0.5"])
def test_normalize_refuses_what_is_no_number(mean):
    with pytest.raises(TypeError, match="give a number per channel"):
        Normalize(mean, [0.25])
