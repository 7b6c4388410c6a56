"""FRePo: regression, its gradient, LAMB, the pool, whitening, resuming, students by regression, what it refuses."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
import torch.nn.functional as F
from timm.optim.lamb import Lamb
from torch import Tensor, nn

from baselines.frepo import method as frepo
from baselines.frepo.config import Config
from baselines.frepo.method import distill, protocol, student_work, work
from baselines.frepo.objective import margin, objective
from baselines.frepo.recipes import METHODS
from baselines.frepo.students import OPERATIONS, STEPS, augmented, rate, steps_for, train_regressor
from distill.data import ImageSet, facts_named
from distill.data.image_files import ImageFiles
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.models import build
from distill.runs.run import Run
from distill.training.ridge import centred, probabilities
from distill.training.whiten import Whiten
from robust import Normalize
from tests.toy import toy, write_toy

RECIPES = {method.name: method.recipes for method in METHODS}

SMALL = Config(
    "frepo_convnet:width=4,depth=2",
    iterations=12,
    batch_real=16,
    lr_img=0.01,
    lr_net=0.01,
    num_nn_state=3,
    max_online_updates=3,
    student_steps=30,
    student_lr=0.002,
)


def run_in(folder: Path, config: Config = SMALL, **options: Any) -> Run:
    return Run(folder, config, **options).begin()


def network_of(spec: str, channels: int = 3, size: int = 8, classes: int = 2, seed: int = 0) -> nn.Module:
    shape = {"channels": channels, "image_size": size, "num_classes": classes}
    return build(spec, **shape, generator=torch.Generator().manual_seed(seed))


def saved(found: DistilledSet, folder: Path) -> Path:
    found.save(folder / "distilled.safetensors")
    return folder


def scalars(folder: Path, *names: str) -> list[tuple[float, ...]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["seconds"] > 0 for row in rows)
    return [tuple(row[name] for name in ("step", *names)) for row in rows]


@pytest.fixture
def toy64() -> Iterator[ImageSet]:
    """Let what is made be float64; the toy set is float32 as all sets are."""
    data = toy()
    torch.set_default_dtype(torch.float64)
    yield data
    torch.set_default_dtype(torch.float32)


def problem(norm: str = "batch") -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    """Return a network with statistics of its own, images, labels of 3 classes, and a real batch, in float64."""
    draw = {"generator": torch.Generator().manual_seed(1), "dtype": torch.float64}
    network = network_of(f"frepo_convnet:width=4,depth=2,norm={norm}", classes=3).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean, module.running_var = torch.randn(4, **draw), torch.rand(4, **draw) + 0.5
    images, x = torch.randn(6, 3, 8, 8, **draw), torch.randn(9, 3, 8, 8, **draw)
    labels = torch.randn(6, 3, **draw)
    return network, images, labels, x, centred(torch.arange(9) % 3, 3).double()


# --- what is minimised


@pytest.mark.parametrize("use_flip", [False, True])
@pytest.mark.parametrize("ridge", [1e-6, 0.3])
def test_the_regression_is_that_of_an_independent_solver(use_flip: bool, ridge: float) -> None:
    """Against scipy: the weights w that minimise |phi(S) w - Y|^2 + strength |w|^2, as one least-squares problem."""
    network, images, labels, x, y = problem()
    loss, accuracy = objective(network, images, labels, x, y, replace(SMALL, use_flip=use_flip, ridge=ridge))
    with torch.no_grad():
        parts = [images, images.flip(3)] if use_flip else [images]
        phi = torch.cat([network.eval()[:-1](part) for part in parts]).numpy()
        theirs = network[:-1](x).numpy()
    assert phi.shape[1] > len(phi)  # more features than points: the dual form is no matter of course
    strength = ridge * (phi**2).sum() / len(phi)
    stacked = torch.cat([labels] * len(parts) + [torch.zeros(phi.shape[1], 3)]).numpy()
    design = np.concatenate([phi, math.sqrt(strength) * np.eye(phi.shape[1])])
    weights = scipy.linalg.lstsq(design, stacked)[0]
    predicted = torch.tensor(theirs @ weights)
    assert loss.item() == pytest.approx(0.5 * (predicted - y).square().sum(1).mean().item(), rel=1e-7)
    assert accuracy.item() == pytest.approx((predicted.argmax(1) == y.argmax(1)).double().mean().item())


@pytest.mark.parametrize("use_flip", [False, True])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_the_gradient_is_finite_differences(norm: str, use_flip: bool) -> None:
    network, images, labels, x, y = problem(norm)
    config = replace(SMALL, use_flip=use_flip, ridge=1e-3)

    def value(images: Tensor, labels: Tensor) -> Tensor:
        return objective(network, images, labels, x, y, config)[0] - margin(labels)

    leaves = images.clone().requires_grad_(), labels.clone().requires_grad_()
    gradients = torch.autograd.grad(value(*leaves), leaves)
    assert all(p.grad is None for p in network.parameters())
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        v, w = (torch.randn(each.shape, generator=generator, dtype=torch.float64) for each in (images, labels))
        h = 1e-6
        for a, b in ((1, 0), (0, 1), (1, 1)):
            ahead, behind = (value(images + s * h * a * v, labels + s * h * b * w) for s in (1, -1))
            expected = ((ahead - behind) / (2 * h)).item()
            found = (a * (gradients[0] * v).sum() + b * (gradients[1] * w).sum()).item()
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert min(g.abs().max() for g in gradients) > 1e-4


def test_real_images_are_constants_and_the_network_is_only_lent() -> None:
    network, images, labels, x, y = problem()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    leaf = x.clone().requires_grad_()
    loss, accuracy = objective(network, images.requires_grad_(), labels, leaf, y, SMALL)
    loss.backward()
    assert leaf.grad is None
    assert images.grad is not None
    assert not accuracy.requires_grad
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_the_margin_in_closed_form() -> None:
    labels = torch.tensor([[0.9, -0.1, 0.3, 0.2], [0.2, 0.15, 0.1, 0.0]], requires_grad=True)  # leads by 0.6 and 0.05
    value = margin(labels)
    value.backward()
    assert value.item() == pytest.approx((0.25 + 0.05) / 2)
    assert torch.equal(labels.grad, torch.tensor([[0.0, 0, 0, 0], [0.5, -0.5, 0, 0]]))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        many = torch.randn(7, 5, generator=generator)
        leads = [sorted(row)[-1] - sorted(row)[-2] for row in many.tolist()]
        assert margin(many).item() == pytest.approx(sum(min(lead, 0.2) for lead in leads) / 7, rel=1e-5)


# --- LAMB


@pytest.mark.parametrize("zero", [False, True])
def test_lamb_is_the_papers(zero: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What distill builds, over 50 random steps, against algorithm 2 of You et al., ICLR 2020, phi(z) = z."""
    built: dict[str, Any] = {}

    class Seen(Lamb):
        def __init__(self, params: list[Tensor], *args: Any, **options: Any):
            built.update(options=(args, options))
            super().__init__(params, *args, **options)

    monkeypatch.setattr("timm.optim.lamb.Lamb", Seen)
    distill(toy(), 1, replace(SMALL, iterations=1), run_in(tmp_path))
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(5, 3, generator=generator).double(), 20 * torch.randn(2, 4, generator=generator).double()]
    start[0] *= not zero  # a parameter without length is moved as by Adam
    leaves = [x.clone().requires_grad_() for x in start]
    args, options = built["options"]
    optimizer = Lamb(leaves, *args, **options)

    ours, m, v = [x.clone() for x in start], [0.0, 0.0], [0.0, 0.0]
    for t in range(1, 51):
        lr = 0.02 / t
        for leaf in leaves:
            leaf.grad = 10 ** (t % 4 - 2) * torch.randn(leaf.shape, generator=generator).double()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        for k, g in enumerate(leaf.grad for leaf in leaves):
            m[k], v[k] = 0.9 * m[k] + 0.1 * g, 0.999 * v[k] + 0.001 * g * g
            r = m[k] / (1 - 0.9**t) / ((v[k] / (1 - 0.999**t)) ** 0.5 + 1e-6)
            ratio = ours[k].norm() / r.norm() if ours[k].norm() > 0 else 1.0
            ours[k] = ours[k] - lr * ratio * r
        for mine, theirs in zip(ours, leaves, strict=True):
            torch.testing.assert_close(theirs.detach(), mine, rtol=1e-9, atol=1e-12)


