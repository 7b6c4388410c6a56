"""Small tensors are faster on one thread, and two workers share two cores; a test draws the same numbers every time."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
os.environ.setdefault("NPROC", "1")  # the tests themselves are spread over the cores

LONG = {"recipes", "faults", "fuzz", "twin"}
"""folders whose tests are whole runs, all of them long: `bash run.sh test --fast` leaves them out"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of whole folders."""
    tests = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(tests) and item.path.relative_to(tests).parts[0] in LONG:
            item.add_marker(pytest.mark.long)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed torch's own generator, which many tests draw from, before a test and what it is given are made.

    A test that fails then fails for everybody. Processes that a test starts have a seed of their own.
    """
    torch.manual_seed(0)
