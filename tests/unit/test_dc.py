"""Gradient matching: loops, resuming, what is refused, what a run leaves."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from baselines import dcc
from distill.data import facts_named
from distill.errors import InputError
from distill.methods import dc
from distill.methods.dc import LOOPS, Config, distill, loops, match, work
from distill.methods.dc_recipes import METHODS
from distill.models import build
from distill.runs.run import Run
from distill.training.matching import layerwise
from distill.training.real_side import share_moved
from robust import CrossEntropy, CurvatureRegularizedLoss, RobustTeacher
from tests.toy import toy

RECIPES = {method.name: method.recipes for method in METHODS}

SMALL = Config(CrossEntropy(), backbone="convnet:width=4", iterations=5, outer_loop=2, inner_loop=1, batch_real=6)


def test_loops_follow_the_official_table_and_the_flags() -> None:
    plain = Config(CrossEntropy())
    assert {ipc: loops(plain, ipc) for ipc in LOOPS} == LOOPS
    assert loops(plain, 15) == (15, 38)
    assert loops(plain, 500) == (50, 10)
    assert loops(Config(CrossEntropy(), outer_loop=3), 10) == (3, 50)


def test_interpolated_loops_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(CrossEntropy(), backbone="convnet:width=4", iterations=1, batch_real=4)
    distill(toy(), 2, config, Run(tmp_path / "a", None).begin())
    assert "no official loops for ipc 2: 2 matchings, 6 epochs between (interpolated)" in capsys.readouterr().err
    distill(toy(), 1, config, Run(tmp_path / "b", None).begin())
    assert "loops" not in capsys.readouterr().err


@pytest.mark.parametrize("loss", [CrossEntropy(), CurvatureRegularizedLoss(1.0)])
@pytest.mark.long
def test_descending_the_gradient_lowers_the_distance(loss: CrossEntropy | CurvatureRegularizedLoss) -> None:
    real, generator = toy(), torch.Generator().manual_seed(0)
    network = build("convnet:width=8,depth=2", channels=3, image_size=8, num_classes=2, generator=generator).eval()
    images = torch.randn(2, 1, 3, 8, 8, generator=generator)
    batches = [(real.images[real.labels == c] - 0.4) / 0.25 for c in range(2)]
    distances = []
    for _ in range(100):
        gradient, losses = match(
            network, images, Config(loss), real_batch=lambda c: batches[c], siamese=None, generator=torch.Generator
        )
        images = images - 0.3 * gradient
        distances.append(losses[0].item())
    assert gradient.shape == images.shape
    assert distances[-1] < 0.8 * distances[0]
    assert max(distances) == distances[0]


def scalars(folder: Path) -> list[tuple[int, float, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["seconds"] > 0 for row in rows)
    return [(row["step"], row["loss"], row["real_loss"]) for row in rows]


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_killed_run_ends_with_the_same_bits(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = distill(toy(), 2, SMALL, Run(tmp_path / "whole", SMALL).begin())
    log = Run.log

    def dies(self: Run, step: int, **scalars: float) -> None:
        if step == at:
            raise Killed
        log(self, step, **scalars)

    monkeypatch.setattr(Run, "log", dies)
    with pytest.raises(Killed):
        distill(toy(), 2, SMALL, Run(tmp_path / "killed", SMALL, checkpoint_seconds=0.0).begin())
    monkeypatch.setattr(Run, "log", log)
    resumed = Run(tmp_path / "killed", SMALL).begin()
    assert (resumed.restore() or {"iteration": 0})["iteration"] == at
    again = distill(toy(), 2, SMALL, resumed)
    assert torch.equal(whole.images, again.images)
    assert scalars(tmp_path / "whole") == scalars(tmp_path / "killed")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("iterations", 0, "iterations is 0; it must be >= 1"),
        ("batch_real", 0, "batch_real is 0"),
        ("outer_loop", 0, "outer_loop is 0"),
        ("lr_img", -1.0, r"lr_img is -1\.0"),
        ("lr_net", float("inf"), "lr_net is inf"),
    ],
)
def test_fields_are_checked(field: str, value: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config(CrossEntropy(), **{field: value})


def test_an_unknown_augmentation_is_refused() -> None:
    with pytest.raises(InputError, match="colour"):
        Config(CrossEntropy(), augment="colour_crop")


@pytest.mark.parametrize("method", RECIPES)
@pytest.mark.parametrize("dataset", ["digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "folder"])
@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_recipes(method: str, dataset: str, ipc: int) -> None:
    paper, quick = (RECIPES[method][name](facts_named(dataset), ipc) for name in ("paper", "quick"))
    assert (paper.config.iterations, paper.config.batch_real) == (1000, 256)
    assert (paper.evaluation.students, paper.evaluation.student.epochs) == (50, 1000)
    assert work(quick.config, ipc, 10, 1000)[0][0] < work(paper.config, ipc, 10, 1000)[0][0] / 10
    assert isinstance(paper.config.real_loss, CurvatureRegularizedLoss) == method.startswith("guard")
    assert bool(paper.config.augment) == method.endswith("dsa") == (paper.config.init == "real")
    if dataset in ("mnist", "digits"):
        assert "flip" not in paper.config.augment


WEAK = replace(SMALL, real_loss=CurvatureRegularizedLoss(1e-4, h=1.0))


@pytest.mark.parametrize("method", ["dc", "dcc"])
@pytest.mark.parametrize("weight", [1e-4, 30.0])
def test_a_regulariser_that_moves_nothing_is_told_once(
    method: str, weight: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loss = CurvatureRegularizedLoss(weight, h=1.0)
    if method == "dc":
        distill(toy(), 2, replace(WEAK, real_loss=loss), Run(tmp_path, None).begin())
    else:
        small = {"backbone": "convnet:width=4", "iterations": 5, "outer_loop": 2, "inner_loop": 1, "batch_real": 6}
        dcc.distill(toy(), 2, dcc.Config(loss, **small, outer_warmup=2), Run(tmp_path, None).begin())
    told = capsys.readouterr().err
    assert told.count("in effect this run has plain cross-entropy; take a larger weight") == (weight < 1)
    line = "--real-loss guard:weight=0.0001,h=1 moves the real gradients of the first iteration by"
    assert told.count(line) == (weight < 1)


def test_plain_dc_has_no_robust_loss_to_tell_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distill(toy(), 2, SMALL, Run(tmp_path, None).begin())
    assert "in effect" not in capsys.readouterr().err


@pytest.mark.parametrize("augment", ["", "color_crop_flip"])
def test_looking_at_the_regulariser_changes_no_bit(
    augment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(WEAK, augment=augment)
    looked = distill(toy(), 2, config, Run(tmp_path / "a", None).begin())
    monkeypatch.setattr(dc, "share_moved", lambda *arguments, **named: 1.0)
    blind = distill(toy(), 2, config, Run(tmp_path / "b", None).begin())
    assert torch.equal(looked.images, blind.images)


def test_a_resumed_run_does_not_repeat_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = Run.log

    def dies(self: Run, step: int, **scalars: float) -> None:
        if step == 2:
            raise Killed
        log(self, step, **scalars)

    monkeypatch.setattr(Run, "log", dies)
    with pytest.raises(Killed):
        distill(toy(), 2, WEAK, Run(tmp_path, None, checkpoint_seconds=0.0).begin())
    assert "in effect this run has plain" in capsys.readouterr().err
    monkeypatch.setattr(Run, "log", log)
    distill(toy(), 2, WEAK, Run(tmp_path, None).begin())
    assert "in effect" not in capsys.readouterr().err


def test_the_share_is_the_quotient_of_two_distances() -> None:
    real, generator = toy(), torch.Generator().manual_seed(0)
    network = build("convnet:width=8,depth=2", channels=3, image_size=8, num_classes=2, generator=generator).eval()
    synthetic = torch.randn(1, 3, 8, 8, generator=generator)
    batch = real.images[real.labels == 0]
    losses = CurvatureRegularizedLoss(5.0, h=1.0), CrossEntropy()
    zeros = torch.zeros(len(batch), dtype=torch.long)
    robust, plain = (torch.autograd.grad(loss(network, batch, zeros), list(network.parameters())) for loss in losses)
    ours = torch.autograd.grad(CrossEntropy()(network, synthetic, zeros[:1]), list(network.parameters()))
    sides = {"real_batch": lambda c: batch, "siamese": None, "generator": lambda c: torch.Generator()}
    share = share_moved(synthetic, *(RobustTeacher(network, loss) for loss in losses), layerwise, **sides)
    assert share == pytest.approx((layerwise(plain, robust) / layerwise(ours, robust)).item(), rel=1e-3)
    assert share > 0


@pytest.mark.parametrize(
    ("dataset", "backbone", "fields", "policy"),
    [
        ("mnist", "convnet:width=4", {}, "dc:crop_scale_rotate"),
        ("mnist", "convnet:width=4,norm=batch", {}, "dc:crop_noise"),
        ("toy", "convnet:width=4,norm=batch", {}, "dc:crop_noise"),
        ("toy", "convnet:width=4", {}, ""),
        ("mnist", "convnet:width=4", {"augment": "crop_scale"}, "crop_scale"),
        ("mnist", "convnet:width=4", {"augment_students": ""}, ""),
        ("toy", "convnet:width=4", {"augment_students": "dc:crop"}, "dc:crop"),
    ],
)
def test_students_are_augmented_as_in_the_official_code(
    dataset: str, backbone: str, fields: dict[str, str], policy: str, tmp_path: Path
) -> None:
    config = replace(SMALL, backbone=backbone, iterations=1, outer_loop=1, **fields)
    assert distill(replace(toy(), name=dataset), 1, config, Run(tmp_path, None).begin()).augment == policy


def test_an_unknown_augmentation_of_students_is_refused() -> None:
    with pytest.raises(InputError, match="unknown augmentation 'crap'"):
        replace(SMALL, augment_students="crap")