# --- the whole loop


@pytest.mark.parametrize("use_flip", [False, True])
def test_the_loop_is_the_papers(use_flip: bool, toy64: ImageSet, tmp_path: Path) -> None:
    """Against the official loop, written out with matrices and its own Adam and LAMB."""
    config, data = replace(SMALL, use_flip=use_flip, ridge=1e-3, lr_img=0.3), toy64
    run = run_in(tmp_path, config)
    found = distill(data, 2, config, run)

    normalize = Normalize(data.mean, data.std)
    first = torch.cat([data.sample(c, 2, run.generator("initial", c)) for c in range(2)])
    s, y = normalize(first), torch.tensor([[0.5, -0.5]] * 2 + [[-0.5, 0.5]] * 2) / math.sqrt(0.2)
    assert s.dtype == torch.float64
    moments: dict[str, list[Tensor]] = {}

    def moved(key: str, g: Tensor, t: int, eps: float) -> Tensor:
        m, v = moments.setdefault(key, [torch.zeros_like(g), torch.zeros_like(g)])
        moments[key] = [0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g]
        m, v = moments[key]
        return m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + eps)

    def untrained(number: int, born: int) -> nn.Module:
        shape = {"channels": 3, "image_size": 8, "num_classes": 2}
        return build(
            "frepo_convnet:width=4,depth=2,norm=batch", **shape, generator=run.generator("network", number, born)
        )

    pool = [[untrained(k, 0), k, 0] for k in range(3)]  # network, age, steps of its Adam; 3 // 3 * k
    losses, leads = [], []
    for iteration in range(12):
        k = int(torch.randint(3, (), generator=run.generator("pool", iteration)))
        network, age, t = pool[k]
        which = torch.randperm(40, generator=run.generator("real", iteration))[:16]
        x, target = normalize(data.images[which]), F.one_hot(data.labels[which], 2) - 0.5
        s, y = s.detach().requires_grad_(), y.detach().requires_grad_()
        both = torch.cat([s, s.flip(3)]) if use_flip else s
        twice = torch.cat([y, y]) if use_flip else y
        phi, seen = network.eval()[:-1](both), network[:-1](x).detach()
        kernel = phi @ phi.T
        kernel = kernel + 1e-3 * kernel.trace() / len(both) * torch.eye(len(both))
        error = seen @ phi.T @ torch.linalg.inv(kernel) @ twice - target
        loss = (error**2).sum() / 2 / 16
        losses.append(loss.item())
        label_loss = -torch.minimum((y[:, 0] - y[:, 1]).abs(), torch.tensor(0.5)).mean()
        gradients = torch.autograd.grad(loss + label_loss, [s, y])
        leads.append((y[:, 0] - y[:, 1]).abs().min().item())
        lr = 0.3 * (0.1 + 0.9 * (1 + math.cos(math.pi * iteration / 12)) / 2)
        with torch.no_grad():
            steps = [moved(name, g, iteration + 1, 1e-6) for name, g in zip("sy", gradients, strict=True)]
            s, y = (p - lr * p.norm() / r.norm() * r for p, r in zip((s, y), steps, strict=True))
        if age > 3:
            pool[k] = [untrained(k, iteration + 1), 0, 0]
            moments = {name: kept for name, kept in moments.items() if not name.startswith(f"{k} ")}
        else:
            parameters = dict(network.train().named_parameters())
            loss = ((network(s) - y) ** 2).sum() / 2 / 4
            for (name, p), g in zip(parameters.items(), torch.autograd.grad(loss, [*parameters.values()]), strict=True):
                p.data -= 0.01 * moved(f"{k} {name}", g, t + 1, 1e-8)
            pool[k][1:] = age + 1, t + 1
    assert [row[1] for row in scalars(tmp_path, "loss")] == pytest.approx(losses, rel=1e-6)
    assert min(leads[:-1]) < 0.5 < leads[0]  # the margin has a gradient in some of the steps
    assert (found.images - normalize.inverse(s)).abs().max() < 1e-6
    assert (found.training_tensors["labels"] - y).abs().max() < 1e-6
    assert (s - normalize(first)).abs().max() > 0.01


