"""KIP as a user types it: kernels, learned labels, whitening, students in the authors' way, and what it refuses."""

import csv
import json
from pathlib import Path

import pytest
import torch

from distill.app.main import main
from distill.data import label
from distill.distilled import DistilledSet
from distill.runs.files import read_tensors
from distill.runs.run import Run

SMALL = ["--backbone", "convnet:width=4,depth=2", "--iterations", "3", "--target-batch", "10", "--student-steps", "40"]
SMALL += ["--students", "1", "--attacks", "fgsm", "--ipc", "2"]
FEW = ["--student.epochs", "10"]
"""for the standard protocol"""
LEARNED = ["--labels", "learned", "--iterations", "60", "--target-batch", "40"]


def place(data: Path) -> Path:
    """Return where a run on these data is, below the folder of all runs."""
    return Path("kip", label("folder", data), "ipc2", "seed0")


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def clean(folder: Path) -> float:
    rows = csv.DictReader((folder / "table.csv").read_text().splitlines())
    return {row["attack"]: float(row["mean"]) for row in rows}["clean"]


@pytest.mark.parametrize("kernel", ["fc", "convnet"])
def test_digits_are_distilled(kernel: str, tmp_path: Path) -> None:
    words = ["kip", "digits", "--runs", tmp_path, *SMALL, "--kernel", kernel, "--student.epochs", "60"]
    assert run(*words, "--depth", "1") == 0
    assert clean(tmp_path / "kip" / "digits" / "ipc2" / "seed0") > 30


def test_a_set_is_judged_in_both_ways(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data-dir", data, "--runs", tmp_path, "--students", "1", "--attacks", "fgsm", "--student.epochs", "10"]
    assert run("kip", "folder", "--data-dir", data, "--runs", tmp_path, *SMALL, *FEW, *LEARNED) == 0
    made = DistilledSet.load(tmp_path / place(data))
    assert set(made.training_tensors) == {"labels"}
    assert made.labels.shape == made.training_tensors["labels"].shape == (4, 2)
    capsys.readouterr()
    assert run("evaluate", tmp_path / place(data), *words, "--protocol", "own") == 2
    assert "--student.epochs has no effect with --protocol own" in capsys.readouterr().err
    assert run("evaluate", tmp_path / place(data), *words[:-2], "--protocol", "own") == 0
    (table,) = (tmp_path / "evaluate").rglob("table.csv")
    assert clean(table.parent) > 90
    losses = {json.loads(row)["loss"] for row in (table.parent / "results.jsonl").read_text().splitlines()}
    assert losses == {"own"}
    own, standard = (
        read_tensors(place / "students" / "0.safetensors")[0] for place in (table.parent, tmp_path / place(data))
    )
    assert not any(torch.equal(own[name], standard[name]) for name in own if name.endswith("weight"))


def test_a_killed_run_ends_with_the_same_bits(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["kip", "folder", "--data-dir", data, *SMALL, "--checkpoint-seconds", "0", "--recipe", "paper"]
    words += ["--protocol", "own", "--zca"]
    assert run(*words, "--runs", tmp_path / "whole") == 0
    log = Run.log

    def dies(self: Run, step: int, **scalars: float) -> None:
        if step == 1:
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
        (["--ipc", "21"], "ipc is 21; the smallest class of folder has 20 images"),
        (["--target-batch", "1"], "target_batch is 1; folder has 2 classes, take more"),
        (["--kernel", "convnet", "--depth", "4"], "images of 8 px are halved to nothing by depth 4"),
        (["--kernel", "convolutional"], "convolutional"),
        (["--ridge", "-1"], "ridge is -1.0; it must be >= 0"),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str], line: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("kip", "folder", "--data-dir", data, "--runs", tmp_path, *SMALL, *flags) == 2
    assert line in capsys.readouterr().err
