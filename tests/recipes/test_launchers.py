"""Every way to start several processes of a run gives the same set, to the bit: forks, new processes, torchrun."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from distill.runs.files import hash_of

ROOT = Path(__file__).parents[2]
WORDS = ["dc", "digits", "--recipe", "smoke"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node"]


def begin(program: list[str], runs: Path, environment: dict[str, str] = ENVIRONMENT) -> subprocess.Popen:
    words = [sys.executable, *program, *WORDS, "--runs", str(runs)]
    options = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, **options)


def hash_after(processes: list[subprocess.Popen], runs: Path) -> str:
    """Return the hash of the set, once all commands have ended; the table was printed once."""
    printed = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), printed
    assert "".join(printed).count("dc on digits, ipc 1, convnet:width=8,depth=2") == 1
    return hash_of(runs / "dc" / "digits" / "ipc1" / "seed0" / "distilled.safetensors")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the set that one process makes."""
    runs = tmp_path_factory.mktemp("one")
    return hash_after([begin(["-m", "distill"], runs)], runs)


@pytest.mark.parametrize(
    ("program", "processes"),
    [
        (["-m", "distill"], "3"),
        (["-m", "distill.runs.launch", "2"], "2"),
        ([*TORCHRUN, "2", "--standalone", "-m", "distill"], "1"),
    ],
    ids=["forks", "new processes", "torchrun"],
)
def test_each_launcher(program: list[str], processes: str, expected: str, tmp_path: Path) -> None:
    assert hash_after([begin(program, tmp_path, ENVIRONMENT | {"NPROC": processes})], tmp_path) == expected


def test_two_machines(expected: str, tmp_path: Path) -> None:
    """Two torchruns that find each other by an address, here both of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    programs = [[*TORCHRUN, "1", *nodes, "--node-rank", str(number), "-m", "distill"] for number in range(2)]
    assert hash_after([begin(program, tmp_path) for program in programs], tmp_path) == expected