def test_labels_for_students_of_both_protocols(tmp_path: Path) -> None:
    found = distill(toy(), 2, SMALL, run_in(tmp_path))
    raw = found.training_tensors["labels"]
    assert torch.equal(found.labels, probabilities(raw * math.sqrt(0.2) + 0.5))
    assert torch.allclose(found.labels.sum(1), torch.ones(4))
    assert found.labels.min() >= 0
    assert found.training == MethodTraining(steps=30, lr=0.002, augment="color_crop_rotate_translate_cutout")
    assert found.backbone == "frepo_convnet:width=4,depth=2"
    kept = distill(toy(), 2, replace(SMALL, learn_label=False), run_in(tmp_path / "kept"))
    assert torch.allclose(kept.labels, torch.eye(2).repeat_interleave(2, 0), atol=1e-6)
    assert not torch.allclose(kept.training_tensors["labels"], raw, atol=1e-3)


@pytest.mark.long
def test_the_loss_falls(tmp_path: Path) -> None:
    config = replace(SMALL, iterations=150, lr_img=0.02)
    distill(toy(), 1, config, run_in(tmp_path, config))
    rows = scalars(tmp_path, "loss", "accuracy")
    assert sum(row[1] for row in rows[-20:]) < 0.5 * sum(row[1] for row in rows[:20])
    assert sum(row[2] for row in rows[-20:]) / 20 > 90


