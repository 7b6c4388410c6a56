"""DiM: the gradient penalty, the two networks, both parts and their resuming, matching, students on fresh images."""

import copy
import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.dim import gan, generated
from baselines.dim import method as dim
from baselines.dim.gan import SIZES, Adversarial, Gan, batches, conditioned, gradient_penalty, pretrained
from baselines.dim.generated import Groups, drawn, rebuilt, without_cutout
from baselines.dim.method import Config, distill, logit_distance, matched, protocol, student_work, work
from baselines.dim.networks import Critic, Generator, MapNorm
from baselines.dim.recipes import METHODS
from distill.app.main import main
from distill.data import facts_named, label
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.models import build
from distill.runs.files import read_tensors
from distill.runs.run import Run
from distill.training.augment import DSA
from robust import Normalize
from tests.toy import toy, write_toy

RECIPES = {method.name: method.recipes for method in METHODS}

SETTINGS = Adversarial(
    width=4, dim_noise=6, epochs=2, epoch_steps=2, batch_size=8, lr=1e-3, penalty=10.0, seed=0
)  # of toy(), which has two classes
SMALL = Config(
    backbone="convnet:width=4,depth=2",
    width=4,
    dim_noise=6,
    gan_epochs=2,
    gan_epoch_steps=2,
    gan_batch=8,
    gan_lr=1e-3,
    match_epochs=2,
    match_epoch_steps=2,
    match_batch=8,
    match_lr=5e-4,
    match_weight=1.0,
    pool=("convnet:width=4,depth=2,norm=batch", "mlp"),
    net_steps=2,
    student_epochs=3,
)
FLAGS = ["--width", "4", "--dim-noise", "6", "--gan-epochs", "1", "--gan-epoch-steps", "3", "--gan-batch", "8"]
FLAGS += ["--match-epochs", "1", "--match-epoch-steps", "2", "--match-batch", "8", "--net-steps", "1"]
FLAGS += ["--pool", "convnet:width=4,depth=2", "mlp", "--student-epochs", "5", "--backbone", "convnet:width=4,depth=2"]
FLAGS += ["--students", "2", "--attacks", "fgsm"]


def run_in(folder: Path, config: object = SMALL, **options: object) -> Run:
    return Run(folder, config, **options).begin()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made_gan(dtype: torch.dtype = torch.float32, seed: int = 0, **fields: float) -> Gan:
    found = Gan((3, 8, 8), 2, replace(SETTINGS, **fields), seeded(seed))
    found.generator.to(dtype), found.critic.to(dtype)
    return found


def scalars(folder: Path, *names: str) -> list[tuple[float, ...]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["seconds"] > 0 for row in rows)
    return [tuple(row[name] for name in ("step", *names)) for row in rows]


def stage_of(run: Run, name: str) -> Path:
    (found,) = run.stages.glob(f"{name}-*")
    return found


# --- the gradient penalty


def test_the_penalty_of_a_linear_critic_is_that_of_its_norm() -> None:
    w = torch.randn(12, generator=seeded(), dtype=torch.float64).requires_grad_()
    points = torch.randn(5, 3, 2, 2, generator=seeded(1), dtype=torch.float64)
    found = gradient_penalty(lambda x: x.flatten(1) @ w + 3.0, points)
    norm = w.detach().norm()
    assert found.item() == pytest.approx((norm.item() - 1) ** 2, rel=1e-12)
    (by_w,) = torch.autograd.grad(found, w)
    torch.testing.assert_close(by_w, 2 * (norm - 1) * w.detach() / norm)
    assert gradient_penalty(lambda x: x.flatten(1) @ (w / norm), points).item() < 1e-30
    assert not points.requires_grad


def test_the_penalty_of_a_quadratic_critic() -> None:
    """The gradient of x' A x / 2 is A x: each point has a norm of its own."""
    a = torch.randn(6, 6, generator=seeded(), dtype=torch.float64)
    a, x = a + a.T, torch.randn(7, 6, generator=seeded(1), dtype=torch.float64)
    expected = sum((row @ a @ a @ row).sqrt().sub(1).square() for row in x) / 7
    torch.testing.assert_close(gradient_penalty(lambda x: ((x @ a) * x).sum(1) / 2, x), expected)


