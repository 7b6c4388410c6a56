"""Runs that are killed at random moments end with the bits of an untouched run, and leave nothing half written."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distill.runs.files import read_tensors
from tests.faults.test_damage import SMALL, STUDENTS
from tests.faults.test_full_disk import MTT

ROOT = Path(__file__).parent.parent.parent
PIPELINES = {
    "guard_dc": ["guard_dc", "folder", *SMALL, "--iterations", "40"],
    "dm": ["dm", "folder", "--backbone", "convnet:width=4", "--iterations", "200", *STUDENTS],
    "mtt": [*MTT, "--iterations", "60"],
    "frepo": ["frepo", "folder", "--backbone", "convnet:width=4", "--iterations", "60", *STUDENTS],
    "kip": ["kip", "folder", "--backbone", "convnet:width=4", "--iterations", "60", *STUDENTS],
}
FIRST = 4.0
"""seconds before which a process still imports"""


def begin(words: list[str], data: Path, runs: Path) -> subprocess.Popen:
    words = [sys.executable, "-m", "distill", *words, "--data-dir", str(data), "--runs", str(runs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def result(runs: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """Return the table of the only run below a folder, and the tensors of its files by their paths."""
    table = next(path for path in runs.rglob("table.csv"))
    tensors = {
        f"{path.relative_to(runs)} {name}": tensor
        for path in sorted(runs.rglob("*.safetensors"))
        for name, tensor in read_tensors(path)[0].items()
    }
    return table.read_text(), tensors


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", PIPELINES)
def test_a_killed_run_ends_with_the_same_bits(name: str, seed: int, data: Path, tmp_path: Path) -> None:
    words, draw = PIPELINES[name], random.Random(f"{name} {seed}")
    started = time.monotonic()
    assert begin(words, data, tmp_path / "whole").wait() == 0
    lasts, killed = time.monotonic() - started, 0
    for _ in range(6):
        process = begin(words, data, tmp_path / "cut")
        try:
            process.wait(draw.uniform(FIRST, max(FIRST + 1, lasts)))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
    assert begin(words, data, tmp_path / "cut").wait() == 0
    table, tensors = result(tmp_path / "whole")
    again, same = result(tmp_path / "cut")
    assert again == table
    assert tensors.keys() == same.keys()
    assert all(torch.equal(tensors[key], same[key]) for key in tensors)
    assert [path for path in (tmp_path / "cut").rglob(".*") if path.name.endswith(".unfinished")] == []
    print(f"{name}: {killed} kills")
