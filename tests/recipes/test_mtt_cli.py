"""MTT as a user types it: experts that runs share, killed and continued, and students in the authors' way."""

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from distill.app.main import main
from distill.data import label, load
from distill.distilled import DistilledSet
from distill.evaluation.trained import students_of
from distill.models import build
from distill.runs.files import read_tensors
from distill.runs.run import Run
from distill.training.whiten import Whiten
from tests.toy import write_toy

SMALL = ["--backbone", "convnet:width=4,depth=2", "--num-experts", "2", "--train-epochs", "2", "--expert-epochs", "1"]
SMALL += ["--max-start-epoch", "2", "--batch-train", "8", "--iterations", "3", "--syn-steps", "2", "--lr-img", "0.01"]
SMALL += ["--students", "2", "--student-epochs", "60", "--lr-init", "0.1", "--ipc", "2"]
FEW = ["--student.epochs", "20"]
"""for the standard protocol"""


def place(data: Path) -> Path:
    """Return where a run on these data is, below the folder of all runs."""
    return Path(label("folder", data), "ipc2", "seed0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"))


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def losses(folder: Path) -> set[str]:
    return {json.loads(row)["loss"] for row in (folder / "results.jsonl").read_text().splitlines()}


def test_experts_are_shared_by_seeds_and_methods(data: Path, tmp_path: Path) -> None:
    words = ["folder", "--data-dir", data, "--runs", tmp_path, *SMALL, *FEW, "--students", "1", "--attacks", "fgsm"]
    assert run("mtt", *words) == 0
    (stage,) = (tmp_path / "stages").iterdir()
    before = {path: path.stat().st_mtime_ns for path in stage.glob("*.safetensors")}
    assert [path.name for path in sorted(before)] == ["000.safetensors", "001.safetensors"]
    assert run("mtt", *words, "--seed", "1") == run("tesla", *words) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").rglob("*.safetensors")}
    assert run("guard_mtt", *words) == run("mtt", *words, "--seed", "2", "--expert-seed", "2") == 0
    assert len(list((tmp_path / "stages").iterdir())) == 3
    images = [
        DistilledSet.load(tmp_path / method / label("folder", data) / "ipc2" / seed).images
        for method, seed in (("mtt", "seed0"), ("mtt", "seed1"), ("tesla", "seed0"), ("guard_mtt", "seed0"))
    ]
    assert not any(torch.equal(images[0], other) for other in images[1:])


@pytest.mark.parametrize("key", ["accuracy", "lr"])  # in the second expert, in the second iteration
def test_a_killed_run_ends_with_the_same_bits(
    key: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "mtt",
        "folder",
        "--data-dir",
        data,
        *SMALL,
        *FEW,
        "--zca",
        "--checkpoint-seconds",
        "0",
        "--attacks",
        "fgsm",
    ]
    assert run(*words, "--runs", tmp_path / "whole") == 0
    log = Run.log

    def dies(self: Run, step: int, **scalars: float) -> None:
        if key in scalars and step == 1 and (key == "lr" or self.folder.name == "001"):
            raise KeyboardInterrupt
        log(self, step, **scalars)

    monkeypatch.setattr(Run, "log", dies)
    assert run(*words, "--runs", tmp_path / "cut") == 130
    monkeypatch.setattr(Run, "log", log)
    assert run(*words, "--runs", tmp_path / "cut") == 0
    sets, students = (
        [read_tensors(tmp_path / name / "mtt" / place(data) / file)[0] for name in ("whole", "cut")]
        for file in ("distilled.safetensors", "students/1.safetensors")
    )
    for whole, cut in (sets, students):
        assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_the_table_says_whose_protocol_it_was(data: Path, tmp_path: Path) -> None:
    words = ["folder", "--data-dir", data, "--runs", tmp_path, *SMALL, *FEW]
    assert run("mtt", *words) == 0
    folder = tmp_path / "mtt" / place(data)
    assert losses(folder) == {"cross_entropy"}
    options = ["--data-dir", data, "--runs", tmp_path, "--students", "2", "--protocol", "own"]
    assert run("evaluate", folder, *options) == 0
    (table,) = (tmp_path / "evaluate").rglob("table.md")
    assert losses(table.parent) == {"own"}
    assert "| own |" in table.read_text()
    own, standard = (read_tensors(place / "students" / "0.safetensors")[0] for place in (table.parent, folder))
    assert not any(torch.equal(own[name], standard[name]) for name in own if name.endswith("weight"))


def test_a_whitened_set_is_judged_through_its_whitening(data: Path, tmp_path: Path) -> None:
    words = ["mtt", "folder", "--data-dir", data, "--runs", tmp_path, *SMALL, "--zca", "--protocol", "own"]
    assert run(*words) == 0
    folder = tmp_path / "mtt" / place(data)
    found, test = DistilledSet.load(folder), load("folder", data, None)[1]
    network = build(found.backbone, channels=3, image_size=8, num_classes=2, generator=torch.Generator())
    network.load_state_dict(read_tensors(folder / "students" / "0.safetensors")[0])
    model = nn.Sequential(Whiten.load(folder / found.training.whitening), network).eval()
    (again,) = students_of(folder, found, found.backbone, 1, own=True)
    assert torch.equal(again(test.images), model(test.images))
    (normalised,) = students_of(folder, found, found.backbone, 1)
    assert not torch.allclose(normalised(test.images), model(test.images), atol=1e-2)

    correct = read_tensors(folder / "students" / "0-correct.safetensors")[0]
    with torch.no_grad():
        assert torch.equal(correct["clean"], model(test.images).argmax(1) == test.labels)
    accuracy = {
        row["attack"]: float(row["mean"]) for row in csv.DictReader((folder / "table.csv").read_text().splitlines())
    }
    assert accuracy["clean"] > 90
    assert accuracy["clean"] >= accuracy["linf"] >= accuracy["linf_star"]

    options = ["--data-dir", data, "--runs", tmp_path, "--students", "1", "--protocol", "own"]
    assert run("evaluate", folder, *options) == 0
    assert run("curvature", folder, "--data-dir", data, "--images", "6", "--students", "1") == 0


def test_a_whitening_that_is_gone_is_told(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("mtt", "folder", "--data-dir", data, "--runs", tmp_path, *SMALL, *FEW, "--zca") == 0
    (whitening,) = (tmp_path / "stages").glob("whitening*/*.safetensors")
    whitening.unlink()
    options = ["--data-dir", data, "--runs", tmp_path, "--students", "1"]
    capsys.readouterr()
    assert run("evaluate", tmp_path / "mtt" / place(data), *options, "--protocol", "own") == 2
    assert "there is no file" in capsys.readouterr().err
    assert run("evaluate", tmp_path / "mtt" / place(data), *options) == 0
