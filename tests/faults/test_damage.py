"""Each file of a run, damaged in each way: the same command ends with the same table, or one line names the file."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from distill.app.main import main
from distill.evaluation import student_tasks
from distill.runs.run import Run
from tests.faults.outcomes import outcome

STUDENTS = ["--students", "2", "--student.epochs", "40", "--attacks", "linf", "--checkpoint-seconds", "0"]
SMALL = ["--backbone", "convnet:width=4", "--iterations", "2", "--outer-loop", "2", "--inner-loop", "1"]
SMALL += ["--batch-real", "8", *STUDENTS]
IN_CI = 40
"""of the pairs of a file and a damage; all of them with -m slow"""


def _flip(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes() or b"0")
    content[len(content) * 3 // 4] ^= 0x11
    path.write_bytes(content)


def _folder(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path, other: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "removed": lambda path, other: path.unlink(),
    "empty": lambda path, other: path.write_bytes(b""),
    "half": lambda path, other: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "without its end": lambda path, other: path.write_bytes(path.read_bytes()[:-1]),
    "a flipped bit": _flip,
    "text": lambda path, other: path.write_text("something else\n"),
    "null": lambda path, other: path.write_text("null\n"),
    "deep": lambda path, other: path.write_text("[" * 100_000),
    "no UTF-8": lambda path, other: path.write_bytes(b"\xff\xfe\x00" * 50),
    "a folder": _folder,
    "a pipe": _pipe,
    "of another run": lambda path, other: shutil.copy(other, path),
    "its lines twice": lambda path, other: path.write_bytes(2 * path.read_bytes()),
}
FINISHED = [
    "experiment.json",
    "distilled.safetensors",
    "results.jsonl",
    "table.csv",
    "table.md",
    "grid.png",
    "report.html",
]
FINISHED += [
    "metrics.jsonl",
    "students/0.safetensors",
    "students/1-correct.safetensors",
    "students/shown.safetensors",
    ".lock",
]
HALF_WAY = ["experiment.json", "state.pt", "metrics.jsonl"]
WITHOUT_STUDENT = ["distilled.safetensors", "students/0.safetensors", "students/0-correct.safetensors"]
CASES = [("finished", name) for name in FINISHED]
CASES += [("half-way", name) for name in HALF_WAY] + [("without a student", name) for name in WITHOUT_STUDENT]
PAIRS = [(*case, damage) for case in CASES for damage in DAMAGES]
CHOSEN = set(random.Random(0).sample(PAIRS, IN_CI))


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs of seed 0: finished, stopped while it distils, and without its second student; and of seed 1."""
    found, patch = {}, pytest.MonkeyPatch()
    patch.setattr(student_tasks, "advised_columns", lambda *_: {})
    for name, seed in (("finished", 0), ("other", 1)):
        found[name] = tmp_path_factory.mktemp(name)
        assert main(_words(data, found[name], seed)) == 0
    found["half-way"], whole = tmp_path_factory.mktemp("half"), Run.save

    def save_once(*given: object, **named: object) -> None:
        whole(*given, **named)
        raise KeyboardInterrupt

    patch.setattr(Run, "save", save_once)
    assert main(_words(data, found["half-way"])) == 130
    patch.undo()
    found["without a student"] = tmp_path_factory.mktemp("without")
    shutil.copytree(found["finished"], found["without a student"], dirs_exist_ok=True)
    folder = _run(found["without a student"])
    for path in (*folder.glob("students/1*"), *folder.glob("results.jsonl"), *folder.glob("table.*")):
        path.unlink()
    shutil.copy(_run(found["half-way"]) / "state.pt", _run(found["other"], 1) / "state.pt")
    return found


def _words(data: Path, runs: Path, seed: int = 0) -> list[str]:
    return ["dc", "folder", "--data-dir", str(data), "--runs", str(runs), "--seed", str(seed), *SMALL]


def _run(runs: Path, seed: int = 0) -> Path:
    return next(runs.glob(f"dc/*/ipc1/seed{seed}"))


@pytest.mark.parametrize(
    ("state", "name", "damage"),
    [pair if pair in CHOSEN else pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS],
)
def test_a_damaged_file_is_made_again_or_named(
    state: str,
    name: str,
    damage: str,
    runs: dict[str, Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "runs"
    shutil.copytree(runs[state], place)
    folder = _run(place)
    if not (folder / name).exists():
        pytest.skip("a run in this state has no such file")
    DAMAGES[damage](folder / name, _run(runs["other"], 1) / name)
    code, line = outcome(_words(data, place), capsys)
    if code == 2 and name == "experiment.json":  # it is what says whose the folder is, which is to be moved away
        assert str(folder) in line
        return
    if code == 2:
        assert name.rpartition("/")[2] in line
        if (folder / name).is_dir():
            (folder / name).rmdir()
        else:
            (folder / name).unlink()
        assert outcome(_words(data, place), capsys)[0] == 0
    expected = (_run(runs["finished"]) / "table.csv").read_text()
    assert (folder / "table.csv").read_text() == expected
