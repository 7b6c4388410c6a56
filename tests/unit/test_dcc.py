"""DCC: one class, the textbook, the switch at its iteration and step, resuming, recipes, the command line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from baselines import dcc
from baselines.dcc import LOOPS, METHODS, Config, distill, match, settled, work
from distill.app.main import main
from distill.data import facts_named, label
from distill.distilled import DistilledSet
from distill.methods import dc
from distill.models import build
from distill.runs.run import Run
from distill.training.augment import augmentation
from distill.training.matching import DISTANCES
from robust import CrossEntropy, CurvatureRegularizedLoss
from tests.toy import toy, write_toy

RECIPES = {method.name: method.recipes for method in METHODS}

GUARD = CurvatureRegularizedLoss(weight=3.0, h=1.0)
LOSSES = {"dcc": CrossEntropy(), "guard_dcc": GUARD}
STRATEGY = "color_crop_cutout_flip_scale_rotate"
SMALL = Config(
    CrossEntropy(),
    backbone="convnet:width=4,depth=2",
    iterations=4,
    outer_loop=3,
    inner_loop=1,
    batch_real=6,
    outer_warmup=2,
)


def case(classes: int, ipc: int, dtype: torch.dtype = torch.float64) -> tuple[torch.nn.Module, torch.Tensor, list]:
    """Return a network of four classes, images of some of them, and real batches of unequal size."""
    generator = torch.Generator().manual_seed(classes)
    network = build("convnet:width=6,depth=2", channels=3, image_size=8, num_classes=4, generator=generator)
    images = torch.randn(classes, ipc, 3, 8, 8, generator=generator, dtype=dtype)
    batches = [torch.randn(5 + c, 3, 8, 8, generator=generator, dtype=dtype) for c in range(classes)]
    return network.to(dtype).eval(), images, batches


def seeded(class_: int) -> torch.Generator:
    return torch.Generator().manual_seed(class_)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("augment", ["", STRATEGY])
@pytest.mark.parametrize("loss", LOSSES)
def test_one_class_is_dc(loss: str, augment: str, distance: str) -> None:
    network, images, batches = case(classes=1, ipc=3)
    config = replace(SMALL, real_loss=LOSSES[loss], augment=augment, distance=distance)
    options = {"real_batch": lambda c: batches[c], "siamese": augmentation(augment), "generator": seeded}
    (ours, losses), (theirs, expected) = (each(network, images, config, **options) for each in (match, dc.match))
    assert torch.allclose(losses, expected, rtol=1e-12)
    assert (ours - theirs).abs().max() <= 1e-12 * (1 + theirs.abs().max())
    assert theirs.abs().max() > 1e-6


def textbook(network, images, batches, distance, drawn) -> tuple[torch.Tensor, torch.Tensor]:
    """DCC's step as its code has it: all of S in one loss, one distance."""
    images = images.clone().requires_grad_()
    parameters = list(network.parameters())
    changed = list(images)
    if drawn is not None:
        dsa = augmentation(STRATEGY)
        changed, batches = ([dsa.apply(x, d) for x, d in zip(side, drawn, strict=True)] for side in (images, batches))
    labels = torch.arange(len(images)).repeat_interleave(images.shape[1])
    ours = torch.autograd.grad(F.cross_entropy(network(torch.cat(changed)), labels), parameters, create_graph=True)
    real = [F.cross_entropy(network(x), torch.full((len(x),), c)) for c, x in enumerate(batches)]
    theirs = torch.autograd.grad(torch.stack(real).mean(), parameters)
    value = DISTANCES[distance](ours, theirs)
    return value, torch.autograd.grad(value, images)[0]


@pytest.mark.parametrize("together", [1, 2, 10])  # classes in a pass: of three, also groups of unequal size
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("augment", ["", STRATEGY])
def test_the_gradient_is_the_textbook_s(
    augment: str, distance: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dc, "GROUP", together)
    network, images, batches = case(classes=3, ipc=2)
    policy = augmentation(augment)
    drawn = policy and [policy.sample(None, (3, 8, 8), seeded(c)) for c in range(3)]
    value, expected = textbook(network, images, batches, distance, drawn)
    config = replace(SMALL, augment=augment, distance=distance, chunk=4)
    gradient, losses = match(network, images, config, real_batch=lambda c: batches[c], siamese=policy, generator=seeded)
    assert (gradient - expected).abs().max() <= 1e-11 * (1 + expected.abs().max())
    assert losses[0].item() / 3 == pytest.approx(value.item(), rel=1e-12)


