"""An interruption ends a command as one, also where a library turns it into an error of its own."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill.app.exit_codes import exit_code_of
from distill.errors import InputError
from distill.runs.launch import ENDING, hear_signals, interrupted

DURING_IMPORT = """
import runpy, sys
class Interrupts:
    def find_spec(self, name, *_):
        if name == "distill.app.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
runpy.run_module("distill", run_name="__main__")
"""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ENDING}
    hear_signals()
    yield
    hear_signals()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", sorted(ENDING))
def test_a_signal_is_an_interruption(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(lambda: signal.raise_signal(number) or 0) == 130
    assert "run.sh: interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("error", [InputError("x is damaged"), RuntimeError("could not determine the shape")])
def test_an_error_made_of_an_interruption_is_one(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:  # as torch does where a signal comes while it reads a sequence
            raise error from None
        return 0

    assert exit_code_of(work) == 130
    assert "damaged" not in capsys.readouterr().err


def test_an_error_without_a_signal_stays_an_error() -> None:
    def work() -> int:
        raise InputError("x is damaged")

    assert exit_code_of(work) == 2
    assert not interrupted()


def test_an_interruption_while_the_program_starts_is_one_line() -> None:
    words = [sys.executable, "-c", DURING_IMPORT]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "\nrun.sh: interrupted before the work began\n")
