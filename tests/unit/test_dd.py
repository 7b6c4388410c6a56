"""Dataset distillation: its gradient, its learning rates, resuming, students of its own way, what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from baselines.dd.method import Config, cropped_and_flipped, distill, protocol, steps, student_work, work
from baselines.dd.recipes import METHODS
from baselines.dd.unrolled import descent, hypergradient
from distill.data import ImageSet, facts_named
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.models import build
from distill.runs.run import Run
from robust import Normalize
from tests.toy import toy

RECIPES = {method.name: method.recipes for method in METHODS}

SMALL = Config(backbone="convnet:width=4,depth=2", distill_epochs=2, epochs=4, batch_size=16, decay_epochs=2)
SMOOTH = "convnet:width=4,depth=2,activation=swish"


def run_in(folder: Path, config: Config = SMALL, **options: float) -> Run:
    return Run(folder, config, **options).begin()


def network_of(spec: str, channels: int, num_classes: int = 3) -> nn.Module:
    return build(
        spec, channels=channels, image_size=8, num_classes=num_classes, generator=torch.Generator().manual_seed(0)
    )


def problem(channels: int, soft: bool) -> tuple[Tensor, ...]:
    """Return images, labels, learning rates of two steps taken twice, and a real batch, in float64."""
    generator = torch.Generator().manual_seed(1)
    draw = {"generator": generator, "dtype": torch.float64}
    images, x = torch.randn(2, 3, channels, 8, 8, **draw), torch.randn(5, channels, 8, 8, **draw)
    labels = torch.randn(2, 3, 3, **draw) if soft else torch.tensor([[0, 1, 2], [2, 1, 0]])
    lrs = torch.tensor([0.3, 0.1, 0.05, 0.2], dtype=torch.float64)
    return images, labels, lrs, x, torch.tensor([0, 1, 2, 0, 1])


def unrolled(network: nn.Module, images: Tensor, labels: Tensor, lrs: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the loss after the steps, with the graph of all of them."""
    weights = {name: p.detach().requires_grad_() for name, p in network.named_parameters()}
    for step, lr in enumerate(lrs):
        batch = step % len(images)
        logits = functional_call(network, weights, (images[batch],))
        if labels.is_floating_point():
            loss = -(labels[batch] * logits.log_softmax(1)).sum(1).mean()
        else:
            loss = F.cross_entropy(logits, labels[batch])
        gradient = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {name: p - lr * g for (name, p), g in zip(weights.items(), gradient, strict=True)}
    return F.cross_entropy(functional_call(network, weights, (x,)), y)


# --- the gradient


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("channels", "spec"), [(1, "convnet:width=4,depth=2"), (3, "alexcifarnet"), (3, "mlp")])
def test_the_gradient_is_that_of_the_whole_graph(channels: int, spec: str, soft: bool) -> None:
    network = network_of(spec, channels).double()
    images, labels, lrs, x, y = problem(channels, soft)
    before = [p.clone() for p in network.parameters()]
    loss, *gradients = hypergradient(network, images, labels, lrs, x, y)
    assert all(map(torch.equal, before, network.parameters()))
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    leaves = [images.requires_grad_(), lrs.requires_grad_()] + ([labels.requires_grad_()] if soft else [])
    whole = unrolled(network, images, labels, lrs, x, y)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-12)
    expected = torch.autograd.grad(whole, leaves)
    assert len(gradients) == len(expected)
    for found, right in zip(gradients, expected, strict=True):
        assert right.abs().max() > 1e-5
        torch.testing.assert_close(found, right, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_gradient_is_what_finite_differences_say(channels: int) -> None:
    network = network_of(SMOOTH, channels).double()
    images, labels, lrs, x, y = problem(channels, soft=True)

    def loss(images: Tensor, lrs: Tensor, labels: Tensor) -> float:
        weights = list(descent(network, images, labels, lrs))[-1]
        return F.cross_entropy(functional_call(network, weights, (x,)), y).item()

    _, *gradients = hypergradient(network, images, labels, lrs, x, y)
    generator, points, h = torch.Generator().manual_seed(2), (images, lrs, labels), 1e-5
    for number, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        ahead, behind = ([*points[:number], points[number] + s * direction, *points[number + 1 :]] for s in (h, -h))
        slope = (loss(*ahead) - loss(*behind)) / (2 * h)
        assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-6, abs=1e-9)
    for step in range(4):  # each learning rate has a derivative of its own
        direction = torch.zeros(4, dtype=torch.float64)
        direction[step] = h
        slope = (loss(images, lrs + direction, labels) - loss(images, lrs - direction, labels)) / (2 * h)
        assert slope == pytest.approx(gradients[1][step].item(), rel=1e-6, abs=1e-9)


