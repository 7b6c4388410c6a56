"""Tables as in the paper, with the paper's own number and the difference beside each of ours.

A table for each data set and ipc, methods as rows, clean accuracy and attacks as columns; in LaTeX one table with all
of them side by side, as the paper's tables 1 and 2. Students of all seeds are together, and n counts them; runs of two
configurations are two rows. The best figure of a column is bold, except for a figure in doubt and for `full`, the whole
training set, which is in the tables of every ipc. Methods are ranked by RANKED, whose figures do not depend on the
scale of a student's logits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from distill.evaluation.rows import ColumnKey, Row
from distill.reports.indices import UNBIASED
from distill.reports.paper import PAPER, Figure, half_width
from distill.reports.settings import config_notes
from distill.reports.summary import Summary, headings, summary
from distill.reports.tables import Style, csv_fields, doubtful, figure, written_csv
from robust import PAPER_THREATS

__all__ = ["FULL", "LAYOUTS"]

FULL = "full"
"""the method that distils nothing, an upper bound"""
FIELDS = ("dataset", "ipc", "method", "backbone", "loss", "recipe", "attack", "threat", "mean", "std", "n")
FIELDS += (
    "paper",
    "paper_std",
    "difference",
    "difference_half_width",
    "verdict",
    "advised",
    "advised_mean",
    "how",
    "config",
)
"""columns of the CSV; `labels` follows where lines differ in it"""
RANKED = f"{UNBIASED}@"
"""beginning of the columns that methods are ranked by"""
STUDENTS = "n"
"""heading of the column that counts students"""
NOTE = (
    "Accuracy in percent, mean ± standard deviation over n students of all seeds (the paper's number, difference ± "
    "half its 95 % interval over students and test images). A figure that a check doubts is marked by ?, with the "
    "figure of the attack that the check advises. The paper's numbers are at its own size: distill/reports/paper.py."
)


@dataclass(frozen=True)
class Number:
    """A cell of a table."""

    ours: Summary
    """over our students"""
    best: bool
    """whether it is the highest of its column"""
    paper: Figure | None
    """the paper's"""

    def text(self, bold: Callable[[str], str], style: Style) -> str:
        """Return it in a layout's own bold and style."""
        ours = figure(self.ours, style)
        ours = bold(ours) if self.best else ours
        if self.paper is None:
            return ours
        beside = "" if self.half_width is None else f"{style.plus_minus}{self.half_width:.1f}"
        return f"{ours} ({self.paper[0]:.1f}, {self.ours.mean - self.paper[0]:+.1f}{beside})"

    @property
    def half_width(self) -> float | None:
        """Half the 95 % interval of the difference to the paper; None without one, or for one student."""
        if self.paper is None:
            return None
        return half_width(self.ours.mean, self.ours.std, self.ours.n, self.ours.images, self.paper)


class Line(NamedTuple):
    """What tells two lines of a table of one data set and ipc apart."""

    method: str
    loss: str
    """of the students"""
    backbone: str
    """of the students"""
    labels: str
    """of the students, as `Row.regime`"""
    recipe: str
    config: str
    """hash of the data and all settings but seed and attacks"""


Table = dict[Line, dict[ColumnKey, Number]]
"""line -> column -> number"""
EXTRA = {"backbone": "network", "labels": "labels", "recipe": "recipe", "config": "config"}
"""fields of a line that are shown only where lines differ in them, with their headings"""


def _tables(rows: Sequence[Row]) -> dict[tuple[str, int], Table]:
    """Return the table of each data set and ipc, in order of first appearance."""
    tables: dict[tuple[str, int], Table] = {}
    means = summary(rows, by_seed=False)
    best: dict[tuple[str, int, ColumnKey], float] = {}
    for mean in means:
        if _competes(mean):
            key = (mean.line.dataset, mean.line.ipc, mean.column)
            best[key] = max(best.get(key, 0.0), round(mean.mean, 1))
    distilled = dict.fromkeys((mean.line.dataset, mean.line.ipc) for mean in means if mean.line.method != FULL)
    for mean in means:
        dataset, method = mean.line.dataset, mean.line.method
        place = dataset, mean.line.ipc
        places = [place] if method != FULL else [each for each in distilled if each[0] == dataset] or [place]
        line = Line(method, *(getattr(mean.line, name) for name in Line._fields[1:]))
        for place in places:
            is_best = _competes(mean) and round(mean.mean, 1) == best[*place, mean.column] > 0
            number = Number(mean, is_best, _published(mean, place[1]))
            tables.setdefault(place, {}).setdefault(line, {})[mean.column] = number
    return tables


def _competes(mean: Summary) -> bool:
    """Return whether a figure can be the best of its column."""
    return mean.line.method != FULL and mean.ok


def _published(mean: Summary, ipc: int) -> Figure | None:
    """Return the paper's number of the same attack at the same threat."""
    dataset, attack = mean.line.dataset.partition("-")[0], mean.column.attack
    threat = PAPER_THREATS.get(dataset, {}).get(attack)
    same = attack == "clean" or (threat is not None and threat == mean.column.threat)
    return PAPER.get((dataset, ipc, mean.line.method, attack)) if same else None


def _attacks(table: Table) -> dict[ColumnKey, str]:
    """Return the columns, with their headings."""
    return headings(column for line in table.values() for column in line)