def test_images_in_files_are_decoded_when_drawn(tmp_path: Path) -> None:
    root = write_toy(tmp_path / "toy")
    paths = [str(path) for path in sorted((root / "train").rglob("*.png"), key=lambda path: path.name)]
    files = ImageFiles(np.array(paths), 8, "square")
    lazy = replace(toy(), images=files)
    found = distill(lazy, 2, SMALL, run_in(tmp_path / "lazy"))
    assert torch.equal(found.images, distill(lazy.in_memory(), 2, SMALL, run_in(tmp_path / "tensor")).images)


# --- the pool


def test_ages_of_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks begin staggered, age when used, and are replaced when used at more than the most."""
    config, events = replace(SMALL, iterations=40, num_nn_state=4, max_online_updates=9), []
    made, update = frepo._online, frepo._update

    def watched(*args: Any) -> frepo.Online:
        online = made(*args)
        events.append(("made", args[3], online.age))
        return online

    def stepped(online: frepo.Online, *args: Any) -> None:
        age = online.age
        update(online, *args)
        assert online.age == age + 1
        assert online.optimizer.state_dict()["state"][0]["step"] <= online.age
        events.append(("step", age))

    monkeypatch.setattr(frepo, "_online", watched)
    monkeypatch.setattr(frepo, "_update", stepped)
    run = run_in(tmp_path, config)
    distill(toy(), 1, config, run)
    assert events[:4] == [("made", number, 2 * number) for number in range(4)]
    ages, expected = [0, 2, 4, 6], []
    for iteration in range(40):
        number = int(torch.randint(4, (), generator=run.generator("pool", iteration)))
        if ages[number] > 9:
            expected.append(("made", number, 0))
            ages[number] = 0
        else:
            expected.append(("step", ages[number]))
            ages[number] += 1
    assert events[4:] == expected
    assert sum(event[0] == "made" for event in expected) >= 2
    assert ("step", 9) in expected


def test_networks_of_the_pool_differ_and_new_ones_are_new(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    each = [frepo._online(toy(), SMALL, run, *address) for address in ((0, 0), (1, 0), (0, 5))]
    weights = [next(online.network.parameters()) for online in each]
    assert not any(torch.equal(weights[a], weights[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert [online.age for online in each] == [0, 1, 0]


@pytest.mark.parametrize("count", [1000, 1001])
def test_a_network_sees_at_most_a_thousand_images(count: int, tmp_path: Path) -> None:
    online, seen = frepo._online(toy(), SMALL, run_in(tmp_path), 0, 0), []
    online.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    frepo._update(online, torch.randn(count, 3, 8, 8), torch.randn(count, 2), torch.Generator())
    assert seen[0].shape[0] == 1000
    assert len(seen[0].flatten(1).unique(dim=0)) == 1000


def test_the_pools_network() -> None:
    assert Config().pool_backbone == "frepo_convnet:norm=batch"
    assert Config("convnet:width=8,norm=layer,depth=2").pool_backbone == "convnet:width=8,depth=2,norm=batch"
    assert Config("mlp", pool_norm="same").pool_backbone == "mlp"


# --- the network


def test_the_network_is_the_official_one() -> None:
    network = network_of("frepo_convnet:width=6,norm=batch", size=16, classes=4)
    kinds = [type(layer).__name__ for layer in network]
    block = ["Conv2d", "ReLU", "AvgPool2d"]
    assert kinds == [*block, "BatchNorm2d", *block, "BatchNorm2d", *block, "Flatten", "Linear"]
    sizes = [layer.out_channels for layer in network if isinstance(layer, nn.Conv2d)]
    assert sizes == [6, 12, 24]
    x = torch.randn(5, 3, 16, 16)
    inside = network[:3](x)
    network.train()(x)
    assert torch.allclose(network[3].running_mean, 0.9 * inside.mean((0, 2, 3)), atol=1e-6)  # a tenth is kept
    assert torch.allclose(network[3].running_var, 0.1 + 0.9 * inside.transpose(0, 1).flatten(1).var(1), atol=1e-5)
    assert network_of("frepo_convnet:width=6", channels=1, size=28)[-1].in_features == 24 * 16
    assert network_of("frepo_convnet:width=6", channels=1, size=16)[-1].in_features == 24 * 4
    for spec, words in {
        "depth=4": "halved to nothing",
        "width=0": "width is 0",
        "width=6,norm=group": "4 groups",
    }.items():
        with pytest.raises(InputError, match=words):
            network_of(f"frepo_convnet:{spec}")


def test_weights_are_lecuns() -> None:
    """A normal cut at two standard deviations, rescaled to variance 1 / fan in."""
    network = network_of("frepo_convnet", size=32)
    for layer in network:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            fan_in = layer.weight[0].numel()
            values = layer.weight.detach().flatten().double() * math.sqrt(fan_in)
            cut = 2 / scipy.stats.truncnorm(-2, 2).std()
            assert values.abs().max() <= cut + 1e-6
            assert values.std().item() == pytest.approx(1, abs=4 / math.sqrt(len(values)))
            assert not layer.bias.any()
            law = scipy.stats.truncnorm(-2, 2, scale=cut / 2).cdf
            assert scipy.stats.kstest(values.numpy()[:20_000], law).pvalue > 1e-3


# --- resuming


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("at", [0, 1, 9, 23])
@pytest.mark.parametrize("fields", [{}, {"zca": True, "use_flip": True, "learn_label": False, "pool_norm": "same"}])
@pytest.mark.long
def test_a_killed_run_ends_with_the_same_bits(
    fields: dict[str, Any], at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, iterations=24, max_online_updates=2, **fields)
    whole = distill(toy(), 2, config, run_in(tmp_path / "whole", config))
    log = Run.log

    def dies(self: Run, step: int, **values: float) -> None:
        if step == at:
            raise Killed
        log(self, step, **values)

    monkeypatch.setattr(Run, "log", dies)
    with pytest.raises(Killed):
        distill(toy(), 2, config, run_in(tmp_path / "killed", config, checkpoint_seconds=0.0))
    monkeypatch.setattr(Run, "log", log)
    resumed = run_in(tmp_path / "killed", config)
    state = resumed.restore()
    assert (state or {"iteration": 0})["iteration"] == at
    again = distill(toy(), 2, config, resumed)
    assert torch.equal(whole.images, again.images)
    assert torch.equal(whole.labels, again.labels)
    assert torch.equal(whole.training_tensors["labels"], again.training_tensors["labels"])
    assert scalars(tmp_path / "whole", "loss", "accuracy") == scalars(tmp_path / "killed", "loss", "accuracy")


def test_no_global_randomness_is_touched(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    found = distill(toy(), 1, SMALL, run_in(tmp_path))
    protocol(found, tmp_path, run_in(tmp_path)).train(network_of(found.backbone), "0")
    assert torch.equal(state, torch.get_rng_state())


# --- whitening


def test_whitening_is_of_normalised_images() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(60, 3, 2, 2, generator=generator, dtype=torch.float64)
    normalize = Normalize([0.4, 0.5, 0.6], [0.1, 0.2, 0.4]).double()
    layer = Whiten.fit_normalised(images, normalize)
    flat = normalize(images).flatten(1)
    covariance = flat.T.cov(correction=0)
    matrix = covariance + 0.1 * covariance.trace() / 12 * torch.eye(12, dtype=torch.float64)
    expected = (flat - flat.mean(0)) @ torch.tensor(scipy.linalg.inv(scipy.linalg.sqrtm(matrix.numpy())))
    torch.testing.assert_close(layer(images).flatten(1), expected)
    torch.testing.assert_close(layer.inverse(layer(images)), images)
    assert not torch.allclose(layer(images), Whiten.fit(images)(images), atol=1e-2)


def test_whitened_images_are_kept_in_pixels_and_judged_through_it(tmp_path: Path) -> None:
    config, data = replace(SMALL, zca=True, iterations=1, lr_img=1e-9), toy()
    run = run_in(tmp_path, config)
    found = distill(data, 2, config, run)
    initial = torch.cat([data.sample(c, 2, run.generator("initial", c)) for c in range(2)])
    assert (found.images - initial).abs().max() < 1e-5
    own = protocol(found, tmp_path, run)
    assert torch.equal(own.preprocess.matrix, Whiten.load(tmp_path / found.training.whitening).matrix)


# --- students


def test_steps_by_the_number_of_images() -> None:
    assert [steps_for(count) for count in STEPS] == list(STEPS.values())
    assert steps_for(150) == 11_000
    assert steps_for(450) == 5000
    assert steps_for(1) == 1000
    assert steps_for(10**6) == 40_000


def test_the_rate_of_students() -> None:
    rates = [rate(step, 2000, 3e-4) for step in range(2000)]
    assert rates[0] == 0
    assert rates[250] == pytest.approx(1.5e-4)
    assert rates[500] == pytest.approx(3e-4) == max(rates)
    assert rates[1250] == pytest.approx(3e-4 * (0.01 + 0.99 / 2))
    assert rate(2000, 2000, 3e-4) == pytest.approx(3e-6)
    assert rate(15, 30, 3e-4) == pytest.approx(3e-4)
    assert rate(0, 1, 3e-4) == pytest.approx(3e-4)


def test_students_learn_the_labels_by_regression(tmp_path: Path) -> None:
    """Against Adam written out, batches in their order."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(700, 3, 8, 8, generator=generator), torch.randn(700, 2, generator=generator)
    ours, theirs = network_of("frepo_convnet:width=2,depth=2"), network_of("frepo_convnet:width=2,depth=2")
    train_regressor(ours, images, labels, steps=3, lr=0.01, strategy="", generator=generator)
    optimizer = torch.optim.Adam(theirs.parameters())
    for step, which in enumerate((range(500), [*range(500, 700), *range(300)], range(300, 700))):
        which = [*which, *range(500 - len(which))]
        optimizer.param_groups[0]["lr"] = rate(step, 3, 0.01)
        optimizer.zero_grad()
        ((theirs(images[which]) - labels[which]) ** 2).sum().div(1000).backward()
        optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert not torch.allclose(ours[0].weight, network_of("frepo_convnet:width=2,depth=2")[0].weight, atol=1e-5)


