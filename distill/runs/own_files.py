"""Files of tensors that a run wrote say which run that was, so that those of another are not taken for its own."""

import hashlib
import json
import re
from pathlib import Path
from types import NoneType
from typing import Any

from torch import Tensor

from distill.errors import InputError
from distill.runs.files import read_tensors
from distill.runs.foreign import brief, read_json
from distill.runs.version import check_record

__all__ = ["companion_path", "fingerprint_of_folder", "json_hash", "read_record", "read_run_file"]


def json_hash(description: Any) -> str:
    """Return the sha256 of what JSON can say."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return what the experiment.json of a folder says, None where there is none: whose the folder is.

    Returns:
        the experiment, the data, and what else is there.

    Raises:
        InputError: it is damaged, or of a newer version's format.
    """
    path = folder / "experiment.json"
    if not path.exists():
        return None
    advice = f"move {folder} away or choose another folder (--runs DIR)"
    try:
        content = read_json(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); {advice}") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged ({brief(error)}); {advice}") from None
    if not isinstance(content, dict) or not isinstance(content.get("experiment", 0), (dict, NoneType)):
        raise InputError(f"{path} is damaged: it names no experiment; {advice}")
    check_record(path, content)
    return {"data": None} | content


def fingerprint_of_folder(folder: Path) -> str | None:
    """Return the fingerprint of the run that has a folder, None where no run has.

    Raises:
        InputError: its experiment.json is damaged.
    """
    record = read_record(folder)
    return None if record is None else json_hash([record["experiment"], record["data"]])


def read_run_file(
    path: Path, fingerprint: str | None, *, tensors: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the facts of a file that `Run.write_tensors` wrote.

    Args:
        path: of the file.
        fingerprint: of the run that should have written it; None where that is not known.
        tensors: whether to read them; without, only the file's head is looked at.

    Raises:
        InputError: it is damaged, or of another run.
    """
    found, facts = read_tensors(path, None if tensors else ())
    whose = facts.pop("run", None)  # files of earlier versions do not say
    if None not in (whose, fingerprint) and whose != fingerprint:
        raise InputError(f"{path} belongs to another run; delete it to have it made anew")
    return found, facts


_STAGE = re.compile(r"(\.\./)+stages/[\w-]+(/[\w-]+\.safetensors)?")
"""where our methods keep what their runs share, as a run's folder sees it"""


def companion_path(place: Path, named: Any, what: str) -> Path:
    """Return the path of what a distilled set names, which may be a set of others.

    Args:
        place: the folder of the set's file, from which the name counts.
        named: the name.
        what: it is of, for the error.

    Raises:
        InputError: it is neither in that folder nor a stage of our runs.
    """
    if not isinstance(named, str) or not (_STAGE.fullmatch(named) or _is_in(place, named)):
        raise InputError(f"the set in {place} names its {what} {brief(named)}, which is not in its folder")
    return place / named


def _is_in(place: Path, named: str) -> bool:
    """Return whether a name is of something in a folder, links followed."""
    try:
        return (place / named).resolve().is_relative_to(place.resolve()) and bool(named) and named.isprintable()
    except (OSError, ValueError, RuntimeError):  # of a name too long, with a zero byte, or of links in a circle
        return False
