"""Trajectory matching: the loss and its gradients, experts in files, resuming, students, what is refused."""

import json
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from baselines.mtt import method as mtt
from baselines.mtt import recipes, trajectories
from baselines.mtt.matching import Batch, match
from baselines.mtt.method import Config, distill, protocol, student_work, work
from baselines.mtt.recipes import METHODS
from baselines.mtt.trajectories import Expert, Trajectories, experts
from distill.data import ImageSet, facts_named, imageset
from distill.data.image_files import ImageFiles
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.models import build
from distill.runs.files import read_tensors
from distill.runs.run import Run
from distill.training.augment import augmentation
from robust import CrossEntropy, CurvatureRegularizedLoss, Normalize
from tests.toy import toy

RECIPES = {method.name: method.recipes for method in METHODS}

STRATEGY = "color_crop_cutout_flip_scale_rotate"
SHAPE = {"channels": 3, "image_size": 8, "num_classes": 2}
GUARD = CurvatureRegularizedLoss(2.0, h=1.0)
EXPERT = Expert(
    loss=CrossEntropy(),
    backbone="convnet:width=4,depth=2",
    augment="",
    zca=False,
    epochs=3,
    lr=0.1,
    batch_size=16,
    epoch_images=None,
    seed=0,
)


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    data = toy()
    monkeypatch.setattr(f"{__name__}.toy", lambda: data)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def normalize(real: ImageSet) -> Callable[[Tensor], Tensor]:
    """Return the space of the networks, in the default dtype."""
    return Normalize(real.mean, real.std).to(torch.get_default_dtype())