def _students(line: dict[ColumnKey, Number]) -> str:
    """Return how many students a line joins; several numbers where its columns differ."""
    return "/".join(dict.fromkeys(str(number.ours.n) for number in line.values()))


def _ranks(table: Table) -> tuple[str, dict[Line, str]]:
    """Return the heading of the ranks, and each line's rank: 1 for the highest accuracy in a column of RANKED.

    Where several columns are of RANKED, the first is taken and named in the heading. Without one there are no ranks.
    """
    columns = {column: text for column, text in _attacks(table).items() if column.attack.startswith(RANKED)}
    if not columns:
        return "", {}
    column, text = next(iter(columns.items()))
    sound = {
        line: round(found[column].ours.mean, 1)
        for line, found in table.items()
        if column in found and _competes(found[column].ours)
    }
    ranks = {line: str(1 + sum(other > mean for other in sound.values())) for line, mean in sound.items()}
    return ("rank" if len(columns) == 1 else f"rank by {text}"), ranks


def _extra(table: Table) -> list[str]:
    """Return the fields of EXTRA that are shown: network and labels where lines differ in them, others where nothing
    else does.

    With the method and the loss they tell all lines apart.
    """
    shown = [name for name in ("backbone", "labels") if len({getattr(line, name) for line in table}) > 1]
    for name in ("recipe", "config"):
        different = {_named(line, shown) for line in table}
        if len(different) < len(table) and len({getattr(line, name) for line in table}) > 1:
            shown.append(name)
    return shown


def _named(line: Line, shown: Sequence[str]) -> tuple[str, ...]:
    """Return method, loss and the fields that are shown."""
    return line.method, line.loss, *(getattr(line, name) for name in shown)


def to_markdown(rows: Sequence[Row]) -> str:
    """Return a table for each data set and ipc."""
    parts, style = [], Style(" ± ", "~~{}~~")
    for (dataset, ipc), table in _tables(rows).items():
        attacks, extra, (ranked, ranks) = _attacks(table), _extra(table), _ranks(table)
        lines = [["method", "students", *(EXTRA[name] for name in extra), *attacks.values(), STUDENTS]]
        lines[0] += [ranked] * bool(ranks)
        for key, line in table.items():
            cells = (line[what].text(lambda text: f"**{text}**", style) if what in line else "-" for what in attacks)
            rank = [ranks.get(key, "-")] * bool(ranks)
            lines.append([*_named(key, extra), *cells, _students(line), *rank])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
        body = "".join(f"| {' | '.join(line)} |\n" for line in padded)
        network = "" if "backbone" in extra else f", students {next(iter(table)).backbone}"
        parts.append(f"{dataset}, ipc {ipc}{network}\n\n{body}" + "".join(f"\n? {doubt}\n" for doubt in _doubts(table)))
    notes = "".join(f"\n{note}\n" for note in config_notes(rows))
    return "\n".join(parts) + f"{notes}\n{NOTE}\n"


def _doubts(table: Table) -> list[str]:
    """Return why figures of a table are doubted, a line each."""
    numbers = [number.ours for line in table.values() for number in line.values()]
    return [f"{number.line.method}, {name}: {number.verdict}" for number, name in doubtful(numbers)]


def to_latex(rows: Sequence[Row]) -> str:
    """Return one tabular, a group of columns for each data set and ipc (booktabs; ulem for figures struck out)."""
    tables, style = _tables(rows), Style(r" $\pm$ ", r"\sout{{{}}}")
    groups = [(place, _attacks(table)) for place, table in tables.items()]
    extra = {name for table in tables.values() for name in _extra(table)}
    shown = [name for name in EXTRA if name in extra]
    methods = list(dict.fromkeys(_named(key, shown) for table in tables.values() for key in table))

    def escaped(text: str) -> str:
        return text.replace("_", r"\_").replace("%", r"\%")

    above = [f"\\multicolumn{{{len(names) + 1}}}{{c}}{{{escaped(d)}, ipc {ipc}}}" for (d, ipc), names in groups]
    columns = [escaped(name) for _, names in groups for name in (*names.values(), STUDENTS)]
    body = []
    for method in methods:
        words = [word for word in method[1:] if word != "cross_entropy"]
        cells = [escaped(f"{method[0]} ({', '.join(words)})" if words else method[0])]
        for place, names in groups:
            (line,) = [line for key, line in tables[place].items() if _named(key, shown) == method] or [{}]
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
    """Return a line for each number, with the columns FIELDS; `full` is in the lines of every ipc."""
    lines = []
    for (_, ipc), table in _tables(rows).items():
        for number in (number for line in table.values() for number in line.values()):
            paper, paper_std = number.paper or (None, None)
            found = {"paper": paper, "paper_std": paper_std}
            found["difference"] = None if paper is None else number.ours.mean - paper
            found["difference_half_width"] = number.half_width
            rounded = {name: "" if value is None else f"{value:.2f}" for name, value in found.items()}
            lines.append(csv_fields(number.ours) | {"ipc": ipc} | rounded)
    columns = (*FIELDS, "labels") if len({line["labels"] for line in lines}) > 1 else FIELDS
    return written_csv(columns, lines)


LAYOUTS: dict[str, Callable[[Sequence[Row]], str]] = {"md": to_markdown, "csv": to_csv, "tex": to_latex}
"""by the ending of the file"""
