"""Results at the paper's image size and network as lines of CSV: `python -m tests.golden.paper_size FOLDER...`.

FOLDER has runs of methods, or of `evaluate` on published sets and on runs. docs/results/paper-size.csv came from here;
`paper_table` and `paper_autoattack` make the tables of docs/paper.md of it. A line has the accuracy of all students of
a set, or of the sets of several seeds, under one attack, and what a set cost: iterations, and hours of distillation as
metrics.jsonl has them.
"""

import json
import sys
from pathlib import Path
from typing import Any

from distill.evaluation.row_files import FILE, read_rows
from distill.reports.paper import PAPER, half_width
from distill.reports.summary import summary
from distill.reports.tables import written_csv
from tests.golden.stored import RESULTS, experiment_of, flag_of, markdown, read, seconds_of

__all__ = ["lines_of", "paper_autoattack", "paper_table"]

STORED = RESULTS / "paper-size.csv"
OF_SET = ("dataset", "ipc", "method", "set", "students' epochs", "sets", "n", "images", "hours", "commit")
FIELDS: tuple[str, ...] = (*OF_SET, "attack", "mean", "std", "verdict")
DATA = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
FLAGS = {
    "--real-loss": "{}",
    "--batch-real": "{} real images a class and step",
    "--inner-loop": "{} epochs between steps",
}
"""flags of a distillation that a row names, and how"""
ATTACKS = ("clean", "linf_star", "linf", "l2")


def lines_of(places: list[Path]) -> list[dict[str, Any]]:
    """Return a line for each set, or method and its settings, and column of the finished runs below the places."""
    groups: dict[str, list[Path]] = {}
    for folder in sorted({path.parent for place in places for path in place.rglob(FILE)}):
        experiment = {name: value for name, value in experiment_of(folder)["experiment"].items() if name != "seed"}
        groups.setdefault(json.dumps(experiment, sort_keys=True), []).append(folder)
    found = []
    for folders in groups.values():
        rows = [row for folder in folders for row in read_rows(folder / FILE)]
        stored = [experiment_of(folder) for folder in folders]
        hours = [_hours(_source(each) or folder) for each, folder in zip(stored, folders, strict=True)]
        for each in summary(rows, by_seed=False):
            of_set = (
                *(each.line.dataset, each.line.ipc, each.line.method, _made(stored[0])),
                stored[0]["experiment"]["evaluation"]["student"]["epochs"],
                *(len({(row.seed, row.set) for row in rows}), each.n, each.images, f"{sum(hours) / len(hours):.1f}"),
                " ".join(dict.fromkeys(each["made_by"]["commit"][:7] for each in stored)),
            )
            accuracy = (f"{each.mean:.2f}", "" if each.std is None else f"{each.std:.2f}", each.verdict)
            found.append(dict(zip(FIELDS, (*of_set, each.column.attack, *accuracy), strict=True)))
    return found


def _made(stored: dict[str, Any]) -> str:
    """Return how a set came to be: published, or its iterations, and the flags that the method's recipe does not have.

    Args:
        stored: experiment.json of a run of a method, or of `evaluate` on a set.
    """
    if source := _source(stored):
        return "published" if "published" in source.parts else _made(experiment_of(source))
    config = stored["experiment"]["config"]
    parts = [f"{config['iterations']} iterations"] if "iterations" in config else []
    if "published" in Path(config.get("init", "")).parts:
        parts = [f"{parts[0]} from the published set"]
    parts += [words.format(value) for flag, words in FLAGS.items() if (value := flag_of(stored, flag))]
    made = ", ".join(parts)
    return made or ("whole training set" if stored["experiment"]["method"] == "full" else "real images")


def _source(stored: dict[str, Any]) -> Path | None:
    """Return the folder of the set that a run of `evaluate` is about; None for a run of a method."""
    path = Path(stored["set"]) if "set" in stored else None
    return path.parent if path is not None and path.suffix == ".safetensors" else path


