"""The memory of paper recipes in docs/gpu.md is what the steps of the recipes take on a device without memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bench.memory import META, RECIPES, Peak, line, memory

PAGE = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text()


def test_memory_is_counted_once_and_until_it_is_freed() -> None:
    with Peak() as counter:
        x = torch.zeros(4, 8, device=META)
        assert counter.most == 4 * 32
        y = x + 1
        y.mul_(2)
        y.view(-1)[3:].add_(1)
        assert counter.most == 2 * 4 * 32
        del x
        z = y * 2
        assert (counter.now, counter.most) == (2 * 4 * 32, 2 * 4 * 32)
        del y, z
        assert counter.now == 0
        torch.zeros(3, 3)  # on the CPU
        assert counter.most == 2 * 4 * 32


def test_every_recipe_has_a_line_and_no_other() -> None:
    rows = [text for text in PAGE.splitlines() if text.startswith("| `") and text.count("|") == 7]
    assert [tuple(cell.strip(" `") for cell in row.split("|")[1:4]) for row in rows] == [
        (method, dataset, str(ipc)) for method, dataset, ipc in RECIPES
    ]


@pytest.mark.parametrize(
    "recipe",
    [("dc", "cifar10", 1), ("guard_dc", "cifar10", 10), ("tesla", "cifar10", 10), ("guard_sre2l", "cifar10", 10)],
    ids=str,
)
@pytest.mark.long
def test_lines_are_those_of_the_bench(recipe: tuple[str, str, int]) -> None:
    method, dataset, ipc = recipe
    row: dict[str, Any] = {"method": method, "dataset": dataset, "ipc": ipc, **memory(*recipe)}
    assert line(row) in PAGE.splitlines(), "store what `bash run.sh bench memory` prints"
