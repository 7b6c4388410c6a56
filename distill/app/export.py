"""`bash run.sh export RUN --to FORMAT`: write a distilled set in the format of another code."""

import glob
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from distill.app.flags import HELP, parse
from distill.data.pictures import picture_folders
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.published.writers import EXPORTS
from distill.runs.files import UNFINISHED, disk_errors, hash_of, remove_unfinished, write_text
from distill.runs.foreign import reachable, read_json

__all__ = ["ExportCommand", "export", "run_export"]

MANIFEST = ".guard-export.json"
"""lists the files of an export with their hashes; no other file is ever replaced or deleted"""
FOREIGN = (".npz", ".pt", ".pth")
"""file suffixes of published sets, which `evaluate` must import before `export` can read them"""


@dataclass(frozen=True)
class ExportCommand:
    """Write a distilled set in the format of another code."""

    path: tyro.conf.Positional[Path]
    """distilled.safetensors, or the folder of its run"""
    to: Literal["dc", "mtt", "imagefolder", "npz", "hf", "hub", "set"]
    """dc: res_*.pt, mtt: images_best.pt and labels_best.pt, imagefolder: CLASS/NNNN.png, npz: one exact NumPy file,
    hf: a folder of Hugging Face datasets, hub: a repository for the Hugging Face Hub, set: our own file with the labels
    of its views, its teacher and its whitening (docs/published.md)"""
    out: Path | None = None
    """folder to write to; None: export/FORMAT beside the set"""
    overwrite: bool = False
    """replace the files of an earlier export; other files are never replaced or deleted"""


def run_export(flags: list[str]) -> int:
    """Write a distilled set in the format of another code.

    Returns:
        the exit code.

    Raises:
        InputError: the set is missing, the format cannot store it, or other files block the output folder.
    """
    if not flags or (flags[0].startswith("-") and flags[0] not in HELP):
        raise InputError(f"export takes a path first: bash run.sh export RUN --to {'|'.join(EXPORTS)}")
    default = ExportCommand(Path(), tyro.MISSING)
    command = parse(ExportCommand, default, flags, "bash run.sh export")
    if reachable(command.path).suffix in FOREIGN and command.path.is_file():
        raise InputError(
            f"{command.path} is not a safetensors file; its name is that of a published set: read it first, "
            f"bash run.sh evaluate {command.path} --dataset NAME, and export the folder that this command creates"
        )
    folder = command.path if command.path.is_dir() else command.path.parent
    distilled = DistilledSet.load(command.path)
    out = command.out or folder / "export" / command.to
    for line in export(distilled, folder, command.to, out, overwrite=command.overwrite):
        print(line, file=sys.stderr)
    print(out)
    return 0


def export(distilled: DistilledSet, folder: Path, form: str, out: Path, *, overwrite: bool = False) -> list[str]:
    """Write a set into a folder, either completely or not at all.

    Args:
        distilled: the set.
        folder: the folder of the set's file, which may also hold the whitening.
        form: the format, a key of EXPORTS.
        out: the output folder; created if needed.
        overwrite: whether unchanged files of an earlier export may be replaced and removed.

    Returns:
        messages for the user, one line each.

    Raises:
        InputError: the format cannot store the set, or other files block the output folder.
    """
    temporary = _beside(out)
    remove_unfinished(temporary.parent, glob.escape(temporary.name.removeprefix(".").split(f".{os.getpid()}.")[0]))
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        with disk_errors(temporary.parent):
            lines = EXPORTS[form](distilled, folder, temporary)
        new = _hashes(temporary)
        ours = _manifest(out)
        present = {
            path: hash_of(out / path) for path in {*new, *ours, *_pictures_in(out, form)} if (out / path).is_file()
        }
        differ = sorted(path for path in new if path in present and present[path] != new[path])
        stale = sorted(path for path in present if path not in new)
        foreign = [path for path in (*differ, *stale) if present[path] not in ours.get(path, ())]
        if foreign:
            problem = "has other content" if foreign[0] in new else "is not part of this set, but would be read with it"
            raise InputError(
                f"{out / foreign[0]} {problem}, and no export wrote it (files: {len(foreign)}); give another --out"
            )
        if (differ or stale) and not overwrite:
            first, count = (stale or differ)[0], len(stale or differ)
            problem = "belongs to another set, and would be read with this set" if stale else "has other content"
            raise InputError(f"{out / first} {problem} (files: {count}); give another --out, or --overwrite to replace")
        out.mkdir(parents=True, exist_ok=True)
        # The manifest lists both versions until the new one is complete, so that a killed export can be repeated.
        _write_manifest(out, {path: {*ours.get(path, ()), *filter(None, [new.get(path)])} for path in {*ours, *new}})
        for path in stale:
            (out / path).unlink()
        for path in sorted(new):
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary / path, out / path)
        _write_manifest(out, {path: {digest} for path, digest in new.items()})
    except OSError as error:
        raise InputError(f"cannot write to {out} ({error.strerror or error}); choose another --out") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    replaced = len(differ) + len(stale)
    note = f", {replaced} files of an earlier export replaced or removed" if replaced else ""
    return [*lines, f"{len(new)} files in {out}{note}"]


def _hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file in a folder, by path relative to the folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hash_of(path) for path in files}


def _manifest(out: Path) -> dict[str, list[str]]:
    """Return path -> hashes of the files that exports wrote into a folder; empty without a readable manifest."""
    try:
        content = read_json(out / MANIFEST)["files"]
        return {str(path): list(map(str, hashes)) for path, hashes in content.items() if _inside(path)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _inside(path: str) -> bool:
    parts = Path(path).parts
    return bool(parts) and not Path(path).is_absolute() and ".." not in parts


def _write_manifest(out: Path, files: dict[str, set[str]]) -> None:
    content = {"files": {path: sorted(hashes) for path, hashes in sorted(files.items())}}
    write_text(out / MANIFEST, json.dumps(content, indent=1) + "\n")


def _pictures_in(out: Path, form: str) -> list[str]:
    """Return the pictures in class folders: a reader of the exported set would read them too."""
    if form != "imagefolder" or not out.is_dir():
        return []
    return [f"{name}/{file.name}" for name, files in picture_folders(out).items() for file in files]


def _beside(out: Path) -> Path:
    """Return the path of a temporary folder beside a folder; "." is resolved first.

    Raises:
        InputError: the folder has no parent.
    """
    try:
        resolved = Path(os.path.realpath(out))
    except OSError as error:  # the current folder was deleted
        raise InputError(f"cannot write to {out} ({error.strerror}); choose another --out") from None
    if not resolved.name:
        raise InputError(f"cannot write to {out} (it has no folder above it); choose another --out")
    return resolved.with_name(f".{resolved.name}.{os.getpid()}{UNFINISHED}")
