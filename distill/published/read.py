"""Reads distilled sets of other code as a `DistilledSet`; docs/published.md lists the formats.

The format is recognised by the content of the file (`recognised_source`). The file is read without executing anything
in it (`distill.published.formats`, `unpickled`), and its images are converted to pixels (`distill.published.spaces`).
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.data import ImageSet, facts_named
from distill.data.facts import depth_at
from distill.data.image_files import ENDINGS
from distill.data.pictures import NUMBERED, class_of, picture_folders
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.published.formats import OURS, SOURCES, STEP
from distill.published.hugging_face import STATE
from distill.published.mtt_files import images_in
from distill.published.pairs import pair_in
from distill.published.raw import Raw, single_file
from distill.published.reading import Reading
from distill.published.spaces import WHITENED, ambiguous_space, contradictions, pixels_of
from distill.published.unpickled import read_npz, read_pickle
from distill.runs.foreign import brief, refuse_irregular
from distill.training.augment import dsa_strategy
from distill.training.augment_dc import augmentation_of_students

__all__ = ["read", "recognised_source"]


def read(
    path: Path, reading: Reading, real: Callable[[int], ImageSet], folder: Path, notify: Callable[[str], None]
) -> DistilledSet:
    """Read a published set.

    Args:
        path: a file or a folder.
        reading: whose format it has, and what neither format nor name say.
        real: side in pixels -> the real training images, which give names, constants and whitenings.
        folder: where a whitening that students need is written.
        notify: takes one line: first how the set was read, then warnings.

    Returns:
        the set in pixels; mean and std are those of the code that made it.

    Raises:
        InputError: it is no such set, is damaged, tries to run something, or does not fit the data set.
    """
    source = recognised_source(path, reading) if reading.source == "auto" else reading.source
    _refuse_unused(path, source, reading)
    single = path.is_dir() and source in SINGLE and not (path / "data.pt").exists()
    raw = SOURCES[source](_file_in(path) if single else path, reading)
    if raw.images.ndim != 4 or raw.images.shape[2] != raw.images.shape[3] or len(raw.images) == 0:
        shape = tuple(raw.images.shape)
        last = "; (N, H, H, C) is read with --source tensors" if shape[-1] in (1, 3) and len(shape) == 4 else ""
        raise InputError(f"{path} has images of {shape}; a set has (N, channels, H, H), N >= 1{last}")
    if not 4 <= raw.images.shape[-1] <= 1024:
        raise InputError(f"{path} has images of {raw.images.shape[-1]} pixels a side; a set has 4 to 1024")
    train = real(raw.images.shape[-1])
    labels = _fitted(path, raw, train)
    space = reading.space if reading.space != "auto" else raw.space
    told = raw.space == space
    if space == "by data set":
        space = "normalised" if raw.images.shape[1] == 1 else "whitened"
    if space == "unsaid":
        raise ambiguous_space(path, raw.images, train, source)
    if space == "whitened" and source not in WHITENED:
        raise InputError(
            f"--space is whitened, but no set of source {source} is; sources that are: {', '.join(WHITENED)}"
        )
    if space not in raw.spaces:
        raise InputError(
            f"--space is {space}, but {path} ({source}) has {' or '.join(raw.spaces)} by its format: leave it out"
        )
    pixels, (mean, std), whitening, how = pixels_of(raw.images, source, space, train, folder)
    training = replace(raw.training, whitening=whitening)
    mean, std = raw.constants or (mean, std)
    augment = raw.augment if reading.augment is None else reading.augment
    if augment == "dsa":
        augment = dsa_strategy(facts_named(train.name).flips)
    elif augment == "dc":  # students are ConvNets with instance norm, whatever network the file's name says
        augment = augmentation_of_students(facts_named(train.name), "convnet")
    notify(f"{raw.description}; {how}; {_counted(labels, len(train.classes))}; students: augment {augment or 'none'}")
    for warning in (
        *raw.warnings,
        *_strange(raw, labels, train),
        *contradictions(raw.images, pixels, source, space, told, train),
    ):
        notify(f"warning: {warning}")
    try:
        return DistilledSet(
            images=pixels,
            labels=labels,
            dataset=train.name,
            classes=train.classes,
            mean=mean,
            std=std,
            augment=augment,
            backbone=raw.backbone or _backbone(pixels.shape[-1]),
            method=raw.method,
            training=training,
            training_tensors=raw.training_tensors,
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is no distilled set: {brief(error, 200)}") from None


USES = {
    "experiment": ("dc",),
    "factor": ("idc",),
    "lr": ("mtt",),
    "parts": ("mtt",),
    "fkd": ("sre2l", "imagefolder"),
}
"""flags that only some sources have a use for"""
SINGLE = ("ours", "frepo", "kip", "idc", "tensors")
"""sources whose set is one file, of whatever name"""


def _refuse_unused(path: Path, source: str, reading: Reading) -> None:
    """Refuse flags that would be ignored.

    Raises:
        InputError: one is given.
    """
    for name, sources in USES.items():
        value = getattr(reading, name)
        if value != getattr(Reading(), name) and source not in sources:
            description = f"--{name}" if value is True else f"--{name} {value}"
            raise InputError(
                f"{description} is for sets of {' or '.join(sources)}; {path} is read as {source}: leave it out"
            )


def recognised_source(path: Path, reading: Reading | None = None) -> str:
    """Return whose format a file or folder has, by what is in it.

    Args:
        path: of the file or folder.
        reading: its `factor` tells IDC's files; None as of no flags.

    Raises:
        InputError: nobody's.
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
            raise _nobodys(path, f"it has arrays {brief(', '.join(sorted(arrays))) or '(none)'}")
        return found or "tensors"
    if path.suffix in (".pt", ".pth"):
        return _content_source(path, read_pickle(path), reading)
    if path.suffix == ".arrow" and any((path.parent / name).exists() for name in STATE):
        return "hf"
    if path.suffix.lower() in ENDINGS:
        raise InputError(
            f"{path} is a picture, and a set of pictures is a folder that has one folder a class: give that"
        )
    raise _nobodys(path, f"its name ends in {path.suffix or 'nothing'}")


