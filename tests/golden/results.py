"""Stores the docs' tables of measured results anew, from docs/results: `python -m tests.golden.results`.

A stored result is what a command of the program wrote (its page has the command); a table is never written by hand.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.golden.guard_settings import settings_table
from tests.golden.paper_size import paper_autoattack, paper_table
from tests.golden.stored import RESULTS, markdown, read

__all__ = [
    "TABLES",
    "autoattack_table",
    "beyond_autoattack",
    "beyond_comparison",
    "beyond_points",
    "frontier_comparison",
    "frontier_points",
    "frontier_short",
    "sweep_table",
    "theory_table",
    "whole_size_table",
    "with_table",
]

ROOT = Path(__file__).parents[2]
TEST, REAL, TRANSFER = "test images", "training images", "from training to distilled images"
COLUMNS = {
    "clean": (TEST, "clean accuracy (%)"),
    "PGD-10": (TEST, "accuracy under PGD-10 at linf 2/255 (%)"),
    "λ1": (TEST, "λ1, mean (nats per pixel²)"),
    "cosine": (TEST, "|cos(gradient, v1)|, mean"),
    "E l": (REAL, "E l"),
    "rho E norm of g": (REAL, "rho E |grad l|"),
    "rho² E λ1 / 2": (REAL, "rho²/2 E λ1"),
    "E l~adv": (REAL, "left side: E l~adv"),
    "PGD loss": (REAL, "E of the loss that PGD finds"),
    "l~adv(x')": (TRANSFER, "left side: l~adv of a distilled image"),
    "right / left": (TRANSFER, "right / left, without L sigma"),
    "L sigma, at least": (TRANSFER, "L sigma, at least"),
    "not convex (%)": (TRANSFER, "pairs of images that refute convexity (%)"),
}
"""heading -> (images, row of the table of `bash run.sh curvature`)"""


def theory_table() -> str:
    """Return the table of docs/theory.md: a line for each run."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    for line in read(RESULTS / "theory-cifar10-16px.csv"):
        place = line["images"].partition(",")[0], line["term"]
        found.setdefault(line["run"], {})[place] = float(line["mean over students"])
    lines = [["set", *COLUMNS]]
    lines += [[_short(run), *(f"{values[place]:.3g}" for place in COLUMNS.values())] for run, values in found.items()]
    return markdown(lines)


def _short(run: str) -> str:
    """Return the label of a run as the table has it.

    >>> _short("mtt_robust_labels, teacher pgd_at:steps=3@4/255"), _short("guard_dc, weight 3.0")
    ('mtt, PGD labels 4/255', 'guard_dc, weight 3')
    """
    return run.removesuffix(".0").replace("_robust_labels, teacher pgd_at:steps=3@", ", PGD labels ")


FRONTIER = "frontier-cifar10-16px.csv"
SHORT = {
    ("random", "epochs 1000"): "random real images, hard labels",
    ("dc", "epochs 1000"): "`dc`, hard labels",
    ("guard_dc", "weight=3"): "`guard_dc`, hard labels",
    ("mtt", "epochs 1000"): "`mtt`, hard labels",
    ("random_plain_views", "recipe"): "random real images, a plain teacher's label for every view",
    ("random_guard_views", "weight=3"): "random real images, a GUARD teacher's label for every view",
    (
        "random_robust_views",
        "steps=3@4/255",
    ): "random real images, an adversarially trained teacher's label for every view",
}
"""(method, setting) of a point of the frontier -> how the README names it"""
ATTACKS = {"linf": "PGD-10", "apgd_t:steps=20@2/255": "APGD-T", "autoattack@2/255": "AutoAttack"}
"""column of `frontier.csv` -> its heading, at linf 2/255"""


def frontier_points(name: str = FRONTIER, first: str = "method") -> str:
    """Return the table of the points of a frontier: a line for each method at a strength.

    Args:
        name: of its file in docs/results.
        first: heading of the methods.
    """
    found = _points(name)
    columns = ["clean", *(name for name in ATTACKS.values() if any(name in means for means in found.values()))]
    lines = [[first, "setting", *columns, "sets, students"]]
    for (method, setting), means in found.items():
        lines.append([_code(method), setting, *(means.get(name, "") for name in columns), means["count"]])
    return markdown(lines)


