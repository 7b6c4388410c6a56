"""Tables as in the paper, with the paper's own number and the difference beside each of ours.

A table for each data set and ipc, methods as rows, clean accuracy and attacks as columns; in LaTeX one table with all
of them side by side, as the paper's tables 1 and 2. Students of all seeds together. The best of each column is bold,
but not of `full`, the whole set, which is in the tables of every ipc.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distill.reports.paper import PAPER, Figure
from distill.reports.tables import Row, summary

__all__ = ["FULL", "LAYOUTS"]

FULL = "full"
"""the method that distils nothing: no competitor"""
FIELDS = ("dataset", "ipc", "method", "backbone", "loss", "recipe", "attack", "mean", "std", "n")
FIELDS += ("paper", "paper_std", "difference", "verdict")
STUDENTS = "n"
"""the column that counts them"""
NOTE = (
    "Percent, mean ± standard deviation over n students of all seeds (the paper's number, difference); ? marks what a "
    "check doubts. The paper's are at its own size; see distill/reports/paper.py."
)


@dataclass(frozen=True)
class Number:
    """A cell of a table."""

    row: Row
    """of `summary`"""
    best: bool
    """of its column"""
    paper: Figure | None
    """the paper's"""

    def text(self, bold: Callable[[str], str], plus_minus: str) -> str:
        """Return it in a layout's own bold."""
        std, doubt = self.row["std"], "" if self.row["verdict"] == "ok" else " ?"
        ours = f"{self.row['mean']:.1f}" + ("" if std is None else f"{plus_minus}{std:.1f}") + doubt
        ours = bold(ours) if self.best else ours
        if self.paper is None:
            return ours
        return f"{ours} ({self.paper[0]:.1f}, {self.row['mean'] - self.paper[0]:+.1f})"


Line = tuple[str, str, str]
"""method, the students' loss, their network"""
Table = dict[Line, dict[str, Number]]
"""line -> column -> number"""


def _tables(rows: Sequence[Row]) -> dict[tuple[str, int], Table]:
    """Return the table of each data set and ipc, in order of first appearance."""
    tables: dict[tuple[str, int], Table] = {}
    means = summary(rows, by_seed=False)
    best: dict[tuple[str, int, str], float] = {}
    for row in means:
        if row["method"] != FULL:
            key = (row["dataset"], row["ipc"], row["attack"])
            best[key] = max(best.get(key, 0.0), round(row["mean"], 1))
    distilled = dict.fromkeys((row["dataset"], row["ipc"]) for row in means if row["method"] != FULL)
    for row in means:
        dataset, method, attack = (row[name] for name in ("dataset", "method", "attack"))
        mine = dataset, row["ipc"]
        places = [mine] if method != FULL else [place for place in distilled if place[0] == dataset] or [mine]
        for place in places:
            is_best = method != FULL and round(row["mean"], 1) == best[*place, attack] > 0
            published = PAPER.get((dataset.partition("-")[0], place[1], method, attack))
            line = tables.setdefault(place, {}).setdefault((method, row["loss"], row["backbone"]), {})
            line[attack] = Number(row, is_best, published)
    return tables


def _attacks(table: Table) -> list[str]:
    return list(dict.fromkeys(attack for line in table.values() for attack in line))


def _students(line: dict[str, Number]) -> str:
    return str(line["clean"].row["n"])


def _networks(table: Table) -> list[str]:
    return list(dict.fromkeys(backbone for _, _, backbone in table))


def to_markdown(rows: Sequence[Row]) -> str:
    """Return a table for each data set and ipc."""
    parts = []
    for (dataset, ipc), table in _tables(rows).items():
        attacks, networks = _attacks(table), _networks(table)
        several = len(networks) > 1
        lines = [["method", "students", *["network"] * several, *attacks, "n"]]
        for (method, loss, network), line in table.items():
            cells = (line[a].text(lambda text: f"**{text}**", " ± ") if a in line else "-" for a in attacks)
            lines.append([method, loss, *[network] * several, *cells, _students(line)])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
        body = "".join(f"| {' | '.join(line)} |\n" for line in padded)
        parts.append(f"{dataset}, ipc {ipc}{'' if several else f', students {networks[0]}'}\n\n{body}")
    return "\n".join(parts) + f"\n{NOTE}\n"


def to_latex(rows: Sequence[Row]) -> str:
    """Return one tabular (booktabs) with a group of columns for each data set and ipc."""
    tables = _tables(rows)
    groups = [(place, [*_attacks(table), STUDENTS]) for place, table in tables.items()]
    methods = list(dict.fromkeys(key for table in tables.values() for key in table))

    def escaped(text: str) -> str:
        return text.replace("_", r"\_").replace("%", r"\%")

    above = [f"\\multicolumn{{{len(names)}}}{{c}}{{{escaped(d)}, ipc {ipc}}}" for (d, ipc), names in groups]
    columns = [escaped(name) for _, names in groups for name in names]
    several = len({network for _, _, network in methods}) > 1
    body = []
    for method, loss, network in methods:
        said = [word for word, is_said in ((loss, loss != "cross_entropy"), (network, several)) if is_said]
        cells = [escaped(f"{method} ({', '.join(said)})" if said else method)]
        for place, names in groups:
            line = tables[place].get((method, loss, network), {})
            shown = {name: number.text(lambda text: f"\\textbf{{{text}}}", r" $\pm$ ") for name, number in line.items()}
            shown |= {STUDENTS: _students(line)} if line else {}
            cells += [shown.get(name, "-") for name in names]
        body.append(" & ".join(cells) + r" \\")
    lines = [
        f"% {NOTE}",
        r"\begin{tabular}{l" + "r" * len(columns) + "}",
        r"\toprule",
        " & ".join(["", *above]) + r" \\",
        " & ".join(["method", *columns]) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines).replace("±", r"$\pm$") + "\n"


def to_csv(rows: Sequence[Row]) -> str:
    """Return a line for each number, with the columns FIELDS."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for (_, ipc), table in _tables(rows).items():
        for line in table.values():
            for number in line.values():
                row, (paper, paper_std) = number.row, number.paper or (None, None)
                found = {"mean": row["mean"], "std": row["std"], "paper": paper, "paper_std": paper_std}
                found["difference"] = None if paper is None else row["mean"] - paper
                rounded = {name: "" if value is None else f"{value:.2f}" for name, value in found.items()}
                writer.writerow(row | {"ipc": ipc} | rounded)  # `full` is in the tables of every ipc
    return text.getvalue()


LAYOUTS: dict[str, Callable[[Sequence[Row]], str]] = {"md": to_markdown, "csv": to_csv, "tex": to_latex}
"""by the ending of the file"""