def test_the_protocol_of_the_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = distill(toy(), 2, SMALL, run_in(tmp_path))
    own = protocol(found, tmp_path, run_in(tmp_path))
    assert own.epochs == 30
    assert own.teacher is None
    assert capsys.readouterr().err.count("FRePo trains") == 0
    ours, theirs = network_of(found.backbone), network_of(found.backbone)
    own.train(ours, "1")
    generator = run_in(tmp_path).generator("student", "1", "training")
    x = Normalize(found.mean, found.std)(found.images)
    options = {"steps": 30, "lr": 0.002, "strategy": found.training.augment, "generator": generator}
    train_regressor(theirs, x, found.training_tensors["labels"], **options)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    free = replace(found, training=replace(found.training, steps=None))
    assert protocol(free, tmp_path, run_in(tmp_path)).epochs == 1000
    line = "FRePo's code has student steps for 10, 100, 200, 400, 500, 1000, 2000, 5000 images; for 4 images they"
    assert line in capsys.readouterr().err
    for broken in (replace(found, training_tensors={}), replace(found, training=MethodTraining())):
        with pytest.raises(InputError, match=r"lacks the learned labels.*--protocol standard"):
            protocol(broken, tmp_path, run_in(tmp_path))


# --- augmentation of students


def middle(n: int, *numbers: float) -> Tensor:
    return torch.tensor(numbers).repeat(n, 1).T


