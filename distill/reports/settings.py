"""The settings that differ between runs, from their experiment.json: rows have only a hash of them."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.evaluation.rows import LineKey, Row
from distill.runs.own_files import read_record

__all__ = ["config_notes", "differing_settings", "settings_of"]


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
        one, two = (record.get(part) or {} for record in records)
        found += differing_settings({k: v for k, v in one.items() if k != "seed"}, two)
    return ", ".join(found)
