"""The flags of `frontier`, and the cells of its figure: each point of each curve with each seed.

The runs of a point have a folder of their own, RUNS/frontier/points/SETTING/..., since runs of one method would
otherwise share a folder. Points that differ only in how students are trained share the distilled set, also with points
of earlier calls; a run that an earlier call has under other flags is taken as it is. Stages (experts, teachers, feature
extractors) are shared with all other runs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from distill.app.cell_plan import (
    data_key,
    data_of,
    network_of_full,
    planned_cell,
    selected_names,
    texts_by_method,
    words_of,
)
from distill.app.cells import SET, Cell
from distill.app.distil import facts_from, resolve_flags
from distill.app.flags import find_device
from distill.app.frontier_points import CONTROLS, Control, Curve, PlannedPoint, controls_of, curve_of
from distill.app.registry import methods_named
from distill.app.start import RunOptions
from distill.data import check_dataset
from distill.distilled import run_of
from distill.errors import InputError, unknown
from distill.experiment import Experiment
from distill.methods.method import Method
from distill.models import build
from distill.runs.own_files import fingerprint_of_folder
from distill.runs.run import Run
from robust.ranges import Count, Range, Whole, check_ranges

__all__ = ["FrontierCommand", "PlannedCurve", "cell_groups", "known_methods", "planned_curves", "reference_point"]

OF_FRONTIER = ("--ipc", "--seed", "--recipe", "--runs", "--stages", "--data-dir", "--device", "--image-size", "--split")
OF_FRONTIER += ("--attacks", "--threat", "--eps", "--students", "--test-images")
"""flags that `frontier` sets itself, equal for all points"""
METHODS = ("random", "dc", "dsa", "mtt", "guard_dc", "guard_dsa", "guard_mtt")
METHODS += ("random_robust_labels", "mtt_robust_labels", "random_robust_views", "robust_rded")
"""of a figure without --methods"""


@dataclass(frozen=True)
class FrontierCommand:
    """Run methods at several strengths, and compare their robust accuracy at equal clean accuracy."""

    dataset: tyro.conf.Positional[str]
    """data set"""
    methods: str = ",".join(METHODS)
    """methods"""
    strengths: tuple[str, ...] = ()
    """strengths instead of a method's own, values in braces: --strengths "dc: --student.epochs {100,1000}" "mtt:"; an
    empty text is the recipe's setting alone"""
    controls: str = "dc"
    """method of the controls: shorter training, weight decay, label smoothing, blurred images; with them come random
    real images in several ways. "" for no controls"""
    reference: str = "dc"
    """method with which all are compared, at its recipe's setting, or else at its first"""
    at: Annotated[float, Range(least=0, most=100)] | None = None
    """clean accuracy in percent at which methods are compared; None: that of the reference"""
    ipc: Count = 10
    """images per class"""
    seeds: Annotated[int, Range(least=1, most=10_000)] = 3
    """distilled sets per point, with the seeds 0, 1, ..."""
    students: Annotated[int, Range(least=1, most=10_000)] = 5
    """students per set"""
    test_images: Count | None = None
    """size of a class-balanced subset of the test set; None: the recipe's number"""
    recipe: Literal["quick", "paper", "smoke"] | None = None
    """preset of each method; None: paper on a GPU, else quick"""
    backbone: str | None = None
    """network of all students; None: the network of `full` with the same recipe; recipe: the network of each recipe"""
    image_size: Annotated[int, Range(least=4, most=1024, hint="pixels")] | None = None
    """side in pixels; None: the size of the data set"""
    split: Literal["test", "validation"] = "test"
    """evaluate on the test set, or, to choose strengths, on a tenth of the training set that is held out"""
    attacks: str = "pgd@linf,apgd_t@linf"
    """columns; NAME[:field=value,...][@THREAT], as of METHOD --attacks"""
    column: str | None = None
    """the column by which methods are compared, as --attacks names it; None: the last"""
    autoattack: Whole = 0
    """run AutoAttack too, at the threat of --column, on the N methods and controls that are most robust at the clean
    accuracy of the reference, and on the reference; after all other cells"""
    jobs: Annotated[int, Range(least=1, most=1024)] | None = None
    """cells run at the same time, which share the cores; several GPUs are used in turn. None: one for each GPU, or on a
    CPU one for each core, as far as the free memory goes"""
    cell: str = ""
    """I/N, from 1/N to N/N: run only a part of the cells, for array jobs of a cluster; --dry-run counts the cells"""
    dry_run: bool = False
    """print the command and the state of each cell without running any"""
    data_dir: Path = RunOptions.data_dir
    """folder of the real data sets"""
    runs: Path = RunOptions.runs
    """folder of all runs; the points are in the subfolder frontier/points/"""
    device: str = "auto"
    """cpu, cuda, cuda:1 or mps; auto uses all GPUs, or the CPU if there is none"""
    out: Path | None = None
    """folder of tables and figure; None: the subfolder frontier/DATA-ipcN/ of --runs"""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class PlannedCurve:
    """A curve, with the experiment and the cells of each point."""

    curve: Curve
    experiments: tuple[Experiment, ...]
    """of each point, with seed 0"""
    cells: tuple[tuple[Cell, ...], ...]
    """of each point, by seed"""