def test_one_hot_labels_are_the_classes() -> None:
    network = network_of(SMOOTH, 1).double()
    images, labels, lrs, x, y = problem(1, soft=False)
    hard = hypergradient(network, images, labels, lrs, x, y)
    soft = hypergradient(network, images, F.one_hot(labels, 3).double(), lrs, x, y)
    assert (len(hard), len(soft)) == (3, 4)
    for one, other in zip(hard, soft, strict=False):
        torch.testing.assert_close(one, other)


def test_memory_has_the_graph_of_one_step() -> None:
    network, most = network_of("convnet:width=8,depth=2", 3), []
    for taken in (2, 16):
        kept = [0, 0]  # bytes that graphs hold now, and at most

        def hold(tensor: Tensor, kept: list[int] = kept) -> tuple[Tensor, "Held"]:
            return tensor, Held(kept, tensor.nbytes)

        lrs = torch.full((taken,), 0.01)
        with torch.autograd.graph.saved_tensors_hooks(hold, lambda pair: pair[0]):
            hypergradient(
                network,
                torch.randn(1, 3, 3, 8, 8),
                torch.tensor([[0, 1, 2]]),
                lrs,
                torch.randn(2, 3, 8, 8),
                torch.tensor([0, 1]),
            )
        most.append(kept[1])
    assert most[1] == most[0] > 0


class Held:
    """Counts bytes as long as it lives."""

    def __init__(self, kept: list[int], size: int):
        self.kept, self.size = kept, size
        kept[0] += size
        kept[1] = max(kept)

    def __del__(self) -> None:
        self.kept[0] -= self.size


# --- distilling


@pytest.mark.parametrize(("ipc", "count"), [(1, 1), (4, 4), (7, 7), (10, 10), (11, 1), (15, 5), (50, 10)])
def test_steps_share_the_images(ipc: int, count: int) -> None:
    assert steps(Config(), ipc) == count
    assert steps(Config(distill_steps=1), ipc) == 1


def test_the_set_says_which_images_a_step_has(tmp_path: Path) -> None:
    made = distill(toy(), 6, replace(SMALL, distill_steps=3, epochs=1), run_in(tmp_path))
    assert made.labels.tolist() == [0] * 6 + [1] * 6
    order = torch.tensor(made.training.order)
    assert order.tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    assert sorted(order.flatten().tolist()) == list(range(12))
    assert len(made.training.lrs) == 6
    assert MethodTraining.from_json(json.loads(json.dumps(made.training.to_json()))) == made.training


