"""The command line is frozen: a flag that comes, goes, or has another type or default is seen in flags.txt."""

import re
from difflib import unified_diff
from pathlib import Path

import pytest

from distill.app.flags import parse
from distill.app.loss_flags import rules_of_losses
from distill.app.main import USAGE
from tests.golden.flags import COMMANDS, listed, method_command, text

STORED = Path(__file__).with_name("flags.txt")
ANEW = "python -m tests.golden.flags > tests/golden/flags.txt"


def test_flags_are_what_they_were() -> None:
    stored, found = STORED.read_text(encoding="utf-8").splitlines(), text().splitlines()
    changes = "\n".join(unified_diff(stored, found, "stored", "found", n=0, lineterm=""))
    assert not changes, f"the flags changed:\n{changes}\nIf this is meant, store the new list: {ANEW}"


def test_the_list_does_not_depend_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", "/elsewhere")
    assert "elsewhere" not in text()


@pytest.mark.parametrize("name", [*COMMANDS, "guard_sre2l", "guard_dc", "dim"])
def test_the_list_has_what_help_shows(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = COMMANDS[name] if name in COMMANDS else method_command(name)
    with pytest.raises(SystemExit):
        parse(type(command), command, ["--help-all"], name, rules_of_losses("cifar10"))
    shown = set(re.findall(r"^[│ ]*(--[a-z][\w.-]*)", capsys.readouterr().out, re.MULTILINE))
    names = {flag for flag, _, _ in listed(command)}
    assert {flag for flag in names if flag.startswith("--")} == shown


def test_every_command_is_in_the_list() -> None:
    words = set(re.findall(r"^  bash run\.sh ([\w-]+)", USAGE, re.MULTILINE))
    without_flags = {"METHOD", "guard_dc", "list", "test", "bench", "--version"}
    assert words - without_flags == {name.split(" ")[0] for name in COMMANDS}
