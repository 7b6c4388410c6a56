"""BPDA: a step's own values, a stand-in's derivative."""

import pytest
import torch
from torch import nn

from robust import PGD, Threat, attack_named, bpda, withstands

BOX = Threat("linf", 0.1)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def coarse(x):
    return (4 * x).round() / 4


def test_the_values_are_exact_and_the_gradient_is_the_approximations():
    x = torch.rand(5, 7, generator=rng()).requires_grad_()
    for approximation, slope in ((None, torch.ones(5, 7)), (lambda v: v.square(), 2 * x.detach())):
        found = bpda(coarse, approximation)(x)
        assert torch.equal(found, coarse(x.detach()))
        assert torch.equal(torch.autograd.grad(found.sum(), x)[0], slope)


def test_any_code_may_be_in_front_even_numpy_and_the_pixels_are_not_written_to():
    def by_numpy(x):
        assert not torch.is_grad_enabled()
        return torch.from_numpy(x.numpy().round())

    x = torch.rand(3, 4, generator=rng()).requires_grad_()
    before = x.detach().clone()
    found = bpda(by_numpy)(x)
    assert found.requires_grad
    found.detach().zero_()
    assert torch.equal(x, before)
    same = bpda(lambda v: v)(x)
    same.detach().zero_()
    assert torch.equal(x, before)


def test_shapes_that_differ_are_refused_in_a_line():
    x = torch.rand(3, 4)
    with pytest.raises(
        ValueError, match=r"the output of forward is \(3, 2\), the input is \(3, 4\); give a backward"
    ) as error:
        bpda(lambda v: v[:, :2])(x)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"forward is \(3, 2\), the output of backward is \(3, 4\)"):
        bpda(lambda v: v[:, :2], lambda v: v)(x)
    assert bpda(lambda v: v[:, :2], lambda v: v[:, 2:])(x).shape == (3, 2)


def test_a_quantised_linear_model_falls_as_the_line_says():
    """Without BPDA only the random start acts; with it PGD comes to the corner of the ball, beyond the margin."""
    head = nn.Linear(16, 2)
    head.weight.data = torch.stack([torch.ones(16), -torch.ones(16)])
    head.bias.data = torch.tensor([-8.0, 8.0])
    images, targets = torch.full((40, 16), 0.55), torch.zeros(40, dtype=torch.long)
    fine = lambda x: (100 * x).round() / 100  # noqa: E731
    threat = Threat("linf", 0.06)
    model, straight = (lambda x: head(fine(x))), nn.Sequential(bpda(fine), head)
    assert withstands(straight, images, targets, PGD(threat), generator=rng()).sum() == 0
    assert withstands(model, images, targets, PGD(threat, bpda=head), generator=rng()).sum() == 0
    assert withstands(model, images, targets, PGD(threat), generator=rng()).sum() == 40
    less = Threat("linf", 0.04)
    assert withstands(straight, images, targets, PGD(less), generator=rng()).sum() == 40


def test_a_approximation_is_nothing_to_type():
    with pytest.raises(ValueError, match="attack pgd has no field 'bpda'; choose from steps"):
        attack_named("pgd:bpda=1", BOX)
    assert "bpda" not in repr(PGD(BOX, bpda=nn.Identity()))
