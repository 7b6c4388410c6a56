"""Kernel inducing points: regression, images and labels that are learned, resuming, students, what it refuses."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from baselines.kip.kernels import fully_connected
from baselines.kip.least_squares import largest_rate
from baselines.kip.method import Config, distill, objective, protocol, student_work, work
from baselines.kip.recipes import METHODS
from distill.data import ImageSet, facts_named
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.models import build
from distill.runs.run import Run
from distill.training.ridge import centred, probabilities, regressed
from distill.training.whiten import Whiten
from robust import Normalize
from tests.toy import toy

RECIPES = {method.name: method.recipes for method in METHODS}

SMALL = Config("convnet:width=4,depth=2", kernel="fc", iterations=8, target_batch=20, student_steps=30)
CONVNET = replace(SMALL, kernel="convnet", depth=2, prepend=False, iterations=3, target_batch=6, chunk=5)
KERNEL = partial(fully_connected, depth=1, w_std=2**0.5, b_std=0.1)


def run_in(folder: Path, config: Config = SMALL, **options: float) -> Run:
    return Run(folder, config, **options).begin()


def network_of(spec: str, channels: int = 3, num_classes: int = 2, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return build(spec, channels=channels, image_size=8, num_classes=num_classes, generator=generator)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- the regression


def problem() -> tuple[Tensor, ...]:
    """Return images and labels of a support, targets and their classes, in float64."""
    draw = {"generator": torch.Generator().manual_seed(1), "dtype": torch.float64}
    images, labels, targets = (
        torch.randn(4, 1, 3, 3, **draw),
        torch.randn(4, 4, **draw),
        torch.randn(7, 1, 3, 3, **draw),
    )
    return images, labels, targets, torch.tensor([0, 1, 2, 0, 3, 2, 1])


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 0.5])
def test_the_loss_is_what_numpy_solves(ridge: float) -> None:
    images, labels, targets, truth = problem()
    k_ss, k_ts = KERNEL(images, images).numpy(), KERNEL(targets, images).numpy()
    solved = np.linalg.solve(k_ss + ridge * np.trace(k_ss) / 4 * np.eye(4), labels.numpy())
    loss, right = objective(KERNEL, images, labels, targets, truth, ridge, 1000)
    expected = 0.5 * ((k_ts @ solved - (np.eye(4)[truth] - 1 / 4)) ** 2).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert right.item() == pytest.approx(((k_ts @ solved).argmax(1) == truth.numpy()).mean())
    if ridge == 0:  # the function of least norm through all labels: features of the kernel by its root, and lstsq
        every = KERNEL(*[torch.cat([images, targets])] * 2).numpy()
        values, vectors = np.linalg.eigh(every)
        features = vectors * np.sqrt(values.clip(0))
        weights = np.linalg.lstsq(features[:4], labels.numpy(), rcond=None)[0]
        said = regressed(*(torch.from_numpy(k) for k in (k_ss, k_ts)), labels, 0.0)
        np.testing.assert_allclose(said.numpy(), features[4:] @ weights, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("chunk", [4, 1000])
def test_the_gradient_is_what_finite_differences_say(chunk: int) -> None:
    images, labels, targets, truth = (each[:3] for each in problem())
    leaves = (images.requires_grad_(), labels.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, y: objective(KERNEL, x, y, targets, truth, 1e-3, chunk)[0], leaves)


def test_a_singular_kernel_is_told() -> None:
    images, labels, targets, truth = problem()
    same = torch.cat([images[:1]] * 4)
    with pytest.raises(
        InputError, match="the kernel of the 4 images is not positive definite at ridge 0; take a larger --ridge"
    ):
        objective(lambda a, b: 0 * KERNEL(a, b), same, labels, targets, truth, 0.0, 1000)


# --- distilling


@pytest.mark.parametrize("labels", ["hard", "learned"])
@pytest.mark.parametrize("init", ["real", "noise"])
def test_first_steps_are_those_of_the_paper(init: str, labels: str, tmp_path: Path) -> None:
    """Adam's first step is its learning rate, wherever the gradient is: so the start can be told from the end."""
    config = replace(SMALL, init=init, labels=labels, iterations=1, lr=1e-3)
    run, real = run_in(tmp_path, config), toy()
    made, normalize = distill(real, 3, config, run), Normalize(real.mean, real.std)
    first = torch.cat([real.sample(c, 3, run.generator("initial", c)) for c in range(2)])
    first = normalize(first) if init == "real" else torch.randn(first.shape, generator=run.generator("initial"))
    moved = (normalize(made.images) - first).abs()
    assert moved.max() < 1.01e-3
    assert moved.median() > 0.9e-3
    one_hot = centred(torch.tensor([0, 0, 0, 1, 1, 1]), 2)
    if labels == "learned":
        assert (made.training_tensors["labels"] - one_hot).abs().flatten().tolist() == pytest.approx(
            [1e-3] * 12, rel=0.02
        )
        torch.testing.assert_close(made.labels, probabilities(made.training_tensors["labels"] + 0.5))
    else:
        assert torch.equal(made.training_tensors["labels"], one_hot)
        assert made.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_the_first_loss_is_of_a_balanced_batch(tmp_path: Path) -> None:
    run, real = run_in(tmp_path), toy()
    distill(real, 1, SMALL, run)
    normalize = Normalize(real.mean, real.std)
    support = [real.sample(c, 1, run.generator("initial", c)) for c in range(2)]
    batch = [real.sample(c, 10, run.generator("target", 0, c)) for c in range(2)]
    x, y = (normalize(torch.cat(each)).double() for each in (support, batch))
    loss, _ = objective(KERNEL, x, centred(torch.arange(2), 2).double(), y, torch.arange(20) // 10, 1e-6, 10**6)
    assert losses(tmp_path)[0] == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("config", [SMALL, CONVNET], ids=["fc", "convnet"])
def test_images_regress_what_they_did_not(config: Config, channels: int, tmp_path: Path) -> None:
    config = replace(config, iterations=25 if config.kernel == "fc" else 8, init="noise")
    real, test = toy(channels=channels), toy(60, channels, seed=1)
    made = distill(real, 1, config, run_in(tmp_path, config))
    assert made.images.dtype == torch.float32
    found = losses(tmp_path)
    assert sum(found[-3:]) < 0.5 * sum(found[:3])
    x, y = (Normalize(real.mean, real.std)(images) for images in (made.images, test.images))
    said = regressed(KERNEL(x, x), KERNEL(y, x), made.training_tensors["labels"])
    assert (said.argmax(1) == test.labels).double().mean() > 0.9


def test_learned_labels_are_kept_as_both(tmp_path: Path) -> None:
    config = replace(SMALL, labels="learned", lr=0.3)
    distill(toy(), 2, config, run_in(tmp_path, config)).save(tmp_path / "made.safetensors")
    made = DistilledSet.load(tmp_path / "made.safetensors")
    assert made.labels.min() >= 0
    torch.testing.assert_close(made.labels.sum(1), torch.ones(4))
    assert (made.training_tensors["labels"] - centred(torch.tensor([0, 0, 1, 1]), 2)).abs().max() > 0.1


def test_whitening_is_of_the_notebooks_ridge(tmp_path: Path) -> None:
    config = replace(SMALL, zca=True, iterations=1, lr=1e-6)
    run, real = run_in(tmp_path, config), toy()
    made = distill(real, 1, config, run)
    layer = Whiten.load(tmp_path / made.training.whitening)
    variance = real.images.flatten(1).double().T.cov()
    ridge = 0.1 * variance.diagonal().mean()
    centred_ = real.images.flatten(1).double() - real.images.flatten(1).double().mean(0)
    values, vectors = torch.linalg.eigh(variance)
    right = centred_ @ vectors @ torch.diag((values.clamp(min=0) + ridge) ** -0.5) @ vectors.T
    torch.testing.assert_close(layer(real.images).flatten(1).double(), right, rtol=1e-3, atol=1e-3)
    first = torch.cat([real.sample(c, 1, run.generator("initial", c)) for c in range(2)])
    torch.testing.assert_close(made.images, first, rtol=1e-4, atol=1e-4)


# --- resuming


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize(
    "config",
    [SMALL, replace(SMALL, labels="learned", zca=True, precision="float32", ridge=1e-3), CONVNET],
    ids=["fc", "learned", "convnet"],
)
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.long
def test_a_killed_run_ends_with_the_same_bits(
    at: int, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = distill(toy(), 2, config, run_in(tmp_path / "whole", config))
    log = Run.log

    def dies(self: Run, step: int, **scalars: float) -> None:
        if step == at:
            raise Killed
        log(self, step, **scalars)

    monkeypatch.setattr(Run, "log", dies)
    with pytest.raises(Killed):
        distill(toy(), 2, config, run_in(tmp_path / "killed", config, checkpoint_seconds=0.0))
    monkeypatch.setattr(Run, "log", log)
    resumed = run_in(tmp_path / "killed", config)
    assert (resumed.restore() or {"iteration": 0})["iteration"] == at
    again = distill(toy(), 2, config, resumed)
    assert torch.equal(whole.images, again.images)
    assert torch.equal(whole.training_tensors["labels"], again.training_tensors["labels"])
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    assert len(losses(tmp_path / "whole")) == config.iterations


def test_chunks_change_nothing(tmp_path: Path) -> None:
    made = [
        distill(toy(), 2, config, run_in(tmp_path / str(config.chunk), config))
        for config in (replace(SMALL, chunk=chunk) for chunk in (None, 3))
    ]
    torch.testing.assert_close(made[0].images, made[1].images, rtol=1e-5, atol=1e-5)


# --- students


def jacobian(network: nn.Module, images: Tensor) -> Tensor:
    """Return the gradient of each image's sum of logits by all weights, over sqrt(K)."""
    rows = []
    for image in images:
        logits = network(image[None])[0]
        rows.append(torch.autograd.grad(logits.sum() / len(logits) ** 0.5, list(network.parameters())))
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.mark.parametrize("spec", ["convnet:width=4,depth=2,norm=none", "convnet:width=4,depth=2", "mlp", "test_vit"])
def test_the_largest_rate_is_of_the_whole_kernel(spec: str) -> None:
    network = network_of(spec, num_classes=5).double().train()
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = largest_rate(network, images)
    assert network.training
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    rows = jacobian(network.eval(), images)
    assert found == pytest.approx(2 * 6 * 5 / torch.linalg.eigvalsh(rows @ rows.T)[-1].item(), rel=1e-3)


@pytest.mark.parametrize(("factor", "converges"), [(0.97, True), (1.03, False)])
def test_descent_converges_below_the_largest_rate_alone(factor: float, converges: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False)).double()
    images = torch.randn(6, 3, 2, 2, generator=generator, dtype=torch.float64)
    labels = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    optimizer = torch.optim.SGD(network.parameters(), lr=factor * largest_rate(network, images, rounds=300))
    values = []
    for _ in range(600):
        optimizer.zero_grad()
        loss = 0.5 * (network(images) - labels).square().mean()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert (values[-1] < values[0] / 100) == converges
    assert (values[-1] > values[0]) == (not converges)


@pytest.mark.parametrize("labels", ["hard", "learned"])
def test_students_are_trained_by_least_squares(labels: str, tmp_path: Path) -> None:
    """A student is what plain loops make of its drawn weights, with momentum, l2 and a cosine by hand."""
    config = replace(SMALL, labels=labels, lr=0.2)
    made, run = distill(toy(), 3, config, run_in(tmp_path, config)), run_in(tmp_path, config)
    student, twin = network_of(SMALL.backbone), network_of(SMALL.backbone)
    own = protocol(made, tmp_path, run)
    assert own.epochs == 30
    own.train(student, "0")

    protocol(replace(made, training=replace(made.training, steps=0)), tmp_path, run).train(twin, "0")
    images, weights = own.preprocess(made.images), dict(twin.named_parameters())
    rate = largest_rate(twin, images)
    velocity = {name: torch.zeros_like(p) for name, p in weights.items()}
    for step in range(30):
        loss = 0.5 * (functional_call(twin, weights, (images,)) - made.training_tensors["labels"]).square().mean()
        loss = loss + 0.5 * 1e-3 * sum(p.square().sum() for p in weights.values())
        for (name, p), g in zip(list(weights.items()), torch.autograd.grad(loss, list(weights.values())), strict=True):
            velocity[name] = 0.9 * velocity[name] + g
            moved = p - rate * 0.5 * (1 + np.cos(np.pi * step / 30)) * velocity[name]
            weights[name] = moved.detach().requires_grad_()
    for name, p in student.named_parameters():
        torch.testing.assert_close(p, weights[name], rtol=1e-3, atol=1e-4)
    assert (student(images).argmax(1) == torch.tensor([0, 0, 0, 1, 1, 1])).all()


def test_students_weights_are_of_the_papers_variance(tmp_path: Path) -> None:
    config = replace(SMALL, w_std=3.0, b_std=0.5, iterations=1)
    made = distill(toy(), 1, config, run_in(tmp_path, config))
    own = protocol(replace(made, training=replace(made.training, steps=0)), tmp_path, run_in(tmp_path, config))
    students = [network_of("convnet:width=64,depth=2,norm=none") for _ in range(2)]
    for number, student in enumerate(students):
        own.train(student, str(number))
    second = [p for name, p in students[0].named_parameters() if p.ndim == 4][1]
    assert second.std().item() == pytest.approx(3 / (9 * 64) ** 0.5, rel=0.02)
    biases = torch.cat([m.bias for m in students[0].modules() if isinstance(m, nn.Conv2d)])
    assert biases.std().item() == pytest.approx(0.5, rel=0.2)
    assert not torch.equal(*(student.classifier.weight for student in students))


def test_batches_are_of_a_hundred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = distill(toy(), 1, replace(SMALL, iterations=1), run_in(tmp_path))
    many = replace(
        made,
        images=torch.rand(230, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        labels=torch.arange(230) % 2,
        training_tensors={"labels": centred(torch.arange(230) % 2, 2)},
        training=replace(made.training, steps=7),
    )
    seen, network = [], network_of(SMALL.backbone)
    network.register_forward_hook(lambda module, x, y: seen.append(len(x[0])) if module.training else None)
    own = protocol(many, tmp_path, run_in(tmp_path))
    own.train(network, "0")
    assert own.epochs == 3
    assert seen == [100, 100, 30, 100, 100, 30, 100]


def test_a_set_of_another_method_is_refused(tmp_path: Path) -> None:
    made = distill(toy(), 1, replace(SMALL, iterations=1), run_in(tmp_path))
    with pytest.raises(InputError, match="lacks labels, w_std of kip's training; take --protocol standard"):
        protocol(
            replace(made, training_tensors={}, training=MethodTraining(steps=1, b_std=0.1)), tmp_path, run_in(tmp_path)
        )


# --- data and settings


def test_odd_input_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="target_batch is 1; toy has 2 classes, take more"):
        distill(toy(), 1, replace(SMALL, target_batch=1), run_in(tmp_path))
    with pytest.raises(InputError, match="ipc is 21; the smallest class of toy has 20 images; take --init noise"):
        distill(toy(), 21, SMALL, run_in(tmp_path))
    with pytest.raises(InputError, match="8 px are halved to nothing by depth 4; take a smaller --depth"):
        distill(toy(), 1, replace(CONVNET, depth=4), run_in(tmp_path))
    large = ImageSet("large", torch.zeros(2, 3, 224, 224), torch.tensor([0, 1]), ("a", "b"), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(InputError, match=r"one pair of 224 px images takes about 3\.4 GiB at depth 3"):
        distill(large, 1, replace(CONVNET, depth=3), run_in(tmp_path))
    capsys.readouterr()
    distill(toy(), 1, replace(SMALL, target_batch=41, iterations=1), run_in(tmp_path))
    assert "target_batch is 41" not in capsys.readouterr().err  # 20 of each class, as they share it
    distill(toy(), 1, replace(SMALL, target_batch=42, iterations=1), run_in(tmp_path / "more"))
    assert "target_batch is 42, but classes of toy have fewer: a step has 40 images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("depth", 0, "depth is 0; it must be >= 1"),
        ("iterations", 0, "iterations is 0"),
        ("target_batch", 0, "target_batch is 0"),
        ("chunk", 0, "chunk is 0"),
        ("student_steps", 0, "student_steps is 0"),
        ("lr", 0.0, r"lr is 0\.0; it must be > 0"),
        ("w_std", float("nan"), "w_std is nan"),
        ("b_std", -0.1, r"b_std is -0\.1; it must be >= 0"),
        ("ridge", float("inf"), "ridge is inf"),
    ],
)
def test_fields_are_checked(field: str, value: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config(**{field: value})


@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10", "cifar100", "tiny_imagenet", "imagenette", "folder"])
@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_recipes(dataset: str, ipc: int) -> None:
    paper, quick = (RECIPES["kip"][name](facts_named(dataset), ipc) for name in ("paper", "quick"))
    assert (paper.config.lr, paper.config.ridge, paper.config.init) == (0.04, 1e-6, "real")
    assert paper.config.target_batch == (1000 if dataset == "imagenette" else 5000)
    assert paper.config.kernel == ("fc" if dataset == "imagenette" else "convnet")
    assert paper.config.zca == dataset.startswith("cifar")
    assert not quick.config.zca
    assert paper.config.precision == quick.config.precision == "float64"
    assert quick.config.kernel == "fc"
    assert paper.evaluation.protocol == quick.evaluation.protocol == "standard"
    channels, size = {"digits": (1, 8), "mnist": (1, 28), "imagenette": (3, 224)}.get(dataset, (3, 32))
    shape = {"channels": channels, "image_size": size, "num_classes": 10, "generator": torch.Generator()}
    for recipe in (paper, quick):
        build(recipe.config.backbone, **shape)
    assert student_work(paper.config, ipc, 10)[0][0] > student_work(quick.config, ipc, 10)[0][0] > 0


@pytest.mark.parametrize("size", [8, 20])
def test_work_counts_the_pairs(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ((count, step),) = work(Config(), 10, 10, 60_000)
    assert count * 5 == 1000 * 100 * 5100  # pairs of a timed step, and of all steps
    seen = []

    def looked(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((len(arguments[3]), *arguments[1].shape, arguments[-1]))
        return objective(*arguments)

    monkeypatch.setattr("baselines.kip.method.objective", looked)
    step(network_of("mlp"), (3, size, size))
    corner = min(size, 16)
    assert seen == [(4, 1, 3, corner, corner, 2)] * (1 if size == 8 else 2)  # 400 pixels are 2 times 256
    ((count, step),) = work(replace(Config(), kernel="fc"), 1, 10, 1000)
    assert count * 10 * 138 == 1000 * 10 * 1010
    seen.clear()
    step(network_of("mlp"), (1, 8, 8))
    assert seen == [(128, 10, 1, 8, 8, 2**30 // 80)]  # in one tile, as in a run


def test_losses_use_all_of_f() -> None:
    """Half a mean of squares, over images and classes, as the notebook has it."""
    _, labels, _, truth = problem()
    orthogonal = torch.eye(4, 9).double().view(4, 1, 3, 3)
    loss, _ = objective(lambda a, b: a.flatten(1) @ b.flatten(1).T, orthogonal, labels, orthogonal, truth[:4], 0.0, 99)
    assert loss.item() == pytest.approx(0.5 * F.mse_loss(labels, centred(truth[:4], 4).double()).item())
