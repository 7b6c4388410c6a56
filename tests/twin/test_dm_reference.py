"""The textbook DM loop, class by class with one backward pass over the sum as in the official code, against ours."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from baselines.dm.method import Config, distill, match, work
from baselines.dm.recipes import METHODS
from distill.data import ImageSet, facts_named
from distill.errors import InputError
from distill.models import build
from distill.models.convnet import ConvNet
from distill.runs.run import Run
from distill.training.augment import augmentation
from distill.training.features import embedding
from robust import CrossEntropy, CurvatureRegularizedLoss
from tests.toy import toy

RECIPES = {method.name: method.recipes for method in METHODS}

IPC, ITERATIONS, BATCH, EPOCHS = 2, 4, 6, 2
SHAPE = {"channels": 3, "image_size": 8, "num_classes": 2}
STRATEGY = "color_crop_cutout_flip_scale_rotate"


def guard(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Equation 8, weight 2 and h 1, an example at a time."""
    total = torch.zeros(())
    for image, label in zip(x, y, strict=True):

        def loss(point: torch.Tensor, label: torch.Tensor = label) -> torch.Tensor:
            return F.cross_entropy(network(point[None]), label[None])

        image = image.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(image), image, create_graph=True)
        (moved,) = torch.autograd.grad(loss(image + 1.0 * (g / g.norm()).detach()), image, create_graph=True)
        total = total + loss(image) + 2.0 * (moved - g).square().sum()
    return total / len(x)


def trained(config: Config, run: Run, real: ImageSet, mean: torch.Tensor, std: torch.Tensor, real_loss) -> nn.Module:
    network = build(config.backbone, **SHAPE, generator=run.generator("extractor"))
    policy, step = augmentation(config.augment), 0
    velocity = [torch.zeros_like(p) for p in network.parameters()]
    for epoch in range(EPOCHS):
        order = torch.randperm(len(real), generator=run.generator("extractor order", epoch))
        for first in range(0, len(real), config.batch_train):
            who = order[first : first + config.batch_train]
            x = (real.images[who] - mean) / std
            if policy is not None:
                x = policy.apply(x, policy.sample(len(x), (3, 8, 8), run.generator("extractor augment", step)))
            parameters = list(network.parameters())
            gradient = torch.autograd.grad(real_loss(network, x, real.labels[who]), parameters)
            with torch.no_grad():
                for p, g, v in zip(parameters, gradient, velocity, strict=True):
                    v.mul_(0.9).add_(g + 5e-4 * p)
                    p.sub_(config.lr_net * v)
            step += 1
    return network.eval()


