"""Recognises the format of a published set by the content of its file or folder."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.data.image_files import ENDINGS
from distill.data.pictures import NUMBERED, picture_folders
from distill.errors import InputError
from distill.published.formats import OURS, STEP
from distill.published.hugging_face import STATE
from distill.published.mtt_files import images_in
from distill.published.pairs import pair_in
from distill.published.raw import single_file
from distill.published.reading import Reading
from distill.published.unpickled import read_npz, read_pickle
from distill.runs.foreign import brief, refuse_irregular

__all__ = ["file_of_arrays", "recognised_source"]

_ARRAYS = {"frepo": ("image", "label"), "kip": ("images", "labels")}
"""format -> names of the arrays of images and of labels (N, K) in its .npz"""


def recognised_source(path: Path, reading: Reading | None = None) -> str:
    """Return the format of a file or folder, a name of `distill.published.formats.SOURCES`, by its content.

    Args:
        path: of the file or folder.
        reading: the flags, of which `factor` marks a file of IDC; None for no flags.

    Raises:
        InputError: no known format.
    """
    reading = reading or Reading()
    if path.is_dir():
        return _folder_source(path, reading)
    refuse_irregular(path)
    if path.suffix == ".npz":
        arrays = read_npz(path)
        soft = {name for name, array in arrays.items() if array.ndim == 2 and array.dtype.kind == "f"}
        if set(arrays) >= OURS:
            return "ours"
        found = next((who for who, (x, y) in _ARRAYS.items() if x in arrays and y in soft), None)
        if found is None and pair_in(arrays) is None:
            raise _unknown_format(path, f"it has arrays {brief(', '.join(sorted(arrays))) or '(none)'}")
        return found or "tensors"
    if path.suffix in (".pt", ".pth"):
        return _content_source(path, read_pickle(path), reading)
    if path.suffix == ".arrow" and any((path.parent / name).exists() for name in STATE):
        return "hf"
    if path.suffix.lower() in ENDINGS:
        raise InputError(
            f"{path} is a picture, and a set of pictures is a folder that has one folder a class: give that"
        )
    raise _unknown_format(path, f"its name ends in {path.suffix or 'nothing'}")


def _content_source(path: Path, content: Any, reading: Reading) -> str:
    found = pair_in(content)
    if isinstance(content, dict) and "data" in content and not found:
        return "dc"
    if isinstance(content, Tensor):
        return "mtt"
    if isinstance(content, (list, tuple)) and content:
        if all(isinstance(step, (list, tuple)) and len(step) == STEP for step in content):
            return "dd"
        if found and (path.name == "data.pt" or reading.factor is not None):
            return "idc"
    if found:
        return "tensors"
    names = brief(", ".join(map(str, list(content)[:4]))) if isinstance(content, dict) else ""
    kind = f"a dict of {names or 'nothing'}" if isinstance(content, dict) else type(content).__name__
    raise _unknown_format(path, f"it holds {kind}")


def file_of_arrays(folder: Path) -> Path:
    """Return the one file of arrays or tensors in a folder.

    Raises:
        InputError: there is none, or there are several.
    """
    found = _arrays_in(folder)
    if not found:
        raise _unknown_format(folder, "the folder has no .npz, .pt or .pth")
    return single_file(folder, found)


def _arrays_in(folder: Path) -> list[Path]:
    visible = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    return [each for each in visible if each.suffix in (".npz", ".pt", ".pth") and each.is_file()]


def _folder_source(path: Path, reading: Reading) -> str:
    if any((path / name).exists() for name in STATE):
        return "hf"
    if images_in(path):
        return "mtt"
    for name, source in (("data.pt", "idc"), ("results.pth", "dd")):
        if (path / name).exists():
            return source
    if next(path.glob("res_*.pt"), None):
        return "dc"
    folders = picture_folders(path)
    if folders:
        return "sre2l" if all(NUMBERED.fullmatch(name) for name in folders) else "imagefolder"
    if _arrays_in(path):
        return recognised_source(file_of_arrays(path), reading)
    names = brief(", ".join(sorted(each.name for each in path.iterdir())[:4]))
    if next(path.glob("epoch_*/batch_*.tar"), None) or re.match(r"epoch_\d+$", path.name):
        raise InputError(
            f"{path} has soft labels of FKD, not images: give the folder of new000, new001, ..., and this one as --fkd"
        )
    raise _unknown_format(path, f"the folder has {names or 'nothing'}")


def _unknown_format(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} is no distilled set that is known: {what}; expected a .safetensors of ours, a .pt or .pth of DC, DSA, "
        "DM, CAFE, DCC, DD, MTT, TESLA or IDC, or of (images, labels), an .npz, a folder of pictures or of Hugging "
        "Face datasets; --source names one"
    )
