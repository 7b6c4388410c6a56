"""MTT in several processes: the same bits for any number, experts divided, a killed process."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from baselines.mtt.matching import groups
from distill.models import build

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

MATCH = """
import hashlib, sys
import torch
from torch import nn
from baselines.mtt.matching import groups, match
from distill.models import build
from distill.runs.launch import fork
from distill.runs.ranks import is_main_process, process_group

def work():
    with process_group(torch.device("cpu")):
        generator = torch.Generator().manual_seed(0)
        network = build("convnet:width=4,depth=2", channels=3, image_size=32, num_classes=2, generator=generator)
        start = nn.utils.parameters_to_vector(network.parameters()).detach()
        target = start + 0.05 * torch.randn(start.shape, generator=generator)
        images, labels = torch.randn(12, 3, 32, 32, generator=generator), torch.arange(12) % 2
        assert len(groups(network.train(), images)) == 3
        learned = torch.randn(12, 2, generator=generator)
        for gradient in ("replayed", "tesla", "unrolled"):
            for logits in (None, learned):
                batch = lambda step, x, y=None: (x[:11], labels[:11] if y is None else y[:11].softmax(1))
                found = match(network, start, target, images, torch.tensor(0.1), batch, 3, gradient, logits)
                assert len(found) == (3 if logits is None else 4) and all(each.abs().sum() > 0 for each in found)
                bits = hashlib.sha256(b"".join(each.numpy().tobytes() for each in found)).hexdigest()
                print(gradient, bits) if is_main_process() else None
    return 0

sys.exit(max(fork(count, work) for count in (1, 2, 4)))
"""

KILLED = """
import os, signal, sys
from distill.runs.run import Run
from distill.app.main import main
from distill.runs.ranks import exit_process

def save(self, step, state, *more):
    keep(self, step, state, *more)
    if os.environ.get("RANK") == "1" and "snapshots" in state and step == 2:
        os.kill(os.getpid(), signal.SIGKILL)

keep, Run.save = Run.save, save
exit_process(main(sys.argv[1:]))
"""


def python(*words: str) -> subprocess.CompletedProcess:
    options = {"capture_output": True, "text": True, "check": False, "timeout": 200}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=ENVIRONMENT, **options)


def command(method: str, processes: int, runs: Path) -> list[str]:
    words = [method, "digits", "--recipe", "smoke", "--students", "1", "--test-images", "20"]
    return [*words, "--processes", str(processes), "--runs", str(runs), "--checkpoint-seconds", "0"]


def bits(runs: Path) -> list[str]:
    """Return the hashes of the set and of the experts."""
    files = [*runs.rglob("distilled.safetensors"), *sorted(runs.rglob("00*.safetensors"))]
    assert len(files) == 3
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def test_matching_has_the_same_bits_in_any_number_of_processes() -> None:
    done = python("-c", MATCH)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines == 3 * lines[:6]
    assert len(set(lines)) == 6


@pytest.mark.long
def test_a_killed_process_ends_all_and_the_command_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = python("-m", "distill", *command("mtt", 2, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    killed = python("-c", KILLED, *command("mtt", 2, tmp_path / "killed"))
    assert killed.returncode == 1
    assert killed.stderr.count("run.sh: ") == 1
    assert "process 1 of 2 was killed by SIGKILL" in killed.stderr
    left = list(tmp_path.glob("killed/stages/experts-*/00*/state.pt"))
    assert left  # the expert of the killed process goes on from here
    again = python("-m", "distill", *command("mtt", 2, tmp_path / "killed"))
    assert again.returncode == 0, again.stderr
    assert bits(tmp_path / "killed") == bits(tmp_path / "whole")
    assert not any(path.exists() for path in left)


def test_groups_depend_on_the_images_and_the_network_alone() -> None:
    def sizes(count: int, size: int = 32, backbone: str = "convnet:width=4,depth=2") -> list[int]:
        network = build(backbone, channels=3, image_size=size, num_classes=2, generator=torch.Generator())
        return [len(group) for group in groups(network, torch.empty(count, 3, size, size))]

    assert sizes(10) == [5, 5]
    assert sizes(12) == [5, 5, 2]
    assert sizes(500) == [63] * 7 + [59]
    assert sizes(80, 8) == [80]  # small images
    assert sizes(100, 8) == [80, 20]
    assert sizes(10, backbone="convnet:width=4,norm=batch") == [10]
