"""How many images a pass takes: by the bytes that the network keeps of one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robust import (
    JSMA,
    PGD,
    VMIFGSM,
    Expected,
    Jitter,
    Square,
    Threat,
    Transfer,
    certify,
    correct,
    evaluate,
    least_distances,
    robust_accuracy,
    withstands,
)
from robust.attacks.cw import CW
from robust.evaluation.suspicion import not_finite, suspect_model
from robust.network import batches
from robust.network.batches import images_at_once, saved_bytes
from robust.theory.hessian import hessian_vector_product
from robust.theory.spectrum import finite_difference_curvature, top_eigenvalue

BALL = Threat("linf", 0.1)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Sized(nn.Module):
    """A network that writes down how many images it got."""

    def __init__(self, width: int = 16, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 4))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.layers(x.flatten(1))


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> int:
    """Allow passes of ten images of the network of width 16; eight are looked at together in any case."""
    kept = saved_bytes(Sized().eval(), images())
    monkeypatch.setattr(batches, "ALLOWED", 10 * 2 * kept)
    return 10


def images(n: int = 30) -> Tensor:
    return torch.rand(n, 3, 2, 2, generator=rng())


def test_saved_bytes_are_those_of_the_activations_and_not_of_the_weights() -> None:
    narrow, wide = (saved_bytes(Sized(width).eval(), images()) for width in (16, 160))
    assert narrow == 4 * (12 + 16)  # the input, and what ReLU gives, which the next layer shares
    assert wide == 4 * (12 + 160)
    assert saved_bytes(Sized().eval().double(), images().double()) == 2 * narrow
    assert saved_bytes(Expected(Sized().eval(), 3), images()) == narrow
    assert saved_bytes(lambda x: x.round(), images()) == 0


def test_a_network_is_measured_once_and_left_as_it_was() -> None:
    network = nn.Sequential(Sized(dropout=0.5), nn.BatchNorm1d(4)).train()
    before, state = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()
    for _ in range(3):
        images_at_once(network, images())
    assert network[0].seen == [2, 3]
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in network.parameters())


def test_small_networks_have_the_batch_of_old_and_large_ones_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    assert images_at_once(Sized(), images()) == 500
    monkeypatch.setattr(batches, "ALLOWED", 1)
    assert images_at_once(Sized(), images()) == 1
    assert images_at_once(Sized(), images(), 123) == 123


def test_the_largest_network_of_a_pass_counts(little: int) -> None:
    assert images_at_once(Sized(), images()) == little
    assert images_at_once(Sized(), images(), others=(Sized(160), None)) == 1
    assert images_at_once(Sized(), images(), copies=3) == little // 3


@pytest.mark.parametrize("asked", [0, -1, 1.5, 10**20])
def test_a_number_of_images_that_is_none_is_refused(asked: Any) -> None:
    with pytest.raises(ValueError, match=r"batch_size is .*; it must be"):
        correct(Sized(), images(), torch.zeros(30, dtype=torch.long), batch_size=asked)


def test_what_a_model_cannot_take_is_not_measured() -> None:
    mask = torch.ones(30, 1)
    assert images_at_once(lambda x: x.flatten(1) * mask, images()) == 500
    with torch.inference_mode():
        network = Sized()
        assert images_at_once(network, images()) == 500
        assert correct(network, images(), torch.zeros(30, dtype=torch.long)).shape == (30,)


CALLS: dict[str, Any] = {
    "correct": lambda net, x, y: correct(net, x, y),
    "pgd": lambda net, x, y: withstands(net, x, y, PGD(BALL, steps=2), generator=rng()),
    "vmifgsm": lambda net, x, y: withstands(net, x, y, VMIFGSM(BALL, steps=2, neighbours=2), generator=rng()),
    "jitter": lambda net, x, y: withstands(net, x, y, Jitter(BALL, steps=2), generator=rng()),
    "cw": lambda net, x, y: least_distances(net, x, y, CW(Threat("l2", 0.3), steps=2, search_steps=2)),
    "jsma": lambda net, x, y: withstands(net, x, y, JSMA(goals=3)),
    "transfer": lambda net, x, y: withstands(
        net, x, y, Transfer(net, PGD(BALL, steps=2, iterate="last")), generator=rng()
    ),
    "expected": lambda net, x, y: withstands(net, x, y, PGD(BALL, steps=2, eot=2), generator=rng()),
    "evaluate": lambda net, x, y: evaluate(net, x, y, {"pgd": PGD(BALL, steps=2)}, generator=rng()).attacks["pgd"],
    "robust_accuracy": lambda net, x, y: robust_accuracy(net, x, y, PGD(BALL, steps=2), generator=rng(), checks=False),
    "certify": lambda net, x, y: certify(net, x[:3], sigma=0.3, n0=10, n=30, generator=rng()).radius,
    "suspect_model": lambda net, x, y: suspect_model(net, x, y, threat=BALL, generator=rng()) and None,
    "not_finite": lambda net, x, y: not_finite(net, x) and None,
    "hessian": lambda net, x, y: hessian_vector_product(net, x, y, torch.ones_like(x)),
    "eigenvalue": lambda net, x, y: top_eigenvalue(net, x, y, iterations=3, tolerance=1e9, generator=rng())[0],
    "curvature": lambda net, x, y: finite_difference_curvature(net, x, y, h=0.1),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_pass_is_larger_and_the_result_is_the_same(name: str, little: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = Sized().eval(), images()
    y = network(x).argmax(1)
    network.seen.clear()
    found = CALLS[name](network, x, y)
    assert max(network.seen) <= little
    monkeypatch.setattr(batches, "ALLOWED", 2**30)
    expected = CALLS[name](network, x, y)
    assert max(network.seen) > little
    if isinstance(found, Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    else:
        assert found == expected


def test_square_takes_smaller_batches_too(little: int) -> None:
    pytest.importorskip("torchattacks")
    network, x = Sized().eval(), images()
    y = network(x).argmax(1)
    network.seen.clear()
    withstands(network, x, y, Square(BALL, queries=3), generator=rng())
    assert max(network.seen) <= little
