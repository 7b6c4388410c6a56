"""Learned labels of trajectory matching: gradients, initial labels, DATM's order of difficulty, recipes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from baselines.mtt import matching
from baselines.mtt import method as mtt
from baselines.mtt.initial import initial
from baselines.mtt.label_recipes import DATM, METHODS
from baselines.mtt.matching import Batch, match
from baselines.mtt.method import Config, distill, work
from baselines.mtt.recipes import METHODS as OTHERS
from baselines.mtt.trajectories import Trajectories, experts
from baselines.robust_labels import labels as robust_labels
from baselines.robust_labels.labels import RobustLabels
from distill.data import ImageSet, facts_named
from distill.errors import InputError
from distill.models import build
from distill.runs.run import Run
from distill.training.augment import augmentation
from robust import CrossEntropy, Normalize
from tests.toy import toy

STRATEGY = "color_crop_cutout_flip_scale_rotate"
SHAPE = {"channels": 3, "image_size": 8, "num_classes": 2}
TEACHER = RobustLabels(teacher_epochs=2, teacher_batch_size=16)
SMALL = Config(
    CrossEntropy(),
    backbone="convnet:width=4,depth=2",
    num_experts=3,
    train_epochs=3,
    lr_expert=0.1,
    batch_train=16,
    iterations=3,
    syn_steps=3,
    expert_epochs=2,
    max_start_epoch=2,
    batch_syn=3,
    lr_img=30.0,
    lr_lr=1e-3,
    lr_init=0.2,
    augment=STRATEGY,
    labels="learned",
    label_teacher=TEACHER,
)
RECIPES = {method.name: method.recipes for method in (*OTHERS, *METHODS)}


def run_in(place: Path, config: Config = SMALL, **options) -> Run:
    return Run(place, config, **options).begin()


def problem(backbone: str = "convnet:width=4,depth=2") -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    """Return a network, parameters to start from and to arrive at, images and logits of labels, in float64."""
    generator = torch.Generator().manual_seed(0)
    network = build(backbone, **SHAPE, generator=generator).double()
    start = nn.utils.parameters_to_vector(network.parameters()).detach()
    target = start + 0.05 * torch.randn(start.shape, generator=generator).double()
    drawn = torch.randn(6, 3, 8, 8, generator=generator), torch.randn(6, 2, generator=generator)
    return network, start, target, *(each.double() for each in drawn)


def batches(kind: str) -> Batch:
    """Return what steps train on: all images, parts of them, or augmented parts."""
    order = mtt._order(6, None if kind == "all" else 4, 10, torch.Generator().manual_seed(2))
    siamese = augmentation(STRATEGY) if kind == "augmented" else None
    labels, draw = torch.zeros(0), torch.Generator().manual_seed
    return lambda step, x, logits: mtt._batch(order, labels, siamese, draw, step, x, logits)


def unrolled(network: nn.Module, start: Tensor, target: Tensor, batch: Batch, steps: int, *leaves: Tensor) -> Tensor:
    """Return the loss of matching, written out with soft labels, as a function of images, logits and learning rate."""
    named = dict(network.named_parameters())
    images, logits, lr = leaves
    theta = start.clone().requires_grad_()
    for step in range(steps):
        parts = theta.split([p.numel() for p in named.values()])
        x, y = batch(step, images, logits)
        out = functional_call(
            network.train(), {name: p.view_as(named[name]) for name, p in zip(named, parts, strict=True)}, (x,)
        )
        loss = -(y * out.log_softmax(1)).sum(1).mean()
        theta = theta - lr * torch.autograd.grad(loss, theta, create_graph=True)[0]
    return (theta - target).square().sum() / (start - target).square().sum()


# --- gradients


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("kind", ["all", "parts", "augmented"])
@pytest.mark.parametrize("gradient", ["unrolled", "replayed"])
def test_gradients_are_those_of_autograd(
    gradient: str, kind: str, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(matching.SMALLEST_GROUP, "cpu", 2 * 8**2 if grouped else 9 * 8**2)
    network, start, target, images, logits = problem()
    assert len(matching.groups(network.train(), images)) == (3 if grouped else 1)
    leaves = [each.clone().requires_grad_() for each in (images, logits, torch.tensor(0.3).double())]
    loss = unrolled(network, start, target, batches(kind), 4, *leaves)
    to_images, to_logits, to_lr = torch.autograd.grad(loss, leaves)
    expected = loss.detach(), to_images, to_lr, to_logits
    found = match(network, start, target, images, torch.tensor(0.3).double(), batches(kind), 4, gradient, logits)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max()
    assert to_logits.abs().max() > 1e-3


@pytest.mark.parametrize("backbone", ["convnet:width=4,norm=batch", "mlp"])
def test_replaying_equals_unrolling(backbone: str) -> None:
    network, start, target, images, logits = problem(backbone)
    pair = [
        match(network, start, target, images, torch.tensor(0.1).double(), batches("parts"), 5, gradient, logits)
        for gradient in ("unrolled", "replayed")
    ]
    for ours, theirs in zip(*pair, strict=True):
        assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max()


def test_tesla_holds_the_parameters_of_each_step() -> None:
    network, start, target, images, logits = problem()
    named = dict(network.named_parameters())
    batch, alpha = batches("parts"), torch.tensor(0.3).double()
    leaf, at, total = logits.clone().requires_grad_(), start, torch.zeros_like(start)
    for step in range(4):
        theta = at.detach().requires_grad_()
        parts = theta.split([p.numel() for p in named.values()])
        x, y = batch(step, images, leaf)
        held = {name: p.view_as(named[name]) for name, p in zip(named, parts, strict=True)}
        loss = F.cross_entropy(functional_call(network, held, (x,)), y)
        gradient = torch.autograd.grad(loss, theta, create_graph=True)[0]
        total, at = total + gradient, at - alpha * gradient.detach()
    loss = (start - alpha * total - target).square().sum() / (start - target).square().sum()
    expected = torch.autograd.grad(loss, leaf)[0]
    ours, exact = (
        match(network, start, target, images, alpha, batch, 4, name, logits) for name in ("tesla", "replayed")
    )
    assert torch.allclose(ours[3], expected)
    assert torch.equal(ours[0], exact[0])
    assert (ours[3] - exact[3]).abs().max() > 1e-2 * exact[3].abs().max()
    one = [match(network, start, target, images, alpha, batch, 1, name, logits) for name in ("tesla", "unrolled")]
    assert torch.allclose(one[0][3], one[1][3])


def test_probabilities_that_are_not_learned_have_the_same_loss_and_the_same_other_gradients() -> None:
    network, start, target, images, logits = problem()
    lr, fixed = torch.tensor(0.3).double(), logits.softmax(1)
    learned = match(network, start, target, images, lr, batches("all"), 3, "replayed", logits)
    given = match(network, start, target, images, lr, lambda step, x: (x, fixed), 3)
    assert len(given) == 3
    for ours, theirs in zip(learned[:3], given, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12)


# --- initial images and labels


def started(config: Config, place: Path, ipc: int = 4) -> tuple[dict, ImageSet, Trajectories, nn.Module, Normalize]:
    real, run = toy(), run_in(place, config)
    space = Normalize(real.mean, real.std)
    teachers = experts(real, space, mtt._expert(config), config.num_experts, run)
    network = build(config.backbone, like=real, generator=torch.Generator())
    classes = torch.arange(2).repeat_interleave(ipc)
    return initial(real, classes, space, config, teachers, network, run), real, teachers, network, space


def of_expert(network: nn.Module, teachers: Trajectories, number: int, x: Tensor) -> Tensor:
    nn.utils.vector_to_parameters(teachers.snapshot(number, 3), network.parameters())
    with torch.no_grad():
        return network(x)


def test_labels_start_at_the_mean_of_the_experts_that_are_right(tmp_path: Path) -> None:
    config = replace(SMALL, labels_start="expert", lr_expert=0.003, init="noise")  # experts that are often wrong
    state, _, teachers, network, _ = started(config, tmp_path, ipc=8)
    of_all = torch.stack([of_expert(network, teachers, number, state["images"]) for number in range(3)])
    counts = set()
    for image, logits in enumerate(state["logits"]):
        right = [each[image] for each in of_all if each[image].argmax() == image // 8]
        counts.add(len(right))
        assert torch.allclose(logits, torch.stack(right or list(of_all[:, image])).mean(0), atol=1e-5)
    assert counts >= {0, 3}
    assert torch.equal(state["logits_velocity"], torch.zeros(16, 2))


def test_labels_start_at_the_logits_of_the_first_expert(tmp_path: Path) -> None:
    config = replace(SMALL, labels_start="first_expert", lr_expert=0.003, init="noise")
    state, _, teachers, network, _ = started(config, tmp_path)
    assert torch.allclose(state["logits"], of_expert(network, teachers, 0, state["images"]), atol=1e-6)
    row = [METHODS[0].recipes["paper"](facts_named("cifar100"), ipc).config for ipc in (50, 10)]
    assert [(each.init, each.labels_start) for each in row] == [("real", "first_expert"), ("correct", "expert")]


def test_images_start_at_those_that_the_first_expert_classifies_correctly(tmp_path: Path) -> None:
    config = replace(SMALL, init="correct", lr_expert=0.003, labels="hard")
    state, real, teachers, network, space = started(config, tmp_path)
    order = [real.sample(c, 20, run_in(tmp_path, config).generator("initial", c)) for c in range(2)]
    changed = 0
    for c in range(2):
        right = of_expert(network, teachers, 0, space(order[c])).argmax(1) == c
        expected = torch.cat([order[c][right], order[c][~right]])[:4]
        assert torch.equal(state["images"][4 * c : 4 * c + 4], space(expected))
        changed += not right[:4].all()
    assert changed
    assert state["logits"].numel() == 0


def test_labels_start_at_those_of_the_teacher(tmp_path: Path) -> None:
    state, real, *_, space = started(SMALL, tmp_path)
    pixels, classes = space.inverse(state["images"]), torch.arange(2).repeat_interleave(4)
    expected = robust_labels.robust_labels(real, SMALL.backbone, pixels, classes, TEACHER, run_in(tmp_path))
    assert torch.allclose(state["logits"].softmax(1), expected, atol=1e-6)
    assert expected.std() > 0.01


def test_a_probability_of_zero_has_finite_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_hot = torch.eye(2).repeat_interleave(4, 0)
    monkeypatch.setattr("baselines.mtt.initial.robust_labels", lambda *_: one_hot)
    state, *_ = started(SMALL, tmp_path)
    assert state["logits"].isfinite().all()
    assert torch.allclose(state["logits"].softmax(1), one_hot)


def test_smoothed_classes(tmp_path: Path) -> None:
    state, *_ = started(replace(SMALL, labels_start="hard"), tmp_path)
    expected = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).repeat_interleave(4, 0)
    assert torch.allclose(state["logits"].softmax(1), expected)


# --- runs


def test_labels_that_are_learned_are_no_longer_the_teacher_s(tmp_path: Path) -> None:
    stages = {"stages": tmp_path / "stages"}
    learned, kept = (
        distill(toy(), 2, config, run_in(tmp_path / name, config, **stages))
        for name, config in (("learned", SMALL), ("kept", replace(SMALL, lr_labels=0.0)))
    )
    assert learned.teacher == ""
    assert kept.teacher == "pgd_at:steps=3@4/255"
    assert learned.labels.shape == kept.labels.shape == (4, 2)
    assert (learned.labels - kept.labels).abs().max() > 1e-3
    state, *_ = started(SMALL, tmp_path / "initial", ipc=2)
    assert torch.allclose(kept.labels, state["logits"].softmax(1))
    hard = replace(SMALL, labels="hard")
    assert distill(toy(), 2, hard, run_in(tmp_path / "hard", hard, **stages)).teacher == ""


def test_a_checkpoint_without_logits_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions wrote such checkpoints."""
    config = replace(SMALL, labels="hard")
    whole, save = distill(toy(), 2, config, run_in(tmp_path / "whole", config)), Run.save

    def dies(self: Run, step: int, state: dict, *more: str) -> None:
        if "velocity" in state:
            state = {name: value for name, value in state.items() if not name.startswith("logits")}
        save(self, step, state, *more)
        if "velocity" in state:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        distill(toy(), 2, config, run_in(tmp_path / "cut", config, checkpoint_seconds=0.0))
    monkeypatch.setattr(Run, "save", save)
    again = run_in(tmp_path / "cut", config)
    assert "logits" not in (again.restore() or {})
    assert torch.equal(distill(toy(), 2, config, again).images, whole.images)


