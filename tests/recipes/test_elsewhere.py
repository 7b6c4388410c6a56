"""A method, a data set, a backbone, a loss and an attack of another package, named `package.module:name` in one run."""

import json
from pathlib import Path

import pytest

from distill.app.main import main
from distill.runs.files import hash_of

PACKAGE = """
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from distill.data import DataSet, Facts
from distill.distilled import DistilledSet
from distill.experiment import Evaluation, Recipe
from distill.methods.method import SMOKE, Method
from robust import Loss, Threat, Traits, cross_entropy
from tests.toy import toy

FACTS = Facts("toy", classes=2, channels=3, size=8, examples=40, mean=(0.4,) * 3, std=(0.25,) * 3)
above_below = DataSet(FACTS, lambda root: (toy(), toy(seed=1)))


def linear(channels, image_size, num_classes, *, width: int = 4):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, width), nn.Linear(width, num_classes))


@dataclass(frozen=True)
class Config:
    backbone: str = "their_package.parts:linear:width=3"
    rounds: int = 2


def distill(real, ipc, config, run):
    images = torch.cat([real.sample(c, ipc, run.generator("images", c)) for c in range(real.num_classes)])
    labels = torch.arange(real.num_classes).repeat_interleave(ipc)
    return DistilledSet.of(real, images, labels, backbone=config.backbone)


first = Method(
    "first", "the first real images", "nobody", "coresets",
    {name: lambda facts, ipc: Recipe(Config(), SMOKE) for name in ("paper", "quick", "smoke")},
    distill, lambda *_: [],
)
number = 3


@dataclass(frozen=True)
class Scaled(Loss):
    traits: ClassVar[Traits] = Traits(strength="weight")
    weight: float = 1.0

    def __call__(self, model, inputs, targets):
        return (1 + self.weight) * cross_entropy(model(inputs), targets).mean()


@dataclass(frozen=True)
class Brighter:
    threat: Threat
    share: float = 1.0

    def __call__(self, model, images, targets, *, generator=None):
        return (images + self.share * self.threat.eps).clamp(0, 1)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "their_package" / "parts.py"
    file.parent.mkdir()
    file.write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    return file


def test_parts_of_another_package_make_a_run(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["their_package.parts:first", "their_package.parts:above_below", "--runs", str(tmp_path / "runs")]
    assert main([*words, "--ipc", "2"]) == 0
    run = tmp_path / "runs/their_package.parts.first/their_package.parts.above_below/ipc2/seed0"
    record = json.loads((run / "experiment.json").read_text())
    assert record["experiment"]["method"] == "their_package.parts:first"
    assert record["made_by"]["sources"] == {"their_package.parts": {"file": str(package), "sha256": hash_of(package)}}
    table = (run / "table.csv").read_text()
    assert "their_package.parts:first" in table
    capsys.readouterr()
    assert main([*words, "--ipc", "2"]) == 0
    assert "finished already" in capsys.readouterr().err
    evaluate = ["evaluate", str(run), "--students", "1", "--student.epochs", "2", "--attacks", "linf"]
    evaluate += ["--runs", str(tmp_path / "again")]
    assert main(evaluate) == 2
    assert "--packages their_package\n" in capsys.readouterr().err
    assert main([*evaluate, "--packages", "their_package"]) == 0
    again = ["rerun", str(run), "--runs", str(tmp_path / "reruns")]
    assert main(again) == 2
    assert main([*again, "--packages", "their_package"]) == 0
    assert (tmp_path / "reruns" / run.relative_to(tmp_path / "runs") / "table.csv").read_text() == table
    assert main(["curvature", str(run), "--images", "4"]) == 2
    assert main(["curvature", str(run), "--images", "4", "--packages", "their_package"]) == 0


def test_the_benchmark_and_published_sets_take_data_of_another_package(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(package.parent.parent))  # cells are processes of their own
    runs, data = str(tmp_path / "runs"), "their_package.parts:above_below"
    words = ["benchmark", "--datasets", data, "--methods", "their_package.parts:first", "--ipc", "1", "--seeds", "1"]
    assert main([*words, "--students", "1", "--test-images", "8", "--runs", runs]) == 0
    run = tmp_path / "runs/their_package.parts.first/their_package.parts.above_below/ipc1/seed0"
    assert data.replace(":", ".") in (tmp_path / "runs/benchmark/table.csv").read_text()
    assert main(["export", str(run), "--to", "npz", "--out", str(tmp_path / "out")]) == 0
    (file,) = (tmp_path / "out").rglob("*.npz")
    evaluate = ["evaluate", str(file), "--students", "1", "--student.epochs", "2", "--attacks", "linf", "--runs", runs]
    assert main([*evaluate, "--dataset", data, "--packages", "their_package"]) == 0
    assert list((tmp_path / "runs/published/their_package.parts.above_below").rglob("distilled.safetensors"))
    assert main([*evaluate, "--dataset", "their_package.parts:no_such"]) == 2


def test_a_loss_and_an_attack_of_another_package_make_a_run(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["dc", "digits", "--recipe", "smoke", "--runs", str(tmp_path / "runs"), "--student.epochs", "2"]
    words += ["--real-loss", "their_package.parts:Scaled:weight=2", "--student.loss", "their_package.parts:Scaled"]
    words += ["--attacks", "their_package.parts:Brighter:share=0.5@0.1,their_package.parts:Brighter,linf"]
    assert main(words) == 0
    run = tmp_path / "runs/dc/digits/ipc1/seed0"
    record = json.loads((run / "experiment.json").read_text())
    assert record["experiment"]["config"]["real_loss"] == {"class": "their_package.parts:Scaled", "weight": 2.0}
    assert list(record["made_by"]["sources"]) == ["their_package.parts"]
    table = (run / "table.csv").read_text()
    assert "their_package.parts:Brighter:share=0.5@0.1" in table
    assert "their_package.parts:Brighter@0.3" in table
    capsys.readouterr()
    assert main(words) == 0
    assert "finished already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["their_package.parts:second", "digits"], "method 'their_package.parts:second' cannot be imported"),
        (["their_package.parts:number", "digits"], "method their_package.parts:number is a int; it must be a "),
        (["no_package.parts:first", "digits"], "No module named 'no_package'"),
        (["random", "their_package.parts:number"], "data set their_package.parts:number is a int; it must be a "),
        (["random", "their_package.parts:nothing"], "data set 'their_package.parts:nothing' cannot be imported"),
        (["random", "digits", "--backbone", "their_package.parts:number"], "backbone their_package.parts:number is a"),
        (["random", "digits", "--backbone", "their_package.parts:linear:depth=1"], "depth"),
        (
            ["dc", "digits", "--real-loss", "their_package.parts:number"],
            "loss 'their_package.parts:number' is not a loss",
        ),
        (["dc", "digits", "--real-loss", "no_package.parts:L"], "--real-loss: loss 'no_package.parts:L' cannot be"),
        (
            ["dc", "digits", "--attacks", "their_package.parts:Scaled"],
            "attack 'their_package.parts:Scaled' is no attack",
        ),
    ],
)
def test_what_is_not_there_is_one_line(
    words: list[str], message: str, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([*words, "--runs", str(tmp_path / "runs")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
