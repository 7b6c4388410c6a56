"""The paper's tables: their size, some values, and every number against the text where that is at hand."""

import os
import re
from pathlib import Path

import pytest

from distill.reports.paper import PAPER

METHODS = ("dd", "dc", "dsa", "dm", "mtt", "frepo", "guard_dc")
ATTACKS = ("linf_star", "linf", "l2")
BESIDE = Path(__file__).parents[3] / "shared/paper/guard_iclr2024_submission.txt"
TEXT = Path(os.environ.get("GUARD_PAPER_TEXT", BESIDE))
"""the paper's text, where its reader has it"""


def test_both_tables_are_whole() -> None:
    cells = {(dataset, ipc) for dataset, ipc, _, _ in PAPER}
    assert cells == {("mnist", 1), ("mnist", 10), ("cifar10", 1), ("cifar10", 10)}
    for dataset, ipc in cells:
        mine = {(method, column) for d, i, method, column in PAPER if (d, i) == (dataset, ipc)}
        methods = METHODS if ipc == 10 else METHODS[1:]
        wanted = {(method, attack) for method in methods for attack in ATTACKS}
        if ipc == 10:
            wanted |= {(method, "clean") for method in ("dd", "dc", "mtt", "dim", "frepo")} | {("dim", "linf_star")}
        assert mine == wanted
    assert len(PAPER) == 2 * 18 + 2 * (21 + 5 + 1)


@pytest.mark.parametrize(
    ("key", "figure"),
    [
        (("mnist", 1, "dc", "linf"), (50.0, 1.8)),
        (("mnist", 1, "guard_dc", "l2"), (66.2, 0.5)),
        (("mnist", 10, "dd", "l2"), (52.1, 2.6)),
        (("cifar10", 10, "dd", "linf_star"), (1.0, 0.3)),
        (("cifar10", 1, "dsa", "linf_star"), (3.1, 0.5)),
        (("cifar10", 10, "dim", "linf_star"), (0.0, 0.0)),
        (("cifar10", 10, "dc", "clean"), (45.3, 0.5)),
        (("mnist", 10, "dim", "clean"), (98.6, 0.2)),
    ],
)
def test_some_values(key: tuple[str, int, str, str], figure: tuple[float, float]) -> None:
    assert PAPER[key] == figure


@pytest.mark.skipif(not TEXT.exists(), reason="the paper's text is not in the repository; GUARD_PAPER_TEXT names it")
def test_every_number_is_the_texts() -> None:
    found: dict[tuple[str, int, str, str], tuple[float, float]] = {}
    methods, dataset, ipc = (), "", 0
    columns = {"Clean": "clean", "Robust": "linf_star", "l_∞^*": "linf_star", "l_∞": "linf", "l_2": "l2"}
    for line in TEXT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip(" $") for cell in line.split("|")]
        first = ("dd", "dc", "mtt", "dim", "frepo") if "Table 1" in line else METHODS
        if re.match(r"Table [12]:", line):
            methods, ipc = first, 10
        dataset = {"MNIST": "mnist", "CIFAR10": "cifar10"}.get(cells[1] if len(cells) > 1 else "", dataset)
        numbers = [re.fullmatch(r"([\d.]+)±([\d.]+)|-", cell) for cell in cells[-len(methods) - 1 : -1]]
        column = next((columns[cell] for cell in cells if cell in columns), None)
        if column is None or not methods or not all(numbers):
            continue
        if methods == METHODS:
            ipc = next((int(cell) for cell in cells[:6] if cell in ("1", "10")), ipc)
        for method, number in zip(methods, numbers, strict=True):
            if number[1]:
                found[dataset, ipc, method, column] = (float(number[1]), float(number[2]))
    assert found == PAPER
