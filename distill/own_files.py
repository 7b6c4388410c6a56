"""Files of tensors that a run wrote say which run that was, so that those of another are not taken for its own."""

import hashlib
import json
from pathlib import Path
from types import NoneType
from typing import Any

from torch import Tensor

from distill.errors import InputError
from distill.files import read_tensors
from distill.foreign import brief, read_json

__all__ = ["digest", "fingerprint_in", "read_own", "record_in"]


def digest(description: Any) -> str:
    """Return the sha256 of what JSON can say."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def record_in(folder: Path) -> dict[str, Any] | None:
    """Return what the experiment.json of a folder says, None where there is none: whose the folder is.

    Returns:
        the experiment, the data, and what else is there.

    Raises:
        InputError: it is damaged.
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
    return {"data": None} | content


def fingerprint_in(folder: Path) -> str | None:
    """Return the fingerprint of the run that has a folder, None where no run has.

    Raises:
        InputError: its experiment.json is damaged.
    """
    record = record_in(folder)
    return None if record is None else digest([record["experiment"], record["data"]])


def read_own(path: Path, fingerprint: str | None, *, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the facts of a file that `Run.keep` wrote.

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
