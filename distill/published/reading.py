"""Distilled sets that other code made: the flags that describe them, and the folder in which each is stored as ours.

`bash run.sh evaluate PATH --dataset NAME` reads a published set once into

    runs/published/DATASET/NAME-DIGEST/    distilled.safetensors, and reading.json: how the set was read
                                           whitening.safetensors, if its students need one

which every command takes as a set of ours. The reader is a parameter (`distill.app.published`), because it needs SRe2L.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.runs.files import hash_of, write_text
from distill.runs.foreign import reachable, read_json, refuse_irregular
from distill.runs.version import project_version
from distill.training.augment import augmentation
from robust.ranges import Positive, Range, check_ranges

__all__ = ["Read", "Reading", "companions", "factor_in", "import_set", "is_ours"]

"""names of data sets in DC's code"""
DEPTH = 2
"""levels of folders of a set: CLASS/FILE, or SPLIT/FILE"""
FKD_DEPTH = 4
"""levels of folders of soft labels: DATASET/NAME/epoch_0/FILE"""


@dataclass(frozen=True)
class Reading:
    """How a published set is read; sets of ours need none of these flags.

    Raises:
        ValueError: a field is out of its range.
    """

    source: Literal[
        "auto", "ours", "dc", "dd", "mtt", "frepo", "kip", "idc", "tensors", "sre2l", "imagefolder", "hf"
    ] = "auto"
    """format of a published set (docs/published.md); auto recognises it by the content"""
    space: Literal["auto", "pixels", "normalised", "whitened"] = "auto"
    """image scale, if it cannot be detected"""
    experiment: int = 0
    """dc: number of the set in the file, from 0; negative numbers count from the last"""
    factor: Annotated[int, Range(least=1, most=8)] | None = None
    """idc: each stored image holds factor x factor images; None if the path names it, as in factor2"""
    lr: Positive | None = None
    """mtt: the learned learning rate, which --protocol own needs and the files do not contain"""
    parts: bool = False
    """mtt: images_0.pt, images_1.pt, ... of a folder are parts of one set; otherwise their content decides"""
    fkd: str | None = None
    """sre2l, imagefolder: folder of the set's soft labels, epoch_0/batch_0.tar, ..., for students of --protocol own"""
    augment: str | None = None
    """augmentation of students: "" for none, a DSA strategy, dc:..., kornia:...; None for that of the set's code"""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.augment is not None:
            augmentation(self.augment)


Read = Callable[[Path, Reading, Callable[[int], ImageSet], Path, Callable[[str], None]], DistilledSet]
"""(path, flags, side in pixels -> real training images, folder of the new set, receiver of messages) -> the set"""


def is_ours(path: Path, reading: Reading) -> bool:
    """Return whether a path is read as a set of ours, and not as a published set.

    Args:
        path: of a file or a folder, which may not exist.
        reading: the flags.

    Returns:
        True also for a path that does not exist: the reader of our sets reports that.

    Raises:
        InputError: flags for published sets are given for a set of ours.
    """
    file = path / "distilled.safetensors" if path.is_dir() else path
    ours = (file.suffix == ".safetensors" and (file.exists() or reading.source == "ours")) or not path.exists()
    if ours and reading not in (Reading(), Reading("ours")):
        given = ", ".join(f"--{name}" for name, value in asdict(reading).items() if value != getattr(Reading(), name))
        raise InputError(
            f"{path} is {'a set of ours' if path.exists() else 'not there'}; {given} is for published sets"
        )
    return ours


