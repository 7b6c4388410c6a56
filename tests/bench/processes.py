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
from distill.data import ImageSet, facts_named
from distill.methods import dc_recipes
from distill.models import build
from distill.runs.launch import fork
from distill.runs.ranks import process_group
from distill.runs.run import Run
from robust import CrossEntropy, Normalize
from tests.bench.side_by_side import Row, compare

METHOD = next(method for method in dc_recipes.METHODS if method.name == "guard_dc")
SHAPE = {"channels": 3, "image_size": 32, "num_classes": 10}


def bench() -> list[Row]:
    """Return the rows of all figures."""
    return [*guard_dc(), *mtt_experts(), *mtt_matching()]


def guard_dc() -> list[Row]:
    """Return the times of two iterations of `guard_dc`: recipe `quick` for CIFAR-10, one image a class."""
    config, real = replace(METHOD.recipes["quick"](facts_named("cifar10"), 1).config, iterations=2), _images(1000)

    def distill(folder: Path) -> None:
        METHOD.distill(real, 1, config, Run(folder, None).begin())

    title = "two iterations of guard_dc, ConvNet-3 of the recipe quick, 32 px"
    return compare_processes(title, distill, threads=True, goal="1.5")


def mtt_experts() -> list[Row]:
    """Return the times of two experts of MTT, with two epochs of 1000 images of 32 px."""
    real = _images(1000)
    expert = Expert(CrossEntropy(), "convnet:width=32", "", False, 2, 0.01, 64, None, 0)

    def train(folder: Path) -> None:
        experts(real, Normalize(real.mean, real.std), expert, 2, Run(folder, None).begin())

    return compare_processes("two experts of MTT, ConvNet-3 of width 32", train, goal="1.8")


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
    return compare(title, ways, repeats=3, seconds=50, goals=least)


def _images(count: int) -> ImageSet:
    """Return random images of ten classes, 32 px."""
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names = tuple("0123456789")
    return ImageSet("cifar10", images, torch.arange(count) % 10, names, (0.5,) * 3, (0.25,) * 3)