def known_methods(
    command: FrontierCommand, methods: Mapping[str, Method], table: Sequence[Control] = CONTROLS
) -> dict[str, Method]:
    """Return all methods by name, and with them those of the command that only `method_named` knows.

    Args:
        command: the settings.
        methods: all methods that have a name of their own.
        table: the controls.
    """
    of_controls = [control.method for control in table] if command.controls else []
    named = [*command.methods.split(","), command.reference, command.controls, *of_controls]
    return methods_named(named, methods)


def planned_curves(
    command: FrontierCommand,
    methods: Mapping[str, Method],
    attacks: str,
    table: Sequence[Control] = CONTROLS,
) -> list[PlannedCurve]:
    """Return all curves; the flags of every cell are checked.

    Args:
        command: the settings.
        methods: all methods, by name.
        attacks: columns of every cell.
        table: the controls.

    Raises:
        InputError: a name is unknown, or a value out of range.
    """
    check_dataset(command.dataset)
    selected = selected_names(command.methods, "method", methods)
    if not selected:
        raise InputError("--methods is empty; it must name at least one method")
    for name in (command.reference, command.controls):
        if name and name not in methods:
            raise unknown("method", name, methods)
    if command.reference not in selected:
        raise InputError(f"--reference is {command.reference}, which is not among the methods: {', '.join(selected)}")
    texts = texts_by_method("--strengths", command.strengths, methods)
    if unused := [method for method in texts if method not in selected]:
        raise InputError(f"--strengths is for {unused[0]}, which is not among the methods: {', '.join(selected)}")
    curves = [curve_of(methods[name], texts.get(name)) for name in selected]
    curves += controls_of(command.controls, curves, methods, table)
    plan = _Plan(command, methods, attacks)
    return [plan.curve(curve) for curve in curves]


