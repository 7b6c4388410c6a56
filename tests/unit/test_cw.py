"""Carlini & Wagner's attack: the known distance on linear models, saturated pixels, and torchattacks' version of it."""

import pytest
import torch
from torch import nn

from robust import CW, Threat
from robust.attacks.cw import cw

W = torch.randn(12, generator=torch.Generator().manual_seed(0))


def linear(x: torch.Tensor) -> torch.Tensor:
    """Two classes, margin 2 (x - 0.5) @ W."""
    z = (x.flatten(1) - 0.5) @ W
    return torch.stack([z, -z], 1)


IMAGES = 0.5 + 0.2 * torch.randn(25, 12, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
TARGETS = linear(IMAGES).argmax(1)


@pytest.mark.long
def test_the_distance_on_a_linear_model() -> None:
    exact = ((IMAGES - 0.5) @ W).abs() / W.norm()
    found = cw(linear, IMAGES, TARGETS, steps=200)
    assert (linear(found).argmax(1) != TARGETS).all()
    distance = (found - IMAGES).norm(dim=1)
    assert (distance >= exact - 1e-5).all()
    assert (distance <= 1.03 * exact + 2e-3).all()


@pytest.mark.long
def test_an_example_does_not_depend_on_the_others() -> None:
    whole = cw(linear, IMAGES, TARGETS, steps=50)
    for number in (0, 7, 24):
        alone = cw(linear, IMAGES[number : number + 1], TARGETS[number : number + 1], steps=50)
        assert torch.allclose(alone[0], whole[number], atol=1e-6)


def test_saturated_pixels_move() -> None:
    images = (IMAGES > 0.5).float()
    targets = linear(images).argmax(1)
    found = cw(linear, images, targets)
    assert (linear(found).argmax(1) != targets).all()
    assert ((found - images).abs().amax(1) > 0.01).double().mean() > 0.9


def test_confidence_asks_for_a_margin() -> None:
    found = linear(cw(linear, IMAGES, TARGETS, confidence=0.5))
    other = found.gather(1, (1 - TARGETS)[:, None]) - found.gather(1, TARGETS[:, None])
    assert (other >= 0.5 - 1e-5).all()


def test_an_image_with_two_equal_logits_is_attacked() -> None:
    model = lambda x: torch.stack([1 - x.sum(1), x.sum(1)], 1)  # noqa: E731
    images, targets = torch.tensor([[0.25, 0.25]]), torch.tensor([0])
    assert model(images).argmax(1).item() == 0
    found = cw(model, images, targets)
    assert model(found).argmax(1).item() == 1
    assert (found - images).norm() < 0.05


def test_misclassified_images_and_none_at_all_come_back() -> None:
    assert torch.equal(cw(linear, IMAGES, 1 - TARGETS), IMAGES)
    assert cw(linear, IMAGES[:0], TARGETS[:0]).shape == (0, 12)
    constant = cw(lambda x: torch.tensor([[1.0, 0.0]]).expand(len(x), 2) + 0 * x[:, :1], IMAGES[:3], 0 * TARGETS[:3])
    assert torch.equal(constant, IMAGES[:3])


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))
    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        adam.zero_grad()
        nn.functional.cross_entropy(net(x[:1000]), y[:1000]).backward()
        adam.step()
    adam.zero_grad()
    net.eval()
    right = (net(x).argmax(1) == y).nonzero().flatten()[-60:]
    return net, x[right], y[right]


def test_better_than_a_fixed_constant(digits: tuple) -> None:
    import torchattacks

    net, x, y = digits
    ours = CW(Threat("l2", 1.0))(net, x, y)
    assert (net(ours).argmax(1) != y).all()
    mine = (ours - x).flatten(1).norm(dim=1)
    for c in (1e-4, 1.0):
        theirs = torchattacks.CW(net, c=c, steps=100, lr=0.01)(x, y)
        fooled = net(theirs).argmax(1) != y
        distance = (theirs - x).flatten(1).norm(dim=1).where(fooled, torch.tensor(torch.inf))
        assert mine.median() < distance.median()
        assert (mine <= 1.05 * distance + 1e-3).double().mean() > 0.9
    net.zero_grad()


def test_the_model_is_left_alone(digits: tuple) -> None:
    net, x, y = digits
    net.train()
    net[3].eval()
    modes = [module.training for module in net.modules()]
    CW(Threat("l2", 1.0), steps=3, search_steps=2)(net, x[:4], y[:4])
    assert [module.training for module in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())
    net.eval()


def test_values_out_of_range_are_refused() -> None:
    for options, line in (
        ({"steps": 0}, "steps is 0"),
        ({"search_steps": 0}, "search_steps is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"confidence": -1.0}, "confidence is -1.0"),
        ({"initial_constant": 0.0}, "initial_constant is 0.0"),
    ):
        with pytest.raises(ValueError, match=line):
            CW(Threat("l2", 1.0), **options)
    with pytest.raises(ValueError, match="norm is 'linf'; CW minimises l2"):
        CW(Threat("linf", 0.1))
    with pytest.raises(ValueError, match="attacks take pixels"):
        cw(linear, IMAGES + 1, TARGETS)