def test_the_penalty_is_what_finite_differences_say() -> None:
    critic = made_gan(torch.float64).critic
    critic.features[2] = nn.SiLU()  # kinks of the first layer are where differences would step over them
    points, h = torch.rand(2, 3, 8, 8, generator=seeded(), dtype=torch.float64) * 2 - 1, 1e-6

    def source(x: Tensor) -> Tensor:
        return critic(x)[0]

    unit = torch.eye(192, dtype=torch.float64).view(192, 3, 8, 8)
    with torch.no_grad():
        slopes = [(source(point + h * unit) - source(point - h * unit)) / (2 * h) for point in points]
    slow = torch.stack([(slope.norm() - 1).square() for slope in slopes]).mean()
    penalty = gradient_penalty(source, points)
    assert penalty.item() == pytest.approx(slow.item(), rel=1e-5)

    parameters = [p for name, p in critic.named_parameters() if not name.startswith("classes")]
    by_parameters = torch.autograd.grad(penalty, parameters, allow_unused=True)
    unused = [p for p, g in zip(parameters, by_parameters, strict=True) if g is None]
    assert unused == [critic.source.bias]
    h = 1e-7
    for seed in range(3):
        directions = [torch.randn(p.shape, generator=seeded(seed), dtype=p.dtype) for p in parameters]
        values = []
        for sign in (1, -1):
            moved = copy.deepcopy(critic)
            named = dict(moved.named_parameters())
            names = [name for name, _ in critic.named_parameters() if not name.startswith("classes")]
            with torch.no_grad():
                for name, direction in zip(names, directions, strict=True):
                    named[name] += sign * h * direction
            values.append(gradient_penalty(lambda x, moved=moved: moved(x)[0], points).item())
        expected = sum((g * d).sum() for g, d in zip(by_parameters, directions, strict=True) if g is not None)
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(expected.item(), rel=1e-4)


# --- the two networks


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_shapes(size: int, channels: int) -> None:
    generator, critic = Generator(channels, size, 9, 4), Critic(channels, size, 5, 4)
    images = generator(torch.randn(3, 9))
    assert images.shape == (3, channels, size, size)
    assert images.abs().max() <= 1
    source, logits = critic(images)
    assert (source.shape, logits.shape) == ((3,), (3, 5))