def test_an_iteration_above_the_threshold_changes_nothing(tmp_path: Path) -> None:
    config = replace(SMALL, threshold=1e-6, labels_start="hard")
    real = toy()
    found = distill(real, 2, config, run_in(tmp_path, config))
    initial_images = torch.cat([real.sample(c, 2, run_in(tmp_path, config).generator("initial", c)) for c in range(2)])
    assert torch.allclose(found.images, initial_images, atol=1e-6)
    assert found.training.lr == pytest.approx(0.2)
    assert found.labels[0].tolist() == pytest.approx([0.9, 0.1])
    every, most = (replace(config, threshold=each) for each in (None, 1e6))
    sets = [distill(real, 2, each, run_in(tmp_path / str(k), each)) for k, each in enumerate((every, most))]
    assert torch.equal(sets[0].images, sets[1].images)
    assert (sets[0].images - found.images).abs().max() > 1e-3


def test_a_teacher_that_cannot_be_read_is_refused_before_any_work(tmp_path: Path) -> None:
    config = replace(SMALL, label_teacher=RobustLabels("none.safetensors"))
    with pytest.raises(InputError, match=r"none\.safetensors: no such file"):
        mtt.check(toy(), 1, config, 1)
    mtt.check(toy(), 1, replace(config, labels_start="hard"), 1)


