"""Methods whose work several processes divide: the same bits for any number, also after a process was killed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.app.exit_codes import exit_code_of
from distill.app.registry import find_methods
from distill.data import facts_named, load
from distill.methods.method import Method
from distill.runs.files import read_tensors
from distill.runs.ranks import in_processes, is_main_process, process_group
from distill.runs.run import Run

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the processes are forks")

ROOT = Path(__file__).parents[2]
METHODS = find_methods()
ALIKE = {"mtt_robust_labels", "mtt_guard_labels"}
"""methods whose divided work mtt_robust_views has too"""
DIVIDED = [name for name, method in METHODS.items() if method.processes == "divided" and name not in ALIKE]
COUNTS = (1, 2, 3)
DIES = {"dc": 30, "dm": 60}
"""iterations of the runs whose second process is killed"""


def distil(method: Method, count: int, folder: Path, **fields: int) -> int:
    """Distil digits with recipe `smoke` in a number of processes into FOLDER/distilled.safetensors.

    `fields` are the config's; a checkpoint is written at each step.
    """
    real, _ = load("digits", folder)
    config, cpu = replace(method.recipes["smoke"](facts_named("digits"), 1).config, **fields), torch.device("cpu")

    def work() -> int:
        with process_group(cpu):
            distilled = method.distill(real, 1, config, Run(folder, None, checkpoint_seconds=0.0).begin())
            if is_main_process():
                distilled.save(folder / "distilled.safetensors")
        return 0

    return in_processes(count, cpu, [], lambda: exit_code_of(work))


def distil_all(folder: Path) -> None:
    """Distil with each method that divides, by 1, 2 and 3 processes."""
    torch.set_num_threads(1)
    for name in DIVIDED:
        for count in COUNTS:
            assert distil(METHODS[name], count, folder / name / str(count)) == 0


def python(call: str, *arguments: Path) -> subprocess.Popen:
    """Start statements that use the names of this module, and `sys.argv`, in an interpreter that may fork."""
    words = [sys.executable, "-c", f"import sys\nfrom pathlib import Path\nfrom {__name__} import *\n{call}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*words, *map(str, arguments)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with METHOD/COUNT/distilled.safetensors."""
    folder = tmp_path_factory.mktemp("sets")
    process = python("distil_all(Path(sys.argv[1]))", folder)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return folder


@pytest.mark.parametrize("name", DIVIDED)
def test_any_number_of_processes_makes_the_same_set(name: str, sets: Path) -> None:
    paths = [sets / name / str(count) / "distilled.safetensors" for count in COUNTS]
    whole, *others = (read_tensors(path)[0] for path in paths)
    assert {"images", "labels"} <= whole.keys()
    for other in others:
        assert other.keys() == whole.keys()
        assert all(torch.equal(other[key], whole[key]) for key in whole)
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}) == 1
    first, *further = (made_by_stages(sets / name / str(count)) for count in COUNTS)
    assert all(found == first for found in further)


def made_by_stages(folder: Path) -> dict[tuple[str, str], str]:
    """Return a digest of each tensor that stages made, as MTT's experts: (file, tensor) -> digest."""
    files = {str(path.relative_to(folder)): read_tensors(path)[0] for path in folder.glob("stages/**/*.safetensors")}
    tensors = {(file, name): tensor for file, found in files.items() for name, tensor in found.items()}
    return {place: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for place, tensor in tensors.items()}


def test_scalars_do_not_depend_on_the_number_of_processes(sets: Path) -> None:
    for name in DIVIDED:
        found = [scalars(sets / name / str(count)) for count in COUNTS]
        assert found[0] == found[1] == found[2]


def scalars(folder: Path) -> list[dict[str, float]]:
    """Return the whole lines of metrics.jsonl, which may grow meanwhile, without the times."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("name", DIES)
def test_a_killed_process_ends_all_and_the_same_command_goes_on(name: str, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    call = f"iterations = {DIES[name]}\ncode = distil(METHODS[{name!r}], 2, Path(sys.argv[1]), iterations=iterations)\n"
    process = python(f"{call}sys.exit(code)", killed)
    while len(scalars(killed)) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    main, second = sorted(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))
    os.kill(second, signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    expected = "process 1 of 2 was killed by SIGKILL: all end; the same command continues from the last checkpoint"
    assert [line for line in errors.splitlines() if line and "distil:" not in line] == [f"run.sh: {expected}"]
    assert not Path(f"/proc/{main}").exists()
    assert 5 <= len(scalars(killed)) < DIES[name]

    undisturbed = f"distil(METHODS[{name!r}], 1, Path(sys.argv[2]), iterations=iterations)"
    process = python(f"{call}sys.exit(code or {undisturbed})", killed, whole)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert (killed / "distilled.safetensors").read_bytes() == (whole / "distilled.safetensors").read_bytes()
    assert scalars(killed) == scalars(whole)


def test_a_method_of_one_process_says_why() -> None:
    silent = [name for name, method in METHODS.items() if method.processes == "one" and not method.why_one]
    assert silent == []
