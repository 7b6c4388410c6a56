"""Stores the docs' tables of measured results anew, from docs/results: `python -m tests.golden.results`.

A stored result is what a command of the program wrote (its page has the command); a table is never written by hand.
"""

import csv
import re
from pathlib import Path

__all__ = ["TABLES", "theory_table", "with_table"]

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
    with open(ROOT / "docs" / "results" / "theory-cifar10-16px.csv", encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            place = line["images"].partition(",")[0], line["term"]
            found.setdefault(line["run"], {})[place] = float(line["mean over students"])
    lines = [["set", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    lines += [[_short(run), *(f"{values[place]:.3g}" for place in COLUMNS.values())] for run, values in found.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _short(run: str) -> str:
    """Return the label of a run as the table has it.

    >>> _short("mtt_robust_labels, teacher pgd_at:steps=3@4/255"), _short("guard_dc, weight 3.0")
    ('mtt, PGD labels 4/255', 'guard_dc, weight 3')
    """
    return run.removesuffix(".0").replace("_robust_labels, teacher pgd_at:steps=3@", ", PGD labels ")


TABLES = {"docs/theory.md": (re.compile(r"^\| set \| clean \|.*\n(?:\|.*\n)+", re.MULTILINE), theory_table)}
"""page -> (its table, the function that makes it)"""


def with_table(page: str) -> str:
    """Return the text of a page with its table made anew; the rest stays."""
    text = (ROOT / page).read_text(encoding="utf-8")
    pattern, made = TABLES[page]
    (table,) = pattern.findall(text)
    return text.replace(table, made())


if __name__ == "__main__":
    for page in TABLES:
        (ROOT / page).write_text(with_table(page), encoding="utf-8")
