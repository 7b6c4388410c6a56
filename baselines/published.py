"""Distilled sets as other code publishes them, made into ours: what is recognised is in docs/published.md.

A file is recognised by its content (`recognised`), read as it is (`baselines.formats`), without running anything of it
(`distill.unpickled`), and brought to pixels (`baselines.spaces`).
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baselines.formats import OURS, SOURCES, STEP, Raw, images_in
from baselines.spaces import WHITENED, doubts, pixels_of, uncertain
from distill.augment_dc import augmentation_of_students
from distill.data import ImageSet
from distill.data.pictures import NUMBERED, class_of, picture_folders
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.models.convnet import depth_at
from distill.reading import OFFICIAL, Reading
from distill.unpickled import read_npz, read_pickle

__all__ = ["read", "recognised"]

DSA_STRATEGY = "color_crop_cutout_flip_scale_rotate"
"""of students in the official codes of DSA, DM and MTT; without flip for digits"""


def read(
    path: Path, reading: Reading, real: Callable[[int], ImageSet], folder: Path, say: Callable[[str], None]
) -> DistilledSet:
    """Read a published set.

    Args:
        path: a file or a folder.
        reading: whose format it has, and what neither format nor name say.
        real: side in pixels -> the real training images, which give names, constants and whitenings.
        folder: where a whitening that students need is written.
        say: is told what the set was taken for, then warnings, a line each.

    Returns:
        the set in pixels; mean and std are those of the code that made it.

    Raises:
        InputError: it is no such set, is damaged, tries to run something, or does not fit the data set.
    """
    source = recognised(path) if reading.source == "auto" else reading.source
    raw = SOURCES[source](path, reading)
    if raw.images.ndim != 4 or raw.images.shape[2] != raw.images.shape[3] or len(raw.images) == 0:
        raise InputError(f"{path} has images of {tuple(raw.images.shape)}; a set has (N, channels, H, H), N >= 1")
    train = real(raw.images.shape[-1])
    labels = _fitted(path, raw, train)
    space = reading.space if reading.space != "auto" else raw.space
    told = raw.space == space
    if space == "by data set":
        space = "normalised" if train.name in ("mnist", "fashion_mnist") else "whitened"
    if space == "unsaid":
        raise uncertain(path, raw.images, train)
    if space == "whitened" and source not in WHITENED:
        raise InputError(
            f"--space is whitened, but no set of source {source} is; sources that are: {', '.join(WHITENED)}"
        )
    pixels, (mean, std), whitening, how = pixels_of(raw.images, source, space, train, folder)
    training = raw.training | ({} if whitening is None else {"whitening": whitening})
    mean, std = raw.constants or (mean, std)
    augment = raw.augment if reading.augment is None else reading.augment
    if augment == "dsa":
        augment = DSA_STRATEGY.replace("_flip", "") if train.name in ("mnist", "digits") else DSA_STRATEGY
    elif augment == "dc":  # students are ConvNets with instance norm, whatever network the file's name says
        augment = augmentation_of_students(train.name, "convnet")
    say(f"{raw.said}; {how}; {_counted(labels, len(train.classes))}; students: augment {augment or 'none'}")
    for warning in (
        *raw.warnings,
        *_strange(raw, labels, train),
        *doubts(raw.images, pixels, source, space, told, train),
    ):
        say(f"warning: {warning}")
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
            own=raw.own,
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is no distilled set: {error}") from None


def recognised(path: Path) -> str:
    """Return whose format a file or folder has, by what is in it.

    Raises:
        InputError: nobody's.
    """
    if path.is_dir():
        return _folder_source(path)
    if path.suffix == ".npz":
        names = set(read_npz(path))
        found = next((who for who, needed in _ARRAYS.items() if needed <= names), None)
        if found is None:
            raise _nobodys(path, f"it has arrays {', '.join(sorted(names)) or '(none)'}")
        return found
    if path.suffix in (".pt", ".pth"):
        return _content_source(path, read_pickle(path))
    raise _nobodys(path, f"its name ends in {path.suffix or 'nothing'}")


_ARRAYS = {"ours": OURS, "frepo": {"image", "label"}, "kip": {"images", "labels"}}
"""arrays of an .npz, by whose it is"""


def _content_source(path: Path, content: Any) -> str:
    if isinstance(content, dict) and "data" in content:
        return "dc"
    if isinstance(content, Tensor):
        return "mtt"
    if isinstance(content, (list, tuple)) and content:
        if all(isinstance(step, (list, tuple)) and len(step) == STEP for step in content):
            return "dd"
        if len(content) == 2 and all(isinstance(each, Tensor) for each in content):
            return "idc"
    kind = (
        f"a dict of {', '.join(map(str, list(content)[:4]))}" if isinstance(content, dict) else type(content).__name__
    )
    raise _nobodys(path, f"it holds {kind}")


def _folder_source(path: Path) -> str:
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
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
    names = ", ".join(sorted(each.name for each in path.iterdir())[:4])
    if next(path.glob("epoch_*/batch_*.tar"), None) or re.match(r"epoch_\d+$", path.name):
        raise InputError(
            f"{path} has soft labels of FKD, not images: give the folder of new000, new001, ..., and this one as --fkd"
        )
    raise _nobodys(path, f"the folder has {names or 'nothing'}")


def _nobodys(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} is no distilled set that is known: {what}; expected a .safetensors of ours, a .pt or .pth of DC, DSA, "
        "DM, CAFE, DCC, DD, MTT, TESLA or IDC, an .npz of FRePo or KIP, a folder of pictures or of Hugging Face "
        "datasets; --source names one"
    )


# --- how it fits the data set --------------------------------------------------------------------------------------


def _fitted(path: Path, raw: Raw, train: ImageSet) -> Tensor:
    """Return the labels as the data set counts its classes.

    Raises:
        InputError: channels or classes are not the data set's.
    """
    k, channels = len(train.classes), train.image_shape[0]
    if raw.images.shape[1] != channels:
        raise InputError(
            f"{path} has images of {raw.images.shape[1]} channels, {train.name} of {channels}: give --dataset"
        )
    if raw.labels.ndim == 2 and raw.labels.shape[1] != k:
        raise InputError(f"{path} has labels for {raw.labels.shape[1]} classes, {train.name} has {k}: give --dataset")
    labels = raw.labels
    if raw.names is not None and raw.names != train.classes:
        places = [class_of(name, train.classes) for name in raw.names]
        lost = [name for name, place in zip(raw.names, places, strict=True) if place is None]
        if lost:
            known = ", ".join(train.classes[:4])
            raise InputError(
                f"{path}: {lost[0]} is no class of {train.name} ({known}, ...): name folders as its classes"
            )
        twice = next((place for place in places if places.count(place) > 1), None)
        if twice is not None:
            names = ", ".join(name for name, place in zip(raw.names, places, strict=True) if place == twice)
            raise InputError(
                f"{path}: {names} are all for class {train.classes[twice]} of {train.name}: keep one of them"
            )
        if labels.ndim == 2:
            ordered = labels.new_zeros(labels.shape)
            ordered[:, torch.tensor(places)] = labels
            return ordered
        labels = torch.tensor(places)[labels]
    if labels.ndim == 2:
        return labels
    if labels.min() < 0 or labels.max() >= k:
        span = f"{labels.min()} to {labels.max()}"
        raise InputError(f"{path} has labels from {span}, {train.name} has {k} classes from 0: give --dataset")
    return labels


def _strange(raw: Raw, labels: Tensor, train: ImageSet) -> list[str]:
    """Return what speaks for another data set than the one that was given, a line each."""
    found, official = [], OFFICIAL.get(train.name, train.name)
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