def test_operations_in_closed_form() -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for name in ("color", "crop", "rotate", "translate"):
        torch.testing.assert_close(OPERATIONS[name](x, middle(2, 0.5, 0.5, 0.5)), x, atol=1e-5, rtol=1e-5)
    assert torch.equal(OPERATIONS["flip"](x, middle(2, 0.4, 0, 0)), x.flip(3))
    assert torch.equal(OPERATIONS["flip"](x, middle(2, 0.6, 0, 0)), x)
    brighter = OPERATIONS["color"](x, middle(2, 0.9, 0.5, 0.5))
    torch.testing.assert_close(brighter, x + 0.2)
    contrast = OPERATIONS["color"](x, middle(2, 0.5, 1.0, 0.5))
    assert torch.allclose(contrast.flatten(1).std(1), math.exp(0.25) * x.flatten(1).std(1), rtol=1e-4)
    assert torch.allclose(contrast.mean((1, 2, 3)), x.mean((1, 2, 3)), atol=1e-5)
    vivid = OPERATIONS["color"](x, middle(2, 0.5, 0.5, 0.0))
    assert torch.allclose(vivid - x.mean(1, keepdim=True), math.exp(-0.25) * (x - x.mean(1, keepdim=True)), atol=1e-5)
    shifted = OPERATIONS["translate"](x, middle(2, 1.0, 0.5, 0.5))  # by an eighth of 8 pixels; the border is repeated
    assert torch.allclose(shifted[..., :-1], x[..., 1:], atol=1e-5)
    assert torch.allclose(shifted[..., -1], x[..., -1], atol=1e-5)
    hole = OPERATIONS["cutout"](torch.ones(1, 1, 8, 8), torch.tensor([[0.0], [0.999], [0.0]]))
    assert hole.sum() == 64 - 4
    assert hole[0, 0, :2, 6:].sum() == 0


