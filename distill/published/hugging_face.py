"""Folders that Hugging Face datasets wrote (save_to_disk); only bytes in their tables are decoded."""

from pathlib import Path
from typing import Any, TypeGuard

from distill.data.image_files import LIMIT
from distill.data.pictures import decode_pictures
from distill.errors import InputError
from distill.published.raw import SPACES, Raw, checked_labels
from distill.published.reading import Reading
from distill.published.unpickled import as_tensor
from distill.runs.foreign import brief, read_json, refuse_irregular

__all__ = ["STATE", "read_hugging_face"]

STATE = ("state.json", "dataset_dict.json")
"""files that mark a folder of one table, or of several tables by split"""
_PLAIN = ("Value", "ClassLabel", "Array2D", "Array3D", "Array4D", "Array5D")


def read_hugging_face(path: Path, reading: Reading) -> Raw:
    """Read a folder of datasets, or the folder of an .arrow file.

    Returns:
        the set; pixels are divided by 255 unless the column is `pixels`, which our export writes.

    Raises:
        InputError: the package is missing, or the folder is no whole set of images and labels.
    """
    path = path if path.is_dir() else path.parent
    try:
        import datasets  # an extra: heavy, and only needed here
    except ImportError:
        raise InputError(f"{path} needs the package datasets: pip install datasets, or export it as pictures") from None
    place = _part(path)
    try:
        found = datasets.load_from_disk(str(place), keep_in_memory=False)
        if not isinstance(found, datasets.Dataset):
            raise InputError(f"{path} holds several tables; give one of them")
        found.data.validate(full=True)  # pyarrow trusts offsets, and a wrong one ends the process
        exact = "pixels" in found.column_names
        column = next((name for name in ("pixels", "image", "img") if name in found.column_names), None)
        target = next((name for name in ("soft_label", "label", "labels") if name in found.column_names), None)
        if column is None or target is None:
            names = brief(", ".join(found.column_names))
            raise InputError(f"{path} has columns {names or '(none)'}; expected image and label")
        names, kind = getattr(found.features[target], "names", None), found.features[column]
        found = found.select_columns([column, target]).with_format("numpy")
        if max(found.data.nbytes, 4 * len(found)) > LIMIT:
            raise InputError(f"{path} has more than {LIMIT / 2**30:g} GiB")
        if len(found) == 0:
            raise InputError(f"{path} has no rows; a set has at least one image")
        encoded = isinstance(kind, datasets.Image)
        for name in (target,) if encoded else (target, column):
            if not _is_plain(found.features[name]):  # audio, lists of images: datasets would open their paths
                raise InputError(f"{path}: column {name} holds {type(found.features[name]).__name__}, not numbers")
        if encoded:  # datasets would open the path, or the address, of a cell without bytes
            cells: Any = found.with_format(None).cast_column(column, datasets.Image(decode=False))[column]
            images = decode_pictures([cell and cell["bytes"] for cell in cells], f"{path}: column {column}")
        else:
            images = as_tensor(found[:][column], f"{path}: {column}")
        labels = as_tensor(found.select_columns([target])[:][target], f"{path}: {target}")
    except InputError:
        raise
    except Exception as error:  # pyarrow and datasets raise anything
        raise InputError(f"{path} cannot be read by datasets ({type(error).__name__}: {brief(error)})") from None
    if not encoded and not exact:
        if images.ndim not in (3, 4):
            raise InputError(f"{path}: {column} is {tuple(images.shape)}; expected (N, H, W) or (N, H, W, C)")
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        images = images.float() / 255
    if images.ndim != 4:
        raise InputError(f"{path}: {column} is {tuple(images.shape)}; expected (N, C, H, W)")
    description = f"a folder of Hugging Face datasets, column {column}"
    spaces = SPACES if exact else SPACES[:1]
    labels = checked_labels(path, labels, len(images))
    names = None if names is None else tuple(map(str, names))
    return Raw(images.float(), labels, "", "pixels", description, names=names, spaces=spaces)


def _part(path: Path) -> Path:
    """Return the folder of one table, after a check of the file names in it: the path, its split `train`, or the first.

    Raises:
        InputError: a file of JSON is damaged, or names a file outside the folder.
    """
    if (path / STATE[1]).exists():
        splits = _json(path / STATE[1]).get("splits")
        if not isinstance(splits, list) or not splits or not all(_is_name(each) for each in splits):
            raise InputError(f"{path / STATE[1]} is damaged: splits are names of folders beside it")
        path = path / ("train" if "train" in splits else splits[0])
    files = _json(path / STATE[0]).get("_data_files")
    if files == []:
        raise InputError(f"{path} has no rows; a set has at least one image")
    listed = files if isinstance(files, list) else []
    found = [each.get("filename") if isinstance(each, dict) else None for each in listed]
    names = [name for name in found if _is_name(name)]
    if not names or len(names) < len(found):
        raise InputError(f"{path / STATE[0]} is damaged: _data_files are names of files beside it")
    for name in names:
        refuse_irregular(path / name)
    if (path / "dataset_info.json").exists():
        _json(path / "dataset_info.json")
    return path


def _json(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({getattr(error, 'strerror', None) or brief(error)})") from None
    if not isinstance(found, dict):
        raise InputError(f"{file} is damaged: it has no fields")
    return found


def _is_name(name: Any) -> TypeGuard[str]:
    """Return whether this is the name of a file or a folder, without a path."""
    return isinstance(name, str) and Path(name).name == name and name not in ("", ".", "..") and "\0" not in name


def _is_plain(kind: Any) -> bool:
    """Return whether a column of datasets holds numbers or lists of numbers, which need no decoding."""
    inner = kind[0] if isinstance(kind, list) and kind else getattr(kind, "feature", None)
    return type(kind).__name__ in _PLAIN if inner is None else _is_plain(inner)
