"""The arithmetic of docs/scale.md: passes and bytes counted in runs, the table of the page."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import baselines.dm.method
import baselines.frepo.method
import baselines.mtt.method
import distill.methods.dc
from baselines.mtt.matching import Gradient
from distill.app.registry import find_methods
from distill.data import facts_named
from robust import CurvatureRegularizedLoss
from tests.bench import scale

ROOT = Path(__file__).parents[2]
CIFAR = facts_named("cifar10")
IMAGES = 4


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        ("dc", [scale.TRAINING * IMAGES, 5 * (scale.MATCHING + scale.TRAINING)]),  # 5 classes, one real image each
        ("guard_dc", [scale.GUARD * IMAGES, 5 * (scale.MATCHING + scale.TRAINING)]),
        ("dm", [IMAGES, 5 * (2 + 1)]),  # as dc
        ("mtt", [scale.TRAINING * IMAGES]),
        ("guard_mtt", [scale.GUARD_TRAINING * IMAGES]),
        ("frepo", [IMAGES, 2 * IMAGES, 5 * scale.TRAINING * IMAGES]),
    ],
)
def test_passes_are_those_of_the_steps(method: str, passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (baselines.dm.method, baselines.frepo.method, baselines.mtt.method, distill.methods.dc):
        monkeypatch.setattr(module, "PROBE", IMAGES)
    found = find_methods()[method]
    config = found.recipes["paper"](CIFAR, 1).config
    family = "frepo_convnet" if method == "frepo" else "convnet"
    network = scale.Network(f"{family}:width=32", CIFAR)
    config = replace(config, backbone=network.backbone)
    steps = [step for number, step in found.work(config, 1, 10, 50_000) if number]
    for step, expected in zip(steps, passes, strict=False):
        counted = scale.count(lambda step=step: step(network.built(), network.shape)) / network.forward()
        assert counted == pytest.approx(expected, rel=0.1)
        assert counted <= expected  # the first layer has no gradient by its input


@pytest.mark.parametrize("gradient", scale.UNROLLED)
def test_passes_of_a_step_of_mtt(gradient: Gradient) -> None:
    network = scale.Network("convnet:width=32", CIFAR)
    built = network.built()
    start = torch.nn.utils.parameters_to_vector(built.parameters()).detach()
    x, y = torch.randn(2, 3, 32, 32), torch.arange(2)

    def flops(steps: int) -> int:
        batch = lambda _, images: (images, y)  # noqa: E731
        return scale.count(lambda: scale.match(built, start, start + 1, x, torch.tensor(0.1), batch, steps, gradient))

    passes = (flops(4) - flops(3)) / network.forward() / len(x)
    assert passes == pytest.approx(scale.UNROLLED[gradient], rel=0.1)


RANKS = """
import json, os, sys
import torch, torch.distributed as dist
from torch import nn
from baselines.mtt import matching
from distill.data import facts_named
from distill.methods.dc import Config, match
from distill.runs.divided import network_from_main
from distill.runs.launch import fork
from distill.runs.ranks import process_group
from robust import CrossEntropy
from tests.bench import scale

received = [0]
gather, broadcast = dist.all_gather, dist.broadcast

def all_gather(found, tensor):
    received[0] += sum(each.nbytes for each in found)
    gather(found, tensor)

def from_one(tensor, source):
    received[0] += tensor.nbytes
    broadcast(tensor, source)

dist.all_gather, dist.broadcast = all_gather, from_one
network = scale.Network("convnet:width=8", facts_named("cifar10"))
built, ipc, size = network.built().eval(), int(sys.argv[1]), network.facts.size

def matched():
    network_from_main(built)
    images, batch = torch.randn(10, ipc, 3, size, size), torch.randn(16, 3, size, size)
    draw = lambda class_: torch.Generator()
    match(built, images, Config(CrossEntropy()), real_batch=lambda class_: batch, siamese=None, generator=draw)

def unrolled():
    start = nn.utils.parameters_to_vector(built.parameters()).detach()
    x, y = torch.randn(10 * ipc, 3, size, size), torch.arange(10 * ipc) % 10
    matching.match(built, start, start + 1, x, torch.tensor(0.1), lambda _, images: (images, y), 3)

def work():
    found = {}
    with process_group(torch.device("cpu")):
        for name, step in (("dc", matched), ("mtt", unrolled)):
            received[0] = 0
            found[name] = {"flops": scale.count(step), "bytes": received[0]}
    with open(f"{sys.argv[2]}/{os.environ['WORLD_SIZE']}-{os.environ['RANK']}.json", "w") as file:
        json.dump(found, file)
    return 0

sys.exit(max(fork(count, work) for count in (1, 2, 3)))
"""


@pytest.mark.long
@pytest.mark.parametrize("ipc", [1, 4])
def test_ranks_do_their_share_and_receive_as_many_bytes(ipc: int, tmp_path: Path) -> None:
    words = [sys.executable, "-c", RANKS, str(ipc), str(tmp_path)]
    subprocess.run(words, cwd=ROOT, check=True, timeout=200, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    network = scale.Network("convnet:width=8", CIFAR)
    groups = [len(group) for group in scale.matching.groups(network.built(), torch.empty(10 * ipc, 3, 32, 32))]
    assert len(groups) == {1: 2, 4: 8}[ipc]
    classes = 2 if ipc == 1 else 10  # groups of five where the images are small, else each class alone
    (whole,) = (json.loads(path.read_text()) for path in tmp_path.glob("1-*.json"))
    for processes in (2, 3):
        ranks = [json.loads(path.read_text()) for path in tmp_path.glob(f"{processes}-*.json")]
        assert len(ranks) == processes
        received = {
            "dc": scale.bytes_of_matching(network, ipc, processes, classes),
            "mtt": scale.bytes_of_trajectory(network, 3, processes, groups),
        }
        for name, expected in received.items():
            assert [rank[name]["bytes"] for rank in ranks] == [expected] * processes
            assert sum(rank[name]["flops"] for rank in ranks) == pytest.approx(whole[name]["flops"], rel=0.05)
        shares = [rank["dc"]["flops"] / whole["dc"]["flops"] for rank in ranks]
        assert max(shares) == pytest.approx(-(-10 // processes) / 10 if ipc > 1 or processes == 2 else 0.5, abs=0.12)


@pytest.mark.parametrize("case", [("dc", "cifar10", 10), ("mtt", "cifar10", 50), ("kip", "cifar10", 1)])
def test_more_devices_take_no_more_than_their_exchange(case: tuple[str, str, int]) -> None:
    found = scale.cost(*case)
    assert found.time(1) == sum(part.seconds for part in found.parts)
    for devices in (8, 64):
        assert found.time(devices) <= found.time(1) + found.received(devices) / scale.LINK
    assert found.received(1) == 0


def test_guard_costs_more_and_saves_more() -> None:
    network = scale.Network("convnet:width=8", CIFAR)
    assert network.graph(CurvatureRegularizedLoss(1.0)) > 2 * network.graph()
    assert network.unrolled() > 2 * network.graph()


@pytest.mark.long
def test_the_page_has_the_numbers_of_the_code() -> None:
    page = (ROOT / "docs" / "scale.md").read_text()
    assert "\n".join(scale.table()) in page