def reference(config: Config, run: Run, real_loss) -> torch.Tensor:
    real = toy()
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (real.mean, real.std))

    def sample(c: int, n: int, *address: str | int) -> torch.Tensor:
        return (real.sample(c, n, run.generator(*address, c)) - mean) / std

    if config.init == "real":
        images = torch.cat([sample(c, IPC, "initial") for c in range(2)])
    else:
        images = torch.randn(2, IPC, 3, 8, 8, generator=run.generator("initial")).flatten(0, 1)
    images.requires_grad_()
    policy = augmentation(config.augment)
    optimizer = torch.optim.SGD([images], lr=config.lr_img, momentum=0.5)
    if config.extractor_epochs:
        network = trained(config, run, real, mean, std, real_loss)
    for iteration in range(ITERATIONS):
        if not config.extractor_epochs:
            network = build(config.backbone, **SHAPE, generator=run.generator("network", iteration)).train()
        theirs, ours = [], []
        for c in range(2):
            batch, synthetic = sample(c, BATCH, "real", iteration), images[c * IPC : (c + 1) * IPC]
            if policy is not None:
                drawn = policy.sample(None, (3, 8, 8), run.generator("augment", iteration, c))
                batch, synthetic = policy.apply(batch, drawn), policy.apply(synthetic, drawn)
            theirs.append(batch)
            ours.append(synthetic)
        if (
            network.training and "batch" in config.backbone
        ):  # all classes in one pass, as its statistics are theirs together
            real_features = network.features(torch.cat(theirs)).detach().reshape(2, BATCH, -1)
            features = network.features(torch.cat(ours)).reshape(2, IPC, -1)
            loss = ((real_features.mean(1) - features.mean(1)) ** 2).sum()
        else:
            loss = torch.zeros(())
            for batch, synthetic in zip(theirs, ours, strict=True):
                loss = (
                    loss + ((network.features(batch).detach().mean(0) - network.features(synthetic).mean(0)) ** 2).sum()
                )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return images.detach() * std + mean


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in float64: in float32 a ReLU's kink within rounding of a point moves an image by a percent."""
    data, sample = toy(), ImageSet.sample
    monkeypatch.setattr(f"{__name__}.toy", lambda: data)
    monkeypatch.setattr(ImageSet, "sample", lambda *args: sample(*args).double())
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("together", [1, 10])
@pytest.mark.parametrize("backbone", ["convnet:width=4", "convnet:width=4,norm=batch"])
@pytest.mark.parametrize("augment", ["", STRATEGY])
@pytest.mark.usefixtures("float64")
def test_dm_is_the_textbook(
    augment: str, backbone: str, together: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baselines.dm.method.GROUP", together)
    options = {"backbone": backbone, "iterations": ITERATIONS, "batch_real": BATCH, "lr_img": 30.0, "augment": augment}
    config = Config(CrossEntropy(), **options, init="real" if augment else "noise")
    ours = distill(toy(), IPC, config, Run(tmp_path, None).begin()).images
    theirs = reference(config, Run(tmp_path, None).begin(), None)
    assert (ours - theirs).abs().max() < 1e-9
    first = distill(toy(), IPC, replace(config, iterations=1), Run(tmp_path / "first", None).begin()).images
    assert (ours - first).abs().max() > 1e-3  # the steps moved something


@pytest.mark.parametrize(
    ("method", "backbone", "augment"),
    [
        ("dm", "convnet:width=4", STRATEGY),
        ("dm", "convnet:width=4,norm=batch", ""),
        ("guard_dm", "convnet:width=4", ""),
        ("guard_dm", "convnet:width=4", STRATEGY),
    ],
)
@pytest.mark.usefixtures("float64")
def test_a_trained_extractor_is_the_textbook(method: str, backbone: str, augment: str, tmp_path: Path) -> None:
    config = Config(
        CurvatureRegularizedLoss(weight=2.0, h=1.0) if method == "guard_dm" else CrossEntropy(),
        extractor_epochs=EPOCHS,
        backbone=backbone,
        iterations=ITERATIONS,
        batch_real=BATCH,
        batch_train=16,  # of 40 images: the last batch is a half
        lr_img=30.0,
        lr_net=0.1,
        augment=augment,
    )
    ours = distill(toy(), IPC, config, Run(tmp_path, None).begin()).images
    real_loss = guard if method == "guard_dm" else (lambda network, x, y: F.cross_entropy(network(x), y))
    theirs = reference(config, Run(tmp_path, None).begin(), real_loss)
    assert (ours - theirs).abs().max() < 1e-9


# --- the distance


class Linear(nn.Module):
    """psi(x) = W x."""

    def __init__(self, features: int = 5):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, features, bias=False))
        self.classifier = nn.Linear(features, 2)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.body(x))


@pytest.mark.parametrize("together", [1, 10])
@pytest.mark.usefixtures("float64")
def test_on_a_linear_embedding_the_distance_is_that_of_means(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """|| W (mean real - mean synthetic) ||^2, and its gradient by each of the ipc images."""
    monkeypatch.setattr("baselines.dm.method.GROUP", together)
    network, generator = Linear(), torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 3, 2, 2, generator=generator) for n in (7, 4, 9)]  # classes need not be equally large
    images = torch.randn(3, 2, 3, 2, 2, generator=generator)
    gradient, distance = match(
        network, images, real_batch=lambda c: batches[c], siamese=None, generator=lambda c: torch.Generator()
    )
    weight = network.body[1].weight
    gaps = torch.stack([batch.mean(0) for batch in batches]) - images.mean(1)
    assert torch.allclose(distance, (gaps.flatten(1) @ weight.T).square().sum())
    expected = -2 / 2 * (gaps.flatten(1) @ weight.T @ weight).view(3, 1, 3, 2, 2).expand_as(images)
    assert torch.allclose(gradient, expected)