@pytest.mark.parametrize("labels", ["hard", "learned"])
def test_first_steps_are_those_of_the_paper(labels: str, tmp_path: Path) -> None:
    """Adam's first step is its learning rate, wherever the gradient is: so the start can be told from the end."""
    config = replace(SMALL, labels=labels, epochs=1, epoch_iterations=1, lr=1e-3, distill_lr=0.02)
    run, real = run_in(tmp_path, config), toy()
    made = distill(real, 2, config, run)
    noise = torch.randn(2, 2, *real.image_shape, generator=run.generator("initial"))
    images = Normalize(made.mean, made.std)(made.images)[torch.tensor(made.training.order)]
    moved = (images - noise).abs()
    assert moved.max() < 1.01e-3
    assert moved.median() > 0.9e-3
    raw = torch.tensor(made.training.lrs).expm1().log()
    assert (raw - torch.tensor(0.02).expm1().log()).abs().tolist() == pytest.approx([1e-3] * 4, rel=0.02)
    if labels == "learned":
        one_hot = torch.eye(2)[[0, 0, 1, 1]]
        assert (made.training_tensors["labels"] - one_hot).abs().flatten().tolist() == pytest.approx(
            [1e-3] * 8, rel=0.02
        )


def test_learning_rates_stay_positive(tmp_path: Path) -> None:
    config = replace(SMALL, distill_lr=1e-4, lr=3.0, epochs=3)  # steps of Adam that would make plain rates negative
    made = distill(toy(), 1, config, run_in(tmp_path))
    assert min(made.training.lrs) > 0
    assert max(made.training.lrs) != min(made.training.lrs)


@pytest.mark.parametrize("lr", [1e-6, 0.02, 1.0, 50.0])
def test_the_first_learning_rate_is_the_one_asked_for(lr: float, tmp_path: Path) -> None:
    config = replace(SMALL, distill_epochs=1, distill_lr=lr, epochs=1, epoch_iterations=1, lr=1e-9)
    made = distill(toy(), 1, config, run_in(tmp_path))
    assert made.training.lrs == pytest.approx([lr], rel=1e-4)


def test_a_loss_that_is_not_finite_is_told(tmp_path: Path) -> None:
    config = replace(SMALL, backbone="mlp", distill_epochs=20, distill_lr=1000.0)
    with pytest.raises(InputError, match=r"diverged in iteration 0 .*; take a smaller --distill-lr or --lr"):
        distill(toy(), 1, config, run_in(tmp_path))


def test_the_learning_rate_of_adam_falls_by_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, step = [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (seen.append(self.param_groups[0]["lr"]), step(self)))
    config = replace(SMALL, epochs=5, epoch_iterations=2, decay_epochs=2, decay_factor=0.5, lr=0.08)
    distill(toy(), 1, config, run_in(tmp_path))
    assert seen == [0.08] * 4 + [0.04] * 4 + [0.02] * 2


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("labels", "channels"), [("hard", 3), ("learned", 1)])
@pytest.mark.long
def test_a_short_run_gets_better(labels: str, channels: int, tmp_path: Path) -> None:
    config = Config("convnet:width=8,depth=2", labels=labels, epochs=4, epoch_iterations=10, batch_size=20, lr=0.05)
    run, real, test = run_in(tmp_path, config), toy(channels=channels), toy(200, channels, seed=1)
    made = distill(real, 2, config, run)
    found = losses(tmp_path)
    assert sum(found[-5:]) < 0.6 * sum(found[:5])
    assert made.labels.is_floating_point() == (labels == "learned")
    untouched = replace(
        made,
        images=Normalize(made.mean, made.std).inverse(
            torch.randn(made.images.shape, generator=torch.Generator().manual_seed(3))
        ),
        training=replace(made.training, lrs=[0.02] * 6),
    )
    after, before = (accuracy(each, test, run) for each in (made, untouched))
    assert after > 0.9 > before + 0.2


def accuracy(distilled: DistilledSet, test: ImageSet, run: Run) -> float:
    """Return the mean over five students of the set's own protocol."""
    own, normalize, right = protocol(distilled, Path(), run), Normalize(distilled.mean, distilled.std), 0.0
    for number in range(5):
        student = network_of(distilled.backbone, test.image_shape[0], 2)
        own.train(student, str(number))
        right += (student(normalize(test.images)).argmax(1) == test.labels).float().mean().item() / 5
    return right