def test_the_estimate_counts_teachers() -> None:
    plain = work(replace(SMALL, labels="hard"), 2, 2, 40)
    learned = work(SMALL, 2, 2, 40)
    assert [count for count, _ in learned] == [*(count for count, _ in plain), 2 * 40 / 16]
    assert len(work(replace(SMALL, labels_start="expert"), 2, 2, 40)) == len(plain)
    network = build(SMALL.backbone, **SHAPE, generator=torch.Generator())
    for _, step in learned:
        step(network, (3, 8, 8))


# --- the order of difficulty


def test_the_bound_of_start_epochs_rises_as_in_datm() -> None:
    """Upper_Bound of DATM's code: current + int((max - current) * it / expansion_end), at most max."""
    config = RECIPES["datm"]["paper"](facts_named("cifar10"), 10).config
    bounds = {iteration: config.start_epochs(iteration) for iteration in (0, 99, 100, 500, 999, 1000, 9999)}
    assert [bounds[i].stop for i in (0, 99, 100, 500, 999, 1000, 9999)] == [10, 10, 11, 15, 19, 20, 20]
    assert all(each.start == 0 for each in bounds.values())
    late = replace(config, order="any", min_start_epoch=5)
    assert late.start_epochs(0) == late.start_epochs(9999) == range(5, 20)