def test_it_is_not_dc_s_with_several_classes() -> None:
    network, images, batches = case(classes=3, ipc=2)
    options = {"real_batch": lambda c: batches[c], "siamese": None, "generator": seeded}
    ours, theirs = (each(network, images, SMALL, **options)[0] for each in (match, dc.match))
    assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) < 0.9


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        (2, 9, "ddd ddd ccc ccc"),  # the paper's first warm-up alone
        (4, 2, "ddc ddc ddc ddc"),  # its second alone
        (3, 1, "dcc dcc dcc ccc"),
        (0, 9, "ccc ccc ccc ccc"),
        (4, 3, "ddd ddd ddd ddd"),
    ],
)
def test_the_matching_switches_after_its_warm_ups(
    outer: int, inner: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(letter: str, original):
        return lambda *arguments, **named: seen.append(letter) or original(*arguments, **named)

    monkeypatch.setattr(dcc, "match", spy("c", match))
    monkeypatch.setattr(dc, "match", spy("d", dc.match))
    distill(toy(), 2, replace(SMALL, outer_warmup=outer, inner_warmup=inner), Run(tmp_path, None).begin())
    assert "".join(seen) == expected.replace(" ", "")


def test_before_the_warm_ups_end_it_is_dc_bit_for_bit(tmp_path: Path) -> None:
    late = replace(SMALL, outer_warmup=4)
    plain = {name: getattr(late, name) for name in dc.Config.__dataclass_fields__}
    ours = distill(toy(), 2, late, Run(tmp_path / "a", None).begin()).images
    theirs = dc.distill(toy(), 2, dc.Config(**plain), Run(tmp_path / "b", None).begin()).images
    assert torch.equal(ours, theirs)
    assert not torch.allclose(ours, distill(toy(), 2, SMALL, Run(tmp_path / "c", None).begin()).images, atol=1e-3)


def test_the_loss_is_what_makes_guard(tmp_path: Path) -> None:
    def images(loss: CrossEntropy | CurvatureRegularizedLoss, name: str) -> torch.Tensor:
        return distill(toy(), 2, replace(SMALL, real_loss=loss), Run(tmp_path / name, None).begin()).images

    plain, without = images(CrossEntropy(), "a"), images(CurvatureRegularizedLoss(0.0), "b")
    assert torch.equal(plain, without)
    assert not torch.allclose(plain, images(CurvatureRegularizedLoss(5.0), "c"), atol=1e-3)


# --- a run -------------------------------------------------------------------------------------------------------


def rows(folder: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row.pop("seconds") > 0 for row in found)
    return found


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("at", [1, 2])  # in the warm-up, and behind it
def test_a_killed_run_ends_with_the_same_bits(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SMALL, augment=STRATEGY)
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
    assert (resumed.restore() or {})["iteration"] == at
    assert torch.equal(whole.images, distill(toy(), 2, config, resumed).images)
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")


GOLDEN = {  # (distance, loss of the real batches) of each iteration; torch 2.14, CPU, float32
    "dcc": [(5.22173, 0.67755), (3.50446, 0.59985), (2.87887, 0.75029), (4.06151, 0.79464)],
    "dsac": [(4.64165, 0.67732), (3.81268, 0.59939), (2.81917, 0.75928), (3.49382, 0.80026)],
    "guard_dcc": [(5.31875, 0.69032), (3.62706, 0.60724), (2.82728, 0.76757), (4.00946, 0.81787)],
}


@pytest.mark.parametrize("method", ["dcc", "dsac", "guard_dcc"])
def test_losses_are_what_they_were(method: str, tmp_path: Path) -> None:
    config = replace(
        SMALL,
        real_loss=GUARD if method == "guard_dcc" else CrossEntropy(),
        augment=STRATEGY if method == "dsac" else "",
        backbone="convnet:width=8,depth=2",
        batch_real=8,
    )
    distill(toy(), 2, config, Run(tmp_path, None).begin())
    found = [(row["loss"], row["real_loss"]) for row in rows(tmp_path)]
    for pair, expected in zip(found, GOLDEN[method], strict=True):
        assert pair == pytest.approx(expected, rel=2e-4)


# --- settings ----------------------------------------------------------------------------------------------------


def test_loops_are_the_official_ones() -> None:
    plain = Config(CrossEntropy())
    found = {ipc: (settled(plain, ipc).outer_loop, settled(plain, ipc).inner_loop) for ipc in LOOPS}
    assert found == LOOPS == dc.LOOPS | {1: (10, 5)}
    assert settled(Config(CrossEntropy(), outer_loop=3), 10).outer_loop == 3
    assert (plain.init, plain.iterations, plain.outer_warmup, plain.inner_warmup) == ("real", 1000, 250, 10)


def test_interpolated_loops_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(CrossEntropy(), backbone="convnet:width=4", iterations=1, batch_real=4, outer_warmup=1)
    distill(toy(), 2, config, Run(tmp_path, None).begin())
    assert "no official loops for ipc 2: 10 matchings, 10 epochs between (interpolated)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"outer_warmup": -1}, "outer_warmup is -1; it must be >= 0"),
        ({"inner_warmup": -2}, "inner_warmup is -2; it must be >= 0"),
        ({"iterations": 100}, "outer_warmup is 250; it must be <= iterations, 100"),
        ({"batch_real": 0}, "batch_real is 0"),
        ({"real_loss": CurvatureRegularizedLoss(h_warmup=(0.1,))}, "h_warmup"),
    ],
)
def test_fields_are_checked(fields: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config(**({"real_loss": CrossEntropy()} | fields))


@pytest.mark.parametrize("method", RECIPES)
@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10", "cifar100", "folder"])
@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_recipes(method: str, dataset: str, ipc: int) -> None:
    paper, quick = (RECIPES[method][name](facts_named(dataset), ipc) for name in ("paper", "quick"))
    assert (paper.config.iterations, paper.config.outer_warmup, paper.evaluation.students) == (1000, 250, 20)
    assert paper.config.init == quick.config.init == "real"
    assert work(quick.config, ipc, 10, 1000)[0][0] < work(paper.config, ipc, 10, 1000)[0][0] / 10
    assert isinstance(paper.config.real_loss, CurvatureRegularizedLoss) == method.startswith("guard")
    assert bool(paper.config.augment) == (method == "dsac")
    if dataset in ("mnist", "digits"):
        assert "flip" not in paper.config.augment
    if method == "guard_dcc":
        plain = RECIPES["dcc"]["quick"](facts_named(dataset), ipc).config
        assert replace(quick.config, real_loss=CrossEntropy()) == plain  # one field


@pytest.mark.long
def test_as_a_user_types_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_toy(tmp_path / "toy")
    small = ["--backbone", "convnet:width=4", "--iterations", "2", "--outer-warmup", "1", "--outer-loop", "2"]
    small += ["--inner-loop", "1", "--batch-real", "8", "--students", "1", "--student.epochs", "20"]
    small += ["--attacks", "linf"]
    for method, recipe in (("dcc", "paper"), ("dcc", "quick"), ("dsac", "quick"), ("guard_dcc", "quick")):
        runs = tmp_path / recipe
        words = [method, "folder", "--data-dir", str(data), "--runs", str(runs), "--recipe", recipe, *small]
        assert main(words) == 0
        folder = runs / method / label("folder", data) / "ipc1" / "seed0"
        assert DistilledSet.load(folder).method == method
        assert (folder / "table.csv").exists()
    capsys.readouterr()
    for flags, line in (
        (["--outer-warmup", "3"], "--outer-warmup is 3; it must be <= iterations, 2"),
        (["--inner-warmup", "-1"], "--inner-warmup is -1; it must be >= 0"),
        (["--outer-warm", "3"], "--outer-warm"),
    ):
        words = ["dcc", "folder", "--data-dir", str(data), "--runs", str(tmp_path / "bad"), *small, *flags]
        assert main(words) == 2
        err = capsys.readouterr().err
        assert line in err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "bad").exists()
