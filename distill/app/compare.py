"""`bash run.sh compare A B` or `compare A... --against B...`: two sides of finished runs on the same test images.

A side is one run, or several that differ in nothing but their seed: several distilled sets of one method. What the
interval and the p-value generalise to follows from how many sets and students a side has, and is printed: see
`distill.reports.intervals.difference`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from distill.app.flags import parse
from distill.errors import InputError
from distill.evaluation.intervals import difference, unit_of
from distill.reports.indices import UNBIASED
from distill.reports.outcome import bools_of, verdict_of
from distill.reports.tables import Row, aligned, find_rows
from distill.runs.own_files import read_record

__all__ = ["run_compare"]

USAGE = "compare takes the folders of two runs: bash run.sh compare A B, or of several: compare A... --against B..."
SAME = ("method", "dataset", "ipc", "backbone", "loss", "recipe")
"""fields of a row in which all runs of a side agree"""
ATTACK = ("threat", "how")
"""fields that say which attack a column of one name is"""


@dataclass(frozen=True)
class CompareCommand:
    """Compare finished runs on the same test images: accuracy of B minus accuracy of A."""

    places: tyro.conf.Positional[tuple[Path, ...]] = ()
    """two folders, A and B; with --against all folders of A. A folder is a run, or holds runs of several seeds"""
    against: tuple[Path, ...] = ()
    """folders of B, where A or B has several"""


@dataclass(frozen=True)
class Side:
    """All runs of A, or of B."""

    places: tuple[Path, ...]
    """as they were given"""
    rows: list[Row]
    """of all runs"""
    names: list[str]
    """by distilled set, its digest"""
    sets: list[dict[str, Tensor]]
    """by distilled set, by column that all runs have, bools as `bools_of` returns them"""

    def attack(self, name: str) -> dict[str, set[str]]:
        """Return what is known of a column's attack, by field of ATTACK; more than one value where runs differ."""
        mine = [row for row in self.rows if row["attack"] == name]
        return {field: {str(row[field]) for row in mine if row.get(field) is not None} for field in ATTACK}

    def verdict(self, name: str) -> str:
        """Return the verdict of a column over all students."""
        return verdict_of([row["verdict"] for row in self.rows if row["attack"] == name])


def run_compare(flags: list[str]) -> int:
    """Print the differences.

    Returns:
        the exit code.

    Raises:
        InputError: two sides are not given, a folder has no finished run, the runs of a side differ in more than their
            seed, or A and B were judged on other images.
    """
    asked = parse(CompareCommand, CompareCommand(), flags, "bash run.sh compare")
    two = any(flag.startswith("--against") for flag in flags)
    sides = (asked.places, asked.against) if two else (asked.places[:1], asked.places[1:])
    if not all(sides) or not (two or len(asked.places) == 2):
        raise InputError(USAGE)
    a, b = (_side(name, places) for name, places in zip("AB", sides, strict=True))
    _refuse_other_images(a, b)
    shared = [name for name in a.sets[0] if name in b.sets[0]]
    unlike = {name: found for name in shared if (found := _other_attack(a.attack(name), b.attack(name)))}
    print(aligned(_table(a, b, [name for name in shared if name not in unlike])), end="")
    print("\n".join([_legend("A", a), _legend("B", b), *_notes(a, b)]))
    for name, found in unlike.items():
        print(f"{name} is not compared, because it is another attack: {found}")
    for name in shared:
        for letter, side in (("A", a), ("B", b)):
            if name not in unlike and side.verdict(name) != "ok":
                print(f"? {letter}, {name}: {side.verdict(name)}")
    return 0


def _table(a: Side, b: Side, names: Sequence[str]) -> list[list[str]]:
    lines = [["", "A", "B", "B - A", "95 % interval", "p"]]
    for name in names:
        of_a, of_b = ([bools[name] for bools in side.sets] for side in (a, b))
        if any(bools.ndim != 2 for bools in (*of_a, *of_b)):
            continue  # corruptions: the same image many times
        result = difference(of_b, of_a, matched=a.names == b.names and len(a.names) > 1)
        means = []
        for side, sets in ((a, of_a), (b, of_b)):
            mean = 100 * torch.stack([bools.double().mean() for bools in sets]).mean().item()
            means.append(f"{mean:.1f}" + ("" if side.verdict(name) == "ok" else " ?"))
        interval = f"{result.low:+.1f} to {result.high:+.1f}"
        lines.append([name, *means, f"{result.value:+.1f}", interval, f"{result.p_value:.2g}"])
    return lines


def _other_attack(a: dict[str, set[str]], b: dict[str, set[str]]) -> str:
    """Return how two attacks differ, in words, "" where nothing that is known of both does."""
    differs = [field for field in ATTACK if a[field] and b[field] and len(a[field] | b[field]) > 1]
    return "; ".join(
        f"{field} {' and '.join(sorted(a[field]))} of A, {' and '.join(sorted(b[field]))} of B" for field in differs
    )


def _legend(letter: str, side: Side) -> str:
    row, sets = side.rows[0], len(side.sets)
    students = sum(len(bools["clean"]) for bools in side.sets)
    counted = f"{_count(sets, 'set')}, {_count(students, 'student')}"
    loss = "" if row["loss"] == "cross_entropy" else f" {row['loss']},"
    where = ", ".join(map(str, side.places))
    return f"{letter}: {row['method']}, ipc {row['ipc']}, {row['backbone']},{loss} {counted}: {where}"