def import_set(
    path: Path,
    reading: Reading,
    dataset: str,
    data: str,
    runs: Path,
    real: Callable[[int], ImageSet],
    read: Read,
) -> Path:
    """Return the folder in which a published set is stored as ours, reading it if needed, and print how it was read.

    Args:
        path: a file or a folder that exists.
        reading: how to read it.
        dataset: name of the real data set.
        data: hash of the real images, from which names of classes and normalisation come.
        runs: folder of all runs.
        real: side in pixels -> the real training images at that size.
        read: the reader.

    Returns:
        the folder.

    Raises:
        InputError: the path is no published set, or cannot be read.
    """
    folder = (
        runs / "published" / dataset.replace(":", ".") / f"{path.absolute().stem}-{_digest(path, reading, data)[:12]}"
    )
    record = folder / "reading.json"
    lines = _messages_in(record) if (folder / "distilled.safetensors").exists() else None
    if lines is None:
        lines = []
        folder.mkdir(parents=True, exist_ok=True)
        try:
            found = replace(read(path, reading, real, folder, lines.append), version=project_version())
            found.save(folder / "distilled.safetensors")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        content = {"path": str(path.absolute()), "reading": asdict(reading), "said": lines}
        write_text(record, json.dumps(content, indent=2) + "\n")
    for line in (*lines, f"stored as a set of ours in {folder}"):
        print(f"{path}: {line}", file=sys.stderr)
    return folder


def _messages_in(record: Path) -> list[str] | None:
    """Return the messages of an earlier reading of a set; None where there was no complete one."""
    try:
        return list(map(str, read_json(record)["said"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(path: Path, reading: Reading, data: str) -> str:
    """Return a hash of a file and its labels, or of a folder's files, together with the flags and the data."""
    how = {
        name: value for name, value in asdict(reading).items() if name != "fkd"
    }  # the files are hashed, not their path
    if not reading.parts:  # a field that earlier versions lacked
        del how["parts"]
    if reading.source in ("auto", "idc") and reading.factor is None and (named := factor_in(path)) is not None:
        how["factor"] = named
    digest = hashlib.sha256(json.dumps(how | {"data": data}, sort_keys=True).encode())
    whole = path.parent if path.suffix == ".arrow" else path  # the folder lists the files of the set
    if whole.is_dir():
        files = _files_below(whole, DEPTH)
    else:
        files = {Path(each.name): each for each in (path, *companions(path).values())}
    if reading.fkd is not None:
        if not reachable(Path(reading.fkd)).is_dir():
            raise InputError(f"--fkd is {reading.fkd}: no such folder")
        files |= {Path("fkd") / name: file for name, file in _files_below(Path(reading.fkd), FKD_DEPTH).items()}
    for file in files.values():  # check all files before reading any
        refuse_irregular(file)
    for name, file in files.items():
        digest.update(os.fsencode(name) + b"\0")
        try:
            digest.update(bytes.fromhex(hash_of(file)))
        except OSError as error:
            raise InputError(f"{file} cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def factor_in(path: Path) -> int | None:
    """Return IDC's factor, the images along a side of a stored image, from a path (factor2); None if it has none."""
    named = re.findall(r"factor(\d)", str(path.absolute()))
    return int(named[-1]) if named else None


def companions(path: Path) -> dict[str, Path]:
    """Return the existing files that belong to an images_*.pt of MTT and its successors.

    Args:
        path: images_N.pt, images_zca_N.pt, or with ema_ before it (FTD's averages).

    Returns:
        "labels", "lr" (DATM's learned rate) and "card" (learned_lr.json of our export); {} for other files.
    """
    named = re.fullmatch(r"(ema_)?images(_zca)?(.*)", path.name)
    if not named:
        return {}
    average, zca, rest = named.groups(default="")
    found = {}
    for prefix in ("ema_", average) if zca else (average,):  # FTD writes images_zca_N.pt of its averages too
        for kind in ("labels", "lr"):
            found[kind, prefix] = path.with_name(f"{prefix}{kind}{rest}")
    found["card", ""] = path.with_name("learned_lr.json")
    return {kind: file for (kind, _), file in found.items() if file.is_file()}


def _files_below(folder: Path, depth: int) -> dict[Path, Path]:
    """Return the files below a folder, links followed: relative path -> path, sorted.

    Args:
        folder: an existing folder.
        depth: levels of folders; deeper files are left out.

    Raises:
        InputError: a folder cannot be read.
    """
    found, folders = [], [folder]
    try:
        for _ in range(depth):
            entries = [each for parent in folders for each in parent.iterdir()]
            found += [each for each in entries if each.is_file()]
            folders = [each for each in entries if each.is_dir()]
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be read ({error.strerror})") from None
    return {each.relative_to(folder): each for each in sorted(found)}
