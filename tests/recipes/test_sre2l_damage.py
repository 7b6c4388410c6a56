"""A run of SRe2L that was killed, or whose files were damaged, ends in the same table, or in a line that names one."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

import distill.runs.files
from distill.app.main import main

ROOT = Path(__file__).parents[2]
FLAGS = ["--backbone", "convnet:width=4,depth=2,norm=batch", "--ipc", "2", "--squeeze.epochs", "2"]
FLAGS += ["--squeeze.batch-size", "8", "--squeeze.lr", "0.05", "--squeeze.augment", "padded_crop", "--students", "1"]
FLAGS += ["--squeeze.warmup-epochs", "0", "--recover.iterations", "6", "--recover.batch-size", "2"]
FLAGS += ["--recover.jitter", "0", "1", "--relabel.epochs", "3", "--relabel.batch-size", "4", "--attacks", "pgd@2/255"]
FLAGS += ["--compute.amp", "none", "--checkpoint-seconds", "0"]


def words(runs: Path, data: Path, *flags: str, method: str = "guard_sre2l") -> list[str]:
    return [method, "folder", "--data-dir", str(data), "--runs", str(runs), *FLAGS, *flags]


def outcome(runs: Path) -> dict[str, bytes | dict[str, list]]:
    """Return what must be the same after any interruption: bits of tensors, and the table."""
    tensors = [*runs.rglob("distilled.safetensors"), *runs.rglob("students/*.safetensors"), *runs.rglob("epoch-*")]
    found = {
        str(path.relative_to(runs)): sorted((n, t.tolist()) for n, t in load_file(path).items()) for path in tensors
    }
    (table,) = runs.rglob("table.csv")
    return found | {"table": table.read_bytes()}


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the runs of seeds 0 and 1, in folders of their own."""
    folder = tmp_path_factory.mktemp("whole")
    for seed in "01":
        assert main(words(folder / seed, data, "--seed", seed)) == 0
    return folder


def unfinished(finished: Path, runs: Path, until: str, data: Path, seed: str = "0") -> None:
    """Make the run as it was when a checkpoint had just been written, or before its first student where it has none."""
    if not until.endswith(".pt"):
        shutil.copytree(finished / seed, runs)
        (folder,) = (path.parent for path in runs.rglob("results.jsonl"))
        shutil.rmtree(folder / "students")
        for name in ("results.jsonl", "table.csv", "table.md", "teacher.jsonl"):
            (folder / name).unlink()
        return
    write = distill.runs.files.write_atomic

    def dying(path: Path, how: Callable[[Path], object]) -> None:
        write(path, how)
        if path.name == until:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill.runs.files, "write_atomic", dying)
        assert main(words(runs, data, "--seed", seed)) == 130


FILES = ["teacher.safetensors", "unit-00000.safetensors", "epoch-0001.safetensors", "labels.json", "experiment.json"]
FILES += ["state.pt", "unit-00000.pt", "0-training.pt", "distilled.safetensors"]
KINDS = ["gone", "empty", "truncated", "garbage", "other", "folder"]


def damaged(path: Path, other: Path, kind: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "gone":
        half = content[: len(content) // 2]
        noise = random.Random(0).randbytes(len(content))
        path.write_bytes({"empty": b"", "truncated": half, "garbage": noise, "other": other.read_bytes()}[kind])


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("teacher.safetensors", ["other"]),
        ("epoch-0001.safetensors", ["gone", "other"]),
        ("0-training.pt", ["other"]),
        *(pytest.param(name, KINDS, marks=pytest.mark.slow) for name in FILES),
    ],
)
def test_damage(
    name: str, kinds: list[str], whole: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is refused by name is deleted then, as the line says, and made again."""
    same = outcome(whole / "0")
    for seed in "01":
        unfinished(whole, tmp_path / f"before{seed}", name, data, seed)
    where = "stages/relabel*/experiment.json" if name == "experiment.json" else f"**/{name}"
    for kind in kinds:
        runs = tmp_path / kind
        shutil.copytree(tmp_path / "before0", runs)
        (path,), (other,) = runs.glob(where), (tmp_path / "before1").glob(where)
        if name in ("unit-00000.safetensors", "experiment.json"):  # which are read where there is no set
            next(runs.rglob("distilled.safetensors")).unlink()
        damaged(path, other, kind)
        capsys.readouterr()
        code = main(words(runs, data, "--seed", "0"))
        said = capsys.readouterr().err
        if code == 0:
            assert outcome(runs) == same, kind
        else:
            last = said.splitlines()[-1]
            assert code == 2, kind
            assert last.startswith("run.sh: "), kind
            assert name in last or path.parent.name in last, (kind, last)
            assert len(last) < 700, kind
        if kind == "gone":
            assert code == 0
        elif path.is_dir():  # what the line says
            path.rmdir()
        elif code:
            path.unlink()
        if code:
            assert main(words(runs, data, "--seed", "0")) == 0, (kind, capsys.readouterr().err)
            assert outcome(runs) == same, kind
        shutil.rmtree(runs)


# --- kills -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "kills"),
    [
        ("guard_sre2l", 1),
        pytest.param("sre2l", 20, marks=pytest.mark.slow),
        pytest.param("guard_sre2l", 20, marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments(method: str, kills: int, data: Path, tmp_path: Path) -> None:
    """A process is killed once its folder has begun to fill, at a moment that a seeded generator draws."""
    long = ["--recover.iterations", "30", "--squeeze.epochs", "3", "--relabel.epochs", "20", "--students", "2"]
    assert main(words(tmp_path / "whole", data, *long, method=method)) == 0
    same, draw = outcome(tmp_path / "whole"), random.Random(kills)
    done = landed = 0
    while done < kills:
        runs = tmp_path / f"killed{done}"
        for _ in range(5):
            command = ["-m", "distill", *words(runs, data, *long, method=method)]
            if done == kills or not _killed_in(runs, draw, command):
                break
            done, landed = done + 1, landed + 1
        assert main(words(runs, data, *long, method=method)) == 0
        assert outcome(runs) == same
    print(f"{landed} kills of {method}")


def _killed_in(runs: Path, draw: random.Random, command: list[str]) -> bool:
    """Start the command, wait until it changes its folder, and kill it a moment later; return whether it was alive."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    before = _newest(runs)
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, **pipes)
    while process.poll() is None and _newest(runs) == before:
        time.sleep(0.005)
    time.sleep(draw.random() * 2.5)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return alive


def _newest(folder: Path) -> int:
    times = []
    for path in folder.rglob("*"):
        try:
            times.append(path.stat().st_mtime_ns)
        except FileNotFoundError:  # a temporary file
            continue
    return max(times, default=0)
