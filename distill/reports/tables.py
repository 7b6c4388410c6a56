"""Tables of results as text, Markdown, CSV and LaTeX: a line per method and setting, a column per attack and threat."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from distill.evaluation.rows import ColumnKey, LineKey, Row, threat_text
from distill.reports.field_mean import field_means
from distill.reports.settings import config_notes
from distill.reports.summary import Summary, headings, summary

__all__ = [
    "FORMATS",
    "TABLES",
    "Style",
    "aligned",
    "csv_fields",
    "doubtful",
    "figure",
    "milliseconds",
    "render",
    "written_csv",
]

CSV_COLUMNS = ("method", "dataset", "ipc", "seed", "backbone", "loss", "recipe", "attack", "threat", "mean", "std", "n")
CSV_COLUMNS += ("verdict", "advised", "advised_mean", "how", "config", "set")


def to_csv(rows: Sequence[Row]) -> str:
    """Return a line per seed and column, with the fields CSV_COLUMNS, and two more on occasion.

    `labels` is there where students of two regimes are, `version` where a row has one: rows of versions that did not
    record it give the same text as those versions did.
    """
    more = ["labels"] if len({row.regime for row in rows}) > 1 else []
    more += ["version"] if any(row.version for row in rows) else []
    return written_csv((*CSV_COLUMNS, *more), (csv_fields(each) for each in summary(rows)))


def csv_fields(number: Summary) -> dict[str, Any]:
    """Return the fields of a summary as CSV has them: accuracies with two decimals, "" for None."""
    accuracies = {"mean": number.mean, "std": number.std, "advised_mean": number.advised_mean}
    rounded = {name: "" if value is None else f"{value:.2f}" for name, value in accuracies.items()}
    column = {"attack": number.column.attack, "threat": threat_text(number.column.threat), "how": number.column.how}
    shared = {"seed": number.seed, "set": number.set, "n": number.n, "version": number.version}
    return vars(number.line) | shared | column | rounded | {"verdict": number.verdict, "advised": number.advised}


def written_csv(columns: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    """Return lines as CSV; fields that are not among the columns are left out."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([line[name] for name in columns] for line in lines)
    return text.getvalue()


@dataclass(frozen=True)
class Style:
    """How a layout writes a figure."""

    plus_minus: str
    """between mean and deviation"""
    struck: str
    """of a figure that is in doubt, with {}"""


def figure(number: Summary, style: Style) -> str:
    """Return a figure as a table shows it: "48.0 ± 1.2".

    A figure in doubt is struck out, and followed by the figure of the attack that its verdict advises:
    "~~48.0~~ ? 26.5 by square@0.1".

    Args:
        number: of a cell.
        style: the layout's.
    """
    text = f"{number.mean:.1f}" + ("" if number.std is None else f"{style.plus_minus}{number.std:.1f}")
    if number.ok:
        return text
    advised = "" if number.advised_mean is None else f" {number.advised_mean:.1f} by {number.advised}"
    return f"{style.struck.format(text)} ?{advised}"


def _cells(rows: Sequence[Row], style: Style) -> tuple[list[str], list[list[str]]]:
    """Return the header and the body: one line per LineKey, seeds together.

    The config is shown where two lines differ in nothing else, the loss where a line has another than cross_entropy,
    the labels where lines differ in them.
    """
    means = summary(rows, by_seed=False)
    above = headings(mean.column for mean in means)
    lines: dict[LineKey, dict[ColumnKey, Summary]] = {}
    for mean in means:
        lines.setdefault(mean.line, {})[mean.column] = mean
    names = [each.name for each in fields(LineKey)]
    if all(line.loss == "cross_entropy" for line in lines):
        names.remove("loss")
    if len({line.labels for line in lines}) == 1:
        names.remove("labels")
    if len({replace(line, config="") for line in lines}) == len(lines):
        names.remove("config")
    body = [
        [
            *(str(getattr(line, name)) for name in names),
            *(figure(found[column], style) if column in found else "-" for column in above),
            "/".join(dict.fromkeys(str(number.n) for number in found.values())),
            milliseconds(next(iter(found.values())).epoch_seconds),
        ]
        for line, found in lines.items()
    ]
    return [*names, *above.values(), "n", "ms/epoch"], body


def to_text(rows: Sequence[Row]) -> str:
    """Return an aligned table for a terminal."""
    header, body = _cells(rows, Style(" ± ", "{}"))
    return aligned([header, *body]) + "".join(f"{line}\n" for line in _notes(rows))


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds with three digits and no exponent.

    >>> [milliseconds(seconds) for seconds in (0.0123456, 1.2)]
    ['12.3', '1200']
    """
    return f"{1000 * seconds:.3g}" if seconds < 0.9995 else f"{1000 * seconds:.0f}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as text with columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(row.rstrip() for row in rows) + "\n"


def doubtful(numbers: Sequence[Summary]) -> list[tuple[Summary, str]]:
    """Return the figures in doubt, each with the name of its column.

    The threat is in the name where another column of the same line has an attack of that name.
    """
    above = headings(number.column for number in numbers)
    attacks = Counter(column.attack for column in above)
    several = {column: heading if attacks[column.attack] > 1 else column.attack for column, heading in above.items()}
    return [(number, several[number.column]) for number in numbers if not number.ok]


def _notes(rows: Sequence[Row]) -> list[str]:
    """Return the lines below a table: one for each figure in doubt, and one for configurations that differ."""
    lines = [
        f"? {number.line.method} {number.line.dataset} ipc {number.line.ipc}, {name}: {number.verdict}"
        for number, name in doubtful(summary(rows, by_seed=False))
    ]
    return lines + config_notes(rows)


def to_markdown(rows: Sequence[Row]) -> str:
    """Return a Markdown table."""
    header, body = _cells(rows, Style(" ± ", "~~{}~~"))
    lines = [header, ["---"] * len(header), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "".join(f"\n{line}\n" for line in _notes(rows))


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
"""by the name of a format"""
TABLES = {"table.md": "markdown", "table.csv": "csv"}
"""files of a finished run, with their formats; the last file says that the run is finished"""


def render(rows: Sequence[Row], form: str) -> str:
    """Return the table in one of FORMATS, with the mean over DD-RobustBench's attacks where rows have these."""
    return FORMATS[form]([*rows, *field_means(rows)])
