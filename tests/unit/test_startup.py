"""Commands that only print, and the first steps of a job, load no package that they do not need."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distill.runs.files import write_tensors
from tests.rows import DEFAULTS

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
HEAVY = ["torchvision", "timm", "matplotlib", "kornia", "sklearn", "pandas", "torchattacks", "tensorboard"]
HEAVY += ["torch._dynamo", "torch._inductor"]
"""each takes from a tenth of a second to more than one"""

RUN = """
import sys
from distill.app.main import main
for words in {commands}:
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    assert not code, words
"""


def loaded(script: str, folder: Path) -> set[str]:
    """Return the HEAVY packages that a script has loaded at its end."""
    script += f"\nimport sys; print(*({{*sys.modules}} & {{*{HEAVY}}}))\n"
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{script}"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_commands_that_print(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / "runs" / name
        lines = [json.dumps(DEFAULTS | {"set": name, "student": student}) + "\n" for student in range(2)]
        for student in range(2):
            write_tensors(folder / "students" / f"{student}-correct.safetensors", {"clean": torch.rand(60) < 0.5})
        (folder / "results.jsonl").write_text("".join(lines))
    commands = [[], ["--help"], ["list"], ["table"], ["table", "--help"], ["compare", "runs/a", "runs/b"]]
    commands += [["guard_dc", "digits", "--help"], ["sre2l", "cifar10", "--help"], ["evaluate", "--help"]]
    assert loaded(RUN.format(commands=commands), tmp_path) == set()


@pytest.mark.parametrize("module", ["robust", "distill.methods.dc"])
def test_imports(module: str, tmp_path: Path) -> None:
    assert loaded(f"import {module}", tmp_path) == set()


def test_a_job(tmp_path: Path) -> None:
    """TensorBoard writes the events, and is imported with the first; nothing else is needed for digits."""
    command = ["guard_dc", "digits", "--recipe", "smoke", "--device", "cpu", "--processes", "1"]
    assert loaded(RUN.format(commands=[command]), tmp_path) == {"tensorboard"}


def test_garbage_is_not_looked_for_among_imported_objects(tmp_path: Path) -> None:
    script = """
import gc, runpy, sys
sys.argv[1:] = ["list"]
try:
    runpy.run_module("distill", run_name="__main__")
except SystemExit as end:
    assert not end.code
assert gc.isenabled()
assert gc.get_freeze_count() > 100_000
"""
    assert loaded(script, tmp_path) == set()
