"""Reads distilled sets of other code as a `DistilledSet`; docs/published.md lists the formats.

The format is recognised by the content of the file (`distill.published.recognise`). The file is read without executing
anything in it (`distill.published.formats`, `unpickled`), and its images are converted to pixels
(`distill.published.spaces`).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from distill.data import ImageSet, facts_named
from distill.data.facts import depth_at
from distill.data.pictures import class_of
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.published.formats import SOURCES
from distill.published.raw import Raw
from distill.published.reading import Reading
from distill.published.recognise import file_of_arrays, recognised_source
from distill.published.spaces import WHITENED, ambiguous_space, contradictions, pixels_of
from distill.runs.foreign import brief
from distill.training.augment import dsa_strategy
from distill.training.augment_dc import augmentation_of_students

__all__ = ["read"]


def read(
    path: Path, reading: Reading, real: Callable[[int], ImageSet], folder: Path, notify: Callable[[str], None]
) -> DistilledSet:
    """Read a published set.

    Args:
        path: a file or a folder.
        reading: the flags.
        real: side in pixels -> the real training images, for names, constants and whitenings.
        folder: of the new set; a whitening that students need is written there.
        notify: takes one line: first how the set was read, then warnings.

    Returns:
        the set in pixels, with the mean and std of the code that made it.

    Raises:
        InputError: the file is no such set, is damaged, would execute code, or does not fit the data set.
    """
    source = recognised_source(path, reading) if reading.source == "auto" else reading.source
    _refuse_unused(path, source, reading)
    single = path.is_dir() and source in SINGLE and not (path / "data.pt").exists()
    raw = SOURCES[source](file_of_arrays(path) if single else path, reading)
    if raw.images.ndim != 4 or raw.images.shape[2] != raw.images.shape[3] or len(raw.images) == 0:
        shape = tuple(raw.images.shape)
        last = "; (N, H, H, C) is read with --source tensors" if shape[-1] in (1, 3) and len(shape) == 4 else ""
        raise InputError(f"{path} has images of {shape}; a set has (N, channels, H, H), N >= 1{last}")
    if not 4 <= raw.images.shape[-1] <= 1024:
        raise InputError(f"{path} has images of {raw.images.shape[-1]} pixels a side; a set has 4 to 1024")
    train = real(raw.images.shape[-1])
    labels, made_for = _fitted(path, raw, train)
    space = reading.space if reading.space != "auto" else raw.space
    determined = raw.space == space
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
    pixels, (mean, std), whitening, how = pixels_of(raw.images, raw.code or source, space, train, folder)
    training = replace(raw.training, whitening=whitening)
    mean, std = raw.constants or (mean, std)
    augment = raw.augment if reading.augment is None else reading.augment
    if augment == "dsa":
        augment = dsa_strategy(facts_named(train.name).flips)
    elif augment == "dc":  # students are ConvNets with instance norm, whatever network the file's name contains
        augment = augmentation_of_students(facts_named(train.name), "convnet")
    notify(f"{raw.description}; {how}; {_counted(labels, len(train.classes))}; students: augment {augment or 'none'}")
    for warning in (
        *raw.warnings,
        *_strange(raw, labels, train),
        *contradictions(raw.images, pixels, source, space, determined, train),
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
            made_for=made_for,
            teacher=raw.teacher,
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
"""flag -> the only formats that use it"""
SINGLE = ("ours", "frepo", "kip", "idc", "tensors")
"""formats whose set is one file, of any name"""


def _refuse_unused(path: Path, source: str, reading: Reading) -> None:
    """Refuse flags that the format does not use.

    Raises:
        InputError: such a flag is given.
    """
    for name, sources in USES.items():
        value = getattr(reading, name)
        if value != getattr(Reading(), name) and source not in sources:
            description = f"--{name}" if value is True else f"--{name} {value}"
            raise InputError(
                f"{description} is for sets of {' or '.join(sources)}; {path} is read as {source}: leave it out"
            )


# --- how it fits the data set --------------------------------------------------------------------------------------


def _fitted(path: Path, raw: Raw, train: ImageSet) -> tuple[Tensor, tuple[int, ...]]:
    """Return the labels, and `made_for`, in the order of the data set's classes.

    Raises:
        InputError: channels or classes do not fit the data set.
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
    labels, made_for, counted = raw.labels, raw.made_for, k if raw.names is None else len(raw.names)
    if not {*made_for} <= {*range(counted)}:
        raise InputError(f"{path} has made_for {brief(made_for, 60)}, of {counted} classes: it is damaged")
    if labels.ndim == 2 and labels.shape[1] != counted:
        raise InputError(f"{path} has labels for {labels.shape[1]} classes, and names of {counted}: it is damaged")
    if labels.ndim == 1 and (labels.min() < 0 or labels.max() >= counted):
        span = f"{labels.min()} to {labels.max()}"
        counts = f"{train.name} has {k}" if raw.names is None else f"it names {counted}"
        raise InputError(f"{path} has labels from {span}, {counts} classes from 0: give --dataset")
    if raw.names is not None and raw.names != train.classes:
        found = [class_of(name, train.classes) for name in raw.names]
        lost = [name for name, place in zip(raw.names, found, strict=True) if place is None]
        if lost:
            known = ", ".join(train.classes[:4])
            raise InputError(
                f"{path}: {brief(lost[0], 60)} is no class of {train.name} ({brief(known)}, ...): name folders as its "
                "classes"
            )
        places = [place for place in found if place is not None]
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
            return ordered, tuple(places[c] for c in made_for)
        labels = torch.tensor(places)[labels]
    return labels, made_for


def _strange(raw: Raw, labels: Tensor, train: ImageSet) -> list[str]:
    """Return warnings that the set may belong to another data set than --dataset."""
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
    """Return the ConvNet that the field's codes use at a size: three blocks at 28 and 32 px, one more per doubling.

    >>> [_backbone(size) for size in (8, 16, 28, 32, 64, 128)]
    ['convnet:depth=2', 'convnet:depth=3', 'convnet', 'convnet', 'convnet:depth=4', 'convnet:depth=5']
    """
    depth = depth_at(size)
    return "convnet" if depth == 3 and size >= 28 else f"convnet:depth={depth}"