class _Plan:
    """Makes cells; knows which distilled sets earlier cells make."""

    def __init__(self, command: FrontierCommand, methods: Mapping[str, Method], attacks: str):
        self.command, self.methods, self.attacks = command, methods, attacks
        self.recipe = command.recipe or ("quick" if find_device(command.device).type == "cpu" else "paper")
        self.network = command.backbone or network_of_full(methods, command.dataset, self.recipe)
        if self.network != "recipe":  # refused here, before the first cell distils
            size = None if command.image_size is None else str(command.image_size)
            facts = facts_from(command.dataset, str(command.data_dir), size)
            shape = {"channels": facts.channels, "image_size": facts.size, "num_classes": facts.classes}
            build(self.network, **shape, generator=torch.Generator())
        self.data = cache(data_of)
        self.points = command.runs / "frontier" / "points"
        self.sets: dict[str, Path] = {}  # everything that a distilled set depends on -> the run that distils it

    def curve(self, curve: Curve) -> PlannedCurve:
        found = [self._point(curve, point) for point in curve.points]
        experiments, cells = zip(*found, strict=True)
        return PlannedCurve(curve, experiments, cells)

    def _point(self, curve: Curve, point: PlannedPoint) -> tuple[Experiment, tuple[Cell, ...]]:
        command, method = self.command, self.methods[curve.method]
        flags = words_of("--strengths", method.name, point.flags, OF_FRONTIER, "frontier")
        flags = ["--ipc", str(command.ipc * curve.times_ipc), *self._shared(), *flags]
        flags += ["--stages", str(command.runs / "stages")]
        own = ["--runs", str(self.points / _folder(point)), "--device", command.device]
        experiment, options = resolve_flags(method, command.dataset, [*flags, *own])
        if experiment.split != "test" and self.network not in ("recipe", experiment.config.backbone):
            raise InputError(
                f"{curve.name} distils with {experiment.config.backbone} and the students are {self.network}: on the "
                f"validation split both are one; give --backbone {experiment.config.backbone} or --backbone recipe, or "
                f'--strengths "{method.name}: ... --backbone {self.network}"'
            )
        cells = []
        for seed in range(command.seeds):
            mine = replace(experiment, seed=seed)
            place = mine.folder(options.data_dir)
            runs, made = self._made_before(mine, place, options)
            folder = runs / place
            key = repr(replace(mine, evaluation=None))
            source = self.sets.setdefault(key, made or folder) if method.incomplete is None else folder
            name = f"{curve.name} {point.setting} {experiment.data_name(options.data_dir)} seed{seed}"
            cell = planned_cell(
                mine,
                replace(options, runs=runs),
                [method.name, command.dataset, *flags, "--runs", str(runs), "--seed", str(seed)],
                name=_slug(name),
                network=self.network,
                data=self.data,
                set_from=None if source == folder else source,
            )
            cells.append(cell)
        return experiment, tuple(cells)

    def _made_before(self, mine: Experiment, place: Path, options: RunOptions) -> tuple[Path, Path | None]:
        """Return the folder of runs in which an earlier call made this run, else its own; and a run with the same set.

        The earlier call may have written other flags for the same settings, or other settings of the students.

        Args:
            mine: the experiment.
            place: of its run in a folder of runs.
            options: of its run, in the folder that its flags name.
        """
        own = options.runs
        if (own / place / "experiment.json").exists() or not self.points.exists():
            return own, None
        others = [runs for runs in sorted(self.points.iterdir()) if (runs / place / SET).exists()]
        known = self.data(*data_key(mine, options)) if others else None
        if known is None:
            return own, None
        run = Run(own / place, mine, data=known[0], seed=mine.seed)
        whole, of_set = run.fingerprint(), run.fingerprint(evaluation=None)
        found = {runs: _fingerprints(runs / place) for runs in others}
        same = (runs for runs, (of_run, _) in found.items() if of_run == whole)
        with_set = (runs / place for runs, (_, made_by) in found.items() if made_by == of_set)
        return next(same, own), next(with_set, None)

    def _shared(self) -> list[str]:
        command = self.command
        words = ["--recipe", self.recipe, "--students", str(command.students), "--attacks", self.attacks]
        words += ["--split", command.split, "--data-dir", str(command.data_dir)]
        for flag, value in (("--test-images", command.test_images), ("--image-size", command.image_size)):
            words += [] if value is None else [flag, str(value)]
        return words


def reference_point(command: FrontierCommand, curve: PlannedCurve, methods: Mapping[str, Method]) -> int:
    """Return the number of the reference's point that has the recipe's setting, else 0.

    Args:
        command: the settings.
        curve: of the reference.
        methods: all methods, by name.
    """
    flags = ["--recipe", curve.experiments[0].recipe, "--ipc", str(command.ipc), "--data-dir", str(command.data_dir)]
    flags += [] if command.image_size is None else ["--image-size", str(command.image_size)]
    recipe, _ = resolve_flags(methods[curve.curve.method], command.dataset, flags)
    for number, experiment in enumerate(curve.experiments):
        if experiment.config == recipe.config and experiment.evaluation.student == recipe.evaluation.student:
            return number
    return 0


def cell_groups(curves: Sequence[PlannedCurve]) -> list[list[Cell]]:
    """Return the cells in groups that share a distilled set; first those with seed 0, then those with seed 1, ..."""
    by_seed = zip(*(cells for curve in curves for cells in curve.cells), strict=True)
    groups: dict[Path, list[Cell]] = {}
    for cell in (cell for cells in by_seed for cell in cells):
        groups.setdefault(cell.set_from or cell.run, []).append(cell)
    return list(groups.values())


def _fingerprints(folder: Path) -> tuple[str | None, str | None]:
    """Return the fingerprint of the run of a folder, and of the run that made its set; None if a file is damaged."""
    try:
        return fingerprint_of_folder(folder), run_of(folder / SET)
    except InputError:  # of another point, which its own cell reports
        return None, None


def _folder(point: PlannedPoint) -> str:
    """Return the name of a point's folder."""
    return _slug(point.flags.replace("--", "")) or "recipe"


def _slug(text: str) -> str:
    """Return a text as the name of a file.

    >>> _slug("real-loss pgd_at:steps=3@2/255")
    'real-loss-pgd_at-steps=3@2-255'
    """
    return re.sub(r"[^A-Za-z0-9_.,=@+-]+", "-", text).strip("-")
