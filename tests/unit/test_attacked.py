"""Attacked real images: the loss of a recipe, DD's gradient under attack, KIP's attack, MAT's averages."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.attacked import KINDS, METHODS, attacked
from baselines.dd.unrolled import descent, hypergradient
from baselines.kip.attack import attacked as attacked_regression
from baselines.kip.kernels import fully_connected
from baselines.mtt.config import Config
from baselines.mtt.step_lengths import compare_step_lengths, step_length
from baselines.mtt.trajectories import AveragingSGD, Expert, experts
from distill.app.registry import find_methods
from distill.data import FACTS, ImageSet
from distill.runs.run import Run
from distill.training.ridge import centred, regressed
from robust import AdversarialTraining, CrossEntropy, Normalize, Threat
from robust.losses import on_inputs

BOX = Threat("linf", 0.1)


@pytest.mark.parametrize("dataset", ["cifar10", "mnist"])
@pytest.mark.parametrize(
    "method", [*METHODS[:-1], attacked("trades", "dcc"), attacked("fast_at", "cafe")], ids=lambda method: method.name
)
def test_only_the_loss_differs_from_the_guarded_recipe(method, dataset: str) -> None:
    kind = next(kind for kind in sorted(KINDS, key=len, reverse=True) if method.name.startswith(f"{kind}_"))
    base = method.name.removeprefix(f"{kind}_")
    methods = find_methods()
    facts = FACTS[dataset]
    for name in ("paper", "quick"):
        mine = method.recipes[name](facts, 10)
        theirs = methods.get(f"guard_{base}", methods[base]).recipes[name](facts, 10)
        differing = {key for key, value in asdict(mine.config).items() if value != asdict(theirs.config)[key]}
        assert differing == {"outer_loss" if base == "dd" else "real_loss"}
        loss = mine.config.outer_loss if base == "dd" else mine.config.real_loss
        assert loss.threat == Threat("linf", 2 / 255 if dataset == "cifar10" else 0.1)
        assert mine.evaluation == theirs.evaluation
    assert attacked(kind, base).name == method.name


def test_dd_differentiates_through_the_training_with_the_attack_held_fixed() -> None:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    images = torch.rand(2, 3, 3, 2, 2, generator=generator, dtype=torch.float64)
    labels, lrs = torch.arange(3).repeat(2, 1), torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64)
    x = torch.rand(5, 3, 2, 2, generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1])
    normalize = Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)).double()
    attack = AdversarialTraining(BOX, steps=4, random_start=False)
    x = normalize(x)
    loss, by_images, by_lrs = hypergradient(network, images, labels, lrs, x, y, on_inputs(attack, normalize))
    plain = hypergradient(network, images, labels, lrs, x, y)[0]
    assert loss > plain + 1e-3

    def trained(images: Tensor, lrs: Tensor):
        weights: dict[str, Tensor] = dict(network.named_parameters())
        for step, lr in enumerate(lrs):
            value = F.cross_entropy(torch.func.functional_call(network, weights, (images[step % 2],)), labels[step % 2])
            gradients = torch.autograd.grad(value, list(weights.values()), create_graph=True)
            weights = {name: p - lr * g for (name, p), g in zip(weights.items(), gradients, strict=True)}
        return partial(torch.func.functional_call, network, weights)

    last = [*descent(network, images, labels, lrs)][-1]
    seen: list[Tensor] = []

    def model(inputs: Tensor) -> Tensor:
        seen.append(inputs)
        return torch.func.functional_call(network, last, (inputs,))

    on_inputs(attack, normalize)(model, x, y)
    points = seen[-1].detach()  # the last pass is at the attacked points
    leaves = images.clone().requires_grad_(), lrs.clone().requires_grad_()
    whole = F.cross_entropy(trained(*leaves)((points,)), y)
    expected = torch.autograd.grad(whole, leaves)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-10)
    torch.testing.assert_close(by_images, expected[0], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(by_lrs, expected[1], rtol=1e-8, atol=1e-12)


def test_kip_attacks_its_regression_in_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = partial(fully_connected, depth=2, w_std=2**0.5, b_std=0.1)
    space = Normalize((0.5,), (0.25,))
    support = space(torch.rand(6, 1, 4, 4, generator=generator)).double()
    labels = centred(torch.arange(6) % 3, 3).double()
    pixels = torch.rand(9, 1, 4, 4, generator=generator)
    truth = torch.arange(9) % 3
    options = {"ridge": 1e-3, "threat": BOX, "steps": 8}

    def found(chunk: int, threat: Threat = BOX) -> Tensor:
        how = options | {"threat": threat, "chunk": chunk, "generator": torch.Generator().manual_seed(5)}
        return attacked_regression(kernel, support, labels, pixels, truth, space, **how)

    def losses(points: Tensor) -> Tensor:
        k_ss, k_ts = kernel(support, support), kernel(space(points).double(), support)
        predicted = regressed(k_ss, k_ts, labels, 1e-3)
        return 0.5 * (predicted - centred(truth, 3).double()).square().mean(1)

    points = found(10**6)
    assert ((points - pixels).abs() <= 0.1 + 1e-6).all()
    assert ((points >= 0) & (points <= 1)).all()
    assert (losses(points) > losses(pixels)).all()
    corners = (pixels + 0.1 * torch.randn(pixels.shape, generator=generator).sign()).clamp(0, 1)
    assert (losses(points) > losses(corners)).all()  # a random corner is a worse attack
    torch.testing.assert_close(found(7), points)  # one row at a time
    assert losses(found(10**6, Threat("linf", 0.02))).mean() < losses(points).mean()


def test_the_average_is_that_of_the_definition() -> None:
    weight = torch.tensor([1.0, -2.0], requires_grad=True)
    mean, expected = weight.detach().clone(), weight.detach().clone()
    optimizer = AveragingSGD([weight], lr=0.1, decay=0.9, average=[mean])
    for _ in range(7):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
        expected = 0.9 * expected + 0.1 * weight.detach()
    torch.testing.assert_close(mean, expected)
    assert (mean - weight).abs().min() > 0.1


def expert(**fields) -> Expert:
    settings = {"loss": CrossEntropy(), "backbone": "convnet:width=4,depth=1", "augment": "", "zca": False}
    settings |= {"epochs": 3, "lr": 0.05, "batch_size": 8, "epoch_images": None, "seed": 0}
    return Expert(**settings | fields)


def test_averaged_trajectories_start_at_the_same_weights_and_move_less(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(40, 1, 8, 8, generator=generator), torch.arange(40) % 2
    real = ImageSet("toy", images, labels, ("a", "b"), (0.5,), (0.25,))
    run = Run(tmp_path / "run", {"toy": 1}, stages=tmp_path / "stages").begin()
    space = Normalize(real.mean, real.std)
    plain, averaged = (experts(real, space, each, 1, run) for each in (expert(), expert(average=1.0)))
    assert torch.equal(plain.snapshot(0, 0), averaged.snapshot(0, 0))
    steps, weights = [plain.snapshot(0, epoch) for epoch in range(4)], averaged.snapshot(0, 3)
    assert 0 < (weights - steps[0]).norm() < (steps[3] - steps[0]).norm()
    config = Config(CrossEntropy(), train_epochs=3, expert_epochs=1, max_start_epoch=2)
    moved = [(steps[t + 1] - steps[t]).norm().item() for t in (0, 1)]
    assert step_length(plain, config) == pytest.approx(sum(moved) / 2)
    attacked_expert = expert(average=1.0, loss=AdversarialTraining(BOX, steps=1))
    found = experts(real, space, attacked_expert, 1, run)
    ratio = compare_step_lengths(found, real, space, attacked_expert, config, run)
    assert ratio == pytest.approx(step_length(found, config) / step_length(plain, config))
    assert replace(attacked_expert, loss=CrossEntropy(), average=0.0) == expert()
