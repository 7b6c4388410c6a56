"""ROME: the gradient of its loss against a slow form, its two attacks, and the pool of networks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.rome.attack import EPS, attacked, attacked_as_published
from baselines.rome.loop import moved
from baselines.rome.method import Config, match
from baselines.rome.pool import Member, Pool, Train
from distill.app.registry import find_methods
from distill.data import FACTS
from distill.runs.run import Run
from robust import AdversarialTraining, CrossEntropy, Normalize, Threat
from tests.toy import toy

BOX = Threat("linf", 0.1)
CLASSES, SIZE = 3, 4


def network_of(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double().eval()


def problem() -> tuple[Tensor, Tensor, list[Tensor], Normalize]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(6, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    real = [torch.randn(4 + c, 3, SIZE, SIZE, generator=generator, dtype=torch.float64) for c in range(CLASSES)]
    return images, torch.arange(3).repeat_interleave(2), real, Normalize((0.5,) * 3, (0.25,) * 3).double()


@pytest.mark.parametrize(
    ("robust_weight", "percent", "a", "w"),
    [(0.3, False, 0.3, 0.7 * 0.5 * 0.6), (0.3, True, 0.3, 0.7 * 0.5 * 60), (None, True, 1.0, 0.5 * 60)],
    ids=["rome", "percent", "idm"],
)
@pytest.mark.parametrize("distance", ["tv2", "mean"])
@pytest.mark.parametrize("attack", ["", "0.1"])
def test_the_gradient_is_that_of_the_formula(
    distance, attack: str, robust_weight: float | None, percent: bool, a: float, w: float
) -> None:
    network = network_of().requires_grad_(False)
    images, labels, real, normalize = problem()
    fields = {"attack": attack, "attack_steps": 2, "factor": 2, "robust_weight": robust_weight, "percent": percent}
    config = Config(CrossEntropy(), distance=distance, **fields)
    generator = torch.Generator().manual_seed(7)
    arguments = {"real_batch": real.__getitem__, "siamese": None, "generator": lambda c: torch.Generator()}
    gradient, losses = match(
        network, 0.6, images, labels, config, normalize, attack=torch.Generator().manual_seed(7), **arguments
    )
    batch = torch.cat(real)
    truth = torch.cat([torch.full((len(each),), c) for c, each in enumerate(real)])
    if attack:
        batch = attacked(network, batch, truth, normalize, BOX, 2, generator)
    leaf, distances, entropies = images.clone().requires_grad_(), [], []
    total = leaf.new_zeros(())
    for c in range(CLASSES):
        stored = leaf[labels == c]
        corners = [stored[:, :, i : i + 2, j : j + 2] for i in (0, 2) for j in (0, 2)]
        large = F.interpolate(torch.cat(corners), SIZE, mode="bilinear", align_corners=False)
        wanted = network[:3](batch[truth == c]).mean(0)
        found = network[:3](large).mean(0)
        apart = (wanted - found).abs().sum().div(2) ** 2 if distance == "tv2" else ((wanted - found) ** 2).sum()
        entropy = F.cross_entropy(network(large), torch.full((len(large),), c))
        total = total + a * apart + w * entropy
        distances.append(apart.item())
        entropies.append(entropy.item())
    (expected,) = torch.autograd.grad(total, leaf)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    assert losses.tolist() == pytest.approx([sum(distances) / 3, sum(entropies) / 3], rel=1e-9)


def test_a_step_has_momentum() -> None:
    images, velocity, gradient = torch.ones(2), torch.full((2,), 4.0), torch.full((2,), 3.0)
    images, velocity = moved(images, velocity, gradient, 0.1)
    assert velocity.tolist() == [5.0, 5.0]
    assert images.tolist() == pytest.approx([0.5, 0.5])


def test_the_right_attack_is_in_pixels() -> None:
    network, (_, _, real, normalize) = network_of(), problem()
    x, y = normalize(torch.rand(300, 3, SIZE, SIZE, dtype=torch.float64)), torch.arange(300) % CLASSES
    found = attacked(network, x, y, normalize, BOX, 5, torch.Generator().manual_seed(0))
    pixels, before = normalize.inverse(found), normalize.inverse(x)
    assert (pixels - before).abs().max() == pytest.approx(0.1, abs=1e-6)
    assert pixels.min() > -1e-6
    assert pixels.max() < 1 + 1e-6
    losses = [F.cross_entropy(network(each), y, reduction="none") for each in (x, found)]
    assert (losses[1] > losses[0]).double().mean() > 0.95
    assert len(real) == CLASSES


def test_the_published_attack_destroys_pixels_below_the_mean() -> None:
    """The fault that the option keeps: normalised images are cut at 0, and the target is the next class."""
    network, generator = network_of().requires_grad_(False), torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    y = torch.arange(40) % CLASSES
    found = attacked_as_published(network, x, y, CLASSES, 10, generator)
    assert ((found >= 0) & (found <= 1)).all()
    assert (found[x < -EPS] == 0).all()
    cut = x.clamp(0, 1)
    toward = [F.cross_entropy(network(each), (y + 1) % CLASSES).item() for each in (cut, found)]
    assert toward[1] < toward[0]


def test_the_oldest_network_leaves_and_a_checkpoint_restores_the_pool(tmp_path: Path) -> None:
    def pool() -> Pool:
        return Pool(lambda number: network_of(number).float(), most=2, lr=0.1)

    def step(network: nn.Module, number: int, count: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(100 * number + count))
        logits = network(x)
        return F.cross_entropy(logits, torch.arange(8) % CLASSES), torch.tensor(count / 10)

    first = pool()
    for _ in range(3):
        first.add()
    assert [member.number for member in first.members] == [1, 2]
    first.train(first.members[0], 3, step)
    assert first.members[0].right == pytest.approx(0.1)  # the mean over its steps
    torch.save(first.state(), tmp_path / "pool.pt")
    second = pool()
    second.restore(torch.load(tmp_path / "pool.pt", weights_only=True))
    for each in (first, second):
        each.train(each.members[0], 2, step)
        each.train(each.members[1], 1, step)
        each.add()
    assert first.members[0].number == second.members[0].number == 2
    for one, other in zip(first.members, second.members, strict=True):
        assert all(map(torch.equal, one.network.parameters(), other.network.parameters()))
        assert (one.steps, one.right) == (other.steps, other.right)


def test_no_network_is_drawn_twice() -> None:
    pool = Pool(lambda number: network_of(number).float(), most=4, lr=0.1)
    for _ in range(4):
        pool.add()
    drawn = [[member.number for member in pool.draw(torch.Generator().manual_seed(seed), 3)] for seed in range(200)]
    assert all(len(set(numbers)) == 3 for numbers in drawn)
    assert [sum(4 * numbers.count(n) for numbers in drawn) / 600 for n in range(4)] == pytest.approx([1] * 4, abs=0.15)
    assert len(pool.draw(torch.Generator(), 9)) == 4


@pytest.mark.parametrize("name", ["idm", "rome", "c2r"])
def test_the_pool_trains_on_images_without_augmentation(name: str, tmp_path: Path, monkeypatch) -> None:
    """As in the code of IDM and ROME; --pool-augment changes it. The first iteration adds a network, as there."""
    seen: list[Tensor] = []

    def trained(pool: Pool, member: Member, count: int, step: Train) -> float:
        seen.append(step(member.network, member.number, member.steps)[0].detach())
        added.append(len(pool.members))
        return 0.0

    monkeypatch.setattr(Pool, "train", trained)
    method, real = find_methods()[name], toy()
    smoke = method.recipes["smoke"](FACTS["cifar10"], 1).config
    runs = {"plain": "", "augmented": "flip_scale"}
    for folder, augment in runs.items():
        added: list[int] = []
        config = replace(smoke, pool_augment=augment, augment="flip_scale", iterations=1, pool_start=1, pool_members=9)
        method.distill(real, 1, config, Run(tmp_path / folder, None).begin())
        assert added == [2, 2]
    config = replace(smoke, augment="", iterations=1, pool_start=1, pool_members=9)
    method.distill(real, 1, config, Run(tmp_path / "none", None).begin())
    losses = torch.stack(seen).view(3, 2)
    assert torch.equal(losses[0], losses[2])
    assert not torch.equal(losses[0], losses[1])


@pytest.mark.parametrize(
    ("name", "data", "ipc", "row"),
    [
        ("rome", "cifar10", 1, (0.5, 10, 5, 5000)),
        ("rome", "cifar10", 50, (0.1, 10, 30, 256)),
        ("rome", "cifar100", 50, (0.1, 50, 30, 256)),
        ("idm", "cifar100", 50, (0.1, 10, 30, 256)),
        ("idm", "tiny_imagenet", 1, (0.5, 10, 30, 256)),
        ("idm", "tiny_imagenet", 50, (0.8, 50, 30, 256)),
        ("rome", "tiny_imagenet", 10, (0.1, 50, 30, 256)),
        ("idm", "mnist", 20, (0.5, 10, 30, 256)),
    ],
)
def test_recipes_have_the_settings_of_the_released_commands(name: str, data: str, ipc: int, row: tuple) -> None:
    config = find_methods()[name].recipes["paper"](FACTS[data], ipc).config
    assert (config.performance_weight, config.pool_steps, config.pool_every, config.batch_real) == row
    assert (config.robust_weight, config.percent) == ((None, True) if name == "idm" else (0.2, False))


def test_recipes_attack_in_the_ball_of_the_pool() -> None:
    methods = find_methods()
    rome, idm = (methods[name].recipes["quick"](FACTS["cifar10"], 10).config for name in ("rome", "idm"))
    assert rome.threat == rome.pool_loss.threat == Threat("linf", 8 / 255)
    assert idm.threat is None
    assert Config(AdversarialTraining(BOX), attack="2/255").threat == Threat("linf", 2 / 255)
    with pytest.raises(ValueError, match="form is published"):
        Config(CrossEntropy(), form="published")
    assert methods["rome"].recipes["paper"](FACTS["cifar100"], 10).config.performance_weight == 0.1
