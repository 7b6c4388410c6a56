"""Small tensors are faster on one thread, and two workers share two cores; a test draws the same numbers every time."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed torch's own generator, which many tests draw from, before a test and what it is given are made.

    A test that fails then fails for everybody. Processes that a test starts have a seed of their own.
    """
    torch.manual_seed(0)
