"""What tests of the command line share."""

from pathlib import Path

import pytest

from distill.evaluation import student_tasks
from tests.toy import write_toy


@pytest.fixture(autouse=True)
def no_advised_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the attacks that verdicts advise (tests/unit/test_verdicts.py has them).

    Students of twenty epochs are in doubt as a rule, and Square's queries for each would take minutes of the suite.
    """
    monkeypatch.setattr(student_tasks, "advised_columns", lambda *_: {})


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"))
