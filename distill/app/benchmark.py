"""`bash run.sh benchmark`: the paper's tables, cell by cell. A cell is one run: a method, a data set, an ipc, a seed.

Cells are ordinary runs in ordinary folders, each in a process of its own with its output in a file: what is finished
is not run again, what was interrupted continues, and a cell that fails, or is killed for its memory, takes no other
with it. Where a recipe has another network than the table's students, its set is then judged once more, by
`bash run.sh evaluate` with that network. The tables are written anew after each cell, from all that is finished.
"""

import contextlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from distill.app.cells import SET, Cell, run_cells
from distill.app.distil import resolve_flags
from distill.app.evaluate import Judgement, digest_of, folder_of
from distill.app.flags import find_device, flags_of, parse, whole_number
from distill.app.start import RunOptions, identity_of, real_data
from distill.data import DATASETS, label
from distill.errors import InputError, unknown
from distill.evaluation.columns import columns
from distill.evaluation.row_files import find_rows
from distill.experiment import Evaluation
from distill.methods.method import Method
from distill.models import build
from distill.reports.comparison import FULL, LAYOUTS
from distill.reports.outcome import missing_columns
from distill.runs.files import write_text
from distill.runs.progress import progress
from distill.runs.run import Run
from robust.ranges import Count, Range, check_ranges

__all__ = ["run_benchmark"]

OWN = ("--ipc", "--seed", "--recipe", "--runs", "--data-dir", "--device", "--image-size")
"""flags that tell cells apart or place them, which are the benchmark's"""