def problem(backbone: str = "convnet:width=4,depth=2", images: int = 6) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Return a network, parameters to start from and to arrive at, and images."""
    generator = torch.Generator().manual_seed(0)
    network = build(backbone, **SHAPE, generator=generator)
    start = nn.utils.parameters_to_vector(network.parameters()).detach()
    target = start + 0.05 * torch.randn(start.shape, generator=generator)
    return network, start, target, torch.randn(images, 3, 8, 8, generator=generator)


def batches(images: int, kind: str) -> Batch:
    """Return what steps train on: all images, parts of them, augmented, or with soft labels."""
    labels = torch.arange(images) % 2
    if kind == "soft":
        labels = torch.rand(images, 2, generator=torch.Generator().manual_seed(1)).softmax(1)
    size = None if kind in ("all", "soft") else 4
    order = mtt._order(images, size, 10, torch.Generator().manual_seed(2))
    siamese = augmentation(STRATEGY) if kind == "augmented" else None
    return lambda step, x: mtt._batch(order, labels, siamese, torch.Generator().manual_seed, step, x)


# --- the loss and its gradients


@pytest.mark.parametrize("augment", ["", STRATEGY])
@pytest.mark.usefixtures("float64")
def test_the_experts_own_data_order_and_rate_lose_nothing(augment: str, tmp_path: Path) -> None:
    real, run = toy(), Run(tmp_path, None).begin()
    expert = replace(EXPERT, augment=augment)
    space = normalize(real)
    teachers = experts(real, space, expert, 2, run)
    network = build(expert.backbone, **SHAPE, generator=torch.Generator())
    siamese, images = augmentation(augment), space(real.images)
    steps = []  # those of epochs 1 and 2 of expert 1, three batches each
    for epoch in (1, 2):
        generator = run.generator("training", 1, epoch)
        for which in torch.randperm(40, generator=generator).split(16):
            steps.append((which, siamese and siamese.sample(len(which), (3, 8, 8), generator)))

    def batch(step: int, x: Tensor) -> tuple[Tensor, Tensor]:
        which, drawn = steps[step]
        return (siamese.apply(x[which], drawn) if siamese else x[which]), real.labels[which]

    def loss(x: Tensor, rate: float, end: int = 3) -> float:
        pair = teachers.snapshot(1, 1), teachers.snapshot(1, end)
        return match(network, *pair, x, torch.tensor(rate), batch, 6)[0].item()

    assert loss(images, 0.1) < 1e-20
    assert loss(images, 0.11) > 1e-3
    assert loss(images.flip(0), 0.1) > 1e-3
    assert loss(images, 0.1, end=2) > 0.1
    assert teachers.snapshot(1, 1).dtype == torch.float64


@pytest.mark.parametrize("kind", ["all", "parts", "augmented", "soft"])
@pytest.mark.parametrize("gradient", ["unrolled", "replayed"])
@pytest.mark.usefixtures("float64")
def test_gradients_are_finite_differences(gradient: str, kind: str) -> None:
    network, start, target, images = problem()
    batch, lr, h = batches(6, kind), torch.tensor(0.3), 1e-5
    loss, to_images, to_lr = match(network, start, target, images, lr, batch, 4, gradient)

    def at(x: Tensor, rate: Tensor) -> Tensor:
        return match(network, start, target, x, rate, batch, 4, gradient)[0]

    assert loss == at(images, lr)
    for seed in range(3):
        v = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
        difference = (at(images + h * v, lr) - at(images - h * v, lr)) / (2 * h)
        assert torch.allclose((to_images * v).sum(), difference, rtol=1e-6)
    difference = (at(images, lr + h) - at(images, lr - h)) / (2 * h)
    assert torch.allclose(to_lr, difference, rtol=1e-6)
    assert to_images.abs().max() > 1e-4
    assert to_lr.abs() > 1e-4


@pytest.mark.parametrize("kind", ["all", "parts", "augmented", "soft"])
@pytest.mark.parametrize("backbone", ["convnet:width=4,depth=2", "convnet:width=4,norm=batch", "mlp", "test_vit"])
@pytest.mark.usefixtures("float64")
def test_replaying_equals_unrolling(backbone: str, kind: str) -> None:
    network, start, target, images = problem(backbone)
    pair = [
        match(network, start, target, images, torch.tensor(0.1), batches(6, kind), 5, gradient)
        for gradient in ("unrolled", "replayed")
    ]
    for ours, theirs in zip(*pair, strict=True):
        assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max()


@pytest.mark.usefixtures("float64")
def test_tesla_leaves_out_what_it_says() -> None:
    """Its gradient is that of || start - alpha sum g_i - target ||^2 / scale with each theta_i held."""
    network, start, target, images = problem()
    named = dict(network.named_parameters())
    batch, alpha, steps = batches(6, "parts"), 0.3, 4
    leaf, rate, at, total = images.clone().requires_grad_(), torch.tensor(alpha, requires_grad=True), start, 0.0
    for step in range(steps):
        parts = at.detach().requires_grad_().split([p.numel() for p in named.values()])
        held = {name: part.view_as(named[name]) for name, part in zip(named, parts, strict=True)}
        x, y = batch(step, leaf)
        loss = F.cross_entropy(functional_call(network, held, (x,)), y)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, held.values(), create_graph=True)])
        total, at = total + gradient, at - alpha * gradient.detach()
    loss = (start - rate * total - target).square().sum() / (start - target).square().sum()
    expected = torch.autograd.grad(loss, (leaf, rate))

    ours = match(network, start, target, images, torch.tensor(alpha), batch, steps, "tesla")
    exact = match(network, start, target, images, torch.tensor(alpha), batch, steps)
    assert torch.allclose(ours[0], loss)
    assert torch.equal(ours[0], exact[0])
    for mine, theirs, true in zip(ours[1:], expected, exact[1:], strict=True):
        assert torch.allclose(mine, theirs)
        assert (mine - true).abs().max() > 1e-2 * true.abs().max()
    one = [match(network, start, target, images, torch.tensor(alpha), batch, 1, name) for name in ("tesla", "unrolled")]
    for mine, true in zip(*one, strict=True):
        assert torch.allclose(mine, true)


def peak(gradient: str, steps: int) -> int:
    """Return the most bytes that were saved for backward passes at once."""
    network, start, target, images = problem(images=4)
    now, most = [0], [0]

    class Kept:
        def __init__(self, tensor: Tensor):
            self.tensor = tensor
            now[0] += tensor.nbytes
            most[0] = max(most[0], now[0])
            weakref.finalize(self, self.free, tensor.nbytes)

        @staticmethod
        def free(size: int) -> None:
            now[0] -= size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        match(network, start, target, images, torch.tensor(0.1), batches(4, "all"), steps, gradient)
    assert now[0] == 0
    return most[0]


def test_memory_is_that_of_one_step() -> None:
    for gradient in ("replayed", "tesla"):
        assert peak(gradient, 2) == peak(gradient, 8) > 0
    assert peak("unrolled", 8) > 3.5 * peak("unrolled", 2) > 3.5 * peak("replayed", 8)


def test_the_network_is_only_lent() -> None:
    network, start, target, images = problem()
    match(network, start, target, images, torch.tensor(0.1), batches(6, "all"), 2)
    assert torch.equal(nn.utils.parameters_to_vector(network.parameters()), start)
    assert all(p.grad is None for p in network.parameters())
    assert not start.requires_grad
    assert not images.requires_grad


# --- experts


class Killed(Exception):
    """Stands for a kill."""


def dying(monkeypatch: pytest.MonkeyPatch, name: str, at: int, folder: str = "") -> None:
    """Let the next work die where it would log a scalar of this name for a step, in a folder whose name ends so."""
    log = Run.log

    def dies(self: Run, step: int, **scalars: float) -> None:
        if step == at and name in scalars and str(self.folder).endswith(folder):
            monkeypatch.setattr(Run, "log", log)
            raise Killed
        log(self, step, **scalars)

    monkeypatch.setattr(Run, "log", dies)


def contents(teachers: Trajectories) -> list[Tensor]:
    return [read_tensors(path)[0]["parameters"] for path in teachers.paths]


def scalars(folder: Path, *names: str) -> list[tuple[float, ...]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["seconds"] > 0 for row in rows)
    return [tuple(row[name] for name in ("step", *names)) for row in rows]


def made(place: Path, count: int = 2, run_seed: int = 0, **fields: Any) -> Trajectories:
    real, run = toy(), Run(place, None, seed=run_seed, checkpoint_seconds=0.0).begin()
    return experts(real, normalize(real), replace(EXPERT, **fields), count, run)


def test_experts_are_shared_and_more_are_made_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = toy()
    stages = {"stages": tmp_path / "stages"}
    first = experts(real, normalize(real), EXPERT, 2, Run(tmp_path / "a", "a", **stages).begin())
    train, calls = trajectories.train_epochs, []
    monkeypatch.setattr(trajectories, "train_epochs", lambda *args, **kw: calls.append(1) or train(*args, **kw))
    second = experts(real, normalize(real), EXPERT, 2, Run(tmp_path / "b", "b", seed=7, **stages).begin())
    assert first.paths == second.paths
    assert calls == []
    kept = contents(first)
    third = experts(real, normalize(real), EXPERT, 3, Run(tmp_path / "c", "c", **stages).begin())
    assert len(calls) == EXPERT.epochs
    assert len(third) == 3
    assert all(torch.equal(a, b) for a, b in zip(kept, contents(third), strict=False))
    alone = contents(made(tmp_path / "alone", 3))
    assert all(torch.equal(a, b) for a, b in zip(alone, contents(third), strict=True))
    third.paths[1].unlink()
    again = experts(real, normalize(real), EXPERT, 3, Run(tmp_path / "d", "d", **stages).begin())
    assert torch.equal(contents(again)[1], alone[1])


def test_a_trajectory_begins_untrained_and_learns(tmp_path: Path) -> None:
    teachers = made(tmp_path, lr=0.3, epochs=5)
    whole, run = contents(teachers), Run(tmp_path, None)
    network = build(EXPERT.backbone, **SHAPE, generator=run.generator("expert", 1))
    assert torch.equal(whole[1][0], nn.utils.parameters_to_vector(network.parameters()))
    assert torch.equal(whole[1][3], teachers.snapshot(1, 3))
    assert not torch.equal(whole[0][0], whole[1][0])
    for path in teachers.paths:
        rows = scalars(path.with_suffix(""), "loss", "accuracy")
        assert [row[0] for row in rows] == list(range(5))
        assert rows[4][1] < 0.8 * rows[0][1]
        assert rows[4][2] > 90


def test_an_epoch_may_be_a_part_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, seen = trajectories.train_epochs, []

    def watched(network: nn.Module, x: Tensor, y: Tensor, *args: Any, **kw: Any) -> None:
        seen.append(x.flatten(1).sum(1))
        train(network, x, y, *args, **kw)

    monkeypatch.setattr(trajectories, "train_epochs", watched)
    made(tmp_path / "part", 1, epoch_images=12)
    assert [len(each.unique()) for each in seen] == [12, 12, 12]
    assert not torch.equal(seen[0].sort().values, seen[1].sort().values)
    whole, same = contents(made(tmp_path / "a", 1)), contents(made(tmp_path / "b", 1, epoch_images=400))
    assert torch.equal(whole[0], same[0])


@pytest.mark.parametrize("at", [0, 1, 3, 5])
def test_killed_experts_go_on_to_the_same_bits(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"augment": STRATEGY, "epoch_images": 24, "loss": CurvatureRegularizedLoss(1.0)}
    whole = made(tmp_path / "whole", **fields)
    dying(monkeypatch, "accuracy", at % 3, f"00{at // 3}")
    with pytest.raises(Killed):
        made(tmp_path / "killed", **fields)
    train, calls = trajectories.train_epochs, []
    monkeypatch.setattr(trajectories, "train_epochs", lambda *args, **kw: calls.append(1) or train(*args, **kw))
    resumed = made(tmp_path / "killed", **fields)
    assert len(calls) == 6 - at  # nothing that was kept is done again
    assert all(torch.equal(a, b) for a, b in zip(contents(whole), contents(resumed), strict=True))
    for pair in zip(whole.paths, resumed.paths, strict=True):
        rows = [scalars(path.with_suffix(""), "loss", "accuracy") for path in pair]
        assert rows[0] == rows[1]
    assert not list(resumed.paths[0].parent.rglob("state.pt"))


def test_what_experts_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = contents(made(tmp_path / "plain", 1))[0]
    assert torch.equal(plain, contents(made(tmp_path / "zero", 1, loss=CurvatureRegularizedLoss(0.0)))[0])
    guard = made(tmp_path / "plain", 1, loss=GUARD)  # beside the plain ones, in a folder of its own
    assert len(list((tmp_path / "plain" / "stages").iterdir())) == 2
    assert not torch.allclose(plain[1], contents(guard)[0][1], atol=1e-4)
    for name, fields in {"lr": {"lr": 0.2}, "augment": {"augment": "flip"}, "seed": {"seed": 1}}.items():
        assert not torch.equal(plain[1], contents(made(tmp_path / name, 1, **fields))[0][1])
    assert torch.equal(plain, contents(made(tmp_path / "another run's seed", 1, run_seed=1))[0])
    seen, at = [], CurvatureRegularizedLoss.at
    monkeypatch.setattr(CurvatureRegularizedLoss, "at", lambda self, epoch: seen.append(epoch) or at(self, epoch))
    made(tmp_path / "warm", 1, loss=CurvatureRegularizedLoss(1.0, h=3.0, h_warmup=(0.1, 1.0)))
    assert seen == [0, 1, 2]


def test_other_data_have_other_experts(tmp_path: Path) -> None:
    run = Run(tmp_path, None).begin()
    for data in (toy(), toy(n=38), replace(toy(), std=(0.2,) * 3)):
        experts(data, normalize(data), EXPERT, 1, run)
    assert len(list((tmp_path / "stages").iterdir())) == 3


def test_bad_experts_are_told(tmp_path: Path) -> None:
    teachers = made(tmp_path, 1)
    teachers.paths[0].write_bytes(b"cut")
    with pytest.raises(InputError, match=r"000\.safetensors is not a complete trajectory .* delete it"):
        teachers.snapshot(0, 0)
    with pytest.raises(InputError, match="expert 0 diverged in epoch"):
        made(tmp_path / "far", 1, lr=1e30)


# --- the method

SMALL = Config(
    CrossEntropy(),
    backbone="convnet:width=4,depth=2",
    num_experts=2,
    train_epochs=3,
    lr_expert=0.1,
    batch_train=16,
    iterations=5,
    syn_steps=3,
    expert_epochs=2,
    max_start_epoch=2,
    batch_syn=3,
    lr_img=30.0,
    lr_lr=1e-3,
    lr_init=0.2,
    augment=STRATEGY,
)


EASY = {"current_max_start_epoch": 1, "expansion_end_epoch": 3}


def run_in(place: Path, config: Config = SMALL, **options: Any) -> Run:
    return Run(place, config, **options).begin()


@pytest.mark.parametrize(("gradient", "kind"), [("unrolled", "hard"), ("replayed", "hard"), ("replayed", "learned")])
@pytest.mark.usefixtures("float64")
def test_mtt_is_the_textbook(gradient: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the official loops (of DATM for learned labels), written out: torch.optim, parameters as a list."""
    sample = ImageSet.sample
    monkeypatch.setattr(ImageSet, "sample", lambda *args: sample(*args).double())
    config, real, run = replace(SMALL, gradient=gradient), toy(), run_in(tmp_path)
    config = replace(config, labels=kind, labels_start="hard", lr_labels=3.0)
    ours = distill(real, 2, config, run)

    space = normalize(real)
    teachers = experts(real, space, mtt._expert(config), 2, run)
    images = space(torch.cat([real.sample(c, 2, run.generator("initial", c)) for c in range(2)])).requires_grad_()
    lr, labels = torch.tensor(0.2, requires_grad=True), torch.tensor([0, 0, 1, 1])
    optimizers = [torch.optim.SGD([images], lr=30.0, momentum=0.5), torch.optim.SGD([lr], lr=1e-3, momentum=0.5)]
    if kind == "learned":
        labels = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]]).log().requires_grad_()
        optimizers.append(torch.optim.SGD([labels], lr=3.0, momentum=0.9))
    network = build(config.backbone, **SHAPE, generator=torch.Generator())
    named, policy = dict(network.named_parameters()), augmentation(STRATEGY)
    for iteration in range(5):
        generator = run.generator("expert", iteration)
        number, epoch = (int(torch.randint(2, (), generator=generator)) for _ in range(2))
        flat, target = teachers.snapshot(number, epoch), teachers.snapshot(number, epoch + 2)
        far = (flat - target).square().sum()
        parts = flat.requires_grad_().split([p.numel() for p in named.values()])
        theta = {name: part.view_as(named[name]) for name, part in zip(named, parts, strict=True)}
        generator, chunks = run.generator("order", iteration), []
        for step in range(3):
            if not chunks:
                chunks = list(torch.randperm(4, generator=generator).split(3))
            which = chunks.pop()
            drawn = policy.sample(len(which), (3, 8, 8), run.generator("augment", iteration, step))
            logits = functional_call(network, theta, (policy.apply(images[which], drawn),))
            loss = F.cross_entropy(logits, labels[which].softmax(1) if kind == "learned" else labels[which])
            gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
            theta = {name: theta[name] - lr * g for name, g in zip(theta, gradients, strict=True)}
        loss = (torch.cat([p.flatten() for p in theta.values()]) - target).square().sum() / far
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        assert scalars(tmp_path, "loss")[iteration] == (iteration, pytest.approx(loss.item(), rel=1e-9))
    assert (ours.images - space.inverse(images.detach())).abs().max() < 1e-9
    assert ours.training == MethodTraining(lr=ours.training.lr, epochs=1000)
    assert ours.training.lr == pytest.approx(lr.item(), rel=1e-9)
    assert abs(lr.item() - 0.2) > 1e-4
    if kind == "learned":
        assert (ours.labels - labels.detach().softmax(1)).abs().max() < 1e-9
        assert (ours.labels[0, 0] - 0.9).abs() > 1e-3
    first = distill(real, 2, replace(config, iterations=1), run_in(tmp_path / "first", stages=run.stages))
    assert (ours.images - first.images).abs().max() > 1e-3