def test_gradients_of_several_networks_are_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, moved, step = [], [], torch.optim.Adam.step

    def looked(*arguments: object) -> list[Tensor]:
        seen.append(hypergradient(*arguments))
        return seen[-1]

    def applied(optimizer: torch.optim.Adam) -> None:
        moved.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])
        step(optimizer)

    monkeypatch.setattr("baselines.dd.method.hypergradient", looked)
    monkeypatch.setattr(torch.optim.Adam, "step", applied)
    config = replace(SMALL, n_nets=3, labels="learned", epochs=1, epoch_iterations=1)
    distill(toy(), 1, config, run_in(tmp_path, config))
    loss, images, lrs, labels = (sum(same) / 3 for same in zip(*seen, strict=True))
    assert len({found[0].item() for found in seen}) == 3  # three networks
    assert losses(tmp_path) == pytest.approx([loss.item()])
    ((by_images, by_raw, by_labels),) = moved
    torch.testing.assert_close(by_images, images)
    torch.testing.assert_close(by_raw, lrs * (1 - torch.tensor(-0.02).exp()))  # softplus' is 1 - exp(-lr)
    torch.testing.assert_close(by_labels, labels)


# --- resuming


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize(
    "config",
    [SMALL, replace(SMALL, labels="learned", n_nets=2, train_nets_type="known_init", crop_flip=True)],
    ids=["dd", "sldd"],
)
@pytest.mark.parametrize("at", [0, 5])
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
    assert torch.equal(whole.labels, again.labels)
    assert whole.training == again.training
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    assert len(losses(tmp_path / "whole")) == 12


# --- students


