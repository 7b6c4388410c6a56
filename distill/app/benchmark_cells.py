"""The flags of `benchmark`, and the cells of its table."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import torch

from distill.app.cell_plan import (
    DataOf,
    data_of,
    listed,
    network_of_full,
    planned_cell,
    selected_names,
    texts_by_method,
    words_of,
)
from distill.app.cells import Cell
from distill.app.distil import resolve_flags
from distill.app.flags import whole_number
from distill.app.registry import methods_named
from distill.app.start import RunOptions
from distill.data import DATASETS, check_dataset
from distill.errors import InputError
from distill.evaluation.columns import columns
from distill.experiment import Evaluation
from distill.methods.method import Method
from distill.models import build
from robust.ranges import Count, Range, check_ranges

__all__ = ["BenchmarkCommand", "planned_cells"]

OF_BENCHMARK = ("--ipc", "--seed", "--recipe", "--runs", "--data-dir", "--device", "--image-size")
"""flags that the benchmark sets itself, for each cell or for all cells"""


@dataclass(frozen=True)
class BenchmarkCommand:
    """Run the missing cells of a table of methods, data sets, images per class and seeds."""

    datasets: str = "mnist,cifar10"
    """data sets, separated by commas; those of another package as package.module:name"""
    methods: str = ""
    """methods; empty: all except the sre2l methods, which are for larger images"""
    ipc: str = "1,10"
    """images per class"""
    seeds: Annotated[int, Range(least=1, most=10_000)] = 2
    """number of seeds per cell: 0, 1, ..."""
    recipe: Literal["quick", "paper"] | None = None
    """preset of each method; None: paper on a GPU, else quick"""
    protocol: Literal["standard", "own"] = "standard"
    """how students are trained: standard is the same for all methods, on the labels of the set; own is the authors'
    protocol of each method that has one, on the labels that it needs (sre2l: a teacher's labels of crops)"""
    backbone: str | None = None
    """network of all students of the standard protocol; None: the network of `full` with the same recipe; recipe: the
    network of each method's recipe, so that rows also differ by network"""
    attacks: str | None = None
    """columns; None: the paper's three, and pgd_ce_margin at the threat linf, by which methods are ranked"""
    students: Annotated[int, Range(least=1, most=10_000)] | None = None
    """students per run; None: the recipe's number"""
    test_images: Count | None = None
    """size of a class-balanced subset of the test set; None: the recipe's number"""
    image_size: Annotated[int, Range(least=4, most=1024, hint="pixels")] | None = None
    """side in pixels; None: the size of the data set"""
    flags: tuple[str, ...] = ()
    """further flags of a method: --flags "dc: --iterations 500" "guard_dc: --real-loss guard:weight=3\""""
    jobs: Annotated[int, Range(least=1, most=1024)] | None = None
    """cells run at the same time, which share the cores; several GPUs are used in turn. None: one for each GPU, or on a
    CPU one for each core, as far as the free memory goes"""
    cell: str = ""
    """I/N, from 1/N to N/N: run only every N-th cell, for array jobs of a cluster; --dry-run counts the cells"""
    dry_run: bool = False
    """print the command and the state of each cell without running any"""
    data_dir: Path = RunOptions.data_dir
    """folder of the real data sets"""
    runs: Path = RunOptions.runs
    """folder of all runs; the tables are in the subfolder benchmark/"""
    device: str = "auto"
    """cpu, cuda, cuda:1 or mps; auto uses all GPUs, or the CPU if there is none"""

    def __post_init__(self) -> None:
        check_ranges(self)


def planned_cells(command: BenchmarkCommand, methods: Mapping[str, Method]) -> list[Cell]:
    """Return all cells, first those with seed 0, then those with seed 1, ...

    Args:
        command: the benchmark's settings.
        methods: all methods, by name.

    Raises:
        InputError: a name is unknown, or a value out of range.
    """
    methods = methods_named(command.methods.split(","), methods)
    selected = selected_names(command.methods, "method", methods) or [
        name for name, method in methods.items() if method.in_benchmark
    ]
    datasets = listed(command.datasets)
    for dataset in datasets:
        check_dataset(dataset)
    ipcs = [whole_number("--ipc", text, least=1) for text in dict.fromkeys(command.ipc.split(","))]
    texts = texts_by_method("--flags", command.flags, methods)
    extra = {name: words_of("--flags", name, text, OF_BENCHMARK, "benchmark") for name, text in texts.items()}
    if not datasets:
        raise InputError(f"--datasets is {command.datasets!r}; it must name at least one of {', '.join(DATASETS)}")
    if unused := [method for method in extra if method not in selected]:
        raise InputError(f"--flags is for {unused[0]}, which is not among the methods: {', '.join(selected)}")
    for flag, value in (("--seeds", command.seeds), ("--jobs", command.jobs or 1)):
        if value < 1:
            raise InputError(f"{flag} is {value}; it must be >= 1")
    if command.attacks is not None:
        columns(Evaluation(attacks=command.attacks), 3, 32)
    if command.backbone not in (None, "recipe"):
        build(command.backbone, channels=3, image_size=64, num_classes=10, generator=torch.Generator())

    def protocol(method: str) -> list[str]:
        return ["--protocol", command.protocol if methods[method].protocol else "standard"]

    data = cache(data_of)
    return [
        _cell(command, methods, method, dataset, ipc, seed, [*protocol(method), *extra.get(method, [])], data)
        for seed in range(command.seeds)
        for dataset in datasets
        for ipc in ipcs
        for method in selected
        if ipc == ipcs[0] or not methods[method].whole_class
    ]


def _cell(
    command: BenchmarkCommand,
    methods: Mapping[str, Method],
    method: str,
    dataset: str,
    ipc: int,
    seed: int,
    extra: list[str],
    data: DataOf,
) -> Cell:
    """Return a cell. Its command line is checked.

    Args:
        command: the benchmark's settings.
        methods: all methods, by name.
        method: name of the cell's method.
        dataset: name of the cell's data set.
        ipc: images per class.
        seed: the cell's seed.
        extra: further flags of the method.
        data: `data_of`, cached.
    """
    flags = ["--ipc", str(ipc), "--seed", str(seed), "--runs", str(command.runs), "--data-dir", str(command.data_dir)]
    for name in ("recipe", "attacks", "students", "test_images", "image_size"):
        value = getattr(command, name)
        flags += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    flags += extra
    experiment, options = resolve_flags(methods[method], dataset, [*flags, "--device", command.device])
    name = f"{method}-{experiment.data_name(options.data_dir)}-ipc{ipc}-seed{seed}"
    network = command.backbone or network_of_full(methods, dataset, experiment.recipe)
    return planned_cell(experiment, options, [method, dataset, *flags], name=name, network=network, data=data)