@pytest.mark.parametrize("at", [0, 2, 4])
@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        replace(SMALL, zca=True, expert_loss=GUARD, backbone="convnet:width=4,norm=batch", batch_syn=None),
        replace(SMALL, gradient="tesla", labels="expert", init="noise", augment=""),
        replace(SMALL, labels="learned", labels_start="expert", init="correct", order="easy_first", **EASY),
    ],
)
@pytest.mark.long
def test_a_killed_run_ends_with_the_same_bits(
    config: Config, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = {"stages": tmp_path / "stages"}
    whole = distill(toy(), 2, config, run_in(tmp_path / "whole", config, **stages))
    dying(monkeypatch, "lr", at)
    with pytest.raises(Killed):
        distill(toy(), 2, config, run_in(tmp_path / "killed", config, checkpoint_seconds=0.0, **stages))
    resumed = run_in(tmp_path / "killed", config, **stages)
    assert (resumed.restore() or {"iteration": 0})["iteration"] == at
    again = distill(toy(), 2, config, resumed)
    assert torch.equal(whole.images, again.images)
    assert torch.equal(whole.labels, again.labels)
    assert whole.training == again.training
    assert scalars(tmp_path / "whole", "loss", "lr") == scalars(tmp_path / "killed", "loss", "lr")


@pytest.mark.long
def test_the_loss_falls_and_the_rate_is_learned(tmp_path: Path) -> None:
    config = replace(SMALL, iterations=60, augment="", batch_syn=None, lr_init=0.02, max_start_epoch=1, lr_lr=0.01)
    found = distill(toy(), 2, config, run_in(tmp_path, config))
    rows = scalars(tmp_path, "loss", "lr")
    assert sum(row[1] for row in rows[-5:]) < 0.6 * sum(row[1] for row in rows[:5])
    assert rows[-1][2] == found.training.lr > 0.05
    kept = distill(toy(), 2, replace(config, lr_lr=0.0, iterations=3), run_in(tmp_path / "kept", stages=tmp_path))
    assert kept.training.lr == pytest.approx(0.02)


@pytest.mark.long
def test_guard_changes_the_experts_alone(tmp_path: Path) -> None:
    for name in RECIPES["mtt"]:
        plain, guard = (RECIPES[method][name](facts_named("cifar10"), 1).config for method in ("mtt", "guard_mtt"))
        assert replace(guard, expert_loss=plain.expert_loss) == plain != guard
    stages = {"stages": tmp_path / "stages"}
    images = [
        distill(toy(), 1, replace(SMALL, expert_loss=loss), run_in(tmp_path / str(k), **stages)).images
        for k, loss in enumerate((CrossEntropy(), CurvatureRegularizedLoss(0.0), GUARD))
    ]
    assert torch.equal(images[0], images[1])
    assert not torch.allclose(images[0], images[2], atol=1e-3)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").rglob("0*.safetensors")}
    distill(toy(), 3, SMALL, run_in(tmp_path / "another ipc", **stages))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").rglob("0*.safetensors")}


def test_a_matching_that_diverges_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"diverged in iteration \d .*smaller --lr-img, --lr-lr or --max-start-epoch"):
        distill(toy(), 1, replace(SMALL, lr_lr=1e6), run_in(tmp_path))


