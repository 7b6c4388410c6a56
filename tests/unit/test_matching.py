"""Distances of gradients against loops written from the formula."""

import pytest
import torch

from distill.training.matching import DISTANCES, cosine, layerwise, mse

SHAPES = [(4, 3, 3, 3), (4,), (5, 2, 2), (7, 4), (7,)]


def gradients(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in SHAPES]


def row_by_row(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    total = 0.0
    for ours, theirs in zip(a, b, strict=True):
        if ours.ndim < 2:
            continue
        for i in range(len(ours)):
            u, v = ours[i].reshape(-1), theirs[i].reshape(-1)
            total += 1 - float(u @ v) / (float(u.norm()) * float(v.norm()) + 1e-6)
    return total


@pytest.mark.parametrize("seed", range(5))
def test_layerwise_is_the_sum_over_rows(seed: int) -> None:
    a, b = gradients(seed), gradients(seed + 100)
    assert layerwise(a, b).item() == pytest.approx(row_by_row(a, b), rel=1e-12)


def test_layerwise_counts_394_rows_for_convnet_3() -> None:
    from distill.models import build

    network = build("convnet", channels=3, image_size=32, num_classes=10, generator=torch.Generator())
    ones = [torch.ones_like(p) for p in network.parameters()]
    # opposite gradients: every row contributes 2, and one-dimensional parameters nothing
    assert layerwise(ones, [-g for g in ones]).item() == pytest.approx(2 * 394, rel=1e-4)


@pytest.mark.parametrize("name", DISTANCES)
def test_a_gradient_is_at_distance_zero_of_itself(name: str) -> None:
    a = gradients(0)
    assert DISTANCES[name](a, a).item() == pytest.approx(0.0, abs=1e-5)
    assert DISTANCES[name](a, gradients(1)).item() > 0.1


def test_scale_matters_to_mse_alone() -> None:
    a, b = gradients(0), gradients(1)
    double = [2 * g for g in a]
    assert layerwise(double, b).item() == pytest.approx(layerwise(a, b).item(), rel=1e-6)
    assert cosine(double, b).item() == pytest.approx(cosine(a, b).item(), rel=1e-6)
    assert mse(double, a).item() == pytest.approx(sum(float((g * g).sum()) for g in a))


def test_zero_rows_have_a_finite_gradient() -> None:
    a = [torch.zeros(3, 4, requires_grad=True)]
    layerwise(a, [torch.randn(3, 4)]).backward()
    assert a[0].grad is not None
    assert a[0].grad.isfinite().all()