@dataclass(frozen=True)
class BenchmarkCommand:
    """Run a table of methods, data sets, images per class and seeds: what of it is missing."""

    datasets: str = "mnist,cifar10"
    """data sets"""
    methods: str = ""
    """methods; empty for all but those of sre2l, which are for larger images"""
    ipc: str = "1,10"
    """images per class"""
    seeds: Annotated[int, Range(least=1, most=10_000)] = 2
    """seeds 0, 1, ... of each"""
    recipe: Literal["quick", "paper"] | None = None
    """preset of each method; None: paper on a GPU, else quick"""
    protocol: Literal["standard", "own"] = "standard"
    """how students are trained: the same for all methods, or as a method's authors do, of those that have a way"""
    backbone: str | None = None
    """network of all students of the standard protocol; None for the one in which this recipe of `full` trains on the
    whole set; recipe: that of each method's recipe, so that rows also differ by it"""
    attacks: str | None = None
    """columns; None for the paper's three and pgd_ce_margin at the threat linf, by which methods are ranked"""
    students: Annotated[int, Range(least=1, most=10_000)] | None = None
    """of each run; None for the recipe's"""
    test_images: Count | None = None
    """class-balanced part of the test set; None for the recipe's"""
    image_size: Annotated[int, Range(least=4, most=1024, hint="pixels")] | None = None
    """side in pixels; None for the data set's own"""
    flags: tuple[str, ...] = ()
    """further flags of a method: --flags "dc: --iterations 500" "guard_dc: --real-loss guard:weight=3\""""
    jobs: Annotated[int, Range(least=1, most=1024)] = 1
    """cells at the same time; several GPUs are dealt out in turn"""
    cell: str = ""
    """I/N, from 1/N to N/N: a part of the cells only, for the array jobs of a cluster; --dry-run counts them"""
    dry_run: bool = False
    """print the command and the state of each cell, and run none"""
    data_dir: Path = RunOptions.data_dir
    """folder of the real data sets"""
    runs: Path = RunOptions.runs
    """folder of all runs; the tables are in its benchmark/"""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, ...; auto takes GPUs where there are some"""

    def __post_init__(self) -> None:
        check_ranges(self)


def run_benchmark(flags: list[str], methods: Mapping[str, Method]) -> int:
    """Run the cells that are missing, and write the tables.

    Args:
        flags: the words behind `benchmark`.
        methods: all, by name.

    Returns:
        the exit code: 0 where every cell is done, 1 where some failed.

    Raises:
        InputError: a name is unknown or a value out of range; nothing has run then.
    """
    asked = parse(BenchmarkCommand, BenchmarkCommand(), flags, "bash run.sh benchmark")
    cells = _cells(asked, methods)
    mine = cells if not asked.cell else _part(cells, asked.cell)
    if asked.dry_run:
        for cell in mine:
            state = "done" if cell.done else f"cannot run: {cell.trouble}" if cell.trouble else "to run"
            print(f"bash run.sh {shlex.join(cell.next or cell.words)}    # {state}")
        print(f"{len(mine)} cells, {sum(cell.done for cell in mine)} done", file=sys.stderr)
        return 0
    place = asked.runs / "benchmark"
    failed = {cell: cell.trouble for cell in mine if cell.trouble}
    todo = [cell for cell in mine if not cell.done and not cell.trouble]
    finished = len(mine) - len(todo) - len(failed)
    if finished:
        print(f"{finished} of {len(mine)} cells are there already", file=sys.stderr)
    with (
        progress("benchmark", len(mine), finished + len(failed), unit="cell") as bar,
        contextlib.closing(run_cells(todo, place / "logs", asked.jobs, _devices(asked), bar.set_postfix_str)) as ended,
    ):
        for cell, trouble in ended:
            if trouble:
                failed[cell] = trouble
            bar.update()
            _write(cells, place)
    text, damaged = _write(cells, place)
    failed |= {cell: trouble for cell, trouble in damaged.items() if cell in mine}
    print(text, end="")
    if text:
        print(f"saved in {place}: {', '.join(f'table.{ending}' for ending in LAYOUTS)}", file=sys.stderr)
    by_trouble: dict[str, list[Cell]] = {}
    for cell in filter(failed.__contains__, mine):
        by_trouble.setdefault(failed[cell], []).append(cell)
    for trouble, several in by_trouble.items():
        print(f"failed: {', '.join(cell.name for cell in several)}: {trouble}", file=sys.stderr)
    if failed:
        print(
            f"{len(failed)} of {len(mine)} cells failed (logs: {place / 'logs'}); the same command tries them again",
            file=sys.stderr,
        )
    return 1 if failed else 0


# --- which cells ---------------------------------------------------------------------------------------------------


def _cells(asked: BenchmarkCommand, methods: Mapping[str, Method]) -> list[Cell]:
    """Return all cells, the first seed of all before the second.

    Raises:
        InputError: a name is unknown, or a value out of range.
    """
    chosen = _names(asked.methods, "method", methods) or [
        name for name, method in methods.items() if method.in_benchmark
    ]
    datasets = _names(asked.datasets, "data set", DATASETS)
    ipcs = [whole_number("--ipc", text, least=1) for text in dict.fromkeys(asked.ipc.split(","))]
    extra = _extra(asked.flags, methods)
    if not datasets:
        raise InputError(f"--datasets is {asked.datasets!r}; it names at least one of {', '.join(DATASETS)}")
    if idle := [method for method in extra if method not in chosen]:
        raise InputError(f"--flags is of {idle[0]}, which is not among the methods: {', '.join(chosen)}")
    for flag, value in (("--seeds", asked.seeds), ("--jobs", asked.jobs)):
        if value < 1:
            raise InputError(f"{flag} is {value}; it must be >= 1")
    if asked.attacks is not None:
        columns(Evaluation(attacks=asked.attacks), 3, 32)
    if asked.backbone not in (None, "recipe"):
        build(asked.backbone, channels=3, image_size=64, num_classes=10, generator=torch.Generator())

    def protocol(method: str) -> list[str]:
        return ["--protocol", asked.protocol if methods[method].protocol else "standard"]

    facts = cache(_facts)
    return [
        _cell(asked, methods, method, dataset, ipc, seed, [*protocol(method), *extra.get(method, [])], facts)
        for seed in range(asked.seeds)
        for dataset in datasets
        for ipc in ipcs
        for method in chosen
        if ipc == ipcs[0] or not methods[method].whole_class
    ]


def _names(text: str, kind: str, known: Mapping[str, object] | Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in known:
            raise unknown(kind, name, known)
    return names


def _extra(texts: Sequence[str], methods: Mapping[str, object]) -> dict[str, list[str]]:
    """Return the further flags of methods, from "METHOD: words".

    Raises:
        InputError: one is written otherwise, or of no method.
    """
    found = {}
    for text in texts:
        method, colon, words = text.partition(":")
        if not colon:
            raise InputError(f'--flags is {text!r}; it takes "METHOD: flags", one text a method')
        if method not in methods:
            raise unknown("method", method, methods)
        if method in found:
            raise InputError(f"--flags names {method} twice; give all its flags in one text")
        found[method] = shlex.split(words)
        for word in found[method]:
            if word.partition("=")[0] in OWN:
                raise InputError(f"--flags has {word} for {method}; give it to the benchmark itself")
    return found


def _cell(
    asked: BenchmarkCommand,
    methods: Mapping[str, Method],
    method: str,
    dataset: str,
    ipc: int,
    seed: int,
    extra: list[str],
    facts: Callable[[str, Path, int | None, str], tuple[dict[str, Any], tuple[int, int]] | None],
) -> Cell:
    """Return a cell, whose command line is checked, and whose folder is its own or empty."""
    flags = ["--ipc", str(ipc), "--seed", str(seed), "--runs", str(asked.runs), "--data-dir", str(asked.data_dir)]
    for name in ("recipe", "attacks", "students", "test_images", "image_size"):
        value = getattr(asked, name)
        flags += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    flags += extra
    experiment, place = resolve_flags(methods[method], dataset, [*flags, "--device", asked.device])
    folder, data, trouble = place.runs / experiment.folder(place.data_dir), experiment.data_name(place.data_dir), ""
    where = (dataset, place.data_dir, experiment.image_size, experiment.split)
    known = facts(*where) if (folder / "experiment.json").exists() else None
    try:
        Run(folder, experiment, data=known and known[0], seed=seed)
    except InputError as error:  # another config's run is there, or one on other data
        trouble = str(error)

    def complete(finished: Path) -> bool:
        if not (finished / "table.csv").exists() or not of_this_configuration(finished):
            return False
        known = facts(*where)
        return known is None or missing_columns(finished, experiment.evaluation, *known[1]) == []

    def of_this_configuration(finished: Path) -> bool:
        if finished == folder:
            return True  # `trouble` says where it is not
        recipe = "quick" if experiment.recipe == "quick" else "paper"
        settings = Judgement(digest_of(folder / SET), dataset, network, experiment.evaluation, recipe, seed)
        try:
            Run(finished, settings, seed=seed)
        except InputError:  # somebody evaluated the set with other settings; `evaluate` says so in a line
            return False
        return True

    name = f"{method}-{data}-ipc{ipc}-seed{seed}"
    network = asked.backbone or _usual(methods[FULL], dataset, experiment.recipe)
    same = network in ("recipe", experiment.config.backbone)
    if same or experiment.evaluation.protocol == "own" or experiment.split != "test":  # evaluate has no split
        return Cell(name, (method, dataset, *flags), data, folder, complete, None, trouble=trouble)

    @cache  # a finished set stays as it is, and its folder is looked up after every cell
    def judged() -> Path:
        return place.runs / folder_of(method, digest_of(folder / SET), label(dataset, place.data_dir), seed, network)

    judgement = ["evaluate", str(folder), "--backbone", network, "--recipe", experiment.recipe, "--seed", str(seed)]
    judgement += [*flags_of(experiment.evaluation), "--runs", str(place.runs), "--data-dir", str(place.data_dir)]
    return Cell(name, (method, dataset, *flags), data, folder, complete, judged, tuple(judgement), trouble)


def _facts(
    dataset: str, data_dir: Path, image_size: int | None, split: str
) -> tuple[dict[str, Any], tuple[int, int]] | None:
    """Return the identity of a data set, and channels and size of its images.

    None where the data are not there: then a finished run is shown without being compared with them.
    """
    try:
        train, test = real_data(dataset, data_dir, image_size, split)
    except InputError:
        return None
    return identity_of(train, test), test.image_shape[:2]


def _usual(full: Method, dataset: str, recipe: str) -> str:
    """Return the network in which a recipe trains on the whole set."""
    return resolve_flags(full, dataset, ["--recipe", recipe])[0].config.backbone


def _part(cells: list[Cell], text: str) -> list[Cell]:
    """Return every N-th of the cells, from the I-th on.

    Raises:
        InputError: the text is no I/N.
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InputError(f"--cell is {text}; it takes I/N, from 1/N to N/N: 1/8")
    return cells[int(number) - 1 :: int(count)]


def _devices(asked: BenchmarkCommand) -> list[str]:
    """Return the devices that cells take in turn.

    Raises:
        InputError: the device does not work here.
    """
    device = find_device(asked.device)
    if asked.device == "auto" and device.type == "cuda":
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [str(device)]


def _write(cells: list[Cell], place: Path) -> tuple[str, dict[Cell, str]]:
    """Write the tables of the cells that are done, and return them as text, and which cells cannot be read, and why."""
    rows, damaged = [], {}
    for cell in cells:
        if cell.done:
            try:
                rows += [replace(row, dataset=cell.data) for row in find_rows([cell.folder])]
            except InputError as error:
                damaged[cell] = str(error)
    if not rows:
        return "", damaged
    for ending, layout in LAYOUTS.items():
        write_text(place / f"table.{ending}", layout(rows))
    return LAYOUTS["md"](rows), damaged
