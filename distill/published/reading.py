"""Distilled sets that other code made: how they are asked for, and the file of ours that each becomes.

`bash run.sh evaluate PATH --dataset NAME` takes one: it is read once into

    runs/published/DATASET/NAME-DIGEST/    distilled.safetensors, and reading.json: what it was taken for
                                           whitening.safetensors, where its students need one

and is then like a set of ours, for every command. The reader itself is handed in (`baselines.published`).
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.runs.files import hash_of, write_text
from distill.runs.foreign import reachable, read_json, refuse_irregular
from distill.training.augment import augmentation
from robust.ranges import Positive, Range, check_ranges

__all__ = ["Read", "Reading", "companions", "factor_in", "import_set", "is_ours"]

"""names of data sets in DC's code"""
DEPTH = 2
"""folders of a set, one in another: CLASS/FILE, or SPLIT/FILE"""
FKD_DEPTH = 4
"""folders of soft labels: DATASET/NAME/epoch_0/FILE"""


@dataclass(frozen=True)
class Reading:
    """How a published set is read; all of it has no meaning for a set of ours.

    Raises:
        ValueError: a field is out of its range.
    """

    source: Literal[
        "auto", "ours", "dc", "dd", "mtt", "frepo", "kip", "idc", "tensors", "sre2l", "imagefolder", "hf"
    ] = "auto"
    """whose format a published set has (docs/published.md); auto tells by its content"""
    space: Literal["auto", "pixels", "normalised", "whitened"] = "auto"
    """coordinates of its images, where neither format nor name say"""
    experiment: int = 0
    """dc: which of the sets in the file, from 0; negative ones count from the last"""
    factor: Annotated[int, Range(least=1, most=8)] | None = None
    """idc: its images are factor x factor images each; None where the path has it, as in factor2"""
    lr: Positive | None = None
    """mtt: the learned learning rate, which its files do not have and --protocol own needs"""
    parts: bool = False
    """mtt: images_0.pt, images_1.pt, ... of a folder are parts of one set, which is else told by their content"""
    fkd: str | None = None
    """sre2l, imagefolder: folder of the set's soft labels, epoch_0/batch_0.tar, ..., for students of --protocol own"""
    augment: str | None = None
    """augmentation of its students: "" for none, a DSA strategy, dc:..., kornia:...; None: what its code has"""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.augment is not None:
            augmentation(self.augment)


Read = Callable[[Path, Reading, Callable[[int], ImageSet], Path, Callable[[str], None]], DistilledSet]
"""(set, how to read it, side in pixels -> real training images, folder for what its students need, say) -> the set"""


def is_ours(path: Path, reading: Reading) -> bool:
    """Return whether a path is read as a set of ours, and not by what is handed in.

    Args:
        path: a file or a folder, or nothing.
        reading: what the flags say.

    Returns:
        True too where there is nothing, which reading says.

    Raises:
        InputError: flags for published sets are given for one of ours.
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
    """Return the folder of a published set as one of ours, read now or earlier, and say what it is.

    Args:
        path: a file or a folder that exists.
        reading: how to read it.
        dataset: name of the real data set.
        data: hash of its images: names of classes and normalisation are theirs.
        runs: folder of all runs.
        real: side in pixels -> the real training images at that size.
        read: the reader.

    Returns:
        the folder.

    Raises:
        InputError: it is no such set, or cannot be read.
    """
    folder = runs / "published" / dataset / f"{path.absolute().stem}-{_digest(path, reading, data)[:12]}"
    record = folder / "reading.json"
    lines = _said(record) if (folder / "distilled.safetensors").exists() else None
    if lines is None:
        lines = []
        folder.mkdir(parents=True, exist_ok=True)
        try:
            read(path, reading, real, folder, lines.append).save(folder / "distilled.safetensors")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        content = {"path": str(path.absolute()), "reading": asdict(reading), "said": lines}
        write_text(record, json.dumps(content, indent=2) + "\n")
    for line in (*lines, f"kept as a set of ours in {folder}"):
        print(f"{path}: {line}", file=sys.stderr)
    return folder


def _said(record: Path) -> list[str] | None:
    """Return what was said when a set was read; None where that did not come to its end."""
    try:
        return list(map(str, read_json(record)["said"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(path: Path, reading: Reading, data: str) -> str:
    """Return a hash of a file and its labels, or of a folder's files, with how and on which data they are read."""
    how = {name: value for name, value in asdict(reading).items() if name != "fkd"}  # its files count, not its path
    if not reading.parts:  # a field that earlier versions did not have
        del how["parts"]
    if reading.source in ("auto", "idc") and reading.factor is None and (named := factor_in(path)) is not None:
        how["factor"] = named
    digest = hashlib.sha256(json.dumps(how | {"data": data}, sort_keys=True).encode())
    whole = path.parent if path.suffix == ".arrow" else path  # its folder says what is in it
    if whole.is_dir():
        files = _files_in(whole, DEPTH)
    else:
        files = {Path(each.name): each for each in (path, *companions(path).values())}
    if reading.fkd is not None:
        if not reachable(Path(reading.fkd)).is_dir():
            raise InputError(f"--fkd is {reading.fkd}: no such folder")
        files |= {Path("fkd") / name: file for name, file in _files_in(Path(reading.fkd), FKD_DEPTH).items()}
    for file in files.values():  # all of them first: none is read in vain
        refuse_irregular(file)
    for name, file in files.items():
        digest.update(os.fsencode(name) + b"\0")
        try:
            digest.update(bytes.fromhex(hash_of(file)))
        except OSError as error:
            raise InputError(f"{file} cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def factor_in(path: Path) -> int | None:
    """Return the images along a side that IDC packs into one, as the path has it (factor2); None where it has none."""
    named = re.findall(r"factor(\d)", str(path.absolute()))
    return int(named[-1]) if named else None


def companions(path: Path) -> dict[str, Path]:
    """Return the files that belong to an images_*.pt of MTT and its heirs, of those that are there.

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


def _files_in(folder: Path, depth: int) -> dict[Path, Path]:
    """Return the files of a folder and of the folders in it by their names there, sorted; of links what they lead to.

    Args:
        folder: that exists.
        depth: of folders that a set has; what is deeper is none of it.

    Raises:
        InputError: a folder cannot be read.
    """
    found, places = [], [folder]
    try:
        for _ in range(depth):
            entries = [each for place in places for each in place.iterdir()]
            found += [each for each in entries if each.is_file()]
            places = [each for each in entries if each.is_dir()]
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be read ({error.strerror})") from None
    return {each.relative_to(folder): each for each in sorted(found)}
