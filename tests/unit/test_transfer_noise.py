"""Attacks that do not look at the model: noise of the same size, and images made on another network."""

import pytest
import torch
from torch import nn

from robust import PGD, Threat
from robust.attacks.cw import CW
from robust.attacks.deepfool import DeepFool
from robust.attacks.jitter import Jitter
from robust.attacks.noise import Noise
from robust.attacks.transfer import Transfer
from robust.attacks.vmi_fgsm import VMIFGSM


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


IMAGES = torch.rand(30, 1, 4, 4, generator=rng())
TARGETS = torch.arange(30) % 2


def linear(seed: int = 0) -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.randn(2, 16, generator=rng(seed)))
        network[1].bias.zero_()
    return network


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_noise_is_of_the_attacks_size(norm: str) -> None:
    grey = torch.full((50, 1, 4, 4), 0.5)
    shift = Noise(Threat(norm, 0.3))(linear(), grey, TARGETS[:1].expand(50), generator=rng()) - grey
    assert torch.allclose(Threat(norm, 0.3).distance(grey + shift, grey), torch.tensor(0.3))
    if norm == "linf":
        assert torch.allclose(shift.abs(), torch.tensor(0.3))
    assert shift.mean().abs() < 0.05  # no direction is preferred
    noisy = Noise(Threat(norm, 0.3))(linear(), IMAGES, TARGETS, generator=rng())
    assert 0 <= noisy.min() <= noisy.max() <= 1


def test_noise_is_each_examples_own_and_more_draws_fool_more() -> None:
    net, threat = linear(), Threat("linf", 0.3)
    state = torch.get_rng_state()
    whole = Noise(threat)(net, IMAGES, TARGETS, generator=rng())
    assert torch.equal(whole[:7], Noise(threat)(net, IMAGES[:7], TARGETS[:7], generator=rng()))
    assert torch.equal(torch.get_rng_state(), state)
    fooled = [(net(Noise(threat, n)(net, IMAGES, TARGETS, generator=rng())).argmax(1) != TARGETS) for n in (1, 20)]
    assert (fooled[0] <= fooled[1]).all()
    assert fooled[0].sum() < fooled[1].sum()
    with pytest.raises(ValueError, match="draws is 0"):
        Noise(threat, 0)


def test_a_transfer_is_made_on_the_surrogate_alone() -> None:
    surrogate, threat = linear(1), Threat("linf", 0.2)
    attack = PGD(threat, steps=5, random_start=False, iterate="last")

    def never(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a transfer attack asked the model")

    surrogate.train()
    images = Transfer(surrogate, attack)(never, IMAGES, TARGETS, generator=rng())
    assert surrogate.training
    difference = surrogate[1].weight[1] - surrogate[1].weight[0]
    away = torch.where((TARGETS == 0)[:, None], difference, -difference).sign().view_as(IMAGES)
    assert torch.allclose(images, (IMAGES + 0.2 * away).clamp(0, 1), atol=1e-6)  # five steps of 0.1 reach the corner
    assert Transfer(surrogate, attack).threat == threat
    assert "Linear" not in repr(Transfer(surrogate, attack))


@pytest.mark.parametrize("name", ["PGD", "VMIFGSM", "Jitter"])
def test_a_walk_that_stops_where_the_surrogate_is_fooled_is_refused(name: str) -> None:
    attack = {"PGD": PGD, "VMIFGSM": VMIFGSM, "Jitter": Jitter}[name]
    with pytest.raises(ValueError, match=f"iterate is 'worst'; a transfer attack takes {name} with iterate=\"last\""):
        Transfer(linear(), attack(Threat("linf", 0.1)))
    Transfer(linear(), attack(Threat("linf", 0.1), iterate="last"))


@pytest.mark.parametrize("attack", [CW(Threat("l2", 0.5)), DeepFool(Threat("l2", 0.5))], ids=["cw", "deepfool"])
def test_an_attack_that_stops_at_the_surrogates_boundary_is_refused(attack: object) -> None:
    with pytest.raises(ValueError, match=f"attack is {type(attack).__name__}; it stops at the surrogate's boundary"):
        Transfer(linear(), attack)
