"""The distilled set that the students of a run were trained on."""

from pathlib import Path

from distill.distilled import DistilledSet, digest_of
from distill.errors import InputError
from distill.runs.own_files import read_record

__all__ = ["set_of_run"]

NAME = "distilled.safetensors"


def set_of_run(folder: Path, digest: str) -> DistilledSet | None:
    """Return the set of a run; that of an evaluation is where it was when it was evaluated.

    Args:
        folder: of the run.
        digest: of the set, as rows have it.

    Returns:
        the set; None where it is no longer there, or is another one by now.
    """
    if (folder / NAME).exists():
        return DistilledSet.load(folder)
    place = (read_record(folder) or {}).get("set")
    path = Path(place) if isinstance(place, str) else folder
    try:
        file = path / NAME if path.is_dir() else path
        return DistilledSet.load(file) if file.is_file() and digest_of(file)[: len(digest)] == digest else None
    except (InputError, OSError):
        return None
