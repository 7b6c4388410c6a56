"""Tables as in the paper, with the paper's own number and the difference beside each of ours.

A table for each data set and ipc, methods as rows, clean accuracy and attacks as columns; in LaTeX one table with all
of them side by side, as the paper's tables 1 and 2. Students of all seeds together, and n counts them. The best of a
column is bold, but not a figure in doubt, and not of `full`, the whole set, which is in the tables of every ipc.
Methods are ranked by RANKED, whose figures do not depend on the scale of a student's logits.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distill.reports.indices import UNBIASED
from distill.reports.paper import PAPER, Figure
from distill.reports.tables import Row, Style, figure, headings, summary
from robust import PAPER_THREATS

__all__ = ["FULL", "LAYOUTS"]

FULL = "full"
"""the method that distils nothing: no competitor"""
FIELDS = ("dataset", "ipc", "method", "backbone", "loss", "recipe", "attack", "threat", "mean", "std", "n")
FIELDS += ("paper", "paper_std", "difference", "verdict", "advised", "advised_mean", "how", "config")
RANKED = f"{UNBIASED}@"
"""how the column begins that methods are ranked by"""
STUDENTS = "n"
"""the column that counts them"""
NOTE = (
    "Accuracy in percent, mean ± standard deviation over n students of all seeds (the paper's number, difference). A "
    "figure that a check doubts is marked by ?, with the figure of the attack that the check advises. The paper's "
    "numbers are at its own size: distill/reports/paper.py."
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

    def text(self, bold: Callable[[str], str], style: Style) -> str:
        """Return it in a layout's own bold and style."""
        ours = figure(self.row, style)
        ours = bold(ours) if self.best else ours
        if self.paper is None:
            return ours
        return f"{ours} ({self.paper[0]:.1f}, {self.row['mean'] - self.paper[0]:+.1f})"


Line = tuple[str, str, str, str, str]
"""method, the students' loss, their network, recipe, config"""
What = tuple[str, str, str]
"""attack, threat, settings"""
Table = dict[Line, dict[What, Number]]
"""line -> column -> number"""


def _tables(rows: Sequence[Row]) -> dict[tuple[str, int], Table]:
    """Return the table of each data set and ipc, in order of first appearance."""
    tables: dict[tuple[str, int], Table] = {}
    means = summary(rows, by_seed=False)
    best: dict[tuple, float] = {}
    for row in means:
        if row["method"] != FULL and row["verdict"] == "ok":
            key = (row["dataset"], row["ipc"], *_what(row))
            best[key] = max(best.get(key, 0.0), round(row["mean"], 1))
    distilled = dict.fromkeys((row["dataset"], row["ipc"]) for row in means if row["method"] != FULL)
    for row in means:
        dataset, method = row["dataset"], row["method"]
        mine = dataset, row["ipc"]
        places = [mine] if method != FULL else [place for place in distilled if place[0] == dataset] or [mine]
        for place in places:
            counts = method != FULL and row["verdict"] == "ok"
            is_best = counts and round(row["mean"], 1) == best[*place, *_what(row)] > 0
            published = _published(row, place[1])
            line = tuple(row[name] for name in ("method", "loss", "backbone", "recipe", "config"))
            tables.setdefault(place, {}).setdefault(line, {})[_what(row)] = Number(row, is_best, published)
    return tables


def _published(row: Row, ipc: int) -> Figure | None:
    """Return the paper's number for a row, of the same attack at the same threat."""
    dataset, attack = row["dataset"].partition("-")[0], row["attack"]
    threat = PAPER_THREATS.get(dataset, {}).get(attack)
    same = attack == "clean" or (threat is not None and threat.named == row["threat"])
    return PAPER.get((dataset, ipc, row["method"], attack)) if same else None


def _what(row: Row) -> What:
    return row["attack"], row["threat"], row["how"]


def _attacks(table: Table) -> dict[What, str]:
    """Return the columns, with what stands above them."""
    return headings(what for line in table.values() for what in line)


def _students(line: dict[What, Number]) -> str:
    """Return how many students a line joins; several numbers where its columns differ."""
    return "/".join(dict.fromkeys(str(number.row["n"]) for number in line.values()))


