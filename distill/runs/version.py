"""The version of the program, and the formats of its files: a newer format is refused in a line that names both."""

import json
import re
import subprocess
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from distill.errors import InputError, one_line

__all__ = ["NAME", "RECORD_FORMAT", "check_key", "check_record", "commit", "project_version"]

ROOT = Path(__file__).parents[2]
NAME = "guard-distillation"
"""name of the project, as pyproject.toml has it"""
RECORD_FORMAT = 1
"""format of experiment.json; a file without the field is of format 1"""


@cache
def project_version() -> str:
    """Return the version in pyproject.toml, the only place that states it for the program: "0.1.0"."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def commit() -> str | None:
    """Return the commit of the checkout, 12 hex digits, with "-dirty" where files differ; None outside a repository."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    sources = ["git", "-C", str(ROOT), "status", "--porcelain", "--", "*.py"]  # describe does not see untracked files
    try:
        name, changed = (
            subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for words in (git, sources)
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{name.removesuffix('-dirty')}-dirty" if changed else name


def check_record(path: Path, record: dict[str, Any]) -> None:
    """Refuse an experiment.json of a newer format.

    Args:
        path: of the file, for the message.
        record: its content.

    Raises:
        InputError: its format is newer than RECORD_FORMAT, or is no whole number.
    """
    found = record.get("format", RECORD_FORMAT)
    if isinstance(found, int) and not isinstance(found, bool) and 1 <= found <= RECORD_FORMAT:
        return
    raise _newer(path, f"format {found}", f"format {RECORD_FORMAT}", record.get("made_by"))


def check_key(path: Path, key: str, metadata: Mapping[str, str]) -> None:
    """Refuse a safetensors file whose metadata are under a key of a newer format.

    Args:
        path: of the file, for the message.
        key: of the format that this version reads, NAME-NUMBER.
        metadata: of the file; JSON under each of our keys.

    Raises:
        InputError: the metadata have NAME with another number, and not `key` itself.
    """
    name = re.escape(key.rpartition("-")[0])
    others = [each for each in metadata if re.fullmatch(rf"{name}-\d{{1,9}}", each)]
    if key in others or not others:
        return
    try:
        facts = json.loads(metadata[others[0]])
    except (ValueError, RecursionError):
        facts = {}
    raise _newer(path, others[0], key, facts)


def _newer(path: Path, found: str, read: str, facts: Any) -> InputError:
    by = facts.get("version") if isinstance(facts, dict) else None
    writer = f"version {one_line(by, 40)}" if isinstance(by, str) and by else "another version"
    return InputError(
        f"{path} was written by {writer} of this program, in {one_line(found, 60)}; this is version "
        f"{project_version()}, which reads {read}: use the version that wrote the file, or move the file away"
    )
