"""A set with all that its own protocol reads, in one folder that can be moved and shared."""

import shutil
from dataclasses import replace
from pathlib import Path

from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.method_training import COMPANIONS
from distill.runs.own_files import companion_path

__all__ = ["write_whole"]

FILE = "distilled.safetensors"


def write_whole(distilled: DistilledSet, folder: Path, out: Path) -> list[str]:
    """Write `distilled.safetensors`, and what it names: the labels of its views, its teacher, its whitening.

    Files of stages keep their bytes and the name of their stage, which they state: `stages/NAME/...` in `out`.

    Returns:
        messages for the user.

    Raises:
        InputError: a part of the set is missing.
    """
    named = {part: getattr(distilled.training, part) for part in COMPANIONS}
    kept = {part: _copy(folder, name, part, out) for part, name in named.items() if name is not None}
    replace(distilled, training=replace(distilled.training, **kept)).save(out / FILE)
    return [f"set: {FILE}{''.join(f', its {part}' for part in kept)}; every command reads this folder, wherever it is"]


def _copy(folder: Path, named: str, part: str, out: Path) -> str:
    """Copy a part of a set, and return its name in the new folder."""
    source = companion_path(folder, named, part)
    place = f"stages/{named.rpartition('stages/')[2]}" if named.startswith("../") else named
    files = [source] if source.is_file() else [*source.glob("labels.json"), *source.glob("epoch-*.safetensors")]
    if not files:
        raise InputError(f"{source}, the set's {part}, is missing: run the method again, or take --to npz without it")
    for file in files:
        target = out / place / file.relative_to(source) if source.is_dir() else out / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return place