def test_experts_start_within_the_bound(tmp_path: Path) -> None:
    fields = {"train_epochs": 8, "min_start_epoch": 1, "current_max_start_epoch": 2, "max_start_epoch": 6}
    config = replace(SMALL, **fields, order="easy_first", expansion_end_epoch=4)

    class Watched(Trajectories):
        def __init__(self) -> None:
            super().__init__([tmp_path])
            self.epochs: list[int] = []

        def snapshot(self, number: int, epoch: int) -> Tensor:
            self.epochs.append(epoch)
            return torch.zeros(1)

    seen = []
    for iteration in range(6):
        teachers = Watched()
        for seed in range(60):
            mtt._pair(teachers, config, iteration, torch.Generator().manual_seed(seed))
        seen.append(set(teachers.epochs[::2]))
        assert {epoch + 2 for epoch in teachers.epochs[::2]} == set(teachers.epochs[1::2])
    assert seen == [{1}, {1, 2}, {1, 2, 3}, {1, 2, 3, 4}, {1, 2, 3, 4, 5}, {1, 2, 3, 4, 5}]


# --- recipes


@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10", "cifar100", "tiny_imagenet", "imagenette", "folder"])
@pytest.mark.parametrize("ipc", [1, 10, 50, 1000])
def test_recipes(dataset: str, ipc: int) -> None:
    facts = facts_named(dataset)
    for name in ("paper", "quick", "smoke"):
        datm, ours, tesla, plain = (
            RECIPES[method][name](facts, ipc).config
            for method in ("datm", "mtt_learned_labels", "tesla_learned_labels", "mtt")
        )
        assert datm.labels == ours.labels == tesla.labels == "learned"
        assert datm.labels_start == ("first_expert" if datm.init == "real" else "expert")
        assert (ours.labels_start, tesla.labels_start) == ("teacher", "teacher")
        assert (tesla.gradient, ours.gradient, datm.gradient) == ("tesla", "replayed", "replayed")
        fields = {"labels": "learned", "lr_labels": ours.lr_labels, "label_teacher": ours.label_teacher}
        if name != "smoke":  # MTT with learned labels differs from MTT in its labels alone
            assert replace(plain, **fields) == ours
        assert ours.label_teacher.teacher_flip == facts.flips
        assert (datm.zca, datm.order) == (False, "easy_first") or name == "paper"