def test_images_that_are_too_large_for_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ImageFiles(np.array(["none.png"] * 40), 8, "square")
    monkeypatch.setattr(imageset, "LIMIT", 40 * 3 * 8 * 8 * 4 - 1)
    with pytest.raises(InputError, match="this step needs all images of toy in memory, where at 8 px they take"):
        distill(replace(toy(), images=files), 1, SMALL, run_in(tmp_path))


def test_labels_of_the_expert(tmp_path: Path) -> None:
    """They are what the expert at the target says of the images before the last step."""
    config = replace(SMALL, labels="expert", iterations=1, lr_img=1e-6, augment="")
    run = run_in(tmp_path, config)
    found = distill(toy(), 2, config, run)
    real = toy()
    teachers = experts(real, normalize(real), mtt._expert(config), 2, run)
    _, target = mtt._pair(teachers, config, 0, run.generator("expert", 0))
    network = build(config.backbone, **SHAPE, generator=torch.Generator())
    nn.utils.vector_to_parameters(target, network.parameters())
    assert torch.allclose(found.labels, network(normalize(real)(found.images)).softmax(1), atol=1e-4)
    assert found.labels.shape == (4, 2)


def test_batches_are_parts_of_permutations() -> None:
    order = mtt._order(10, 4, 7, torch.Generator())
    assert [len(part) for part in order] == [2, 4, 4, 2, 4, 4, 2]
    assert sorted(torch.cat(order[:3]).tolist()) == sorted(torch.cat(order[3:6]).tolist()) == list(range(10))
    assert torch.cat(order[:3]).tolist() != torch.cat(order[3:6]).tolist()
    for size in (None, 10, 99):
        assert [part.tolist() for part in mtt._order(10, size, 2, torch.Generator())] == [list(range(10))] * 2


