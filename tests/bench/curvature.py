"""Parameter gradients of the curvature-regularised loss against those of cross-entropy, as importers compute them.

In two processes: one as a program that imports `robust` is started, and one that calls `robust.keep_memory()` first.
glibc's settings are read when a process starts, so those of `run.sh` are taken out of both. The ratio is to the plain
cross-entropy of the same process. The floor is the number of passes, 12 against 3 (docs/cost.md). With `--threads 1`
the times are seconds of the CPU, which are reliable on a busy machine too.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.models import build
from robust import CompiledGradients, CurvatureRegularizedLoss, RobustTeacher, keep_memory
from tests.bench.side_by_side import Row, compare, peak_megabytes

LOSS = CurvatureRegularizedLoss(weight=1.0, h=3.0)
BACKBONE = "convnet:width=128"
BATCHES = (64, 256)
SECONDS = 9.0
"""of the rounds of a batch, in each process"""
SETTINGS = ("importers", "keep_memory")
MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
FLOOR = "floor 4.0"
GOALS = {
    "textbook GUARD": "17 passes: 5.7",
    "ours": f"goal 5.0, {FLOOR}",
    "ours, chunks of 16": FLOOR,
    "ours, compiled": f"goal 4.2, {FLOOR}",
}


def bench() -> list[Row]:
    """Return times and peak memory in each process, for each batch."""
    rows = []
    for setting in SETTINGS:
        environment = {name: value for name, value in os.environ.items() if name not in MALLOC}
        with tempfile.TemporaryDirectory() as folder:
            found = Path(folder) / "rows.json"
            command = [sys.executable, "-m", "tests.bench.curvature", setting, str(torch.get_num_threads()), str(found)]
            subprocess.run(command, env=environment, check=True)
            rows += json.loads(found.read_text())
    return rows


def rows_of(setting: str) -> list[Row]:
    """Return the rows of this process."""
    rows = []
    shape = {"channels": 3, "image_size": 32, "num_classes": 10}
    network = build(BACKBONE, **shape, generator=torch.Generator().manual_seed(0)).eval()
    parameters = list(network.parameters())
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for batch in BATCHES:
        x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        y = torch.arange(batch) % 10
        compiled = CompiledGradients()
        ways = {
            "cross-entropy": lambda x=x, y=y: torch.autograd.grad(F.cross_entropy(network(x), y), parameters),
            "textbook GUARD": lambda x=x, y=y: released(network, x, y),
            "ours": lambda x=x, y=y: torch.autograd.grad(LOSS(network, x, y), parameters),
            "ours, chunks of 16": lambda x=x, y=y: RobustTeacher(network, LOSS, chunk=16).gradients(x, y),
            "ours, compiled": lambda x=x, y=y, c=compiled: RobustTeacher(network, LOSS, compiled=c).gradients(x, y),
        }
        if batch != BATCHES[0] or setting != SETTINGS[0]:
            del ways["textbook GUARD"]  # once is enough: it takes as long as all others together
        title = f"curvature, {setting}: parameter gradients, {BACKBONE}, batch {batch}, 32 px"
        timed = compare(title, ways, repeats=30, seconds=SECONDS, goals=GOALS, clock=clock)
        for row in timed:
            row["setting"], row["batch"] = setting, batch
            if batch == BATCHES[0] and setting == SETTINGS[0]:
                row["peak_megabytes"] = peak_megabytes(ways[row["way"]])
        if "peak_megabytes" in timed[0]:
            print("  peak memory: " + ", ".join(f"{row['way']} {row['peak_megabytes']:.0f} MB" for row in timed))
        rows += timed
    return rows


def released(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """As the released code computes it: separate passes for z, the loss, l(x) and l(x + h z); then double backward.

    The norms are per example here, as in ours, so that the results can be compared.
    """
    point = x.clone().requires_grad_()
    (direction,) = torch.autograd.grad(F.cross_entropy(network(point), y, reduction="sum"), point)
    z = direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    loss = F.cross_entropy(network(x), y)
    here, there = x.clone().requires_grad_(), (x + LOSS.h * z).requires_grad_()
    first, second = (F.cross_entropy(network(p), y, reduction="sum") for p in (here, there))
    (g,) = torch.autograd.grad(first, here, create_graph=True)
    (moved,) = torch.autograd.grad(second, there, create_graph=True)
    penalty = (moved - g).flatten(1).square().sum(1).mean()
    return torch.autograd.grad(loss + LOSS.weight * penalty, list(network.parameters()))


if __name__ == "__main__":
    if sys.argv[1] == "keep_memory":
        keep_memory()
    torch.set_num_threads(int(sys.argv[2]))
    Path(sys.argv[3]).write_text(json.dumps(rows_of(sys.argv[1])))
