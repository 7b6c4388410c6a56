"""Rows of results as files: results.jsonl of a run has a row a line, teacher.jsonl those of the method's teacher.

Files of earlier versions lack `chance`, `protocol`, `labels` and `teacher`; the rows of a teacher have no `student`.
"""

import json
import types
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from distill.errors import InputError
from distill.evaluation.rows import Row, parse_threat, threat_text
from distill.runs.files import write_text
from distill.runs.foreign import read_text

__all__ = ["FILE", "find_rows", "read_rows", "write_rows"]

FILE = "results.jsonl"
"""name of a run's file of rows"""
LATER = ("chance", "student", "protocol", "labels", "teacher", "version")
"""fields that a line may lack"""


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as JSON lines; a field of LATER that is not known is left out."""
    write_text(path, "".join(json.dumps(_as_json(row)) + "\n" for row in rows))


def _as_json(row: Row) -> dict[str, Any]:
    found = {each.name: getattr(row, each.name) for each in fields(Row) if each.name != "folder"}
    known = {name: value for name, value in found.items() if name not in LATER or value not in (None, "")}
    return known | {"threat": threat_text(row.threat)}


def find_rows(places: Iterable[Path]) -> list[Row]:
    """Return the rows of all finished runs below the places, each run once.

    Raises:
        InputError: a place does not exist, nothing is finished, or a file is damaged or of an earlier version.
    """
    places = list(places)
    rows: list[Row] = []
    read: set[Path] = set()
    for place in places:
        if not place.exists():
            raise InputError(f"there is no folder {place}; give folders of runs, or run a method first")
        for path in sorted(place.rglob(FILE)):
            if path.resolve() in read:
                continue
            read.add(path.resolve())
            found = read_rows(path)
            columns = Counter(row.student for row in found)  # of each student; cut files have fewer of the last
            if None in columns or len(set(columns.values())) != 1:
                raise _damaged(path)
            rows += found
    if not rows:
        raise InputError(f"no finished run below {', '.join(map(str, places))}; `bash run.sh METHOD DATASET` makes one")
    return rows


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file that `write_rows` wrote, in this version or an earlier one.

    Raises:
        InputError: the file is damaged, or of a version whose rows do not name their threat.
    """
    try:
        lines = [json.loads(line) for line in read_text(path).splitlines()]
    except (OSError, ValueError, RecursionError):
        raise _damaged(path) from None
    if not all(isinstance(line, dict) and {"attack", "accuracy"} <= {*line} for line in lines):
        raise _damaged(path)
    if any("threat" not in line for line in lines):
        raise InputError(
            f"{path} is of an earlier version, whose rows do not name their threat: move its folder away, "
            "or name other folders"
        )
    try:
        return [_row_in(line, path.parent) for line in lines]
    except ValueError:
        raise _damaged(path) from None


def _row_in(line: dict[str, Any], folder: Path) -> Row:
    """Return the row of a line.

    Raises:
        ValueError: a value is not of its field's type, or a field is missing.
    """
    if lacking := {*_hints()} - {*LATER} - {*line}:
        raise ValueError(f"{', '.join(sorted(lacking))} is not there")
    found = {name: line[name] for name in _hints() if name in line}
    for name, value in found.items():
        if not _fits(value, _hints()[name]):
            raise ValueError(f"{name} is {value!r}")
    return Row(**found | {"threat": parse_threat(found["threat"]), "folder": folder})


@cache
def _hints() -> dict[str, Any]:
    """Return by field of a line the type of its value in JSON."""
    hints = {name: hint for name, hint in get_type_hints(Row).items() if name != "folder"}
    return hints | {"threat": str}


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value of JSON is of a field's type; a whole number is a float too, a bool is no number."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, member) for member in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    kinds = (int, float) if hint is float else (hint,)
    return isinstance(value, kinds) and not isinstance(value, bool)


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is damaged: run its command again, which makes it anew from the students")
