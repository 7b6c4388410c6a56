"""Work in one process against two, each with one thread: a function for each figure."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch._dynamo  # noqa: F401  # else each process imports it for its first optimizer: two seconds
import torch.utils.tensorboard  # noqa: F401  # likewise for its first scalar
from torch import nn

from baselines.mtt.matching import match
from baselines.mtt.trajectories import Expert, experts
from distill.data import ImageSet, facts_named, load
from distill.distilled import DistilledSet
from distill.evaluation.evaluate import evaluate
from distill.evaluation.rows import RunDescription
from distill.experiment import Evaluation
from distill.methods import dc_recipes
from distill.models import build
from distill.runs.launch import fork
from distill.runs.ranks import process_group
from distill.runs.run import Run
from distill.training.students import Training
from robust import CrossEntropy, Normalize
from tests.bench.side_by_side import Row, compare

METHOD = next(method for method in dc_recipes.METHODS if method.name == "guard_dc")
SHAPE = {"channels": 3, "image_size": 32, "num_classes": 10}


def bench() -> list[Row]:
    """Return the rows of all figures."""
    return [*evaluation(), *guard_dc(), *mtt_experts(), *mtt_matching()]


def evaluation() -> list[Row]:
    """Return the times of five students on ten images of digits, and of the paper's three attacks on its 359."""
    (train, test), backbone = load("digits", Path("data")), "convnet:width=64,depth=2"
    chosen = Evaluation(5, "linf_star,linf,l2", student=Training(epochs=500))
    images = torch.cat([train.sample(c, 1, torch.Generator().manual_seed(c)) for c in range(10)])
    distilled = DistilledSet.of(train, images, torch.arange(10), augment="", backbone=backbone)
    shared = {"dataset": "digits", "ipc": 1, "seed": 0, "backbone": backbone, "loss": "cross_entropy"}
    described = RunDescription(method="random", recipe="quick", config="", **shared)

    def judge(folder: Path) -> None:
        evaluate(distilled, train, test, chosen, backbone, Run(folder, None).begin(), described)

    return compare_processes("five students under three attacks, ConvNet-2 of width 64, digits", judge, goal="1.8")


def guard_dc() -> list[Row]:
    """Return the times of four iterations of `guard_dc`: recipe `quick` for CIFAR-10, with half its real batch."""
    config, real = METHOD.recipes["quick"](facts_named("cifar10"), 1).config, _images(1000)
    config = replace(config, iterations=4, batch_real=32)

    def distill(folder: Path) -> None:
        METHOD.distill(real, 1, config, Run(folder, None).begin())

    title = "four iterations of guard_dc, ConvNet-3 of the recipe quick, 32 px, real batches of 32"
    return compare_processes(title, distill, threads=True, goal="1.5")


def mtt_experts() -> list[Row]:
    """Return the times of four experts of MTT with the paper's network, and an epoch of 400 images of 32 px each."""
    real = _images(400)
    expert = Expert(CrossEntropy(), "convnet:width=128", "", False, 1, 0.01, 64, None, 0)

    def train(folder: Path) -> None:
        experts(real, Normalize(real.mean, real.std), expert, 4, Run(folder, None).begin())

    return compare_processes("four experts of MTT, ConvNet-3 of width 128", train, goal="1.8")


def mtt_matching() -> list[Row]:
    """Return the times of an iteration of MTT's matching, with 20 steps on ten images of 32 px."""
    generator = torch.Generator().manual_seed(0)
    network = build("convnet:width=128", **SHAPE, generator=generator)
    start = nn.utils.parameters_to_vector(network.parameters()).detach()
    target = start + 0.01 * torch.randn(start.shape, generator=generator)
    images, labels = torch.randn(10, 3, 32, 32, generator=generator), torch.arange(10)

    def step(_: Path) -> None:
        match(network, start, target, images, torch.tensor(0.01), lambda step, x: (x, labels), 20)

    return compare_processes("an iteration of MTT's matching, ConvNet-3 of width 128", step)


def compare_processes(
    title: str, work: Callable[[Path], object], *, threads: bool = False, goal: str = ""
) -> list[Row]:
    """Return the times of work in one process and in two, with the start of the processes.

    Args:
        title: of the rows.
        work: what the processes do together; its argument is an empty folder, the same in all of them.
        threads: whether one process with two threads is a way too.
        goal: of the ratio of one process to two.
    """

    def in_processes(count: int, threads: int = 1) -> None:
        with tempfile.TemporaryDirectory() as folder:

            def of_one() -> int:
                torch.set_num_threads(threads)
                with process_group(torch.device("cpu")):
                    work(Path(folder))
                return 0

            if fork(count, of_one):
                raise RuntimeError(f"{title} failed in {count} processes")

    ways = {"2 processes": partial(in_processes, 2), "1 process": partial(in_processes, 1)}
    if threads:
        ways["1 process, 2 threads"] = partial(in_processes, 1, 2)
    least = {name: f"goal: {goal}" for name in list(ways)[-1:] if goal}
    return compare(title, ways, repeats=2, seconds=25, goals=least)


def _images(count: int) -> ImageSet:
    """Return random images of ten classes, 32 px."""
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names = tuple("0123456789")
    return ImageSet("cifar10", images, torch.arange(count) % 10, names, (0.5,) * 3, (0.25,) * 3)