@pytest.mark.parametrize("size", [4, 12, 20, 24, 96, 224])
def test_other_sizes_are_refused(size: int) -> None:
    line = f"no generator of images of {size} px; supported sizes: 8, 14, 16, 28, 32, 56, 64; take one as --image-size"
    for make in (lambda: Generator(3, size, 9, 4), lambda: Critic(3, size, 5, 4)):
        with pytest.raises(InputError, match=line):
            make()


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (28, 1)])
def test_the_official_networks(size: int, channels: int) -> None:
    """Layer by layer what gan_model.py has: kernels and strides, and so the numbers of parameters."""
    half, first, w = size // 2, 4 if size == 32 else 3, 196
    generator, critic = Generator(channels, size, 100, w), Critic(channels, size, 10, w)
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    layers = [m for m in generator.modules() if isinstance(m, kinds)]
    kernels = [(type(m) is nn.ConvTranspose2d, m.kernel_size[0], m.stride[0]) for m in layers]
    plain = (False, 3, 1)
    assert kernels == [(True, first, 2), plain, plain, plain, (True, 4, 2), plain, (True, 4, 2), plain]
    assert [m.stride[0] for m in critic.modules() if isinstance(m, nn.Conv2d)] == [1, 2, 1, 2, 1, 1, 1, 2]
    square = w * w
    expected = 101 * 16 * w + 2 * 16 * w + (first**2 + 32) * square + 3 * w + 4 * (9 * square + w) + 7 * 2 * w
    assert sum(p.numel() for p in generator.parameters()) == expected + channels * (9 * w + 1)
    maps = size**2 + 2 * half**2 + 4 * (half // 2) ** 2 + 16
    expected = channels * 9 * w + w + 7 * (9 * square + w) + 2 * w * maps + 11 * (w + 1)
    assert sum(p.numel() for p in critic.parameters()) == expected


def test_map_norm_is_layer_norm() -> None:
    ours, theirs = MapNorm(5, 4).double(), nn.LayerNorm([5, 4, 4], dtype=torch.float64)
    with torch.no_grad():
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.copy_(q.copy_(torch.randn(p.shape, generator=seeded(len(p)), dtype=torch.float64)))
    x = torch.randn(3, 5, 4, 4, generator=seeded(1), dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_noise_says_the_class() -> None:
    labels = torch.tensor([2, 0, 1, 2])
    noise = conditioned(labels, 3, 2000, seeded())
    assert torch.equal(noise[:, :3], torch.eye(3)[labels])
    assert noise[:, 3:].mean().abs() < 0.05
    assert noise[:, 3:].std() == pytest.approx(1, abs=0.03)
    assert torch.equal(noise, conditioned(labels, 3, 2000, seeded()))
    assert not torch.equal(noise[:, 3:], conditioned(labels, 3, 2000, seeded(1))[:, 3:])


def test_first_weights_are_addressed() -> None:
    before = torch.get_rng_state()
    one, same, other = made_gan(), made_gan(), made_gan(seed=1)
    assert torch.equal(before, torch.get_rng_state())
    for part in ("generator", "critic"):
        states = [getattr(each, part).state_dict() for each in (one, same, other)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


@pytest.mark.parametrize("dim_noise", [1, 2])
def test_noise_must_have_room_beside_the_class(dim_noise: int) -> None:
    with pytest.raises(InputError, match=f"dim_noise is {dim_noise}; 2 of its entries are the class: it must be larg"):
        made_gan(dim_noise=dim_noise)


# --- a step of the training


def test_a_step_is_the_textbook() -> None:
    """Against the official loop written out: loss.backward(), torch.optim.Adam, the penalty by plain autograd."""
    ours = made_gan(torch.float64)
    generator, critic = copy.deepcopy(ours.generator), copy.deepcopy(ours.critic)
    of_generator = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.0, 0.9))
    of_critic = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.0, 0.9))
    real = toy()

    def noise(labels: Tensor, seed: int) -> Tensor:
        return torch.cat([torch.eye(2)[labels], torch.randn(8, 6, generator=seeded(seed))[:, 2:]], 1).double()

    gan_noise = lambda labels, classes, dim, generator: conditioned(labels, classes, dim, generator).double()  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan, "conditioned", gan_noise)
        for step in range(3):
            x, y = 2 * real.images[8 * step : 8 * step + 8].double() - 1, real.labels[8 * step : 8 * step + 8]
            seeds = {"noise": 1, "labels": 2, "noise of labels": 3, "share": 4}
            found = ours.step(x, y, lambda name, step=step, seeds=seeds: seeded(10 * step + seeds[name]))

            of_generator.zero_grad()
            source, logits = critic(generator(noise(y, 10 * step + 1)))
            loss = -source.mean() + F.cross_entropy(logits, y)
            loss.backward()
            of_generator.step()
            assert found["generator"].item() == pytest.approx(loss.item(), rel=1e-9)

            of_critic.zero_grad()
            labels = torch.randint(2, (8,), generator=seeded(10 * step + 2))
            with torch.no_grad():
                made = generator(noise(labels, 10 * step + 3))
            (fake, of_fake), (true, of_true) = critic(made), critic(x)
            share = torch.rand(8, 1, 1, 1, generator=seeded(10 * step + 4)).double()
            between = (share * x + (1 - share) * made).requires_grad_()
            (slope,) = torch.autograd.grad(critic(between)[0].sum(), between, create_graph=True)
            penalty = ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean() * 10
            by_class = F.cross_entropy(of_fake, labels) + F.cross_entropy(of_true, y)
            loss = fake.mean() - true.mean() + by_class + penalty
            loss.backward()
            of_critic.step()
            assert found["critic"].item() == pytest.approx(loss.item(), rel=1e-9)
    for mine, theirs in ((ours.generator, generator), (ours.critic, critic)):
        for name, value in mine.state_dict().items():
            torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-7, atol=1e-10)
    assert int(ours.generator.linear[1].num_batches_tracked) == 6  # two batches a step


def test_the_generator_can_be_given_another_loss() -> None:
    def step(more: Callable[[Tensor], Tensor] | None) -> tuple[dict[str, Tensor], Tensor]:
        found, x = made_gan(), 2 * toy().images[:8] - 1
        losses = found.step(x, toy().labels[:8], lambda name: seeded(1), more)
        return losses, found.generator.linear[0].weight

    (plain, first), (same, second) = step(None), step(lambda images: 0 * images.sum())
    assert torch.equal(first, second)
    assert plain["generator"] == same["generator"]
    losses, third = step(lambda images: 3.0 * images.square().mean())
    assert 0 < losses["more"] <= 3
    assert not torch.equal(first, third)


