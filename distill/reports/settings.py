"""The settings that differ between runs, from their experiment.json: rows have only a hash of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.evaluation.rows import LineKey, Row
from distill.runs.own_files import read_record

__all__ = ["config_notes", "differing_settings", "distinct_labels", "flattened", "settings_of"]


def settings_of(folder: Path) -> dict[str, Any]:
    """Return the settings of a run; none where its experiment.json is missing.

    Raises:
        InputError: experiment.json is damaged.
    """
    return (read_record(folder) or {}).get("experiment") or {}


def differing_settings(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return in which settings two runs differ.

    A setting that one run alone records is at its default in the other one (`distill.runs.description`): it counts
    where both record the same class, since objects of other classes have other settings.

    >>> differing_settings({"ipc": 1, "config": {"lr": 0.1, "steps": 3}}, {"ipc": 1, "config": {"lr": 0.2, "steps": 3}})
    ['config.lr 0.1 and 0.2']
    >>> differing_settings({"class": "Config", "factor": 2}, {"class": "Config"})
    ['factor 2 and its default']
    """
    found = []
    for name in [name for name in first if name in other and first[name] != other[name]]:
        if isinstance(first[name], dict) and isinstance(other[name], dict):
            found += [f"{name}.{inner}" for inner in differing_settings(first[name], other[name])] or [name]
        else:
            found.append(f"{name} {first[name]} and {other[name]}")
    if "class" in first and first["class"] == other.get("class"):
        found += [f"{name} {first[name]} and its default" for name in first if name not in other]
        found += [f"{name} its default and {other[name]}" for name in other if name not in first]
    return found


def config_notes(rows: Iterable[Row]) -> list[str]:
    """Return what differs between lines of a table that differ in nothing but their configuration, a text each.

    Args:
        rows: of the table; rows that were not read from a folder have no settings to compare.
    """
    folders: dict[LineKey, dict[LineKey, Path]] = {}
    for row in rows:
        if row.folder is not None:
            folders.setdefault(replace(row.line, config=""), {}).setdefault(row.line, row.folder)
    notes = []
    for cell, configs in folders.items():
        (first, first_folder), *others = configs.items()
        for line, folder in others:
            found = _differences(first_folder, folder) or "no setting that both runs record"
            place = f"{cell.method} on {cell.dataset}, ipc {cell.ipc}"
            notes.append(f"config {first.config} and {line.config} ({place}) differ in {found}")
    return notes


def _differences(first: Path, other: Path) -> str:
    try:
        records = [read_record(folder) or {} for folder in (first, other)]
    except InputError:
        return ""
    found = []
    for part in ("experiment", "data"):
        one, two = ({k: v for k, v in (record.get(part) or {}).items() if k != "seed"} for record in records)
        found += differing_settings(one, two)
    return ", ".join(found)


def distinct_labels(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a label for each run: its method, and the settings in which it differs from another run of that method.

    Args:
        runs: the settings of each, as of `settings_of`.

    Returns:
        the labels, all different; a number is added to runs with the same settings.

    >>> dc, guard = {"method": "dc", "seed": 0}, {"method": "guard_dc", "seed": 0, "config": {"weight": 1}}
    >>> distinct_labels([dc, dc | {"seed": 1}, guard])
    ['dc, seed 0', 'dc, seed 1', 'guard_dc']
    >>> distinct_labels([guard, guard | {"config": {"weight": 3}}, guard])
    ['guard_dc, weight 1 (1)', 'guard_dc, weight 3', 'guard_dc, weight 1 (2)']
    """
    flat = [dict(flattened(run)) for run in runs]
    labels = [str(run.get("method", "run")) for run in runs]
    for name in dict.fromkeys(name for settings in flat for name in settings if name not in ("method", "class")):
        values: dict[str, set[str]] = {}
        for label, settings in zip(labels, flat, strict=True):
            values.setdefault(label.partition(",")[0], set()).add(str(settings.get(name)))
        labels = [
            f"{label}, {name.rpartition('.')[2]} {settings[name]}"
            if name in settings and len(values[label.partition(",")[0]]) > 1
            else label
            for label, settings in zip(labels, flat, strict=True)
        ]
    again = [label for label in labels if labels.count(label) > 1]
    return [
        f"{label} ({labels[: number + 1].count(label)})" if label in again else label
        for number, label in enumerate(labels)
    ]


def flattened(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings with their paths: ("config.lr", 0.1)."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{before}{name}.")
        elif name != "class":
            yield f"{before}{name}", value
