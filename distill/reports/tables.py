"""Tables and pictures of results. A table in every form comes from the same rows, one per student and attack."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch.nn.functional as F
from torchvision.utils import save_image

from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.runs.files import write_atomic
from distill.runs.foreign import read_text

__all__ = [
    "FORMATS",
    "KEY",
    "TABLES",
    "WHAT",
    "WHO",
    "Row",
    "Style",
    "aligned",
    "figure",
    "find_rows",
    "headings",
    "milliseconds",
    "read_rows",
    "render",
    "save_grid",
    "summary",
]

Row = dict[str, Any]
COLUMNS = ("method", "dataset", "ipc", "seed", "backbone", "loss", "recipe", "attack", "threat", "mean", "std", "n")
COLUMNS += ("verdict", "advised", "advised_mean", "how", "config", "set")
KEY = ("method", "dataset", "ipc", "backbone", "loss", "recipe", "config")
"""what tells two lines of a table apart; loss is the students', "own" where the method itself trains them; config a
hash of the data and all settings but the seed and the attacks"""
WHAT = ("attack", "threat", "how")
"""what tells two columns apart: an attack of one name is another at another threat, or with other settings"""
WHO = ("seed", "set", "student")
"""what tells apart the students of one line: the seed, the distilled set (a hash of its file), the student's number"""
ROW = (*KEY, *WHO, *WHAT, "accuracy", "low", "high", "images", "test")
ROW += ("median_distance", "seconds", "epoch_seconds", "verdict", "advised", "advised_accuracy")
"""fields of a row of results.jsonl; `test` is a hash of the test images"""
LATER = ("chance",)
"""fields that rows of earlier versions lack: the share of the largest class among the test images, percent"""


def summary(rows: Iterable[Row], by_seed: bool = True) -> list[Row]:
    """Return one row per run and column: mean and sample standard deviation over students, percent, and n students.

    Args:
        rows: rows of results.jsonl.
        by_seed: one row a seed and distilled set, else students of all of them together.

    Returns:
        rows with COLUMNS, in order of first appearance; std is None for a single student; seed and set are None where
        several are joined; verdict is "ok", or all that is suspicious of any student. `advised_mean` is that of the
        attack which follows the advice of the verdict, on the students it was given for, and the others' own figures.

    Raises:
        InputError: a student stands twice in one column.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        who = (row["seed"], row["set"]) if by_seed else (None, None)
        groups.setdefault((*(row[name] for name in (*KEY, *WHAT)), *who), []).append(row)
    result = []
    for key, members in groups.items():
        students = [tuple(row[name] for name in WHO) for row in members]
        if len({*students}) < len(students):
            first = next(one for one in students if students.count(one) > 1)
            name = " ".join(f"{field} {value}," for field, value in zip(WHO, first, strict=True))
            place = f"{members[0]['method']} on {members[0]['dataset']}: {name} column {members[0]['attack']}"
            raise InputError(f"{place} is there more than once; name folders that hold each run once")
        values = [row["accuracy"] for row in members]
        doubts = dict.fromkeys(row["verdict"] for row in members if row["verdict"] != "ok")
        advised = dict.fromkeys(row["advised"] for row in members if row["advised"])
        after = [row["accuracy"] if row["advised_accuracy"] is None else row["advised_accuracy"] for row in members]
        numbers = {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else None, "n": len(values)}
        numbers |= {"advised": ", ".join(advised), "advised_mean": fmean(after) if advised else None}
        numbers["epoch_seconds"] = fmean(row["epoch_seconds"] for row in members)
        names = (*KEY, *WHAT, "seed", "set")
        result.append(dict(zip(names, key, strict=True)) | numbers | {"verdict": "; ".join(doubts) or "ok"})
    return result


def find_rows(places: Sequence[Path]) -> list[Row]:
    """Return the rows of all finished runs below the places.

    Raises:
        InputError: a place does not exist, nothing is finished, or a file is damaged.
    """
    rows: list[Row] = []
    read: set[Path] = set()
    for place in places:
        if not place.exists():
            raise InputError(f"there is no folder {place}; give folders of runs, or run a method first")
        for path in sorted(place.rglob("results.jsonl")):
            if path.resolve() in read:
                continue
            read.add(path.resolve())
            found = read_rows(path)
            if found and "threat" not in found[0]:
                raise InputError(
                    f"{path} is of an earlier version, whose rows do not name their threat: move its folder away, "
                    "or name other folders"
                )
            if not all({*ROW} <= {*row} for row in found):
                raise _damaged(path)
            rows += [{name: row[name] for name in (*ROW, *LATER) if name in row} for row in found]
    if not rows:
        raise InputError(f"no finished run below {', '.join(map(str, places))}; `bash run.sh METHOD DATASET` makes one")
    return rows


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file of JSON lines, as `evaluate` writes them.

    Raises:
        InputError: it is damaged.
    """
    try:
        found = [json.loads(line) for line in read_text(path).splitlines()]
    except (OSError, ValueError, RecursionError):
        raise _damaged(path) from None
    if not all(isinstance(row, dict) and {"attack", "accuracy"} <= {*row} for row in found):
        raise _damaged(path)
    return found


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is damaged: run its command again, which makes it anew from the students")


