"""The maximum of the quadratic model in a ball, against the textbook's conditions, a fine grid and slow references."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian as slow_hessian

from robust import cross_entropy
from robust.theory.bounds import bound_terms
from robust.theory.convexity import midpoint_gaps
from robust.theory.quadratic import QuadraticModel, quadratic_model


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def itself(outputs: Tensor, _: Tensor) -> Tensor:
    return outputs


def model_of(eigenvalues: list[float], slopes: list[float]) -> QuadraticModel:
    return QuadraticModel(torch.ones(1).double(), torch.tensor([eigenvalues]).double(), torch.tensor([slopes]).double())


@pytest.mark.parametrize(
    ("eigenvalues", "slopes", "rho"),
    [
        ([-3.0, 1.0], [0.5, 0.7], 0.8),
        ([-3.0, 1.0], [0.5, 0.0], 0.1),  # the gradient alone decides
        ([-3.0, 1.0], [0.5, 0.0], 2.0),  # the hard case: v has a part along v_1 that the gradient does not have
        ([-3.0, 1.0], [0.5, 1e-9], 2.0),
        ([-3.0, -1.0], [0.5, 0.2], 5.0),  # concave: the maximum is inside
        ([-3.0, -1.0], [0.5, 0.2], 0.05),
        ([0.0, 0.0], [0.3, 0.4], 0.5),
        ([2.0, 2.0], [0.0, 0.0], 0.5),
        ([-2.0, -1.0], [0.0, 0.0], 0.5),
    ],
)
def test_the_maximum_is_that_of_a_fine_grid(eigenvalues: list[float], slopes: list[float], rho: float) -> None:
    radius, angle = torch.meshgrid(
        torch.linspace(0, rho, 801, dtype=torch.float64),
        torch.linspace(0, 2 * math.pi, 1601, dtype=torch.float64),
        indexing="ij",
    )
    v = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    values = v @ torch.tensor(slopes).double() + v.square() @ torch.tensor(eigenvalues).double() / 2
    found = model_of(eigenvalues, slopes).maximum(rho).item() - 1
    assert found >= values.max().item() - 1e-12
    assert found == pytest.approx(values.max().item(), rel=1e-4, abs=1e-9)


def test_no_radius_adds_nothing() -> None:
    assert model_of([-1.0, 2.0], [3.0, 4.0]).maximum(0.0).item() == 1


def network(*, smooth: bool) -> nn.Sequential:
    torch.manual_seed(0)
    between: list[nn.Module] = [nn.GroupNorm(4, 4), nn.SiLU()] if smooth else [nn.ReLU()]
    convolution = nn.Conv2d(1, 4, 3, padding=1)
    return nn.Sequential(convolution, *between, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)).double()


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_few_products_find_what_the_whole_hessian_has(smooth: bool, batch_size: int | None) -> None:
    net = network(smooth=smooth)
    images, targets = torch.rand(5, 1, 6, 6, generator=rng(), dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    matrices = [
        slow_hessian(lambda x, y=y: cross_entropy(net(x[None]), y[None])[0], image).view(36, 36)  # type: ignore[misc]
        for image, y in zip(images, targets, strict=True)
    ]
    values, vectors = torch.linalg.eigh(torch.stack(matrices))
    x = images.clone().requires_grad_()
    losses = cross_entropy(net(x), targets)
    (gradients,) = torch.autograd.grad(losses.sum(), x)
    exact = QuadraticModel(losses.detach(), values, torch.einsum("nji,nj->ni", vectors, gradients.flatten(1)))
    found = quadratic_model(net, images, targets, batch_size=batch_size)
    torch.testing.assert_close(found.lambda_1, exact.lambda_1, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.gradient_norms, gradients.flatten(1).norm(dim=1))
    torch.testing.assert_close(found.cosine, exact.cosine, rtol=1e-2, atol=1e-3)
    for rho in (0.1, 1.0, 10.0):
        torch.testing.assert_close(found.maximum(rho), exact.maximum(rho), rtol=1e-6, atol=0)
    few = quadratic_model(net, images, targets, products=2)
    assert (few.maximum(1.0) <= exact.maximum(1.0) + 1e-9).all()
    whole = quadratic_model(net, images, targets, products=100)
    torch.testing.assert_close(whole.maximum(1.0), exact.maximum(1.0))
    assert whole.eigenvalues.shape == (5, 36)


def test_bound_2_holds_for_every_quadratic_model() -> None:
    net = network(smooth=True)
    images, targets = torch.rand(6, 1, 6, 6, generator=rng(1), dtype=torch.float64), torch.arange(6) % 3
    around = quadratic_model(net, images, targets)
    for rho in (0.1, 1.0, 10.0):
        terms = bound_terms(net, images, targets, rho, around=around, steps=3)
        assert (terms.quadratic <= terms.bound + 1e-12).all()
        assert (terms.quadratic >= terms.loss).all()
        again = bound_terms(net, images, targets, rho, steps=3)
        torch.testing.assert_close(again.quadratic, terms.quadratic, rtol=1e-6, atol=0)


def test_a_linear_loss_rises_by_rho_times_its_gradient() -> None:
    found = quadratic_model(lambda x: x.sum(1), torch.zeros(2, 4), torch.zeros(2), criterion=itself)
    torch.testing.assert_close(found.maximum(0.5), torch.ones(2))
    assert found.lambda_1.tolist() == [0, 0]


def test_products_are_checked() -> None:
    with pytest.raises(ValueError, match="products is 1"):
        quadratic_model(nn.Linear(4, 3), torch.rand(1, 4, generator=rng()), torch.tensor([0]), products=1)


# Convexity


def test_midpoints_tell_a_convex_from_a_concave_loss() -> None:
    x, classes = torch.rand(20, 3, generator=rng(), dtype=torch.float64), torch.arange(20) % 4
    bowl = midpoint_gaps(lambda x: x.square().sum(1), x, classes, criterion=itself)
    hill = midpoint_gaps(lambda x: -x.square().sum(1), x, classes, criterion=itself)
    assert len(bowl) == 4 * 10  # pairs of five images in four classes
    assert (bowl > 0).all()
    torch.testing.assert_close(hill, -bowl)


def test_pairs_are_drawn_within_classes_and_once() -> None:
    x, classes = torch.rand(30, 2, generator=rng(), dtype=torch.float64), torch.arange(30) % 2
    of = {"criterion": itself, "generator": rng(3)}
    whole = midpoint_gaps(lambda x: x.square().sum(1), x, classes, criterion=itself)
    some = midpoint_gaps(lambda x: x.square().sum(1), x, classes, pairs=50, batch_size=7, **of)
    assert len(whole) == 2 * 105
    assert len(some) == len(set(some.tolist())) == 50
    assert {round(gap, 12) for gap in some.tolist()} <= {round(gap, 12) for gap in whole.tolist()}


def test_a_class_of_one_image_has_no_pairs() -> None:
    assert len(midpoint_gaps(nn.Linear(2, 3), torch.rand(3, 2, generator=rng()), torch.arange(3))) == 0