def test_no_global_randomness_is_touched(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    found = distill(toy(), 1, SMALL, run_in(tmp_path))
    network = build(SMALL.backbone, **SHAPE, generator=torch.Generator())
    protocol(replace(found, training=MethodTraining(lr=0.1, epochs=2)), tmp_path, run_in(tmp_path)).train(network, "0")
    assert torch.equal(state, torch.get_rng_state())


# --- whitened images


def test_whitened_images_are_kept_in_pixels(tmp_path: Path) -> None:
    config = replace(SMALL, zca=True, iterations=1, lr_img=1e-9)
    real, run = toy(), run_in(tmp_path, config)
    found = distill(real, 2, config, run)
    initial = torch.cat([real.sample(c, 2, run.generator("initial", c)) for c in range(2)])
    assert (found.images - initial).abs().max() < 1e-5
    kept = tmp_path / found.training.whitening
    assert kept.exists()
    time = kept.stat().st_mtime_ns
    noise = distill(real, 1, replace(config, init="noise"), run_in(tmp_path / "noise", stages=run.stages))
    assert kept.stat().st_mtime_ns == time  # shared by all runs on this data
    from distill.training.whiten import Whiten

    standard = Whiten.load(kept)(noise.images)
    assert standard.std() == pytest.approx(1, abs=0.15)  # as they were drawn
    network = build(config.backbone, **SHAPE, generator=torch.Generator())
    assert network(standard).shape == (2, 2)


# --- students


def test_students_learn_at_the_learned_rate(tmp_path: Path) -> None:
    found = replace(distill(toy(), 2, SMALL, run_in(tmp_path)), training=MethodTraining(lr=0.07, epochs=4))
    own = protocol(found, tmp_path, run_in(tmp_path))
    assert own.epochs == 5
    assert own.teacher is None
    ours, theirs, other = (build(SMALL.backbone, **SHAPE, generator=torch.Generator()) for _ in range(3))
    own.train(ours, "3")
    generator, policy = run_in(tmp_path).generator("student", "3", "training"), augmentation(STRATEGY)
    x = normalize(toy())(found.images)
    for lr, epochs in ((0.07, 4), (0.007, 1)):  # E + 1 epochs, the last after E / 2 + 1
        optimizer = torch.optim.SGD(theirs.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
        for _ in range(epochs):
            optimizer.zero_grad()
            batch = policy.apply(x, policy.sample(4, (3, 8, 8), generator))
            F.cross_entropy(theirs(batch), found.labels).backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    protocol(replace(found, training=MethodTraining(lr=0.01, epochs=4)), tmp_path, run_in(tmp_path)).train(other, "3")
    assert not torch.allclose(next(ours.parameters()), next(other.parameters()), atol=1e-4)


# --- settings


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        *(({name: 0}, f"{name} is 0; it must be >= 1") for name in ("iterations",)),
        *(({name: 0}, f"{name} is 0; it must be >= 1") for name in ("train_epochs", "batch_train", "student_epochs")),
        *(({name: 0}, f"{name} is 0; it must be") for name in ("expert_epochs", "max_start_epoch")),
        *(({name: 0}, f"{name} is 0; it must be >= 1, or None") for name in ("expert_images", "batch_syn")),
        *(({name: -1.0}, rf"{name} is -1\.0; it must be") for name in ("lr_expert", "lr_img", "lr_init")),
        ({"lr_img": float("inf")}, "lr_img is inf"),
        ({"lr_lr": -1e-5}, "lr_lr is -1e-05"),
        ({"train_epochs": 26}, "train_epochs is 26; a start below max_start_epoch 25 and expert_epochs 3 need 27"),
        ({"min_start_epoch": 25}, "min_start_epoch is 25; it must be below max_start_epoch 25"),
        ({"order": "easy_first", "min_start_epoch": 20}, "it must be below current_max_start_epoch 20"),
        (
            {"order": "easy_first", "current_max_start_epoch": 26},
            "current_max_start_epoch is 26; it must be at most max_start_epoch 25",
        ),
        ({"lr_labels": -1.0}, "lr_labels is -1"),
        ({"threshold": 0.0}, "threshold is 0"),
        ({"zca": True, "augment": "kornia:RandomHorizontalFlip()"}, "cannot augment whitened images"),
        ({"augment": "colour"}, "unknown augmentation 'colour'"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config(**{"expert_loss": CrossEntropy(), **fields})
    assert Config(CrossEntropy(), train_epochs=27).train_epochs == 27


@pytest.mark.parametrize("method", RECIPES)
@pytest.mark.parametrize("dataset", ["digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "imagenette", "folder"])
@pytest.mark.parametrize("ipc", [1, 5, 10, 50, 100])
def test_recipes(method: str, dataset: str, ipc: int) -> None:
    paper, quick = (RECIPES[method][name](facts_named(dataset), ipc) for name in ("paper", "quick"))
    assert paper.evaluation.protocol == quick.evaluation.protocol == "standard"
    config = paper.config
    assert (config.num_experts, config.train_epochs, config.lr_expert) == (100, 50, 0.01)
    assert config.iterations == (10_000 if method == "tesla" else 5000)
    assert (config.batch_train, config.expert_images, config.student_epochs) == (256, None, 1000)
    assert isinstance(config.expert_loss, CurvatureRegularizedLoss) == (method == "guard_mtt")
    assert (config.gradient == "tesla") == (method == "tesla")
    assert config.zca <= dataset.startswith("cifar")
    assert ("flip" in config.augment) == (dataset not in ("mnist", "digits"))
    for ours, theirs in zip(*(work(each.config, ipc, 10, 50_000) for each in (quick, paper)), strict=True):
        assert ours[0] < theirs[0] / 10


def test_rows_of_the_papers_table() -> None:
    def row(dataset: str, ipc: int, method: str = "mtt") -> tuple[Any, ...]:
        config = RECIPES[method]["paper"](facts_named(dataset), ipc).config
        return tuple(getattr(config, name) for name in recipes.NAMES)

    assert row("cifar10", 1) == row("cifar10", 9) == (50, 2, 2, True, 100, 1e-7, 0.01, None)
    assert row("cifar10", 10) == (30, 2, 20, True, 100, 1e-5, 0.001, None)
    assert row("cifar100", 500) == (80, 2, 40, True, 1000, 1e-5, 0.01, 125)
    assert row("mnist", 10) == (30, 2, 20, False, 100, 1e-5, 0.001, None)
    assert row("cifar10", 1, "tesla") == (50, 2, 5, False, 500, 1e-7, 0.01, None)
    assert row("cifar10", 10, "tesla") == row("cifar10", 10)
    assert row("cifar100", 50, "tesla") == (80, 2, 40, True, 500, 1e-5, 0.01, 125)
    assert row("folder", 50, "tesla") == row("cifar10", 50)
    assert RECIPES["mtt"]["paper"](facts_named("tiny_imagenet"), 10).config.backbone == "convnet:width=128,depth=4"


def test_the_estimate_takes_its_steps_in_any_order() -> None:
    network = build("convnet:width=4", **SHAPE, generator=torch.Generator())
    for config in (SMALL, replace(SMALL, expert_loss=GUARD, gradient="tesla", expert_images=30)):
        steps = work(config, 2, 2, 40)
        assert [count for count, _ in steps] == [2 * 3 * (config.expert_images or 40) / 16, 5 * 3]
        (students, student) = student_work(config, 2, 2)[0]
        assert students == 1001 / 5
        for _, step in (*steps, (students, student), *reversed(steps)):
            step(network, (3, 8, 8))
        assert all(p.requires_grad for p in network.parameters())