def frontier_comparison(name: str = FRONTIER, first: str = "method") -> str:
    """Return the table of the comparison at equal clean accuracy, under APGD-T and AutoAttack; arguments as above."""
    lines = [[first, "attack", "clean", "robust", "difference to `dc`", "p"]]
    for line in read(RESULTS / name):
        if line["kind"] == "equal_clean" and line["attack"] != "linf" and line["difference"]:
            clean = f"{float(line['clean']):.1f}" + (", less accurate" if line["reach"] == "below" else "")
            attack, robust = ATTACKS[line["attack"]], f"{float(line['robust']):.1f}"
            lines.append([_code(line["method"]), attack, clean, robust, *_difference(line)])
    return markdown(lines)


def _difference(line: dict[str, str]) -> list[str]:
    """Return the difference of a comparison with its interval, and p after Holm's correction."""
    interval = f"{float(line['low']):+.1f} to {float(line['high']):+.1f}"
    p = f"{float(line['p_holm']):.2g}" if line["p_holm"] else "-"
    return [f"{float(line['difference']):+.1f} ({interval})", p]


def autoattack_table(name: str = "autoattack-cifar10-16px.csv", first: str = "method") -> str:
    """Return the table of the points under AutoAttack, and their differences to DC; arguments as above."""
    lines_of_it = [line for line in read(RESULTS / name) if ATTACKS[line["attack"]] == "AutoAttack"]
    compared = {line["method"]: line for line in lines_of_it if line["kind"] == "equal_clean" and line["difference"]}
    lines = [[first, "point", "clean", *ATTACKS.values(), "AutoAttack, difference to `dc`", "p", "sets, students"]]
    for (method, setting), means in _points(name).items():
        if "AutoAttack" in means:
            line = compared.get(method)
            difference = ["", ""] if line is None else _difference(line)
            columns = [means[column] for column in ("clean", *ATTACKS.values())]
            lines.append([_code(method), _last(setting), *columns, *difference, means["count"]])
    return markdown(lines)


BEYOND = "beyond-cifar10-16px.csv"
beyond_points = partial(frontier_points, BEYOND, "method beyond GUARD")
beyond_comparison = partial(frontier_comparison, BEYOND, "method beyond GUARD")
beyond_autoattack = partial(autoattack_table, "autoattack-beyond-cifar10-16px.csv", "method beyond GUARD")


def sweep_table(*methods: str) -> str:
    """Return the table of the strengths of some methods on the validation split, with DC's recipe first."""
    columns = ["clean", "PGD-10", "APGD-T"]
    lines = [["validation split", "strength", *columns]]
    for (method, flags), means in _points("sweeps-cifar10-16px-validation.csv", "flags").items():
        if method in ("dc", *methods):
            lines.append([_code(method), f"`{flags}`" if flags else "recipe", *(means[name] for name in columns)])
    return markdown(lines)


SETS_OF_32 = {
    "random_robust_views": "random real images, an adversarially trained teacher's label for every view",
    "random_plain_views": "random real images, a plain teacher's label for every view",
    "random_guard_views": "random real images, a GUARD teacher's label for every view",
    "dc": "DC's published images, hard labels",
    "dc_relabelled": "DC's published images, an adversarially trained teacher's label for every view",
}
"""method in the files of AT_32 -> how docs/frontier.md names its set"""
AT_32 = {
    "labels-cifar10-32px.csv": "images and labels at 32 px",
    "autoattack-cifar10-32px.csv": "under AutoAttack at 32 px",
}
"""file in docs/results -> the heading of its table"""


def whole_size_table(file: str, heading: str) -> str:
    """Return a table of sets at 32 px: a line for each set and number of images.

    Args:
        file: in docs/results.
        heading: of the column with the sets.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}
    for line in read(RESULTS / file):
        name = SETS_OF_32[line["method"]]
        column = ATTACKS.get(line["attack"], line["attack"])
        spread = f" ± {float(line['std']):.1f}" if line["std"] else ""  # one student has none
        cell = f"{float(line['mean']):.1f}{spread}{'' if line['verdict'] == 'ok' else ' ?'}"
        found.setdefault((line["ipc"], name), {})[column] = cell
    columns = [name for name in ("clean", *ATTACKS.values()) if all(name in means for means in found.values())]
    lines = [["images a class", heading, *columns]]
    for (ipc, name), means in sorted(found.items(), key=lambda item: (-int(item[0][0]), -float(item[1]["APGD-T"][:4]))):
        lines.append([ipc, name, *(means[column] for column in columns)])
    return markdown(lines)


def frontier_short() -> str:
    """Return the table of the README: a few points of the frontier, with what their images and labels are."""
    found = _points(FRONTIER)
    columns = [name for name in ("clean", *ATTACKS.values()) if all(name in found[place] for place in SHORT)]
    lines = [["images and labels", *columns]]
    lines += [[words, *(found[place][name] for name in columns)] for place, words in SHORT.items()]
    return markdown(lines)


def _points(file: str, place: str = "setting") -> dict[tuple[str, str], dict[str, str]]:
    """Return the points of a frontier: (method, place) -> column -> percent, and their count of sets, students.

    Args:
        file: in docs/results.
        place: of a point on its curve: "setting", or "flags", its whole text.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}
    for line in read(RESULTS / file):
        if line["kind"] == "point":
            start = {"clean": f"{float(line['clean']):.1f}", "count": f"{line['sets']}, {line['students']}"}
            means = found.setdefault((line["method"], line[place]), start)
            means[ATTACKS[line["attack"]]] = f"{float(line['robust']):.1f}{'' if line['verdict'] == 'ok' else ' ?'}"
    return found