def _ranks(table: Table) -> dict[Line, str]:
    """Return each line's rank, 1 for the highest accuracy in the first column of RANKED; none without that column."""
    what = next((what for line in table.values() for what in line if what[0].startswith(RANKED)), None)
    if what is None:
        return {}
    means = {line: found[what].row for line, found in table.items() if what in found and line[0] != FULL}
    sound = {line: round(row["mean"], 1) for line, row in means.items() if row["verdict"] == "ok"}
    return {line: str(1 + sum(other > mean for other in sound.values())) for line, mean in sound.items()}


def _extra(table: Table) -> list[tuple[int, str]]:
    """Return the parts of a line's key, with their headings, that are shown because lines differ in nothing else."""
    shown = [(2, "network")] if len({line[2] for line in table}) > 1 else []
    for position, name in ((3, "recipe"), (4, "config")):
        told = {(*line[:2], *(line[k] for k, _ in shown)) for line in table}
        if len(told) < len(table) and len({line[position] for line in table}) > 1:
            shown.append((position, name))
    return shown


def to_markdown(rows: Sequence[Row]) -> str:
    """Return a table for each data set and ipc."""
    parts, style = [], Style(" ± ", "~~{}~~")
    for (dataset, ipc), table in _tables(rows).items():
        attacks, extra, ranks = _attacks(table), _extra(table), _ranks(table)
        names = [name for _, name in extra]
        lines = [["method", "students", *names, *attacks.values(), STUDENTS, *["rank"] * bool(ranks)]]
        for key, line in table.items():
            cells = (line[what].text(lambda text: f"**{text}**", style) if what in line else "-" for what in attacks)
            rank = [ranks.get(key, "-")] * bool(ranks)
            lines.append([*key[:2], *(key[k] for k, _ in extra), *cells, _students(line), *rank])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
        body = "".join(f"| {' | '.join(line)} |\n" for line in padded)
        network = "" if "network" in names else f", students {next(iter(table))[2]}"
        doubts = "".join(f"\n? {doubt}\n" for doubt in _doubts(table))
        parts.append(f"{dataset}, ipc {ipc}{network}\n\n{body}{doubts}")
    return "\n".join(parts) + f"\n{NOTE}\n"


def _doubts(table: Table) -> list[str]:
    """Return why figures of a table are doubted, a line each."""
    numbers = (number.row for line in table.values() for number in line.values())
    return [f"{row['method']}, {row['attack']}: {row['verdict']}" for row in numbers if row["verdict"] != "ok"]


def to_latex(rows: Sequence[Row]) -> str:
    """Return one tabular, a group of columns for each data set and ipc (booktabs; ulem for figures struck out)."""
    tables, style = _tables(rows), Style(r" $\pm$ ", r"\sout{{{}}}")
    groups = [(place, _attacks(table)) for place, table in tables.items()]
    extra = {place: [k for k, _ in _extra(table)] for place, table in tables.items()}
    shown = sorted({position for positions in extra.values() for position in positions})
    methods = list(dict.fromkeys((*key[:2], *(key[k] for k in shown)) for table in tables.values() for key in table))

    def escaped(text: str) -> str:
        return text.replace("_", r"\_").replace("%", r"\%")

    above = [f"\\multicolumn{{{len(names) + 1}}}{{c}}{{{escaped(d)}, ipc {ipc}}}" for (d, ipc), names in groups]
    columns = [escaped(name) for _, names in groups for name in (*names.values(), STUDENTS)]
    body = []
    for method in methods:
        words = [word for word in method[1:] if word != "cross_entropy"]
        cells = [escaped(f"{method[0]} ({', '.join(words)})" if words else method[0])]
        for place, names in groups:
            lines = [line for key, line in tables[place].items() if (*key[:2], *(key[k] for k in shown)) == method]
            line = lines[0] if lines else {}
            texts = {what: number.text(lambda text: f"\\textbf{{{text}}}", style) for what, number in line.items()}
            cells += [escaped(texts.get(what, "-")) for what in names] + [_students(line) if line else "-"]
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
                found = {name: row[name] for name in ("mean", "std", "advised_mean")}
                found |= {"paper": paper, "paper_std": paper_std}
                found["difference"] = None if paper is None else row["mean"] - paper
                rounded = {name: "" if value is None else f"{value:.2f}" for name, value in found.items()}
                writer.writerow(row | {"ipc": ipc} | rounded)  # `full` is in the tables of every ipc
    return text.getvalue()


LAYOUTS: dict[str, Callable[[Sequence[Row]], str]] = {"md": to_markdown, "csv": to_csv, "tex": to_latex}
"""by the ending of the file"""
