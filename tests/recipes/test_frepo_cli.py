"""FRePo as a user types it: both protocols, killed and continued, grey images, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from distill.app.main import main
from distill.data import label, load
from distill.distilled import DistilledSet
from distill.models import build
from distill.runs.files import read_tensors
from distill.runs.run import Run
from distill.training.whiten import Whiten
from tests.toy import write_toy

SMALL = [
    "--recipe",
    "quick",
    "--backbone",
    "frepo_convnet:width=8,depth=2",
    "--iterations",
    "30",
    "--batch-real",
    "16",
    "--ipc",
    "2",
]
SMALL += ["--num-nn-state", "2", "--max-online-updates", "3", "--lr-img", "0.01", "--lr-net", "0.01", "--students", "2"]
SMALL += ["--student-steps", "150", "--student-lr", "0.01", "--student.epochs", "20", "--attacks", "linf"]


def place(data: Path) -> Path:
    """Return where a run on these data is, below the folder of all runs."""
    return Path("frepo", label("folder", data), "ipc2", "seed0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"))


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_run_and_its_set_in_both_protocols(data: Path, tmp_path: Path) -> None:
    words = ["frepo", "folder", "--data-dir", data, "--runs", tmp_path, *SMALL, "--zca"]
    assert run(*words) == 0
    folder = tmp_path / place(data)
    assert {row["loss"] for row in rows(folder)} == {"cross_entropy"}
    clean = [row["accuracy"] for row in rows(folder) if row["attack"] == "clean"]
    assert min(clean) > 60
    found = DistilledSet.load(folder)
    assert found.training_tensors["labels"].shape == (4, 2)
    assert found.labels.shape == (4, 2)
    assert not (folder / "state.pt").exists()

    options = ["--data-dir", data, "--runs", tmp_path, "--students", "2", "--attacks", "linf"]
    assert run("evaluate", folder, *options, "--protocol", "own") == 0
    (table,) = (tmp_path / "evaluate").rglob("table.md")
    assert "| own |" in table.read_text()
    network = build(found.backbone, channels=3, image_size=8, num_classes=2, generator=torch.Generator())
    network.load_state_dict(read_tensors(table.parent / "students" / "0.safetensors")[0])
    model = nn.Sequential(Whiten.load(folder / found.training.whitening), network).eval()
    test = load("folder", data, None)[1]
    correct = read_tensors(table.parent / "students" / "0-correct.safetensors")[0]
    with torch.no_grad():
        assert torch.equal(correct["clean"], model(test.images).argmax(1) == test.labels)
        assert correct["clean"].float().mean() > 0.7
        seen = model(found.images)
    assert (seen - found.training_tensors["labels"]).abs().max() < 0.7  # regressed, centred: no logits of cross-entropy


def test_digits_are_grey_and_not_whitened(tmp_path: Path) -> None:
    words = [
        "frepo",
        "digits",
        "--recipe",
        "quick",
        "--runs",
        tmp_path,
        "--iterations",
        "40",
        "--student-steps",
        "150",
        "--students",
        "1",
    ]
    assert run(*words, "--protocol", "own", "--attacks", "linf", "--test-images", "100") == 0
    (folder,) = (tmp_path / "frepo" / "digits").rglob("seed0")
    clean = next(row["accuracy"] for row in rows(folder) if row["attack"] == "clean")
    assert clean > 40
    assert DistilledSet.load(folder).training.whitening is None


def test_a_killed_run_ends_with_the_same_bits(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "frepo",
        "folder",
        "--data-dir",
        data,
        *SMALL,
        "--use-flip",
        "--checkpoint-seconds",
        "0",
        "--students",
        "1",
    ]
    words += ["--iterations", "7"]
    assert run(*words, "--runs", tmp_path / "whole") == 0
    log = Run.log

    def dies(self: Run, step: int, **scalars: float) -> None:
        if step == 4:
            raise KeyboardInterrupt
        log(self, step, **scalars)

    monkeypatch.setattr(Run, "log", dies)
    assert run(*words, "--runs", tmp_path / "cut") == 130
    monkeypatch.setattr(Run, "log", log)
    assert run(*words, "--runs", tmp_path / "cut") == 0
    for file in ("distilled.safetensors", "students/0.safetensors"):
        whole, cut = (read_tensors(tmp_path / name / place(data) / file)[0] for name in ("whole", "cut"))
        assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--lr-img", "nan"], "--lr-img is nan; it must be a finite number > 0"),
        (["--backbone", "mlp"], "backbone mlp has no option norm=batch for the pool; take pool_norm same"),
        (["--student-augment", "zoom"], "unknown operation of student_augment 'zoom'"),
        (["--lr-net", "1e30"], "the regression diverged in iteration"),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str], line: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("frepo", "folder", "--data-dir", data, "--runs", tmp_path, *SMALL, *flags) == 2
    told = [text for text in capsys.readouterr().err.splitlines() if text.startswith("run.sh: ")]
    assert len(told) == 1
    assert line in told[0]


def test_damaged_labels_are_told(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["frepo", "folder", "--data-dir", data, "--runs", tmp_path, *SMALL, "--iterations", "3"]
    assert run(*words, "--students", "1") == 0
    path = tmp_path / place(data) / "distilled.safetensors"
    found = DistilledSet.load(path)
    found.training_tensors["labels"][0, 0] = float("nan")
    found.save(path)
    options = ["--data-dir", data, "--runs", tmp_path, "--students", "1", "--protocol", "own"]
    assert run("evaluate", tmp_path / place(data), *options) == 2
    assert "learned labels are (4, 2) and not all finite; 4 images need finite (4, 2)" in capsys.readouterr().err
