"""Tables and pictures of results. A table in every form comes from the same rows, one per student and attack."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch.nn.functional as F
from torchvision.utils import save_image

from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.files import write_atomic

__all__ = ["FORMATS", "Row", "aligned", "find_rows", "milliseconds", "render", "save_grid", "summary"]

Row = dict[str, Any]
COLUMNS = ("method", "dataset", "ipc", "seed", "backbone", "attack", "mean", "std", "n", "verdict")
KEY = ("method", "dataset", "ipc", "backbone", "loss", "recipe", "config")
"""what tells two lines of a table apart; loss is the students', "own" where the method itself trains them; config a
hash of all settings but the seed"""
ROW = (*KEY, "seed", "student", "attack", "accuracy", "low", "high", "images")
ROW += ("median_distance", "seconds", "epoch_seconds", "verdict")
"""fields of a row of results.jsonl"""


def summary(rows: Iterable[Row], by_seed: bool = True) -> list[Row]:
    """Return one row per run and attack: mean and sample standard deviation over students, percent, and n students.

    Args:
        rows: rows of results.jsonl.
        by_seed: one row a seed, else students of all seeds together.

    Returns:
        rows with COLUMNS, recipe and config, in order of first appearance; std is None for a single student; verdict is
        "ok", or all that is suspicious of any student.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        seed = row["seed"] if by_seed else None
        groups.setdefault((*(row[name] for name in KEY), row["attack"], seed), []).append(row)
    result = []
    for key, members in groups.items():
        values = [row["accuracy"] for row in members]
        doubts = dict.fromkeys(row["verdict"] for row in members if row["verdict"] != "ok")
        numbers = {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else None, "n": len(values)}
        numbers["epoch_seconds"] = fmean(row["epoch_seconds"] for row in members)
        result.append(
            dict(zip((*KEY, "attack", "seed"), key, strict=True)) | numbers | {"verdict": "; ".join(doubts) or "ok"}
        )
    return result


def find_rows(places: Sequence[Path]) -> list[Row]:
    """Return the rows of all finished runs below the places.

    Raises:
        InputError: a place does not exist, nothing is finished, or a file is damaged.
    """
    rows: list[Row] = []
    for place in places:
        if not place.exists():
            raise InputError(f"there is no folder {place}; give folders of runs, or run a method first")
        for path in sorted(place.rglob("results.jsonl")):
            try:
                found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
                rows += [{name: row[name] for name in ROW} for row in found]
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f"{path} is damaged; delete it and table.csv beside it, and run its command again: students stay"
                ) from None
    if not rows:
        raise InputError(f"no finished run below {', '.join(map(str, places))}; `bash run.sh METHOD DATASET` makes one")
    return rows


def to_csv(rows: Sequence[Row]) -> str:
    """Return the rows by seed as CSV with the columns COLUMNS."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in summary(rows):
        std = "" if row["std"] is None else f"{row['std']:.2f}"
        writer.writerow(row | {"mean": f"{row['mean']:.2f}", "std": std})
    return text.getvalue()


def _cells(rows: Sequence[Row], plus_minus: str) -> tuple[list[str], list[list[str]]]:
    """Return the header and the body: one line per KEY, seeds together.

    The config is shown where nothing else tells two lines apart, the loss where one is not plain.
    """
    means = summary(rows, by_seed=False)
    attacks = list(dict.fromkeys(row["attack"] for row in means))
    lines: dict[tuple, dict[str, Row]] = {}
    for row in means:
        lines.setdefault(tuple(row[name] for name in KEY), {})[row["attack"]] = row

    def cell(row: Row | None) -> str:
        if row is None:
            return "-"
        doubt = "" if row["verdict"] == "ok" else " ?"
        return f"{row['mean']:.1f}" + ("" if row["std"] is None else f"{plus_minus}{row['std']:.1f}") + doubt

    plain = all(key[KEY.index("loss")] == "cross_entropy" for key in lines)
    alone = len({key[:-1] for key in lines}) == len(lines)
    shown = [name for name in KEY if not (name == "loss" and plain) and not (name == "config" and alone)]
    body = [
        [
            *(str(value) for name, value in zip(KEY, key, strict=True) if name in shown),
            *(cell(found.get(attack)) for attack in attacks),
            str(found["clean"]["n"]),
            milliseconds(found["clean"]["epoch_seconds"]),
        ]
        for key, found in lines.items()
    ]
    return [*shown, *attacks, "n", "ms/epoch"], body


def to_text(rows: Sequence[Row]) -> str:
    """Return an aligned table for a terminal."""
    header, body = _cells(rows, " ± ")
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
    header, body = _cells(rows, " ± ")
    lines = [header, ["---"] * len(header), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "".join(f"\n{line}\n" for line in _doubts(rows))


def to_latex(rows: Sequence[Row]) -> str:
    """Return a LaTeX tabular (booktabs)."""
    header, body = _cells(rows, r" $\pm$ ")
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