def _hours(folder: Path) -> float:
    """Return the hours of a distillation: the sum of the times of its iterations."""
    return sum(seconds_of(folder)) / 3600


def paper_table() -> str:
    """Return the table of the paper's cells: for each cell the paper's line, published sets, and ours."""
    lines = [["data, images a class", "method", "set", *ATTACKS, "students, images", "hours", "commit"]]
    cells: dict[tuple[str, int, str], list[dict[str, dict[str, str]]]] = {}
    for columns in _sets():
        of_set = columns["clean"]
        cells.setdefault((of_set["dataset"], int(of_set["ipc"]), of_set["method"]), []).append(columns)
    for (dataset, ipc, method), sets in sorted(cells.items(), key=lambda item: item[0][:2]):
        name = [f"{DATA[dataset]}, {ipc}", f"`{method}`"]
        figures = [PAPER.get((dataset, ipc, method, attack)) for attack in ATTACKS]
        if any(figures):
            means = ["-" if figure is None else f"{figure[0]} ± {figure[1]}" for figure in figures]
            lines.append([*name, "the paper's", *means, "50, 10000", "", ""])
        for columns in sets:
            if set(ATTACKS) <= set(columns):
                of_set = columns["clean"]
                means = [_cell(columns[attack], figure) for attack, figure in zip(ATTACKS, figures, strict=True)]
                hours = of_set["hours"].replace("0.0", "")
                lines.append([*name, of_set["set"], *means, _count(of_set), hours, of_set["commit"]])
    return markdown(lines)


def paper_autoattack() -> str:
    """Return the table of the sets that AutoAttack was run on, with the accuracies of the same students and images."""
    heading = ["data, images a class", "method", "set under AutoAttack", "clean", "PGD-10", "AutoAttack"]
    lines = [[*heading, "students, images", "commit"]]
    for columns in _sets():
        if autoattack := next((attack for attack in columns if attack.startswith("autoattack@")), None):
            of_set = columns["clean"]
            name = [f"{DATA[of_set['dataset']]}, {of_set['ipc']}", f"`{of_set['method']}`", of_set["set"]]
            means = [_cell(columns[column], None) for column in ("clean", "linf", autoattack)]
            lines.append([*name, *means, _count(of_set), of_set["commit"]])
    return markdown(lines)


def _sets() -> list[dict[str, dict[str, str]]]:
    """Return column -> line of each set and its students."""
    found: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for line in read(STORED):
        found.setdefault(tuple(line[name] for name in OF_SET), {})[line["attack"]] = line
    return list(found.values())


def _count(line: dict[str, str]) -> str:
    """Return the numbers of students and test images, and the students' epochs where they are not the paper's 1,000."""
    epochs = line["students' epochs"]
    return f"{line['n']}, {line['images']}" + ("" if epochs == "1000" else f" ({epochs} epochs)")


def _cell(line: dict[str, str], paper: tuple[float, float] | None) -> str:
    """Return an accuracy as a table has it: with the deviation over students, and the difference to the paper's.

    >>> ours = {"mean": "17.00", "std": "1.00", "n": "10", "images": "10000", "verdict": "ok"}
    >>> _cell(ours, (17.5, 0.6)), _cell(ours | {"std": ""}, (17.5, 0.6)), _cell(ours | {"verdict": "gap"}, None)
    ('17.0 ± 1.0 (-0.5 ± 0.7)', '17.0 (-0.5)', '17.0 ± 1.0 ?')
    """
    mean, std = float(line["mean"]), float(line["std"]) if line["std"] else None
    cell = f"{mean:.1f}" + ("" if std is None else f" ± {std:.1f}") + ("" if line["verdict"] == "ok" else " ?")
    if paper is None:
        return cell
    half = half_width(mean, std, int(line["n"]), int(line["images"]), paper)
    return f"{cell} ({mean - paper[0]:+.1f}{'' if half is None else f' ± {half:.1f}'})"


if __name__ == "__main__":
    print(written_csv(FIELDS, lines_of([Path(word) for word in sys.argv[1:]])), end="")