@pytest.mark.parametrize(("count", "size"), [(10, 3), (10, 5), (4, 8)])
def test_batches_are_whole_parts_of_permutations(count: int, size: int) -> None:
    found = list(batches(count, size, 0, 12, seeded))
    a_pass = max(1, count // size)
    for begin in range(0, 12 - a_pass + 1, a_pass):
        one = torch.cat(found[begin : begin + a_pass])
        assert len(one.unique()) == len(one) == a_pass * min(size, count)
    assert not torch.equal(found[0], found[a_pass])
    for first in range(12):
        rest = list(batches(count, size, first, 12, seeded))
        assert all(map(torch.equal, rest, found[first:]))
        assert len(rest) == 12 - first


def test_a_pass_is_over_all_images_in_an_order_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen, step = toy(), [], Gan.step
    monkeypatch.setattr(Gan, "step", lambda self, x, *rest: seen.append(x) or step(self, x, *rest))
    pretrained(real, replace(SETTINGS, epoch_steps=None), run_in(tmp_path))
    passes = [torch.cat(seen[begin : begin + 5]) for begin in (0, 5)]
    assert len(seen) == 10
    assert not torch.equal(*passes)
    for one in passes:
        assert len(one.flatten(1).unique(dim=0)) == 40
        assert one.sum().item() == pytest.approx((2 * real.images - 1).sum().item(), abs=1e-2)


# --- matching


def test_the_distance_of_logits_in_closed_form() -> None:
    """Of a linear network of two classes: log p differs from log p of the other image by log-sigmoids."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).double()
    x, made = (torch.randn(3, 1, 2, 2, generator=seeded(seed), dtype=torch.float64) for seed in (0, 1))
    x, made = x.requires_grad_(), made.requires_grad_()
    found = logit_distance(network, x, made)
    w = network[1].weight.detach()
    margin, other = ((images.detach().flatten(1) @ (w[0] - w[1])) for images in (x, made))
    by_class = [(-(1 + (-s * margin).exp()).log() + (1 + (-s * other).exp()).log()) ** 2 for s in (1, -1)]
    assert found.item() == pytest.approx(torch.stack(by_class).mean().item(), rel=1e-10)
    gradient, none = torch.autograd.grad(found, (made, x), allow_unused=True)
    assert none is None
    assert gradient.abs().min() > 0
    assert logit_distance(network, x, x).item() == 0


def test_matching_is_the_textbook(tmp_path: Path) -> None:
    """Two epochs of two steps, written out from pool_match.py with images as pixels where they are normalised."""
    real, run = toy(), run_in(tmp_path)
    ours = matched(real, SMALL, run)
    rows = scalars(stage_of(run, "matching"), "match")

    settings = dim._adversarial(SMALL, 2)
    theirs = Gan(real.image_shape, 2, settings, seeded())
    theirs.load(pretrained(real, settings, run), SMALL.match_lr)
    assert {group["lr"] for each in theirs.optimizers for group in each.param_groups} == {5e-4}
    normalize, found = Normalize(real.mean, real.std), []
    color, crop, cutout = (DSA(part) for part in ("color", "crop", "cutout"))
    for step in range(4):
        if step % 2 == 0:
            which = int(torch.randint(2, (), generator=run.generator("pool", step // 2)))
            shape = {"channels": 3, "image_size": 8, "num_classes": 2}
            network = build(SMALL.pool[which], **shape, generator=run.generator("network", step // 2))
            optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        generator = run.generator("of the network", step)
        chosen = torch.randperm(40, generator=generator)[:16]
        for batch in torch.randperm(16, generator=generator).split(8):
            x = normalize(real.images[chosen][batch])
            draws = [part.sample(8, (3, 8, 8), generator) for part in (color, crop)]
            x = crop.apply(color.apply(x, draws[0]), draws[1])
            optimizer.zero_grad()
            F.cross_entropy(network(x), real.labels[chosen][batch]).backward()
            optimizer.step()
        (batch,) = batches(40, 8, step, step + 1, lambda passes: run.generator("order", passes))
        x, y, siblings = real.images[batch], real.labels[batch], run.generator("siamese", step)
        draws = [part.sample(None, (3, 8, 8), siblings) for part in (color, crop, cutout)]

        def distance(made: Tensor, network: nn.Module = network, x: Tensor = x, draws: list = draws) -> Tensor:
            both = []
            for pixels in (x, made * 0.5 + 0.5):
                changed = (pixels - 0.4) / 0.25
                for part, draw in zip((color, crop, cutout), draws, strict=True):
                    changed = part.apply(changed, draw)
                both.append(F.log_softmax(network(changed), dim=1))
            return (both[0].detach() - both[1]).pow(2).mean()

        draw = lambda name, step=step: run.generator(name, step)  # noqa: E731
        found.append(theirs.step(2 * x - 1, y, draw, distance)["more"].item())
    assert [row[1] for row in rows] == pytest.approx(found, rel=1e-4)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.generator.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_an_epoch_has_a_network_of_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, make = [], dim.build
    monkeypatch.setattr(dim, "build", lambda spec, **rest: asked.append(spec) or make(spec, **rest))
    matched(toy(), replace(SMALL, match_epochs=8, match_epoch_steps=1), run_in(tmp_path))
    assert len(asked) == 8
    assert set(asked) == set(SMALL.pool)


def test_augmentation_is_of_all_groups() -> None:
    groups, x = Groups("color_crop_cutout"), torch.randn(6, 3, 8, 8, generator=seeded())
    assert [part.strategy for part in groups.parts] == ["color", "crop", "cutout"]
    assert [part.strategy for part in Groups("cutout_rotate_flip_scale").parts] == ["flip", "rotate_scale", "cutout"]
    assert Groups("").parts == Groups("none").parts == []
    draws = groups.sample(None, (3, 8, 8), seeded())
    both = groups.apply(torch.cat([x, x]), draws)
    assert torch.equal(both[:6], both[6:])
    assert torch.equal(both[:6], groups.apply(x, draws))
    assert (both == 0).flatten(1).sum(1).min() >= 12  # a square is cut out of each
    single = Groups(without_cutout("color_crop_cutout"))
    same = single.apply(x[:1].expand(6, -1, -1, -1), single.sample(6, (3, 8, 8), seeded()))
    assert not torch.equal(same[0], same[1])
    with pytest.raises(InputError, match="unknown augmentation 'colour'; did you mean 'color'"):
        Config(augment="colour_crop")


# --- distilling


class Killed(Exception):
    """Stands for a kill."""


def dying(monkeypatch: pytest.MonkeyPatch, folder: str, at: int) -> None:
    log = Run.log

    def dies(self: Run, step: int, **values: float) -> None:
        if step == at and self.folder.name.startswith(folder):
            monkeypatch.setattr(Run, "log", log)
            raise Killed
        log(self, step, **values)

    monkeypatch.setattr(Run, "log", dies)


@pytest.mark.parametrize("at", [0, 1, 3])  # before all, within an epoch, in the last step
@pytest.mark.parametrize("part", ["gan", "matching"])
@pytest.mark.long
def test_a_killed_run_ends_with_the_same_bits(
    part: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [run_in(tmp_path / name, checkpoint_seconds=0.0) for name in ("whole", "cut")]
    whole = distill(toy(), 2, SMALL, runs[0])
    dying(monkeypatch, part, at)
    with pytest.raises(Killed):
        distill(toy(), 2, SMALL, runs[1])
    calls, step = [], Gan.step
    monkeypatch.setattr(Gan, "step", lambda *args: calls.append(1) or step(*args))
    cut = distill(toy(), 2, SMALL, run_in(tmp_path / "cut", checkpoint_seconds=0.0))
    assert len(calls) == (8 if part == "gan" else 4) - at  # nothing that was kept is done again
    assert torch.equal(whole.images, cut.images)
    assert whole.training_tensors.keys() == cut.training_tensors.keys()
    assert all(torch.equal(whole.training_tensors[name], cut.training_tensors[name]) for name in whole.training_tensors)
    for name, names in (("gan", ("generator", "critic")), ("matching", ("generator", "critic", "match"))):
        rows = [scalars(stage_of(run, name), *names) for run in runs]
        assert rows[0] == rows[1]
        assert [row[0] for row in rows[0]] == [0, 1, 2, 3]


@pytest.mark.long
def test_parts_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator by all ipc and backbones of students, what came first by all seeds."""
    stages, calls, step = {"stages": tmp_path / "stages"}, [], Gan.step
    monkeypatch.setattr(Gan, "step", lambda *args: calls.append(1) or step(*args))
    one = distill(toy(), 1, SMALL, run_in(tmp_path / "a", **stages))
    assert len(calls) == 8
    other = replace(SMALL, backbone="mlp", student_epochs=7)
    five = distill(toy(), 5, other, run_in(tmp_path / "b", other, **stages))
    assert len(calls) == 8
    assert all(torch.equal(one.training_tensors[name], five.training_tensors[name]) for name in one.training_tensors)
    assert five.labels.tolist() == [0] * 5 + [1] * 5
    seed = distill(toy(), 1, SMALL, run_in(tmp_path / "c", seed=1, **stages))
    assert len(calls) == 12
    assert not torch.equal(one.images, seed.images)
    distill(toy(), 1, replace(SMALL, gan_seed=1), run_in(tmp_path / "d", **stages))
    assert len(calls) == 20
    assert len(distill(toy(), 30, SMALL, run_in(tmp_path / "e", **stages)).images) == 60  # more than there are


def test_a_set_is_drawn_from_its_generator(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    made = distill(toy(), 3, SMALL, run)
    assert 0 <= made.images.min() < made.images.max() <= 1
    assert len(made.images.flatten(1).unique(dim=0)) == 6
    made.save(tmp_path / "set.safetensors")
    found = DistilledSet.load(tmp_path / "set.safetensors")
    again = [drawn(rebuilt(found), torch.full((3,), c), 2, run.generator("images", c)) for c in range(2)]
    assert torch.equal(torch.cat(again), made.images)
    assert torch.equal(found.images, made.images)
    assert found.training == MethodTraining(width=4, dim_noise=6, epochs=3, lr=0.01, augment="color_crop")
    assert all(tensor.dtype == torch.float32 for tensor in found.training_tensors.values())
    assert any("running_var" in name for name in found.training_tensors)


GOLDEN = {  # torch 2.14, CPU, float32
    "gan": [(-0.39236, 77.45), (-0.42, 84.881), (-0.49662, 72.453), (-0.64708, 19.69)],
    "matching": [
        (-0.55064, 36.518, 0.041825),
        (-0.53882, 23.544, 0.034724),
        (-0.67252, 38.365, 0.02544),
        (-0.79951, 13.267, 0.059494),
    ],
}


def test_losses_are_what_they_were(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    distill(toy(), 1, SMALL, run)
    for part, names in (("gan", ("generator", "critic")), ("matching", ("generator", "critic", "match"))):
        found = [row[1:] for row in scalars(stage_of(run, part), *names)]
        for values, expected in zip(found, GOLDEN[part], strict=True):
            assert values == pytest.approx(expected, rel=5e-4), found


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"gan_lr": 1e30},
            r"the adversarial training diverged in step \d \(.*nan.*\); take a smaller --gan-lr",
        ),
        ({"lr_net": 1e30}, r"diverged in step \d .*take a smaller --match-lr, --match-weight or --lr-net"),
    ],
)
def test_a_loss_that_is_not_finite_is_told(fields: dict[str, float], words: str, tmp_path: Path) -> None:
    config = replace(SMALL, **fields, gan_epoch_steps=4)
    with pytest.raises(InputError, match=words) as told:
        distill(toy(), 1, config, run_in(tmp_path, config))
    assert "\n" not in str(told.value)