def test_warps_are_those_of_pixels() -> None:
    """Against the official coordinates, in pixels about the middle, with bilinear values and the border repeated."""
    size = 9
    x = torch.randn(1, 2, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = torch.tensor([[0.9], [0.2], [0.7]], dtype=torch.float64)
    zoom, angle = math.exp(math.log(0.8) + 0.9 * math.log(1.25 / 0.8)), math.radians(15 * 0.8)
    limit = abs(zoom - 1) * size / 2
    maps = {
        "crop": lambda i, j: ((i + limit * 0.4) / zoom, (j - limit * 0.6) / zoom),
        "rotate": lambda i, j: (math.cos(angle) * i + math.sin(angle) * j, math.cos(angle) * j - math.sin(angle) * i),
        "translate": lambda i, j: (i - 0.125 * size * 0.6, j + 0.125 * size * 0.8),
    }
    for name, place in maps.items():
        expected = torch.empty_like(x)
        for i in range(size):
            for j in range(size):
                row, column = (min(max(p + 4, 0), size - 1) for p in place(i - 4, j - 4))
                a, b = min(int(row), size - 2), min(int(column), size - 2)
                d, e = row - a, column - b
                corners = x[0, :, a : a + 2, b : b + 2]
                weights = torch.tensor([[(1 - d) * (1 - e), (1 - d) * e], [d * (1 - e), d * e]], dtype=torch.float64)
                expected[0, :, i, j] = (corners * weights).sum((1, 2))
        torch.testing.assert_close(OPERATIONS[name](x, u), expected)


def test_one_operation_a_batch_and_draws_an_image() -> None:
    x = torch.ones(400, 1, 8, 8)
    changed = augmented(x, "cutout", torch.Generator())
    holes = {tuple((image == 0).nonzero()[0].tolist()) for image in changed[:, 0]}
    assert len(holes) == 49
    assert augmented(x, "", torch.Generator()) is x
    kinds = {augmented(x, "cutout_rotate", torch.Generator().manual_seed(seed)).sum().item() for seed in range(20)}
    assert kinds == {400 * 60.0, 400 * 64.0}


# --- settings, and what is refused


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        *(({name: 0}, f"{name} is 0; it must be >= 1") for name in ("iterations", "batch_real", "num_nn_state")),
        ({"max_online_updates": 0}, "max_online_updates is 0; it must be >= 1"),
        *(({name: -1.0}, rf"{name} is -1\.0; it must be") for name in ("lr_img", "lr_net", "ridge", "student_lr")),
        ({"lr_img": float("nan")}, "lr_img is nan"),
        ({"student_steps": 0}, "student_steps is 0; it must be >= 1, or None"),
        ({"augment": "colour"}, "unknown augmentation 'colour'"),
        ({"student_augment": "flip_scale"}, "unknown operation of student_augment 'scale'.*flip, color"),
        ({"zca": True, "augment": "kornia:RandomHorizontalFlip()"}, "cannot augment whitened images"),
        (
            {"backbone": "mlp"},
            "backbone mlp has no option norm=batch for the pool; take pool_norm same, or one of.*convnet",
        ),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config(**fields)


@pytest.mark.parametrize("fields", [{"lr_net": 1e30}, {"lr_img": 1e30}, {"lr_img": 3.3e38, "iterations": 1}])
def test_a_regression_that_diverges_is_told(fields: dict[str, Any], tmp_path: Path) -> None:
    config = replace(SMALL, **fields)
    with pytest.raises(
        InputError, match=r"diverged in (iteration|step) \d+ .*smaller --lr-img or --lr-net, or a larger --rid"
    ):
        distill(toy(), 1, config, run_in(tmp_path, config))


def test_two_equal_images_are_told_or_regularised(tmp_path: Path) -> None:
    """A mirror image that is the image itself makes the kernel singular."""
    data = toy()
    same = replace(data, images=0.5 * (data.images + data.images.flip(3)))
    config = replace(SMALL, use_flip=True, ridge=1e-12, iterations=1)
    with pytest.raises(InputError, match="no positive definite kernel"):
        distill(same, 2, config, run_in(tmp_path, config))
    enough = replace(config, ridge=1e-3)
    assert distill(same, 2, enough, run_in(tmp_path / "enough", enough)).images.isfinite().all()


@pytest.mark.parametrize("dataset", ["digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "imagenette", "folder"])
@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_recipes(dataset: str, ipc: int) -> None:
    paper, quick = (RECIPES["frepo"][name](facts_named(dataset), ipc) for name in ("paper", "quick"))
    config = paper.config
    assert (config.iterations, config.batch_real, config.lr_img, config.lr_net) == (500_000, 1024, 3e-4, 3e-4)
    assert (config.num_nn_state, config.max_online_updates, config.ridge) == (10, 100, 1e-6)
    assert config.pool_norm == "batch"
    assert (config.student_steps, config.student_lr) == (None, 3e-4)
    grey = dataset in ("digits", "mnist", "fashion_mnist")
    assert config.zca == dataset.startswith("cifar")
    assert config.use_flip == (not grey and not (dataset == "cifar100" and ipc > 1))
    assert ("flip" in config.augment) == ("flip" in config.student_augment) == (not grey)
    assert paper.evaluation.protocol == quick.evaluation.protocol == "standard"
    for ours, theirs in zip(*(work(each.config, ipc, 10, 50_000) for each in (quick, paper)), strict=True):
        assert ours[0] < theirs[0] / 100


def test_the_estimate_takes_its_steps_in_any_order() -> None:
    network = network_of(SMALL.backbone)
    steps = [*work(SMALL, 2, 2, 40), *student_work(SMALL, 2, 2)]
    assert [count for count, _ in steps] == [12, 12, 12 / 5, 30 / 5]
    for _, step in (*steps, *reversed(steps)):
        step(network, (3, 8, 8))
    assert work(replace(SMALL, use_flip=True), 2, 2, 40)[1][0] == 24
    assert student_work(replace(SMALL, student_steps=None), 50, 10)[0][0] == 5000 * 500 / 32 / 5


def test_grey_images(tmp_path: Path) -> None:
    data = toy(channels=1)
    found = distill(data, 1, SMALL, run_in(tmp_path))
    assert found.images.shape == (2, 1, 8, 8)
    assert DistilledSet.load(saved(found, tmp_path)).training_tensors["labels"].equal(found.training_tensors["labels"])
