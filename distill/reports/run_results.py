"""What the page of a run says of its accuracies: sentences, the table, and accuracy against the radius."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch
from markupsafe import Markup
from torch import Tensor

from distill.evaluation.intervals import accuracy_interval
from distill.evaluation.row_files import read_rows
from distill.evaluation.rows import ColumnKey, Row
from distill.reports.outcome import verdict_of
from distill.reports.page import Chart, Part, Table
from distill.reports.summary import headings
from distill.reports.svg import Mark, interval_bar, line_chart
from robust import Threat

__all__ = ["accuracy_cell", "of_teacher", "results", "sentences"]

PAPERS = ("linf_star", "linf")
"""columns that are one attack (PGD with ten steps of eps / 4) at two radii"""


def sentences(rows: Sequence[Row], bools: Mapping[ColumnKey, Tensor]) -> list[str]:
    """Return what the table says, in words."""
    names = headings(bools)
    attacked = [column for column in bools if isinstance(column.threat, Threat) and bools[column].ndim == 2]
    clean = next(column for column in bools if column.attack == "clean")
    found = [f"The accuracy without an attack is {_with_interval(bools[clean])}."]
    if attacked:
        worst = min(attacked, key=lambda column: bools[column].double().mean().item())
        found.append(f"Under {names[worst]}, the strongest attack in the table, it is {_with_interval(bools[worst])}.")
    doubts = [names[column] for column in bools if _verdict(rows, column) != "ok"]
    if doubts:
        found.append(f"A check doubts the accuracy under {', '.join(doubts)}: see the verdicts.")
    return found


def of_teacher(folder: Path, bools: Mapping[ColumnKey, Tensor]) -> list[str]:
    """Return what bounds the students of a teacher's labels: the accuracies of the teacher."""
    path = folder / "teacher.jsonl"
    if not path.exists():
        return []
    names = headings(bools)
    found = [(row, names.get(row.column, row.attack)) for row in read_rows(path)]
    words = [
        f"{row.accuracy:.1f} % {'without an attack' if name == 'clean' else f'under {name}'}" for row, name in found
    ]
    return [f"Their teacher has {', '.join(words)}."]


def _with_interval(bools: Tensor) -> str:
    low, high = accuracy_interval([bools])
    return f"{100 * bools.double().mean().item():.1f} % (95 % interval {low:.1f} to {high:.1f})"


def _verdict(rows: Sequence[Row], column: ColumnKey) -> str:
    return verdict_of([row.verdict for row in rows if row.column == column])


def results(rows: Sequence[Row], bools: Mapping[ColumnKey, Tensor]) -> list[Part]:
    """Return the table, and accuracy against the radius where an attack has several."""
    lines = []
    for column, name in headings(bools).items():
        mine, found = [row for row in rows if row.column == column], bools[column]
        low, high = accuracy_interval([found]) if found.ndim == 2 else (None, None)
        accuracies = [row.accuracy for row in mine]
        spread = f"{torch.tensor(accuracies).std().item():.1f}" if len(accuracies) > 1 else ""
        interval = "" if low is None else f"{low:.1f} to {high:.1f}"
        bar = interval_bar(fmean(accuracies), low, high)
        verdict = _verdict_cell(_verdict(rows, column))
        lines.append([name, f"{fmean(accuracies):.1f}", bar, interval, spread, _seconds(mine), verdict])
    header = ["attack", "accuracy (%)", "0 to 100 %", "95 % interval", "SD", "seconds", "verdict"]
    caption = (
        "Accuracy in percent of the test images, mean over students. The interval covers other students and other test "
        "images. SD: standard deviation over students. Verdict: whether a check for masked gradients doubts the number."
    )
    charts = [_against_eps(bools, norm) for norm in ("linf", "l2")]
    return [Table(header, lines, caption), *(chart for chart in charts if chart)]


def _verdict_cell(verdict: str) -> str | Markup:
    """Return a verdict as a cell: a doubt is coloured."""
    return verdict if verdict == "ok" else Markup('<span class="doubt">{}</span>').format(verdict)


def accuracy_cell(mean: float, doubted: bool) -> str | Markup:
    """Return an accuracy as a cell, with a mark where a check doubts it."""
    return Markup('<span class="doubt">{} ?</span>').format(f"{mean:.1f}") if doubted else f"{mean:.1f}"


def _seconds(rows: Sequence[Row]) -> str:
    return f"{sum(row.seconds for row in rows):.1f}"


def _against_eps(bools: Mapping[ColumnKey, Tensor], norm: str) -> Chart | None:
    """Return accuracy against eps for the attacks of a norm; None where no attack has two radii."""
    clean = next(column for column in bools if column.attack == "clean")
    lines: dict[str, dict[float, Mark]] = {}
    names: dict[float, str] = {0.0: "0"}
    for column, found in bools.items():
        if not isinstance(column.threat, Threat) or column.threat.norm != norm or found.ndim != 2:
            continue
        attack = "PGD-10" if column.attack in PAPERS else column.attack.partition("@")[0]
        line = lines.setdefault(attack, {0.0: _mark(0.0, bools[clean])})
        line[column.threat.eps] = _mark(column.threat.eps, found)
        names[column.threat.eps] = column.threat.written.removeprefix("l2:")
    if max(map(len, lines.values()), default=0) < 3:
        return None
    figure = line_chart(
        {name: [line[eps] for eps in sorted(line)] for name, line in lines.items()},
        title=f"Accuracy against the radius of {norm} attacks",
        across=f"eps, {norm} radius of the attack (pixels in [0, 1])",
        up="accuracy (%)",
        x_names=names,
    )
    return Chart(figure, "Accuracy against the size of the attack, with 95 % intervals; 0 is clean accuracy.")


def _mark(eps: float, bools: Tensor) -> Mark:
    return Mark(eps, 100 * bools.double().mean().item(), *accuracy_interval([bools]))
