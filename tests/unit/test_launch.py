"""Several processes of one command: what ends all of them, and that none is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distill.app.main import main
from distill.errors import InputError
from distill.runs import ranks

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
LAUNCH = "import sys; from distill.runs.launch import launch; sys.exit(launch(2, sys.argv[1:]))"
BEGIN = """
import os, signal, sys, time
rank = int(os.environ["RANK"])
open(f"{sys.argv[1]}/{rank}-{os.getpid()}", "w").close()
def hang():
    try:
        open(f"{sys.argv[1]}/../hangs-{rank}", "w").close()
        time.sleep(60)
    except KeyboardInterrupt:
        open(f"{sys.argv[1]}/../heard-{rank}", "w").close()
        sys.exit(130)
"""
UNTIL_0_HANGS = """
while rank == 1 and not os.path.exists(f"{sys.argv[1]}/../hangs-0"):
    time.sleep(0.01)
"""


def launched(folder: Path, script: str) -> subprocess.Popen:
    (folder / "script.py").write_text(BEGIN + script)
    (folder / "began").mkdir()
    words = [sys.executable, "-c", LAUNCH, str(folder / "script.py"), str(folder / "began")]
    return subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def began(folder: Path) -> list[tuple[int, int]]:
    """Return (rank, process id) of what was started."""
    return sorted(tuple(map(int, path.name.split("-"))) for path in (folder / "began").iterdir())


def alive(folder: Path) -> list[int]:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        found = [pid for _, pid in began(folder) if Path(f"/proc/{pid}").exists()]
        if not found:
            break
        time.sleep(0.05)
    return found


def ended(process: subprocess.Popen) -> tuple[int, str]:
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize(("code", "said"), [(2, ""), (130, "run.sh: interrupted")])
def test_what_is_the_user_s_ends_all(code: int, said: str, tmp_path: Path) -> None:
    process = launched(tmp_path, f"{UNTIL_0_HANGS}sys.exit({code}) if rank == 1 else hang()")
    found, err = ended(process)
    assert (found, err.count("\n")) == (code, 2 if said else 0)  # the line begins on one of its own, behind ^C
    assert said in err
    assert [rank for rank, _ in began(tmp_path)] == [0, 1]
    assert alive(tmp_path) == []


def test_bad_input_of_one_comes_before_the_death_of_those_that_miss_it(tmp_path: Path) -> None:
    assert ended(launched(tmp_path, "sys.exit(2 if rank == 1 else 0)")) == (2, "")


@pytest.mark.parametrize(
    ("death", "how"),
    [("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL"), ("sys.exit(1)", "ended with exit code 1")],
)
def test_a_death_ends_all_with_one_line(death: str, how: str, tmp_path: Path) -> None:
    code, err = ended(launched(tmp_path, f"if rank == 1:\n    {death}\nhang()"))
    assert code == 1
    assert err == f"run.sh: process 1 of 2 {how}: all end; the same command continues from the last checkpoint\n"
    assert alive(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("deaf", [False, True])
def test_an_interrupt_is_passed_on(number: signal.Signals, deaf: bool, tmp_path: Path) -> None:
    """Those that do not hear it, as in a collective, are killed."""
    hear = "signal.signal(signal.SIGINT, lambda *_: None)\n" if deaf else ""
    process = launched(tmp_path, f"{hear}hang()")
    deadline = time.monotonic() + 10
    while len(began(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)  # until they sleep
    process.send_signal(number)
    code, err = ended(process)
    assert (code, err.strip()) == (130, "run.sh: interrupted; the same command continues from the last checkpoint")
    assert len(list(tmp_path.glob("heard-*"))) == (0 if deaf else 2)
    assert alive(tmp_path) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not tell a process of such a death")
def test_none_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    process = launched(tmp_path, "signal.signal(signal.SIGINT, signal.SIG_IGN)\nhang()")
    deadline = time.monotonic() + 10
    while len(began(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert len(began(tmp_path)) == 2
    assert alive(tmp_path) == []


# --- what the processes say to each other ------------------------------------------------------------------------


@pytest.fixture
def rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("DISTILL_STORE", str(tmp_path / "store"))
    yield monkeypatch
    ranks.store.cache_clear()


def test_bad_input_is_told_once_and_what_follows_from_it_not_at_all(
    rank: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import distill.app.main as module

    def command(arguments: list[str]) -> int:
        if arguments == ["bad"]:
            raise InputError("two are three; give two")
        raise RuntimeError("Connection closed by peer")

    rank.setattr(module, "command", command)
    said = []
    for number, words in (("0", "bad"), ("1", "bad"), ("0", "gone")):
        rank.setenv("RANK", number)
        assert main([words]) == 2
        said.append(capsys.readouterr().err)
    assert said == ["run.sh: two are three; give two\n", "", ""]
    rank.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # those that are started again know nothing of it
    ranks.store.cache_clear()
    with pytest.raises(RuntimeError, match="closed by peer"):
        main(["gone"])


SCRIPT = """
import sys
import torch
import distill.app.main as module
from distill.errors import InputError
from distill.runs.ranks import barrier, process_group, exit_process, rank


def command(arguments):
    with process_group(torch.device("cpu")):
        barrier()
        if rank() == 1:
            raise InputError("two are three; give two")
        barrier()
    return 0

module.command = command
exit_process(module.main([]))
"""


@pytest.mark.parametrize("launcher", ["ours", "torchrun"])
def test_bad_input_of_one_process_reaches_those_that_wait_for_it(launcher: str, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(path)]
    words = torchrun if launcher == "torchrun" else ["-c", LAUNCH, str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "check": False, "timeout": 200}
    done = subprocess.run([sys.executable, *words], **options)
    assert done.stderr.count("run.sh: ") == 1, done.stderr
    assert "run.sh: two are three; give two\n" in done.stderr
    if launcher == "ours":
        assert (done.returncode, done.stderr) == (2, "run.sh: two are three; give two\n")
    else:  # which tells of an exit code in its own way
        assert "exitcode  : 2" in done.stderr


@pytest.mark.parametrize(
    ("count", "device", "line"),
    [
        ("1000000", "cpu", "1000000 processes (--processes, NPROC); this machine has place for at most "),
        ("9" * 5000, "cpu", "NPROC is 9999999999999999999999999999999999999999; it takes a whole number"),
        ("-1", "cpu", "NPROC is -1; it takes a whole number of processes >= 1"),
        ("1.5", "cpu", "NPROC is 1.5; it takes"),
        ("", "cpu", "NPROC is ; it takes"),
        ("2", "cuda:1", "2 processes, but --device is cuda:1: give --device cuda, of which each process takes one"),
        ("2", "mps", "2 processes, but --device is mps; several processes take cpu or cuda"),
    ],
)
def test_more_processes_than_there_is_place_for(
    count: str, device: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPROC", count)
    with pytest.raises(InputError) as raised:
        ranks.check_processes(ranks.requested_processes() or 1, torch.device(device))
    assert str(raised.value).startswith(line)
    assert len(str(raised.value)) < 400