@pytest.mark.parametrize("labels", ["hard", "learned"])
@pytest.mark.parametrize("weights", ["xavier", "backbone"])
def test_students_take_the_distilled_steps(weights: str, labels: str, tmp_path: Path) -> None:
    """A student is what torch.optim.SGD makes of its first weights with the steps in the file."""
    config = replace(SMALL, distill_steps=2, labels=labels, weights=weights, distill_lr=0.1)
    distill(toy(), 4, config, run_in(tmp_path, config)).save(tmp_path / "made.safetensors")
    made, run = DistilledSet.load(tmp_path / "made.safetensors"), run_in(tmp_path, config)
    own, student, twin = (
        protocol(made, tmp_path, run),
        network_of(SMALL.backbone, 3, 2),
        network_of(SMALL.backbone, 3, 2),
    )
    assert own.epochs == 2
    own.train(student, "0")
    if weights == "xavier":
        protocol(replace(made, training=replace(made.training, lrs=[0.0] * 4)), tmp_path, run).train(twin, "0")
        assert not any(module.bias.any() for module in twin.modules() if isinstance(module, (nn.Conv2d, nn.Linear)))
    images, targets = Normalize(made.mean, made.std)(made.images), made.training_tensors.get("labels", made.labels)
    assert ("labels" in made.training_tensors) == (labels == "learned")
    torch.testing.assert_close(made.labels.sum(-1) if labels == "learned" else torch.ones(8), torch.ones(8))
    for step, lr in enumerate(made.training.lrs):
        which = made.training.order[step % 2]
        optimizer = torch.optim.SGD(twin.parameters(), lr=lr)
        F.cross_entropy(twin(images[which]), targets[which]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(p.requires_grad for p in student.parameters())
    for ours, theirs in zip(student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert any(
        (a - b).abs().max() > 1e-3
        for a, b in zip(student.parameters(), network_of(SMALL.backbone, 3, 2).parameters(), strict=True)
    )


def test_xavier_has_the_variance_of_both_fans(tmp_path: Path) -> None:
    made = distill(toy(), 1, replace(SMALL, backbone="mlp", epochs=1, distill_lr=1e-8, lr=1e-9), run_in(tmp_path))
    students = [network_of("mlp", 3, 2) for _ in range(2)]
    for number, student in enumerate(students):
        protocol(made, tmp_path, run_in(tmp_path)).train(student, str(number))
    first, second = (next(student.parameters()) for student in students)
    assert first.std().item() == pytest.approx((2 / (192 + 128)) ** 0.5, rel=0.02)
    assert (first * second).mean().abs() < 0.02 * first.var()  # each student has its own


def test_students_of_known_networks_start_from_their_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(SMALL, train_nets_type="known_init", n_nets=2, epochs=1, epoch_iterations=1, lr=1e-9)
    run = run_in(tmp_path, config)
    distill(toy(), 1, config, run).save(tmp_path / "made.safetensors")
    made, real = DistilledSet.load(tmp_path / "made.safetensors"), toy()
    own, normalize = protocol(made, tmp_path, run_in(tmp_path / "other", None, seed=5)), Normalize(made.mean, made.std)
    students = [network_of(SMALL.backbone, 3, 2) for _ in range(3)]
    for number, student in enumerate(students):
        own.train(student, str(number))
    weights = [torch.cat([p.flatten() for p in student.parameters()]) for student in students]
    assert torch.equal(weights[0], weights[2])
    assert "for 2 known networks: student 2 and all later ones repeat earlier ones" in capsys.readouterr().err
    assert not torch.equal(weights[0], weights[1])
    batch = torch.randperm(len(real), generator=run.generator("order", 0))[:16]
    x, y = normalize(real.images[batch]), real.labels[batch]
    after = sum(F.cross_entropy(student(x), y).item() for student in students[:2]) / 2
    assert after == pytest.approx(losses(tmp_path)[0], rel=1e-5)  # the very networks that were unrolled
    with pytest.raises(InputError, match="for a known convnet:width=4,depth=2; take this, or --protocol standard"):
        own.train(network_of("mlp", 3, 2), "0")


def test_a_set_without_steps_is_refused(tmp_path: Path) -> None:
    made = distill(toy(), 1, replace(SMALL, epochs=1), run_in(tmp_path))
    with pytest.raises(InputError, match="lacks fixed, lrs of dd's training; take --protocol standard"):
        protocol(replace(made, training=MethodTraining(order=[[0, 1]], weights="xavier")), tmp_path, run_in(tmp_path))


# --- data, networks, settings


def test_crops_and_flips_of_real_images() -> None:
    x = torch.arange(64.0).view(1, 1, 8, 8).repeat(3000, 2, 1, 1) + torch.tensor([0.0, 100.0]).view(2, 1, 1)
    changed = cropped_and_flipped(x, torch.Generator().manual_seed(0))
    assert changed.shape == x.shape
    assert torch.equal(changed[:, 1], changed[:, 0] + 100)
    padded = F.pad(x[:1, :1], (4,) * 4, mode="reflect")[0, 0]
    crops = [padded[down : down + 8, across : across + 8] for down in range(9) for across in range(9)]
    views = {tuple(view.flatten().tolist()) for crop in crops for view in (crop, crop.flip(1))}
    assert {tuple(image.flatten().tolist()) for image in changed[:, 0]} == views
    assert cropped_and_flipped(torch.rand(2, 1, 4, 4), torch.Generator()).shape == (2, 1, 4, 4)


@pytest.mark.parametrize("spec", ["convnet:width=4,depth=2,norm=batch", "resnet18:norm=batch", "timm:test_resnet"])
def test_batchnorm_is_refused(spec: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too few for the statistics of BatchNorm; take norm=instance, or lenet"):
        distill(toy(), 1, replace(SMALL, backbone=spec), run_in(tmp_path))
    made = distill(toy(), 1, replace(SMALL, epochs=1), run_in(tmp_path / "other"))
    with pytest.raises(InputError, match="BatchNorm"):
        protocol(made, tmp_path, run_in(tmp_path / "other")).train(network_of(spec, 3, 2), "0")


def test_attention_can_be_differentiated(tmp_path: Path) -> None:
    config = replace(SMALL, backbone="test_vit", epochs=1, epoch_iterations=1)
    assert distill(toy(), 1, config, run_in(tmp_path, config)).images.isfinite().all()


def test_steps_that_do_not_divide_the_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="distill_steps is 4; it must divide ipc, which is 6"):
        distill(toy(), 6, replace(SMALL, distill_steps=4), run_in(tmp_path))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("distill_steps", 0, "distill_steps is 0; it must be >= 1"),
        ("distill_epochs", 0, "distill_epochs is 0"),
        ("n_nets", 0, "n_nets is 0"),
        ("epochs", 0, "epochs is 0"),
        ("epoch_iterations", 0, "epoch_iterations is 0"),
        ("batch_size", -1, "batch_size is -1"),
        ("decay_epochs", 0, "decay_epochs is 0"),
        ("distill_lr", 0.0, r"distill_lr is 0\.0; it must be > 0"),
        ("lr", float("inf"), "lr is inf"),
        ("decay_factor", 0.0, r"decay_factor is 0\.0; it must be in \(0, 1\]"),
        ("decay_factor", 1.5, r"decay_factor is 1\.5"),
    ],
)
def test_fields_are_checked(field: str, value: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config(**{field: value})


@pytest.mark.parametrize("method", RECIPES)
@pytest.mark.parametrize("dataset", ["digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "imagenette", "folder"])
@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_recipes(method: str, dataset: str, ipc: int) -> None:
    paper, quick = (RECIPES[method][name](facts_named(dataset), ipc) for name in ("paper", "quick"))
    grey = dataset in ("digits", "mnist", "fashion_mnist")
    assert (paper.config.batch_size, paper.config.lr, paper.config.distill_epochs) == (1024, 0.01, 3)
    assert (paper.config.epochs, paper.config.decay_epochs) == ((400, 40) if method == "dd" else (350, 35))
    assert paper.config.distill_lr == (0.02 if method == "dd" and grey else 0.01 if grey else 0.001)
    assert (paper.config.weights, paper.config.n_nets, steps(paper.config, ipc)) == ("xavier", 1, min(ipc, 10))
    assert paper.config.train_nets_type == "unknown_init"
    assert paper.config.labels == quick.config.labels == ("hard" if method == "dd" else "learned")
    assert paper.config.crop_flip == (dataset in ("cifar10", "cifar100", "folder"))
    if dataset in ("mnist", "cifar10"):
        assert paper.config.backbone == ("lenet" if grey else "alexcifarnet")
    assert paper.evaluation.protocol == quick.evaluation.protocol == "standard"
    size, channels = {"digits": 8, "imagenette": 224}.get(dataset, 28 if grey else 32), 1 if grey else 3
    shape = {"channels": channels, "image_size": size, "num_classes": 10, "generator": torch.Generator()}
    for recipe in (paper, quick):
        build(recipe.config.backbone, **shape)
    assert steps(quick.config, ipc) * quick.config.distill_epochs in (18, 20)
    assert quick.config.train_nets_type == "unknown_init"
    ours, theirs = work(quick.config, ipc, 10, 50_000), work(paper.config, ipc, 10, 50_000)
    assert sum(count for count, _ in ours) < sum(count for count, _ in theirs) / 10
    assert student_work(paper.config, ipc, 10)[0][0] > 0


def test_work_counts_the_steps() -> None:
    network, shape = network_of("mlp", 1, 10), (1, 8, 8)
    (taken, back), (batches, real) = work(Config(n_nets=2), 10, 10, 60_000)
    assert taken * 5 == 2 * 400 * 59 * 30  # five steps are timed at once
    assert batches * 5 * 32 == 2 * 400 * 59 * 1024
    back(network, shape)
    real(network, shape)
    ((count, step),) = student_work(Config(), 10, 10)
    assert count * 5 == 30
    step(network, shape)
