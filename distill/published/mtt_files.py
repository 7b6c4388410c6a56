"""Sets of MTT and its successors (TESLA, FTD, DATM): images_*.pt with labels_*.pt beside them, whole or in parts."""

import re
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.distilled import is_probability
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.published.raw import Raw, checked_constants, checked_rate, read_pair, single_file, unsorted_warning
from distill.published.reading import Reading, companions
from distill.published.unpickled import as_tensor, read_pickle
from distill.runs.foreign import read_json
from robust import Normalize

__all__ = ["images_in", "read_mtt"]

UNLIKE = 0.5
"""correlation of images below which two files hold different images, and not the same images at other iterations"""


def read_mtt(path: Path, reading: Reading) -> Raw:
    """Read a set from the file of its images, or from the folder of that file or of its parts.

    Returns:
        the set; if it has several parts, sorted by class.

    Raises:
        InputError: a file is missing or damaged, or the folder has several sets.
    """
    files, warnings = [path], ()
    if path.is_dir():
        files = _files_of(path, reading)
    elif others := [each.name for each in _numbered(path.parent, path) if each.name != path.name]:
        named = f"{', '.join(others[:3])}{', ...' if others[3:] else ''}"
        warnings = (f"{named} beside it may be parts of the same set: give the folder to read all of them",)
    if reading.parts and len(files) < 2:
        raise InputError(f"--parts is for a folder of images_0.pt, images_1.pt, ..., and {path} is none")
    for each in files:
        _check(each)
    pairs = [read_pair(each, [read_pickle(each), read_pickle(companions(each)["labels"])]) for each in files]
    images, labels = _joined(files, pairs)
    beside, lr, space = companions(files[0]), reading.lr, "unsaid"
    if lr is None:
        rates = {_rate(found["lr"]) for each in files if "lr" in (found := companions(each))}  # of DATM
        if len(rates) > 1:
            raise InputError(f"{path} has parts with other learning rates each: give --lr")
        lr = next(iter(rates), None)
    constants, card = None, beside.get("card")  # the card is of our export
    if "images_zca" in files[0].name:
        space = "pixels"  # the official code inverts the whitening and writes pixels, for viewing
    elif card is not None:
        try:
            facts = read_json(card)
            space = {"normalised": "normalised", "whitened": "whitened"}[facts["space"]]
            if lr is None and facts["lr"] is not None:
                lr = checked_rate(facts["lr"])
            if space == "normalised" and reading.space == "auto" and "mean" in facts:
                constants = checked_constants(facts["mean"], facts["std"], images.shape[1])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{card} is damaged; delete it and give --lr and --space") from None
    name = files[0].name if len(files) == 1 else f"{files[0].name} to {files[-1].name}, {len(files)} parts of one set,"
    description = f"{name} with {beside['labels'].name} of MTT or its successors, learning rate "
    description += "not in the file (--lr gives it to --protocol own)" if lr is None else f"{lr:.3g}"
    if constants is not None and card is not None:  # not every data set has constants in MTT's code
        images, space = Normalize(*constants).inverse(images), "pixels"
        description += f", normalised with the mean and std in {card.name}, undone"
    training, own = MethodTraining(), {}
    if lr is not None:
        training = MethodTraining(lr=float(lr), epochs=1000)
    if labels.ndim == 2 and not is_probability(labels):
        description, own, labels = f"{description}, labels are logits (DATM's)", {"labels": labels}, labels.softmax(1)
    warnings += unsorted_warning(labels)
    return Raw(
        images, labels, "mtt", space, description, "dsa", "", training, own, warnings=warnings, constants=constants
    )


def images_in(folder: Path) -> list[Path]:
    """Return the files images_*.pt of a folder that have labels beside them, images_best.pt first."""
    found = [path for path in folder.glob("*images_*.pt") if "_zca_" not in path.name and "labels" in companions(path)]
    return sorted(found, key=lambda path: (not path.stem.endswith("images_best"), path.name))


def _check(path: Path) -> None:
    if not re.match(r"(ema_)?images", path.name):
        raise InputError(f"{path} is a single tensor; of sets of MTT and its successors give the file images_*.pt")
    if "labels" not in companions(path):
        wanted = path.name.replace("images_zca", "images").replace("images", "labels")
        raise InputError(f"there is no file {path.with_name(wanted)}, with the labels of {path.name}")


def _rate(file: Path) -> float:
    rate = as_tensor(read_pickle(file), str(file)).flatten()
    if len(rate) != 1 or not 0 < rate < torch.inf:
        raise InputError(f"{file} holds no learning rate, one number > 0; give --lr")
    return rate.item()


# --- parts -------------------------------------------------------------------------------------------------------


def _files_of(folder: Path, reading: Reading) -> list[Path]:
    """Return the file of a folder's set, or all files where they are parts of one."""
    found = images_in(folder)
    if not found:
        raise InputError(f"{folder} has no images_*.pt with labels_*.pt beside it, as MTT's code writes them")
    if found[0].stem.endswith("images_best") and not reading.parts:
        return found[:1]
    parts = _numbered(folder, found[-1])
    if len(parts) == len(found) > 1 and (reading.parts or _are_parts(parts)):
        return parts
    if reading.parts:
        raise InputError(f"--parts is for images_0.pt, images_1.pt, ...; {folder} has {found[0].name} and others")
    if len(parts) == len(found) > 1:
        raise InputError(
            f"{folder} has {parts[0].name} to {parts[-1].name}, whose images are alike, as those of one set in several "
            "iterations: give one of the files, or --parts where they are parts of one set"
        )
    return [single_file(folder, found)]


def _numbered(folder: Path, like: Path) -> list[Path]:
    """Return the files of a folder with names as `like` if their numbers run from 0 without a gap, else none.

    MTT's code writes images_best.pt and a file every few hundred iterations, whose numbers do not follow each other.
    """
    named = re.fullmatch(r"((?:ema_)?images_)\d+\.pt", like.name)
    if not named or any(each.stem.endswith("images_best") for each in images_in(folder)):
        return []
    numbers = {int(m[1]): each for each in images_in(folder) if (m := re.fullmatch(rf"{named[1]}(\d+)\.pt", each.name))}
    return [numbers[n] for n in sorted(numbers)] if sorted(numbers) == list(range(len(numbers))) else []


def _are_parts(files: list[Path]) -> bool:
    """Return whether files differ in classes or hold different images, not one set at several iterations."""
    _check(files[0])
    first, *others = (read_pair(each, [read_pickle(each), read_pickle(companions(each)["labels"])]) for each in files)
    for images, labels in others:
        if images.shape != first[0].shape or not torch.equal(labels, first[1]):
            continue
        here, there = ((each - each.mean((1, 2, 3), keepdim=True)).flatten(1) for each in (images, first[0]))
        if F.cosine_similarity(here, there).mean() >= UNLIKE:
            return False
    return True


def _joined(files: list[Path], pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return all images and labels; of several parts, sorted by class."""
    if len(pairs) == 1:
        return pairs[0]
    shapes = {(images.shape[1:], labels.shape[1:]) for images, labels in pairs}
    if len(shapes) > 1:
        raise InputError(f"{files[0]} and its parts differ in the shape of images or labels: they are not one set")
    images, labels = (torch.cat(each) for each in zip(*pairs, strict=True))
    order = (labels if labels.ndim == 1 else labels.argmax(1)).argsort(stable=True)
    return images[order], labels[order]