def _notes(a: Side, b: Side) -> list[str]:
    """Return what the numbers are, and what they can show."""
    row, sets = a.rows[0], (len(a.sets), len(b.sets))
    lines = [
        f"accuracy in percent on {row['images']} test images of {row['dataset']}; interval and p: Welch's t test, "
        "two-sided, not corrected for the number of columns"
    ]
    unit = unit_of(*([bools["clean"] for bools in side.sets] for side in (a, b)))
    same = a.names == b.names
    if unit == "sets":
        counted = f"{sets[0]}, the same on both sides, compared set by set" if same else f"{sets[0]} and {sets[1]}"
        lines.append(f"unit: distilled sets ({counted}); the result holds for other seeds of both")
        several = sets
    elif unit == "students":
        which = "this distilled set, trained in both ways" if same else "these two distilled sets"
        lines.append(f"unit: students; the result holds for other students of {which}, not for other seeds")
        if not same:
            lines.append("to compare methods, give several seeds: bash run.sh compare A... --against B...")
        several = (len(a.sets[0]["clean"]), len(b.sets[0]["clean"]))
    else:
        lines.append("unit: test images; the result holds for these two networks, for no other student or seed")
        several = (1, 1)
    if min(several) == 1 < max(several):
        alone, other = ("A", "B") if several[0] == 1 else ("B", "A")
        lines.append(
            f"{alone} has a single {unit[:-1]}: its variance is taken to be that between the {unit} of {other}"
        )
    for name in [name for name in a.sets[0] if name.startswith(f"{UNBIASED}@") and name in b.sets[0]]:
        lines.append(f"rank by {name}: attacks by cross-entropy alone depend on the scale of a network's logits")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number > 1)}"


def _side(letter: str, places: tuple[Path, ...]) -> Side:
    """Return a side; students of one set in several runs are put together.

    Raises:
        InputError: a folder has no finished run, or the runs differ in more than their seed.
    """
    folders = list(dict.fromkeys(folder for place in places for folder in _runs(place)))
    rows_of = {folder: find_rows([folder]) for folder in folders}
    first = folders[0]
    for folder in folders[1:]:
        if differs := _differences(_settings(first, rows_of[first]), _settings(folder, rows_of[folder])):
            raise InputError(
                f"the runs of {letter} differ in more than their seed: {', '.join(differs)} ({first}, {folder})"
            )
    runs: dict[str, list[dict[str, Tensor]]] = {}
    for folder, rows in rows_of.items():
        runs.setdefault(rows[0]["set"], []).append(bools_of(folder, rows))
    every = [run for of_set in runs.values() for run in of_set]
    columns = [column for column in every[0] if all(column in run for run in every)]
    names = sorted(runs)  # so that the same sets are in the same order on both sides
    sets = [{column: torch.cat([run[column] for run in runs[name]]) for column in columns} for name in names]
    return Side(places, [row for rows in rows_of.values() for row in rows], names, sets)


def _runs(place: Path) -> list[Path]:
    """Return the folders of the finished runs that a place is or holds."""
    if (place / "results.jsonl").exists():
        return [place.resolve()]
    found = sorted(path.parent.resolve() for path in place.rglob("results.jsonl")) if place.is_dir() else []
    if not found:
        raise InputError(f"{place} is no folder of a finished run: it has no results.jsonl")
    return found


def _settings(folder: Path, rows: list[Row]) -> dict[str, Any]:
    """Return in what the runs of a side must agree, by name: all but seed, set, and how many students and columns."""
    found = {name: rows[0][name] for name in SAME}
    experiment = _experiment(folder)
    free = {"seed", "distilled", "evaluation", *found}
    found |= {name: value for name, value in experiment.items() if name not in free}
    of_columns = {"students", "attacks", "threat", "eps"}  # rows say which attack a column is, at which threat
    found |= {name: value for name, value in experiment.get("evaluation", {}).items() if name not in of_columns}
    return found


def _experiment(folder: Path) -> dict[str, Any]:
    """Return the settings of a run; none where its experiment.json is missing."""
    found = (read_record(folder) or {}).get("experiment") or {}
    return found | {"evaluation": found.get("evaluation") or {}}


def _differences(first: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return in which settings known of both runs they differ.

    >>> _differences({"ipc": 1, "config": {"lr": 0.1, "steps": 3}}, {"ipc": 1, "config": {"lr": 0.2, "steps": 3}})
    ['config.lr 0.1 and 0.2']
    """
    found = []
    for name in [name for name in first if name in other and first[name] != other[name]]:
        if isinstance(first[name], dict) and isinstance(other[name], dict):
            found += [f"{name}.{inner}" for inner in _differences(first[name], other[name])] or [name]
        else:
            found.append(f"{name} {first[name]} and {other[name]}")
    return found


def _refuse_other_images(a: Side, b: Side) -> None:
    tests = [{(row["dataset"], row["images"], row["test"]) for row in side.rows} for side in (a, b)]
    if len(tests[0] | tests[1]) > 1:
        names = [" and ".join(f"{images} of {data}" for data, images, _ in sorted(test, key=str)) for test in tests]
        raise InputError(f"the runs were judged on other images: A {names[0]}; B {names[1]}")
