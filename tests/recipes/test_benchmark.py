"""`bash run.sh benchmark`: cells that fail or are killed, parts of a table, and what is bad input."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.app.main import main
from distill.data import label

ROOT = Path(__file__).parent.parent.parent
WORDS = ["benchmark", "--datasets", "folder", "--seeds", "1", "--students", "2", "--backbone", "recipe"]
WORDS += ["--attacks", "linf"]
EXTRA = ["random: --student.epochs 20 --backbone convnet:width=4"]
DM = "dm: --student.epochs 20 --backbone convnet:width=4 --batch-real 8 --iterations"


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def test_cells_that_fail_lose_no_others(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--data-dir", data, "--runs", tmp_path, "--flags", *EXTRA, f"{DM} 2"]
    words = [*WORDS, "--methods", "random,dm", *places, "--jobs", "2"]
    assert run(*words, "--ipc", "1,100") == 1
    out, err = capsys.readouterr()
    assert [line.split(" | ")[0].strip("| ") for line in out.splitlines()[4:6]] == ["random", "dm"]
    trouble, name = "ipc is 100; the smallest class of folder has 20 images", label("folder", data)
    assert f"failed: random-{name}-ipc100-seed0, dm-{name}-ipc100-seed0: {trouble}\n" in err
    assert "2 of 4 cells failed" in err
    assert sorted(path.name for path in (tmp_path / "benchmark").iterdir()) == [
        "logs",
        "report.html",
        "table.csv",
        "table.md",
        "table.tex",
    ]

    assert run(*words, "--ipc", "1") == 0
    again, err = capsys.readouterr()
    assert again == out
    assert "2 of 2 cells already done" in err

    place = tmp_path / "dm" / name / "ipc1" / "seed0"
    for content in ("x", ""):  # damaged results are made anew, from the students that are there
        (place / "results.jsonl").write_text(content)
        students = (place / "students" / "0.safetensors").stat().st_mtime_ns
        assert run(*words, "--ipc", "1") == 0
        assert capsys.readouterr().out == out
        assert (place / "students" / "0.safetensors").stat().st_mtime_ns == students

    alone = ["random", "folder", "--ipc", "1", "--data-dir", data, "--runs", tmp_path / "alone", "--students", "2"]
    assert run(*alone, "--student.epochs", "20", "--backbone", "convnet:width=4", "--attacks", "linf") == 0
    texts = [
        (where / "random" / label("folder", data) / "ipc1" / "seed0" / "table.csv").read_text()
        for where in (tmp_path, tmp_path / "alone")
    ]
    tables = [list(csv.DictReader(text.splitlines())) for text in texts]
    for row in (*tables[0], *tables[1]):
        assert row.pop("advised") is not None  # only processes of their own run the advised attacks here
        assert row.pop("advised_mean") is not None
    assert tables[0] == tables[1]


def test_a_killed_table_continues(data: Path, tmp_path: Path) -> None:
    words = [*WORDS, "--methods", "random,dm", "--ipc", "1", "--jobs", "1", "--data-dir", data, "--runs", tmp_path]
    words += ["--flags", *EXTRA, f"{DM} 150 --checkpoint-seconds 0"]
    command = [sys.executable, "-m", "distill", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    state = tmp_path / "dm" / label("folder", data) / "ipc1" / "seed0" / "state.pt"
    end = time.monotonic() + 120
    while not state.exists():
        assert time.monotonic() < end
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert (tmp_path / "random" / label("folder", data) / "ipc1" / "seed0" / "table.csv").exists()
    assert not (state.parent / "table.csv").exists()

    second = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert "1 of 2 cells already done" in second.stderr
    assert [line.split(" | ")[0].strip("| ") for line in second.stdout.splitlines()[4:6]] == ["random", "dm"]
    log = (tmp_path / "benchmark" / "logs" / f"dm-{label('folder', data)}-ipc1-seed0.log").read_text()
    assert "interrupted; the same command continues" in log or sys.platform != "linux"


def test_all_methods_have_students_of_one_network(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["benchmark", "--datasets", "folder", "--seeds", "1", "--students", "2", "--methods", "random,dm"]
    words += ["--ipc", "1", "--data-dir", data, "--runs", tmp_path, "--attacks", "linf", "--test-images", "20"]
    flags = ["--flags", *EXTRA, f"{DM.replace('width=4', 'width=8')} 2"]
    assert run(*words, "--backbone", "convnet:width=8", *flags) == 0
    out, _ = capsys.readouterr()
    assert out.splitlines()[0] == f"{label('folder', data)}, ipc 1, students convnet:width=8"
    assert [line.split(" | ")[0].strip("| ") for line in out.splitlines()[4:6]] == ["random", "dm"]
    (judged,) = (tmp_path / "evaluate" / label("folder", data)).glob("random-*/seed0-convnet_width=8")
    rows = list(csv.DictReader((judged / "table.csv").read_text().splitlines()))
    assert {(row["attack"], row["backbone"], row["n"]) for row in rows} == {
        ("clean", "convnet:width=8", "2"),
        ("linf", "convnet:width=8", "2"),
    }
    # the students of dm's recipe are those of the table
    assert not list((tmp_path / "evaluate" / label("folder", data)).glob("dm-*"))

    (judged / "table.csv").unlink()  # killed between the two: the run is not made again
    assert run(*words, "--backbone", "convnet:width=8", *flags, "--dry-run") == 0
    said, err = capsys.readouterr()
    assert "2 cells, 1 done" in err
    random = tmp_path / "random" / label("folder", data) / "ipc1" / "seed0"
    assert f"bash run.sh evaluate {random} --backbone convnet:width=8" in said
    assert run(*words, "--backbone", "convnet:width=8", *flags) == 0
    assert capsys.readouterr().out == out

    (random / "distilled.safetensors").unlink()
    assert run(*words, "--backbone", "convnet:width=8", *flags) == 1  # it was finished once, and is not begun for ever
    assert (
        f"failed: random-{label('folder', data)}-ipc1-seed0: the cell ended without error, but its set"
        in capsys.readouterr().err
    )

    assert run(*words, *flags, "--dry-run") == 0  # by default they are those of the whole set
    assert "--backbone convnet:width=32 --recipe quick" in capsys.readouterr().out


def test_a_set_evaluated_with_other_settings_does_not_take_the_cells_place(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Students of 5 epochs from an evaluation by hand were shown as those of the cell, which has 20 epochs."""
    shared = ["--data-dir", data, "--runs", tmp_path, "--attacks", "linf", "--test-images", "20", "--students", "2"]
    words = ["benchmark", "--datasets", "folder", "--seeds", "1", "--methods", "random", "--ipc", "1", *shared]
    words += ["--backbone", "convnet:width=8", "--flags", *EXTRA]
    first = ["random", "folder", "--ipc", "1", *shared, "--student.epochs", "20", "--backbone", "convnet:width=4"]
    assert run(*first, "--protocol", "standard") == 0
    folder = tmp_path / "random" / label("folder", data) / "ipc1" / "seed0"
    by_hand = ["evaluate", folder, *shared, "--backbone", "convnet:width=8", "--recipe", "quick"]
    assert run(*by_hand, "--student.epochs", "5") == 0
    capsys.readouterr()
    assert run(*words) == 1
    out, err = capsys.readouterr()
    assert not out
    assert f"failed: random-{label('folder', data)}-ipc1-seed0: " in err
    assert "holds a run with another config: evaluation.student.epochs is 5 there, 20 now" in err