def _last(setting: str) -> str:
    """Return the last field of a point's setting, without its name where the value alone says what it is.

    >>> _last("teacher pgd_at:steps=3@8/255"), _last("expert-loss pgd_at:steps=5@1/255 epochs 100"), _last("recipe")
    ('pgd_at:steps=3@8/255', 'epochs 100', 'recipe')
    """
    *_, name, value = ["", *setting.split()]
    return f"{name} {value}" if value.isdecimal() else value


def _code(method: str) -> str:
    """Return a method as a table has it; a control's own words stay text.

    >>> _code("guard_dc"), _code("dc, blurred")
    ('`guard_dc`', '`dc`, blurred')
    """
    name, comma, rest = method.partition(",")
    return f"`{name}`{comma}{rest}"


SWEPT = {
    "attacked": (
        *("at_dc", "fast_at_dc", "trades_dc", "dsa", "at_dsa", "dcc", "at_dcc", "cafe", "at_cafe"),
        *("dm", "at_dm", "dd", "at_dd", "kip", "at_kip"),
    ),
    "c2r": ("c2r",),
    "mat": ("mtt", "mat"),
    "robust_features": ("random_robust_features",),
    "rome": ("rome",),
}
"""page of methods -> the methods whose strengths it has"""
TABLES: dict[str, list[tuple[str, Callable[[], str]]]] = {
    "docs/theory.md": [(r"^\| set \| clean \|.*\n(?:\|.*\n)+", theory_table)],
    "docs/paper.md": [
        (r"^\| data, images a class \| method \| set \|.*\n(?:\|.*\n)+", paper_table),
        (r"^\| data, images a class \| method \| set under AutoAttack \|.*\n(?:\|.*\n)+", paper_autoattack),
    ],
    "docs/methods/guard.md": [(r"^\| loss of the real images \|.*\n(?:\|.*\n)+", settings_table)],
    "README.md": [(r"^\| images and labels \|.*\n(?:\|.*\n)+", frontier_short)],
    "docs/frontier.md": [
        (r"^\| method \| setting \|.*\n(?:\|.*\n)+", frontier_points),
        (r"^\| method \| attack \|.*\n(?:\|.*\n)+", frontier_comparison),
        (r"^\| method \| point \|.*\n(?:\|.*\n)+", autoattack_table),
        *(
            (rf"^\| images a class \| {heading} \|.*\n(?:\|.*\n)+", partial(whole_size_table, file, heading))
            for file, heading in AT_32.items()
        ),
        (r"^\| method beyond GUARD \| setting \|.*\n(?:\|.*\n)+", beyond_points),
        (r"^\| method beyond GUARD \| attack \|.*\n(?:\|.*\n)+", beyond_comparison),
        (r"^\| method beyond GUARD \| point \|.*\n(?:\|.*\n)+", beyond_autoattack),
    ],
} | {
    f"docs/methods/{page}.md": [(r"^\| validation split \|.*\n(?:\|.*\n)+", partial(sweep_table, *methods))]
    for page, methods in SWEPT.items()
}
"""page -> its tables, each with the function that makes it"""


def with_table(page: str) -> str:
    """Return the text of a page with its tables made anew; the rest stays."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for pattern, made in TABLES[page]:
        (table,) = re.findall(pattern, text, re.MULTILINE)
        text = text.replace(table, made())
    return text


if __name__ == "__main__":
    for page in TABLES:
        (ROOT / page).write_text(with_table(page), encoding="utf-8")
