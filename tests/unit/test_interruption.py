"""An interruption ends a command as one, also where a library turns it into an error of its own."""

import signal
from collections.abc import Iterator

import pytest

from distill.app.exit_codes import exit_code_of
from distill.errors import InputError
from distill.runs.launch import ENDING, hear_signals, interrupted


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
