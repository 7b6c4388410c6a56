"""Each file of examples/ runs as its first lines say; and the DC-style loop is our own DC, but for one line."""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.methods.dc import Config, match
from distill.models import build
from robust import CrossEntropy
from tests.test_architecture import imported

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LINE = re.compile(r"^(\s*)(\w+ = |return )(.+?)  # GUARD, was: (.+)$", re.MULTILINE)
LOSS = re.compile(r"(?:loss|'loss':) '?(-?\d+\.\d+)")


ALONE = {
    "test_lightning_runs": (["examples/lightning_module.py"], ["lightning"]),
    "test_the_trainer_of_hugging_face_runs": (["examples/hf_trainer.py"], ["transformers", "accelerate"]),
    "test_two_processes_train_one_network": (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "examples/sre2l_squeeze.py"],
        [],
    ),
}
"""test -> command and the packages without which it is skipped: two processes of one, and libraries that warn"""


@pytest.fixture(scope="module", autouse=True)
def started(request: pytest.FixtureRequest) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Those of ALONE that are asked for, side by side with one another and with the tests that come first."""
    selected = {item.name for item in request.session.items}
    alone = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = {"cwd": ROOT, "env": alone, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = {
        name: subprocess.Popen([sys.executable, *command, "--steps", "3"], **options)
        for name, (command, packages) in ALONE.items()
        if name in selected and all(map(find_spec, packages))
    }
    yield processes
    for process in processes.values():
        process.terminate()  # whom no test waited for
        process.communicate()


def losses(text: str) -> list[float]:
    return [float(value) for value in LOSS.findall(text)]


@pytest.fixture
def printed(started: dict[str, subprocess.Popen[str]], request: pytest.FixtureRequest) -> str:
    """What the process of a test has printed when it has ended well."""
    name = request.node.name
    if name not in started:
        pytest.skip(f"needs {' and '.join(ALONE[name][1])}")
    text, _ = started[name].communicate(timeout=240)
    assert started[name].returncode == 0, text
    return text


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_one_line_is_guard(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) < 80
    assert source.count("# GUARD") == len(LINE.findall(source)) == 1
    assert not imported(path) & {"distill", "sre2l", "baselines", "tests"}  # other people's code has `robust` alone
    compile(LINE.sub(r"\1\2\4", source), path, "exec")  # and without GUARD it is a program too
    assert f"python examples/{path.name} --steps 3" in source.split('"""')[1]


@pytest.mark.parametrize("name", ["dc_loop", "sre2l_squeeze", "timm_training"])
def test_it_runs(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [f"examples/{name}.py", "--steps", "3"])
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(variable, raising=False)
    with torch.random.fork_rng():
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    values = losses(capsys.readouterr().out)
    assert len(values) == 3
    assert all(0 < value < 1000 for value in values)


def test_lightning_runs(printed: str) -> None:
    values = losses(printed)
    assert len(values) == 3
    assert all(0 < value < 10 for value in values)


def test_the_trainer_of_hugging_face_runs(printed: str) -> None:
    values = losses(printed)
    assert len(values) == 6  # three steps on pixels, then three on tokens
    # of four classes, log 4 and the penalty; twice as much would be two accumulated batches that are not averaged
    assert all(1 < value < 2 for value in values)


def test_two_processes_train_one_network(printed: str) -> None:
    assert len(losses(printed)) == 3
    weights = re.findall(r"process (\d) of 2: weights (\d+\.\d+)", printed)
    assert sorted(rank for rank, _ in weights) == ["0", "1"]
    assert len({value for _, value in weights}) == 1


def checked(**environment: str) -> subprocess.CompletedProcess[str]:
    alone = os.environ | {"OMP_NUM_THREADS": "1", "QUICK": "1"} | environment
    command = ["bash", str(ROOT / "examples" / "gpu_check.sh")]
    return subprocess.run(command, env=alone, capture_output=True, text=True, check=False, timeout=600)


def test_the_check_of_a_gpu_passes_on_a_cpu() -> None:
    done = checked(DEVICE="cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if line[:4] in ("PASS", "FAIL", "SKIP")].count("PASS") == 7
    assert sum(line.startswith("SKIP") and line.endswith("only on a GPU") for line in lines) == 2
    assert sum(line.startswith("ratio") for line in lines) == 4
    assert lines[-1].startswith("all checks passed after ")


def test_the_check_of_a_gpu_fails_without_one() -> None:
    done = checked(DEVICE="nothing")
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL the device is there")


# The DC-style loop is our own


def dc_loop(change: Callable[[str], str] = str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "dc_loop"}
    exec(compile(change((ROOT / "examples" / "dc_loop.py").read_text()), "dc_loop.py", "exec"), names)
    return names


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("guard", [True, False])
def test_the_dc_style_loop_has_the_gradients_of_ours(guard: bool, norm: str) -> None:
    """With its marked line, those of guard_dc; with the line that it stands for, those of dc."""
    theirs = dc_loop() if guard else dc_loop(lambda source: LINE.sub(r"\1\2\4", source))
    seeded = torch.Generator().manual_seed(0)
    spec = f"convnet:width=8,depth=2,norm={norm}"
    network = build(spec, channels=3, image_size=16, num_classes=4, generator=seeded).double().eval()
    real = torch.randn(4, 12, 3, 16, 16, generator=seeded, dtype=torch.float64)
    synthetic = torch.randn(4, 2, 3, 16, 16, generator=seeded, dtype=torch.float64)
    config = Config(theirs["guard"] if guard else CrossEntropy(), chunk=5)
    options = {"siamese": None, "generator": lambda c: torch.Generator()}
    expected, (distance, _) = match(network, synthetic, config, real_batch=lambda c: real[c], **options)
    leaf = synthetic.clone().requires_grad_()
    loss = theirs["matching_loss"](network, list(real), leaf)
    (found,) = torch.autograd.grad(loss, leaf)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())
    torch.testing.assert_close(loss, distance, rtol=1e-6, atol=0)


def test_guard_changes_those_gradients() -> None:
    """So that the test above can tell the two lines apart."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, real, leaf = None, torch.randn(4, 6, 3, 16, 16), torch.randn(4, 1, 3, 16, 16, requires_grad=True)
        found = []
        for names in (dc_loop(), dc_loop(lambda source: LINE.sub(r"\1\2\4", source))):
            if network is None:
                network = names["make_network"]()
                network(real[0])
            found.append(torch.autograd.grad(names["matching_loss"](network, list(real), leaf), leaf)[0])
    assert (found[0] - found[1]).norm() > 1e-3 * found[1].norm()