# --- students


def test_students_see_new_images_in_each_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = distill(toy(), 5, SMALL, run_in(tmp_path))
    seen, rates, train = [], [], generated.train_epochs

    def watched(network: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.SGD, **rest: object) -> None:
        seen.append((x, y))
        rates.append({name: optimizer.param_groups[0][name] for name in ("lr", "momentum", "weight_decay")})
        assert rest["augmentation"] == Groups("color_crop")
        train(network, x, y, optimizer, **rest)

    monkeypatch.setattr(generated, "train_epochs", watched)
    students = []
    for place in ("one", "same"):
        own = protocol(made, tmp_path, run_in(tmp_path / place, None))
        for name in ("0", "1"):
            shape = {"channels": 3, "image_size": 8, "num_classes": 2}
            students.append(build(SMALL.backbone, **shape, generator=seeded()))
            own.train(students[-1], name)
    assert own.epochs == 3
    assert rates == [{"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}] * 12
    images = [x for x, _ in seen]
    assert all(torch.equal(y, made.labels) for _, y in seen)
    for k in range(6):
        assert torch.equal(images[k], images[6 + k])  # the same run again
        for other in range(k):
            assert not torch.equal(images[k], images[other])  # another epoch or student
    assert len(torch.cat(images[:6]).flatten(1).unique(dim=0)) == 60
    pixels = Normalize(made.mean, made.std).inverse(images[0])
    assert -1e-5 <= pixels.min() < pixels.max() <= 1 + 1e-5
    first, _, again, _ = (torch.cat([p.flatten() for p in student.parameters()]) for student in students)
    assert torch.equal(first, again)


@pytest.mark.long
def test_students_of_a_trained_generator_know_the_classes(tmp_path: Path) -> None:
    config = replace(
        SMALL, gan_epoch_steps=40, gan_batch=16, gan_lr=2e-3, width=6, match_weight=0.01, student_epochs=40
    )
    made, test = distill(toy(), 4, config, run_in(tmp_path, config)), toy(seed=1)
    own, normalize = protocol(made, tmp_path, run_in(tmp_path / "own", None)), Normalize(made.mean, made.std)
    student = build(
        "convnet:width=8,depth=2",
        channels=3,
        image_size=8,
        num_classes=2,
        generator=run_in(tmp_path, config).generator(),
    )
    own.train(student, "0")
    assert (student.eval()(normalize(test.images)).argmax(1) == test.labels).float().mean() > 0.9


def _without(own: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in own.items() if key != name}


W = "linear.0.weight"


@pytest.mark.parametrize(
    ("own", "training", "words"),
    [
        (lambda own: _without(own, W), {}, rf"{W} of the set's generator is absent, it must be float32 \(64, 6\)"),
        (lambda own: own | {"more": torch.zeros(1)}, {}, r"more of the set's generator is float32 \(1,\), .* absent"),
        (lambda own: own | {W: own[W][:, :5]}, {}, rf"{W} of .* is float32 \(64, 5\), it must be float32 \(64, 6\)"),
        (lambda own: own | {W: own[W].double()}, {}, rf"{W} of the set's generator is float64"),
        (lambda own: own | {W: own[W] * float("nan")}, {}, f"{W} of the set's generator has values that are not fin"),
        (lambda own: {}, {}, "is absent, it must be"),
        (None, {"width": 10**8}, r"is float32 \(4,\), it must be float32 \(100000000,\)"),
        (None, {"dim_noise": 2}, "dim_noise of the set is 2; it must be a whole number >= 3"),
        (None, {"augment": "blur"}, "unknown augmentation 'blur'"),
        (None, None, "the set lacks augment, dim_noise, epochs, lr, width of dim's training; take --protocol standard"),
    ],
)
def test_a_set_that_does_not_fit_is_refused(
    own: Callable[[dict], dict] | None, training: dict | None, words: str, tmp_path: Path
) -> None:
    config = replace(SMALL, gan_epochs=1, gan_epoch_steps=1, match_epochs=0)
    made = distill(toy(), 1, config, run_in(tmp_path, config))
    made = replace(made, training_tensors=own(made.training_tensors) if own else made.training_tensors)
    made = replace(made, training=MethodTraining() if training is None else replace(made.training, **training))
    with pytest.raises(InputError, match=words) as told:
        protocol(made, tmp_path, run_in(tmp_path / "own", None))
    assert "\n" not in str(told.value)


# --- as a user types it


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def rows(folder: Path) -> dict[str, float]:
    found = csv.DictReader((folder / "table.csv").read_text().splitlines())
    return {row["attack"]: float(row["mean"]) for row in found}


@pytest.mark.parametrize("recipe", ["quick", "paper"])
@pytest.mark.long
def test_the_command_line(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_toy(tmp_path / "data")
    words = ["folder", "--data-dir", data, "--runs", tmp_path, "--recipe", recipe, *FLAGS]
    assert run("dim", *words, "--ipc", "2", "--protocol", "own") == 0
    assert "convnet:width=4,depth=2, own, recipe" in capsys.readouterr().out
    folder = tmp_path / "dim" / label("folder", data) / "ipc2" / "seed0"
    assert DistilledSet.load(folder).method == "dim"
    assert list(rows(folder)) == ["clean", "fgsm@8/255"]
    assert (folder / "grid.png").exists()
    assert run("dim", *words, "--ipc", "1", "--student.epochs", "5") == 0
    assert len(list((tmp_path / "stages").iterdir())) == 2  # the same generator
    options = ["--data-dir", data, "--runs", tmp_path, "--students", "1", "--attacks", "fgsm", "--recipe", "quick"]
    assert run("evaluate", folder, *options, "--protocol", "own") == 0
    (again,) = (tmp_path / "evaluate").rglob("students/0.safetensors")
    ours, theirs = (read_tensors(path)[0] for path in (folder / "students" / "0.safetensors", again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.long
def test_digits_and_killed_students(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["dim", "digits", "--recipe", "quick", *FLAGS, "--dim-noise", "12", "--ipc", "2", "--protocol", "own"]
    assert run(*words, "--runs", tmp_path / "whole") == 0
    train, calls = generated.train_epochs, []

    def dies(*args: object, **rest: object) -> None:
        calls.append(1)
        if len(calls) == 8:  # in the second student
            monkeypatch.setattr(generated, "train_epochs", train)
            raise KeyboardInterrupt
        train(*args, **rest)

    monkeypatch.setattr(generated, "train_epochs", dies)
    assert run(*words, "--runs", tmp_path / "cut") == 130
    assert run(*words, "--runs", tmp_path / "cut") == 0
    folders = [tmp_path / name / "dim" / "digits" / "ipc2" / "seed0" for name in ("whole", "cut")]
    for file in ("distilled", "students/0", "students/1"):
        whole, cut = (read_tensors(folder / f"{file}.safetensors")[0] for folder in folders)
        assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_size_that_cannot_be_made_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["dim", "digits", "--image-size", "12", "--runs", tmp_path, *FLAGS, "--dim-noise", "12"]
    assert run(*words) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("run.sh: no generator of images of 12 px; supported sizes: 8, 14, 16, 28, 32, 56, 64; take")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("width", 0, "width is 0; it must be >= 1"),
        ("dim_noise", 0, "dim_noise is 0"),
        ("gan_epochs", 0, "gan_epochs is 0"),
        ("gan_epoch_steps", 0, "gan_epoch_steps is 0"),
        ("gan_batch", 0, "gan_batch is 0"),
        ("gan_lr", 0.0, r"gan_lr is 0\.0; it must be > 0"),
        ("gan_seed", -1, "gan_seed is -1; it must be >= 0"),
        ("penalty", -1.0, r"penalty is -1\.0; it must be >= 0"),
        ("match_epochs", -1, "match_epochs is -1"),
        ("match_epoch_steps", 0, "match_epoch_steps is 0"),
        ("match_batch", 0, "match_batch is 0"),
        ("match_lr", float("inf"), "match_lr is inf"),
        ("match_weight", float("nan"), "match_weight is nan"),
        ("pool", (), "pool is empty"),
        ("net_steps", -1, "net_steps is -1"),
        ("lr_net", 0.0, r"lr_net is 0\.0"),
        ("augment", "blur", "unknown augmentation 'blur'"),
        ("student_epochs", 0, "student_epochs is 0"),
    ],
)
def test_fields_are_checked(field: str, value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config(**{field: value})


@pytest.mark.parametrize("dataset", ["digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "tiny_imagenet"])
def test_recipes(dataset: str) -> None:
    paper, quick = (RECIPES["dim"][name](facts_named(dataset), 10) for name in ("paper", "quick"))
    config = paper.config
    assert (config.width, config.gan_epochs, config.gan_batch, config.gan_lr, config.penalty) == (
        196,
        150,
        128,
        1e-4,
        10,
    )
    assert (config.match_epochs, config.match_batch, config.match_lr, config.net_steps) == (100, 64, 5e-6, 16)
    assert (config.match_weight, config.lr_net, config.student_epochs) == (0.01, 0.01, 1000)
    assert (config.gan_epoch_steps, config.match_epoch_steps, config.augment) == (None, None, "color_crop_cutout")
    assert len(config.pool) == 5
    size = {"digits": 8, "cifar10": 32, "cifar100": 32, "tiny_imagenet": 64}.get(dataset, 28)
    shape = {"channels": 3 if size in (32, 64) else 1, "image_size": size, "num_classes": 10}
    for recipe in (paper, quick):
        for spec in (recipe.config.backbone, *recipe.config.pool):
            build(spec, **shape, generator=seeded())
    ours, theirs = work(quick.config, 10, 10, 50_000), work(config, 10, 10, 50_000)
    assert sum(count for count, _ in ours) < sum(count for count, _ in theirs) / 100


def test_noise_has_ninety_entries_beside_the_class() -> None:
    sizes = [dim._adversarial(Config(), classes).dim_noise for classes in (2, 10, 100, 200)]
    assert sizes == [100, 100, 190, 290]
    assert dim._adversarial(Config(dim_noise=30), 10).dim_noise == 30


def test_the_pool_is_that_of_the_paper() -> None:
    """ResNet-10 and ResNet-18 of widths 32 to 256 with BatchNorm, and the linear layer on the mean of the last map."""
    for spec, blocks in zip(Config().pool[1:], (4, 8, 4, 8), strict=True):
        network = build(spec, channels=3, image_size=32, num_classes=10, generator=seeded())
        last = [module for module in network.modules() if isinstance(module, nn.Linear)]
        assert [layer.in_features for layer in last] == [256]
        wide = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert len(wide) == 1 + 2 * blocks
        assert sorted({m.out_channels for m in wide}) == [32, 64, 128, 256]
        strided = any(m.stride == (2, 2) for m in wide)
        assert strided == spec.startswith("resnet18:")
        assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_work_counts_the_steps() -> None:
    config = replace(SMALL, gan_batch=64, match_batch=32, gan_epoch_steps=None, match_epoch_steps=None)
    (adversarial, step), *networks = work(config, 10, 2, 640)
    assert adversarial * 32 == 2 * 10 * 64 + 2 * 20 * 32
    assert sum(count for count, _ in networks) * 5 == pytest.approx(40 * 3)
    unused, shape = nn.Linear(1, 1), (3, 8, 8)
    for _, each in ((0, step), *networks):
        each(unused, shape)
    (images, generate), (training, train) = student_work(config, 10, 2)
    assert images * 20 == 3 * 20
    assert training * 5 == 3
    generate(unused, shape)
    train(build("mlp", channels=3, image_size=8, num_classes=2, generator=seeded()), shape)
