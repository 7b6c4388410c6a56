"""The cells of a benchmark's table: their runs, command lines and states.

If a recipe trains with another network than the students of the table, the distilled set is evaluated a second time,
by `bash run.sh evaluate` with the network of the table.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from distill.app.cells import SET, Cell
from distill.app.distil import resolve_flags
from distill.app.evaluate import Judgement, digest_of, folder_of
from distill.app.flags import flags_of, whole_number
from distill.app.registry import methods_named
from distill.app.start import RunOptions, identity_of, real_data
from distill.data import DATASETS, label
from distill.errors import InputError, unknown
from distill.evaluation.columns import columns
from distill.experiment import Evaluation
from distill.methods.method import Method
from distill.models import build
from distill.reports.comparison import FULL
from distill.reports.outcome import missing_columns
from distill.runs.run import Run
from robust.ranges import Count, Range, check_ranges

__all__ = ["BenchmarkCommand", "part_of", "planned_cells"]

OF_BENCHMARK = ("--ipc", "--seed", "--recipe", "--runs", "--data-dir", "--device", "--image-size")
"""flags that the benchmark sets itself, for each cell or for all cells"""


@dataclass(frozen=True)
class BenchmarkCommand:
    """Run the missing cells of a table of methods, data sets, images per class and seeds."""

    datasets: str = "mnist,cifar10"
    """data sets"""
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
    """cpu, cuda, cuda:1, mps, ...; auto uses all GPUs, or the CPU if there is none"""

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
    methods = methods_named(filter(None, command.methods.split(",")), methods)
    selected = _names(command.methods, "method", methods) or [
        name for name, method in methods.items() if method.in_benchmark
    ]
    datasets = _names(command.datasets, "data set", DATASETS)
    ipcs = [whole_number("--ipc", text, least=1) for text in dict.fromkeys(command.ipc.split(","))]
    extra = _extra(command.flags, methods)
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

    facts = cache(_facts)
    return [
        _cell(command, methods, method, dataset, ipc, seed, [*protocol(method), *extra.get(method, [])], facts)
        for seed in range(command.seeds)
        for dataset in datasets
        for ipc in ipcs
        for method in selected
        if ipc == ipcs[0] or not methods[method].whole_class
    ]


def _names(text: str, kind: str, known: Mapping[str, object] | Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in known:
            raise unknown(kind, name, known)
    return names


def _extra(texts: Sequence[str], methods: Mapping[str, object]) -> dict[str, list[str]]:
    """Return method -> further flags, from texts "METHOD: flags".

    Raises:
        InputError: a text has another form, or its method is unknown.
    """
    found = {}
    for text in texts:
        method, colon, words = text.partition(":")
        if not colon:
            raise InputError(f'--flags is {text!r}; it takes "METHOD: flags", one text per method')
        if method not in methods:
            raise unknown("method", method, methods)
        if method in found:
            raise InputError(f"--flags names {method} twice; give all its flags in one text")
        found[method] = shlex.split(words)
        for word in found[method]:
            if word.partition("=")[0] in OF_BENCHMARK:
                raise InputError(f"--flags has {word} for {method}; give it to the benchmark itself")
    return found


def _cell(
    command: BenchmarkCommand,
    methods: Mapping[str, Method],
    method: str,
    dataset: str,
    ipc: int,
    seed: int,
    extra: list[str],
    facts: Callable[[str, Path, int | None, str, float], tuple[dict[str, Any], tuple[int, int]] | None],
) -> Cell:
    """Return a cell. Its command line is checked; `trouble` is set if another run is in the folder.

    Args:
        command: the benchmark's settings.
        methods: all methods, by name.
        method: name of the cell's method.
        dataset: name of the cell's data set.
        ipc: images per class.
        seed: the cell's seed.
        extra: further flags of the method.
        facts: `_facts`, cached.
    """
    flags = ["--ipc", str(ipc), "--seed", str(seed), "--runs", str(command.runs), "--data-dir", str(command.data_dir)]
    for name in ("recipe", "attacks", "students", "test_images", "image_size"):
        value = getattr(command, name)
        flags += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    flags += extra
    experiment, options = resolve_flags(methods[method], dataset, [*flags, "--device", command.device])
    folder, data = options.runs / experiment.folder(options.data_dir), experiment.data_name(options.data_dir)
    trouble = ""
    where = (dataset, options.data_dir, experiment.image_size, experiment.split, experiment.blur)
    known = facts(*where) if (folder / "experiment.json").exists() else None
    try:
        Run(folder, experiment, data=known and known[0], seed=seed)
    except InputError as error:  # the folder has a run with another config or on other data
        trouble = str(error)

    @cache  # a finished set does not change, and its hash is needed after every cell
    def digest() -> str:
        return digest_of(folder / SET)

    def complete(finished: Path) -> bool:
        if not (finished / "table.csv").exists() or not of_this_configuration(finished):
            return False
        known = facts(*where)
        return known is None or missing_columns(finished, experiment.evaluation, *known[1]) == []

    def of_this_configuration(finished: Path) -> bool:
        if finished == folder:
            return True  # a run with another config has set `trouble`
        recipe = "quick" if experiment.recipe == "quick" else "paper"
        settings = Judgement(digest(), dataset, network, experiment.evaluation, recipe, seed)
        try:
            Run(finished, settings, seed=seed)
        except InputError:  # the set was evaluated with other settings; `evaluate` reports this
            return False
        return True

    name = f"{method}-{data}-ipc{ipc}-seed{seed}"
    network = command.backbone or _network_of_full(methods[FULL], dataset, experiment.recipe)
    same = network in ("recipe", experiment.config.backbone)
    other_data = experiment.split != "test" or experiment.blur > 0  # of which `evaluate` knows nothing
    if same or experiment.evaluation.protocol == "own" or other_data:
        return Cell(name, (method, dataset, *flags), data, folder, complete, None, trouble=trouble)

    def evaluation_folder() -> Path:
        return options.runs / folder_of(method, digest(), label(dataset, options.data_dir), seed, network)

    words = ["evaluate", str(folder), "--backbone", network, "--recipe", experiment.recipe, "--seed", str(seed)]
    words += [*flags_of(experiment.evaluation), "--runs", str(options.runs), "--data-dir", str(options.data_dir)]
    return Cell(name, (method, dataset, *flags), data, folder, complete, evaluation_folder, tuple(words), trouble)


def _facts(
    dataset: str, data_dir: Path, image_size: int | None, split: str, blur: float
) -> tuple[dict[str, Any], tuple[int, int]] | None:
    """Return the identity of a data set, and the channels and the size of its images.

    None if the data are missing: a finished run is then shown without comparing its data.
    """
    try:
        train, test = real_data(dataset, data_dir, image_size, split, blur=blur)
    except InputError:
        return None
    return identity_of(train, test), test.image_shape[:2]


def _network_of_full(full: Method, dataset: str, recipe: str) -> str:
    """Return the network with which a recipe trains on the whole data set."""
    return resolve_flags(full, dataset, ["--recipe", recipe])[0].config.backbone


def part_of(cells: list[Cell], text: str) -> list[Cell]:
    """Return every N-th cell, starting at the I-th.

    Args:
        cells: all cells.
        text: I/N.

    Raises:
        InputError: the text is not I/N.
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InputError(f"--cell is {text}; it takes I/N, from 1/N to N/N: 1/8")
    return cells[int(number) - 1 :: int(count)]
