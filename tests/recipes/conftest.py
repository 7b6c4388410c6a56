"""What tests of the command line share."""

from pathlib import Path

import pytest

from tests.toy import write_toy


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"))
