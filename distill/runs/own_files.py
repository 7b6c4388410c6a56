"""Files of tensors carry the fingerprint of the run that wrote them, so that files of another run are refused."""

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
    """Return the sha256 of a value of JSON's types."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the content of a folder's experiment.json, None where there is no such file.

    Returns:
        the experiment, the data, and further entries.

    Raises:
        InputError: the file is damaged, or of the format of a newer version.
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
    """Return the fingerprint of the run that a folder belongs to, None where the folder has no run.

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
        fingerprint: of the run that should have written it; None where the run is not known.
        tensors: whether to read them; without, only the head of the file is read.

    Raises:
        InputError: the file is damaged, or of another run.
    """
    found, facts = read_tensors(path, None if tensors else ())
    owner = facts.pop("run", None)  # files of earlier versions lack it
    if None not in (owner, fingerprint) and owner != fingerprint:
        raise InputError(f"{path} belongs to another run; delete it to have it made anew")
    return found, facts


_STAGE = re.compile(r"(\.\./)+([\w-][\w.+=@,-]*/)*stages/[\w-]+(/[\w-]+\.safetensors)?")
"""path of a stage, relative to a run's folder; --stages takes any folder of the name stages"""


def companion_path(folder: Path, named: Any, what: str) -> Path:
    """Return the path of a file or folder that a distilled set names; the set may come from other people.

    Args:
        folder: of the set's file, to which the name is relative.
        named: the name.
        what: kind of the file, for the error.

    Raises:
        InputError: the path is neither in that folder nor a stage of our runs.
    """
    if not isinstance(named, str) or not (_STAGE.fullmatch(named) or _is_in(folder, named)):
        raise InputError(f"the set in {folder} names its {what} {brief(named)}, which is not in its folder")
    return folder / named


def _is_in(folder: Path, named: str) -> bool:
    """Return whether a name leads into a folder, after links are followed."""
    try:
        return (folder / named).resolve().is_relative_to(folder.resolve()) and bool(named) and named.isprintable()
    except (OSError, ValueError, RuntimeError):  # the name is too long, has a zero byte, or is a circle of links
        return False