def test_parts_are_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["benchmark", "--datasets", "digits,mnist", "--methods", "random,dc,sre2l", "--seeds", "3", "--dry-run"]
    words += ["--runs", tmp_path, "--protocol", "own"]
    assert run(*words) == 0
    whole = capsys.readouterr().out.splitlines()
    assert len(whole) == 2 * 2 * 3 * 3
    parts = []
    for number in range(1, 6):
        assert run(*words, "--cell", f"{number}/5") == 0
        parts += capsys.readouterr().out.splitlines()
    assert sorted(parts) == sorted(whole)
    assert all(line.startswith("bash run.sh ") and line.endswith("# to run") for line in whole)
    own = [line.split()[2] for line in whole if "--protocol own" in line]
    assert set(own) == {"sre2l"}  # the others have no way of their own
    assert not list(tmp_path.iterdir())


def test_a_table_without_names_has_all_methods_but_those_for_large_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("benchmark", "--datasets", "digits", "--ipc", "1", "--seeds", "1", "--dry-run", "--runs", tmp_path) == 0
    methods = [line.split()[2] for line in capsys.readouterr().out.splitlines()]
    assert {"random", "dc", "guard_dc", "dm", "mtt"} <= set(methods)
    assert "sre2l" not in methods


def test_another_config_is_no_lost_table(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dc" / label("folder", data) / "ipc1" / "seed0").mkdir(parents=True)
    (tmp_path / "dc" / label("folder", data) / "ipc1" / "seed0" / "experiment.json").write_text(
        '{"experiment": {"ipc": 7}}'
    )
    (tmp_path / "dc" / label("folder", data) / "ipc1" / "seed0" / "state.pt").write_bytes(b"")
    words = [*WORDS, "--methods", "dc", "--ipc", "1", "--data-dir", data, "--runs", tmp_path]
    assert run(*words) == 1
    assert f"failed: dc-{label('folder', data)}-ipc1-seed0: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--methods", "dc,guard_cd"], "unknown method 'guard_cd'; did you mean"),
        (["--datasets", "cifer10"], "unknown data set 'cifer10'; did you mean 'cifar10'?"),
        (["--attacks", "pdg"], "unknown attack 'pdg'"),
        (["--ipc", "1,x"], "--ipc is x; it takes a whole number >= 1"),
        (["--seeds", "0"], "--seeds is 0; it must be in [1, 10000]"),
        (["--jobs", "0"], "--jobs is 0; it must be in [1, 1024]"),
        (["--cell", "9/8"], "--cell is 9/8; it takes I/N, from 1/N to N/N"),
        (["--flags", "dc --iterations 3"], "--flags is 'dc --iterations 3'; it takes \"METHOD: flags\""),
        (["--flags", "dd2: --iterations 3"], "unknown method 'dd2'"),
        (["--flags", "dc: --iterations 3", "dc: --lr-img 1"], "--flags names dc twice; give all its flags in one text"),
        (["--flags", "dc: --ipc 5"], "--flags has --ipc for dc; give it to the benchmark itself"),
        (["--methods", "dm", "--flags", "dc: --iterations 3"], "--flags is for dc, which is not among the methods: dm"),
        (["--datasets", ","], "--datasets is ','; it must name at least one of"),
        (["--methods", "dc", "--flags", "dc: --iterations 0"], "iterations is 0; it must be >= 1"),
        (["--methods", "dc", "--flags", "dc: --iteratons 3"], "--iteratons"),
        (["--students", "0"], "--students is 0; it must be in [1, 10000], or None"),
        (["--backbone", "convnot"], "unknown backbone 'convnot'; did you mean 'convnet'?"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(
    flags: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("benchmark", "--datasets", "digits", "--runs", tmp_path, *flags) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("run.sh: ")
    assert len(err.splitlines()) == 1
    assert line in err
    assert not list(tmp_path.iterdir())
