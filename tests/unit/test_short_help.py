"""The short help shows the flags that most runs set, names all others, and fits two screens."""

import re

import pytest

from distill.app.flags import parse
from distill.app.loss_flags import rules_of_losses
from distill.app.registry import find_methods
from distill.app.short_help import SECTIONS, short_help
from tests.golden.flags import COMMANDS, listed, method_command

METHODS = sorted(find_methods())
TWO_SCREENS = 64
"""lines of two terminal windows, less the line that was typed"""


def help_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    command = COMMANDS[name] if name in COMMANDS else method_command(name)
    with pytest.raises(SystemExit) as stop:
        parse(type(command), command, ["--help"], f"bash run.sh {name}", rules_of_losses("cifar10"))
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["guard_dc", "guard_sre2l", "mtt_learned_labels", "evaluate PATH", "relabel PATH"])
def test_every_flag_is_described_or_named(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(name, capsys)
    command = COMMANDS[name] if name in COMMANDS else method_command(name)
    described = set(re.findall(r"^  --([\w.-]+)", text, re.MULTILINE))
    named = set(re.findall(r"--([\w.*-]+)", text.split("More flags")[1]))
    for flag, _, default in listed(command):
        words = flag.removeprefix("--")
        assert words in described or words in named or f"{words.partition('.')[0]}.*" in named, flag
        if words in ("ipc", "students", "seed"):
            assert re.search(rf"--{words} .*\[{default}\]$|--{words} [^[]*\[{default}\]", text), (flag, default)
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("name", METHODS)
def test_it_fits_two_screens(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert 30 < len(help_of(name, capsys).splitlines()) <= TWO_SCREENS


def test_every_name_is_a_flag_of_some_command() -> None:
    commands = [*COMMANDS.values(), *(method_command(name) for name in METHODS)]
    flags = {flag.removeprefix("--") for command in commands for flag, _, _ in listed(command)}
    assert not {name for names in SECTIONS.values() for name in names} - flags


def test_a_command_with_few_flags_shows_all(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("export", capsys)
    assert "--overwrite" in text
    assert "--help-all" not in text


def test_a_line_is_name_first_sentence_default() -> None:
    text = short_help(method_command("dsa"), "bash run.sh dsa cifar10", "what it does")
    assert "\n  --ipc                 distilled images per class [1]\n" in text
    assert text.startswith("usage: bash run.sh dsa cifar10 [--flags]\n\nwhat it does\n")
    assert not re.search(r"\.\. ?\[|\.\[|;\s*\[| \[\]", text)