def to_csv(rows: Sequence[Row]) -> str:
    """Return the rows by seed as CSV with the columns COLUMNS."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in summary(rows):
        rounded = {name: "" if row[name] is None else f"{row[name]:.2f}" for name in ("mean", "std", "advised_mean")}
        writer.writerow(row | rounded)
    return text.getvalue()


@dataclass(frozen=True)
class Style:
    """How a layout writes a figure."""

    plus_minus: str
    """between mean and deviation"""
    struck: str
    """of a figure that is in doubt, with {}"""


def figure(row: Row, style: Style) -> str:
    """Return a figure as a table shows it.

    One in doubt is struck out, and beside it stands the figure of the attack that follows the advice.

    Args:
        row: of `summary`.
        style: the layout's.

    >>> row = {"mean": 48.0, "std": None, "verdict": "suspicious: x", "advised": "square@0.1", "advised_mean": 26.5}
    >>> figure(row, Style(" ± ", "~~{}~~")), figure(row | {"verdict": "ok"}, Style(" ± ", "~~{}~~"))
    ('~~48.0~~ ? 26.5 by square@0.1', '48.0')
    """
    text = f"{row['mean']:.1f}" + ("" if row["std"] is None else f"{style.plus_minus}{row['std']:.1f}")
    if row["verdict"] == "ok":
        return text
    advised = "" if row["advised_mean"] is None else f" {row['advised_mean']:.1f} by {row['advised']}"
    return f"{style.struck.format(text)} ?{advised}"


def headings(columns: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str, str], str]:
    """Return what stands above each column: the attack and its threat, and its settings where nothing else differs.

    Args:
        columns: attack, threat, how.

    >>> list(headings([("clean", "", ""), ("linf", "linf:8/255", "PGD()"), ("pgd@0.1", "linf:0.1", "PGD()")]).values())
    ['clean', 'linf 8/255', 'pgd@0.1']
    """
    columns = list(dict.fromkeys(columns))
    short = {}
    for attack, threat, how in columns:
        ball = threat.removeprefix("linf:").removeprefix("l2:")
        short[attack, threat, how] = attack if "@" in attack or not threat else f"{attack} {ball}"
    twice = {name for name in short.values() if list(short.values()).count(name) > 1}
    return {key: f"{name} {key[2]}".strip() if name in twice else name for key, name in short.items()}


def _cells(rows: Sequence[Row], style: Style) -> tuple[list[str], list[list[str]]]:
    """Return the header and the body: one line per KEY, seeds together.

    The config is shown where nothing else tells two lines apart, the loss where one is not plain.
    """
    means = summary(rows, by_seed=False)
    above = headings(tuple(row[name] for name in WHAT) for row in means)
    lines: dict[tuple, dict[tuple, Row]] = {}
    for row in means:
        lines.setdefault(tuple(row[name] for name in KEY), {})[tuple(row[name] for name in WHAT)] = row
    plain = all(key[KEY.index("loss")] == "cross_entropy" for key in lines)
    alone = len({key[:-1] for key in lines}) == len(lines)
    shown = [name for name in KEY if not (name == "loss" and plain) and not (name == "config" and alone)]
    body = [
        [
            *(str(value) for name, value in zip(KEY, key, strict=True) if name in shown),
            *(figure(found[column], style) if column in found else "-" for column in above),
            "/".join(dict.fromkeys(str(row["n"]) for row in found.values())),
            milliseconds(next(iter(found.values()))["epoch_seconds"]),
        ]
        for key, found in lines.items()
    ]
    return [*shown, *above.values(), "n", "ms/epoch"], body


def to_text(rows: Sequence[Row]) -> str:
    """Return an aligned table for a terminal."""
    header, body = _cells(rows, Style(" ± ", "{}"))
    return aligned([header, *body]) + "".join(f"{line}\n" for line in _doubts(rows))


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds, three digits of them and no exponent.

    >>> [milliseconds(seconds) for seconds in (0.0123456, 1.2)]
    ['12.3', '1200']
    """
    return f"{1000 * seconds:.3g}" if seconds < 0.9995 else f"{1000 * seconds:.0f}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as text with columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(row.rstrip() for row in rows) + "\n"