@pytest.mark.usefixtures("float64")
def test_what_is_matched_already_has_no_gradient() -> None:
    network = build("convnet:width=4", **SHAPE, generator=torch.Generator()).requires_grad_(False)
    images = torch.randn(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    policy = augmentation(STRATEGY)
    for siamese in (None, policy):  # siamese: the same draw on both, so that the distance stays 0
        gradient, distance = match(
            network,
            images,
            real_batch=lambda c: images[c].flip(0),
            siamese=siamese,
            generator=lambda c: torch.Generator().manual_seed(c),
        )
        assert distance < 1e-24
        assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize(
    "backbone",
    [
        "convnet:width=4",
        "mlp",
        "lenet",
        "alexnet",
        "vgg11:norm=batch",
        "resnet18:norm=batch",
        "resnet18_ap",
        "resnet10t",
    ],
)
def test_the_embedding_is_what_the_classifier_sees(backbone: str) -> None:
    network = build(backbone, channels=3, image_size=32, num_classes=7, generator=torch.Generator()).eval()
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = embedding(network, x)
    classifier = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    assert classifier.out_features == 7
    assert torch.allclose(classifier(features), network(x))
    if isinstance(network, ConvNet):
        assert torch.equal(features, network.features(x))


def test_networks_without_an_embedding_are_refused() -> None:
    for network in (nn.Conv2d(3, 2, 1), nn.Linear(8, 2)):
        with pytest.raises(InputError, match="gives no features"):
            embedding(network, torch.zeros(2, 3, 8, 8))


# --- runs


def test_what_the_loss_and_the_epochs_change(tmp_path: Path) -> None:
    def images(name: str, loss: CrossEntropy | CurvatureRegularizedLoss, epochs: int) -> torch.Tensor:
        config = Config(loss, epochs, "convnet:width=4", iterations=2, batch_real=6, batch_train=20, lr_net=0.1)
        return distill(toy(), IPC, config, Run(tmp_path / name, None).begin()).images

    random, plain = images("a", CrossEntropy(), 0), images("b", CrossEntropy(), 2)
    assert torch.equal(plain, images("c", CurvatureRegularizedLoss(0.0), 2))
    assert not torch.allclose(plain, random, atol=1e-3)
    assert not torch.allclose(plain, images("d", CurvatureRegularizedLoss(5.0), 2), atol=1e-3)


def test_the_distance_falls(tmp_path: Path) -> None:
    config = Config(CrossEntropy(), 2, "convnet:width=8,depth=2", iterations=40, batch_real=20, init="noise")
    distill(toy(), 1, config, Run(tmp_path, None).begin())
    losses = [loss for _, loss in scalars(tmp_path, "loss")]
    assert losses[-1] < 0.2 * losses[0]


def test_h_warms_up_by_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, at = [], CurvatureRegularizedLoss.at
    monkeypatch.setattr(CurvatureRegularizedLoss, "at", lambda self, epoch: seen.append(epoch) or at(self, epoch))
    loss = CurvatureRegularizedLoss(1.0, h=3.0, h_warmup=(0.1, 1.0))
    config = Config(loss, 3, "convnet:width=4", iterations=1, batch_real=6, batch_train=16)
    distill(toy(), 1, config, Run(tmp_path, None).begin())
    assert seen == [0, 1, 2]


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    return [(row["step"], row[name]) for row in rows if name in row]


class Killed(Exception):
    """Stands for a kill."""


SMALL = {"backbone": "convnet:width=4", "iterations": 4, "batch_real": 6, "batch_train": 16, "augment": STRATEGY}
RUNS = {"dm": Config(CrossEntropy(), **SMALL), "guard_dm": Config(CurvatureRegularizedLoss(1.0), 2, **SMALL)}


@pytest.mark.parametrize(("method", "at"), [("dm", 0), ("dm", 3), *(("guard_dm", at) for at in (0, 2, 4, 5, 6, 8))])
def test_a_killed_run_ends_with_the_same_bits(
    method: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of guard_dm steps 0 to 5 are the extractor's (2 epochs of 3 batches), 6 to 9 the images'."""
    config = RUNS[method]
    whole = distill(toy(), 2, config, Run(tmp_path / "whole", config).begin())
    log = Run.log

    def dies(self: Run, step: int, **scalars: float) -> None:
        if step == at:
            raise Killed
        log(self, step, **scalars)

    monkeypatch.setattr(Run, "log", dies)
    with pytest.raises(Killed):
        distill(toy(), 2, config, Run(tmp_path / "killed", config, checkpoint_seconds=0.0).begin())
    monkeypatch.setattr(Run, "log", log)
    resumed = Run(tmp_path / "killed", config).begin()
    state = resumed.restore() or {"iteration": 0}
    assert state["iteration"] + state.get("trained", 0) == at
    again = distill(toy(), 2, config, resumed)
    assert torch.equal(whole.images, again.images)
    for name in ("loss", "extractor_loss"):
        assert scalars(tmp_path / "whole", name) == scalars(tmp_path / "killed", name)


def test_no_global_randomness_is_touched(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    distill(toy(), 1, RUNS["guard_dm"], Run(tmp_path, None).begin())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"iterations": 0}, "iterations is 0; it must be >= 1"),
        ({"batch_real": 0}, "batch_real is 0"),
        ({"batch_train": 0}, "batch_train is 0"),
        ({"extractor_epochs": -1}, "extractor_epochs is -1"),
        ({"lr_img": -1.0}, r"lr_img is -1\.0"),
        ({"lr_net": float("inf")}, "lr_net is inf"),
        ({"real_loss": CurvatureRegularizedLoss(1.0)}, "extractor_epochs is 0, so no network is trained"),
        ({"augment": "colour"}, "unknown augmentation 'colour'"),
    ],
)
def test_fields_are_checked(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config(**{"real_loss": CrossEntropy(), **fields})


@pytest.mark.parametrize("method", RECIPES)
@pytest.mark.parametrize("dataset", ["digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "folder"])
@pytest.mark.parametrize("ipc", [1, 10, 100])
def test_recipes(method: str, dataset: str, ipc: int) -> None:
    paper, quick = (RECIPES[method][name](facts_named(dataset), ipc) for name in ("paper", "quick"))
    assert (paper.config.iterations, paper.config.batch_real, paper.config.init) == (20_000, 256, "real")
    assert (paper.evaluation.students, paper.evaluation.student.epochs) == (50, 1000)
    assert paper.config.lr_img == (10.0 if ipc == 100 and dataset == "cifar10" else 1.0)
    guarded = method == "guard_dm"
    assert (
        isinstance(paper.config.real_loss, CurvatureRegularizedLoss) == guarded == bool(paper.config.extractor_epochs)
    )
    (*steps, training), (*steps_of_paper, training_of_paper) = (work(r.config, ipc, 10, 50_000) for r in (quick, paper))
    for ours, theirs in zip(steps, steps_of_paper, strict=True):
        assert ours[0] < theirs[0] / 10
    assert training[0] <= training_of_paper[0]
    assert (training[0] > 0) == guarded
    assert ("flip" in paper.config.augment) == (dataset not in ("mnist", "digits"))


def test_the_estimate_takes_its_steps_in_any_order() -> None:
    network = build("convnet:width=4", **SHAPE, generator=torch.Generator())
    for config in RUNS.values():
        steps = work(config, 2, 2, 50_000)
        assert [count for count, _ in steps] == [4 * 2, 4, config.extractor_epochs * 50_000 / 16]
        assert work(config, 2, 2, 40)[2][0] == config.extractor_epochs * 40 / 16
        for _, step in (*steps, *reversed(steps)):
            step(network, (3, 8, 8))
        assert all(p.requires_grad and p.grad is None for p in network.parameters())
