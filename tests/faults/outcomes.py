"""What a command may do with whatever it is given: its work, or one line and exit code 2."""

import pytest

from distill.app.main import main
from distill.errors import LONGEST

__all__ = ["outcome"]


def outcome(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Return the exit code of a command and the line that it ends with; any exception is a fault of ours.

    Raises:
        AssertionError: it refused in another way than with one short line that can be printed.
    """
    capsys.readouterr()
    code = main(words)
    said = capsys.readouterr().err.splitlines()
    refusals = [line for line in said if line.startswith("run.sh: ")]
    assert code in (0, 2), said
    assert len(refusals) == (code == 2), said
    line = refusals[0] if refusals else ""
    assert len(line) <= LONGEST, line
    assert line.isprintable(), line
    assert code == 0 or said[-1] == line, said
    return code, line
