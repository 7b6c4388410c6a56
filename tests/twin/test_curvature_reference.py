"""Equation 8 written out, an example at a time in float64, against the loss."""

import pytest
import torch
from torch import nn

from robust import CurvatureRegularizedLoss


def reference(net, inputs, targets, weight, h):
    total = 0.0
    for x, y in zip(inputs.split(1), targets, strict=True):
        x = x.clone().requires_grad_()
        loss = -net(x).log_softmax(1)[0, y]
        (g,) = torch.autograd.grad(loss, x, create_graph=True)
        moved = (x + h * g / g.square().sum().sqrt()).detach().requires_grad_()
        (moved_g,) = torch.autograd.grad(-net(moved).log_softmax(1)[0, y], moved, create_graph=True)
        total = total + loss + weight * (moved_g - g).square().sum()
    return total / len(inputs)


@pytest.mark.parametrize("case", range(100))
def test_the_loss_equals_equation_8(case):
    torch.manual_seed(case)

    def pick(*choices):
        return choices[torch.randint(len(choices), ()).item()]

    channels, width, size, classes = pick(1, 2, 3), pick(4, 6, 8), pick(4, 8), pick(2, 3, 10)
    stages, features = [], channels
    for _ in range(pick(1, 2)):
        norm = pick(nn.Identity(), nn.GroupNorm(2, width), nn.GroupNorm(width, width), nn.GroupNorm(1, width))
        activation = pick(nn.ReLU, nn.Softplus)()
        stages += [nn.Conv2d(features, width, 3, padding=1), norm, activation, nn.AvgPool2d(2)]
        features, size = width, size // 2
    net = nn.Sequential(*stages, nn.Flatten(), nn.Linear(width * size**2, classes)).double()
    n, h, weight = pick(1, 2, 5), 10 ** (2 * torch.rand(()).item() - 1), 10 ** (4 * torch.rand(()).item() - 2)
    side = size * 2 ** (len(stages) // 4)
    x, y = torch.randn(n, channels, side, side), torch.randint(classes, (n,))
    x, parameters = x.double(), list(net.parameters())

    found, expected = CurvatureRegularizedLoss(weight, h)(net, x, y), reference(net, x, y, weight, h)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9, abs=0)
    ours, theirs = (torch.cat([g.flatten() for g in torch.autograd.grad(v, parameters)]) for v in (found, expected))
    assert theirs.norm() > 0
    assert (ours - theirs).norm() <= 1e-9 * theirs.norm()