def _doubts(rows: Sequence[Row]) -> list[str]:
    """Return a line for each number that is marked as doubtful."""
    means = [row for row in summary(rows, by_seed=False) if row["verdict"] != "ok"]
    return [f"? {row['method']} {row['dataset']} ipc {row['ipc']}, {row['attack']}: {row['verdict']}" for row in means]


def to_markdown(rows: Sequence[Row]) -> str:
    """Return a Markdown table."""
    header, body = _cells(rows, Style(" ± ", "~~{}~~"))
    lines = [header, ["---"] * len(header), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "".join(f"\n{line}\n" for line in _doubts(rows))


def to_latex(rows: Sequence[Row]) -> str:
    """Return a LaTeX tabular (booktabs; ulem for figures struck out)."""
    header, body = _cells(rows, Style(r" $\pm$ ", r"\sout{{{}}}"))
    header, *body = ([cell.replace("_", r"\_") for cell in line] for line in (header, *body))
    lines = [
        r"\begin{tabular}{" + "l" * header.index("clean") + "r" * (len(header) - header.index("clean")) + "}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *(" & ".join(line) + r" \\" for line in body),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


FORMATS = {"text": to_text, "markdown": to_markdown, "csv": to_csv, "latex": to_latex}


TABLES = {"table.md": "markdown", "table.csv": "csv"}
"""files of a finished run, by what of FORMATS they have; the last one says that the run is finished"""


def render(rows: Sequence[Row], form: str) -> str:
    """Return the table in one of FORMATS."""
    return FORMATS[form](rows)


def save_grid(distilled: DistilledSet, path: Path) -> None:
    """Draw the images, cut to [0, 1], one row a class (at most 50 images of it), small ones enlarged."""
    classes = distilled.labels if distilled.labels.ndim == 1 else distilled.labels.argmax(1)
    rows = [distilled.images[classes == c][:50] for c in classes.unique()]
    across = max(map(len, rows))
    images = [F.pad(row, (0, 0, 0, 0, 0, 0, 0, across - len(row)), value=1.0) for row in rows]
    scale = max(1, 64 // distilled.images.shape[-1]) if across <= 10 else max(1, 32 // distilled.images.shape[-1])
    grid = [F.interpolate(row.clamp(0, 1), scale_factor=scale, mode="nearest") for row in images]
    write_atomic(
        path, lambda file: save_image([image for row in grid for image in row], file, nrow=across, format="png")
    )
