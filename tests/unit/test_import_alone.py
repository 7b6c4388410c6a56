"""`robust` with torch alone: every other package that is installed here is hidden from it."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
# What the rest of this repository uses is hidden even where it is not installed; numpy is optional to torch.
NAMED = {"numpy", "scipy", "torchvision", "timm", "kornia", "torchattacks", "sklearn", "tyro", "tqdm", "rich", "PIL"}
NAMED |= {"safetensors", "tensorboard", "matplotlib", "distill", "sre2l", "baselines", "tests"}

SCRIPT = """
import json, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)

hidden = set(json.loads(sys.argv[1]))
sys.meta_path.insert(0, Hidden())

import torch
from robust import PGD, CurvatureRegularizedLoss, Threat, evaluate

torch.set_num_threads(1)
torch.manual_seed(0)
model, x = torch.nn.Linear(4, 3), torch.rand(5, 4)
y = model(x).argmax(1)  # every example stands, so the attack moves each: who is fooled from the start is left alone
loss = CurvatureRegularizedLoss(weight=2.0)(model, x, y)
loss.backward()
attack = PGD(Threat("l2", 0.1), restarts=2)
distance = attack.threat.distance(attack(model, x, y), x).max()
report = evaluate(model, x, y, {"l2": attack})
loaded = sorted(hidden & {name.partition(".")[0] for name in sys.modules})
print(json.dumps([loss.item(), distance.item(), report.accuracy("l2") <= report.accuracy(), loaded]))
"""


def needed_by_torch():
    """The distributions that torch requires, and what those require, without extras."""
    wanted, found = ["torch"], set()
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        wanted += [re.match(r"[\w.-]+", r).group() for r in requirements if "extra ==" not in r]
    return found


def test_robust_needs_torch_alone():
    needed = needed_by_torch()
    hidden = set(NAMED)
    for package, distributions in metadata.packages_distributions().items():
        if not needed & {re.sub(r"[-_.]+", "-", d).lower() for d in distributions}:
            hidden.add(package)
    hidden -= {"robust"}
    assert {"numpy", "timm", "torchattacks", "sklearn", "pytest"} <= hidden
    assert not {"torch", "sympy", "typing_extensions"} & hidden
    command = [sys.executable, "-c", SCRIPT, json.dumps(sorted(hidden))]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    loss, distance, weaker, loaded = json.loads(run.stdout)
    assert 0 < loss < 100
    assert 0 < distance <= 0.1 + 1e-6
    assert weaker
    assert loaded == []


def test_a_hidden_package_cannot_be_imported():
    command = [sys.executable, "-c", SCRIPT, json.dumps(["torch"])]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode != 0
    assert "torch is hidden" in run.stderr