def test_rows_of_datm_s_table() -> None:
    def of(dataset: str, ipc: int) -> Config:
        return RECIPES["datm"]["paper"](facts_named(dataset), ipc).config

    config = of("cifar10", 10)
    assert (config.syn_steps, config.expert_epochs, config.min_start_epoch, config.max_start_epoch) == (80, 2, 0, 20)
    assert (config.order, config.current_max_start_epoch, config.expansion_end_epoch) == ("easy_first", 10, 1000)
    assert (config.lr_img, config.lr_lr, config.lr_labels, config.lr_init) == (100, 1e-5, 2, 0.01)
    assert (config.zca, config.init, config.threshold, config.batch_syn) == (True, "correct", 1.0, None)
    assert (config.iterations, config.train_epochs, config.num_experts) == (10_000, 100, 100)
    assert (of("cifar10", 1).order, of("cifar10", 1).threshold, of("cifar10", 1).lr_labels) == ("any", 1.1, 5)
    assert (of("cifar100", 1).expert_epochs, of("cifar100", 1).lr_labels) == (3, 10)
    assert (of("cifar100", 50).init, of("cifar100", 50).min_start_epoch) == ("real", 20)
    assert (of("tiny_imagenet", 50).max_start_epoch, of("tiny_imagenet", 50).batch_syn) == (70, 1000)
    assert (of("mnist", 10).zca, of("mnist", 10).syn_steps) == (False, 80)
    assert of("cifar10", 499).lr_img == of("cifar10", 50).lr_img == 1000
    assert all(len(row) == 9 for row in DATM.values())