_ARRAYS = {"frepo": ("image", "label"), "kip": ("images", "labels")}
"""arrays of an .npz, by whose it is; labels are numbers for each class"""


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
    raise _nobodys(path, f"it holds {kind}")


def _file_in(folder: Path) -> Path:
    """Return the one file of arrays or tensors in a folder.

    Raises:
        InputError: there is none, or there are several.
    """
    found = _arrays_in(folder)
    if not found:
        raise _nobodys(folder, "the folder has no .npz, .pt or .pth")
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
        return recognised_source(_file_in(path), reading)
    names = brief(", ".join(sorted(each.name for each in path.iterdir())[:4]))
    if next(path.glob("epoch_*/batch_*.tar"), None) or re.match(r"epoch_\d+$", path.name):
        raise InputError(
            f"{path} has soft labels of FKD, not images: give the folder of new000, new001, ..., and this one as --fkd"
        )
    raise _nobodys(path, f"the folder has {names or 'nothing'}")


def _nobodys(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} is no distilled set that is known: {what}; expected a .safetensors of ours, a .pt or .pth of DC, DSA, "
        "DM, CAFE, DCC, DD, MTT, TESLA or IDC, or of (images, labels), an .npz, a folder of pictures or of Hugging "
        "Face datasets; --source names one"
    )


# --- how it fits the data set --------------------------------------------------------------------------------------


def _fitted(path: Path, raw: Raw, train: ImageSet) -> Tensor:
    """Return the labels as the data set counts its classes.

    Raises:
        InputError: channels or classes are not the data set's.
    """
    k, channels = len(train.classes), train.image_shape[0]
    if raw.images.shape[1] != channels:
        found = raw.images.shape[1]
        advice = "give --dataset"
        if train.name == "folder" and {found, channels} == {1, 3}:
            advice = "not all of its images are grey" if channels == 3 else "its images are all grey, the set's are not"
        raise InputError(f"{path} has images of {found} channels, {train.name} of {channels}: {advice}")
    if raw.labels.ndim == 2 and raw.labels.shape[1] != k:
        raise InputError(f"{path} has labels for {raw.labels.shape[1]} classes, {train.name} has {k}: give --dataset")
    labels, counted = raw.labels, k if raw.names is None else len(raw.names)
    if labels.ndim == 2 and labels.shape[1] != counted:
        raise InputError(f"{path} has labels for {labels.shape[1]} classes, and names of {counted}: it is damaged")
    if labels.ndim == 1 and (labels.min() < 0 or labels.max() >= counted):
        span = f"{labels.min()} to {labels.max()}"
        whose = f"{train.name} has {k}" if raw.names is None else f"it names {counted}"
        raise InputError(f"{path} has labels from {span}, {whose} classes from 0: give --dataset")
    if raw.names is not None and raw.names != train.classes:
        places = [class_of(name, train.classes) for name in raw.names]
        lost = [name for name, place in zip(raw.names, places, strict=True) if place is None]
        if lost:
            known = ", ".join(train.classes[:4])
            raise InputError(
                f"{path}: {brief(lost[0], 60)} is no class of {train.name} ({brief(known)}, ...): name folders as its "
                "classes"
            )
        twice = next((place for place in places if places.count(place) > 1), None)
        if twice is not None:
            names = ", ".join(name for name, place in zip(raw.names, places, strict=True) if place == twice)
            raise InputError(
                f"{path}: {brief(names)} are all for class {brief(train.classes[twice], 60)} of {train.name}: keep one "
                "of them"
            )
        if labels.ndim == 2:
            ordered = labels.new_zeros(labels.shape)
            ordered[:, torch.tensor(places)] = labels
            return ordered
        labels = torch.tensor(places)[labels]
    return labels


def _strange(raw: Raw, labels: Tensor, train: ImageSet) -> list[str]:
    """Return what speaks for another data set than the one that was given, a line each."""
    found, official = [], facts_named(train.name).official or train.name
    if raw.dataset and raw.dataset.lower() != official.lower() and train.name != "folder":
        found.append(f"its name says {raw.dataset}, and it is read as {train.name}: another --dataset?")
    if labels.ndim == 1 and (missing := (labels.bincount(minlength=len(train.classes)) == 0).sum().item()):
        found.append(f"{missing} of the {len(train.classes)} classes of {train.name} have no image: another --dataset?")
    return found


def _counted(labels: Tensor, k: int) -> str:
    if labels.ndim == 2:
        return f"{len(labels)} images with soft labels for {k} classes"
    counts = labels.bincount(minlength=k)
    each = f"{counts.min()} each" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()} each"
    return f"{len(labels)} images of {k} classes, {each}"


def _backbone(size: int) -> str:
    """Return the ConvNet that the field's codes take at a size: three blocks at 28 and 32 px, one more a doubling.

    >>> [_backbone(size) for size in (8, 16, 28, 32, 64, 128)]
    ['convnet:depth=2', 'convnet:depth=3', 'convnet', 'convnet', 'convnet:depth=4', 'convnet:depth=5']
    """
    depth = depth_at(size)
    return "convnet" if depth == 3 and size >= 28 else f"convnet:depth={depth}"
