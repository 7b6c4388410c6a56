"""The files of official repositories, one function per format; MTT and Hugging Face have modules of their own.

DC, DSA and DM (VICO-UoE/DatasetCondensation), CAFE and DCC, which share theirs; DD (SsnL/dataset-distillation) and
SLDD; MTT and TESLA; FRePo; KIP (google-research/kip); IDC (snu-mllab/Efficient-Dataset-Condensation); SRe2L, CDA and
GUARD.
"""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from distill.data.pictures import NUMBERED, picture_folders, read_all_pictures
from distill.distilled import FORMAT, OWN
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.published.hugging_face import read_hugging_face
from distill.published.mtt_files import read_mtt
from distill.published.pairs import pair_in, pixels_or_unsaid, with_channels_first
from distill.published.raw import (
    SPACES,
    Raw,
    checked_constants,
    checked_labels,
    read_pair,
    single_file,
    unsorted_warning,
)
from distill.published.reading import Reading, factor_in
from distill.published.unpickled import as_tensor, read_npz, read_pickle
from distill.runs.foreign import brief, parse_json
from distill.training.packing import unpacked
from distill.training.ridge import centred, probabilities

__all__ = ["OURS", "SOURCES", "STEP"]

OURS = {"images", "labels", FORMAT}
"""arrays of an .npz of `bash run.sh export`"""
STEP = 3
"""images, labels and learning rate of a step of DD"""


def _dc(path: Path, reading: Reading) -> Raw:
    if path.is_dir() and (found := sorted(path.glob("res_*.pt"))):
        path = single_file(path, found)
    content = read_pickle(path)
    sets = content.get("data") if isinstance(content, dict) else None
    if not isinstance(sets, (list, tuple)) or not sets:
        raise InputError(f"{path} is no file of DC's code: it needs a dict whose data is a list of [images, labels]")
    if not -len(sets) <= reading.experiment < len(sets):
        raise InputError(f"--experiment is {reading.experiment}; {path} has {len(sets)}, from 0 to {len(sets) - 1}")
    number = reading.experiment % len(sets)
    images, labels = read_pair(path, sets[number], f"experiment {number}")
    named = re.search(r"(?:^|_)(DCC|DC|DSAC|DSA|DM|CAFE)_([A-Za-z0-9]+)_", path.name)
    method, dataset = (named[1].lower(), named[2]) if named else ("dc", "")
    description = f"{method} in the format of DC's code, experiment {number} of {len(sets)}"
    if not named:
        description += " (its name does not say which method)"
    return Raw(
        images,
        labels,
        method,
        "normalised",
        description,
        augment="dsa" if method in ("dsa", "dsac", "dm") else "dc",
        warnings=unsorted_warning(labels),
        code="cafe" if method in ("cafe", "dcc", "dsac") else "dc",
        dataset=dataset,
    )


def _dd(path: Path, reading: Reading) -> Raw:
    path = path / "results.pth" if path.is_dir() else path
    steps = read_pickle(path)
    if not isinstance(steps, (list, tuple)) or any(not isinstance(s, (list, tuple)) or len(s) != STEP for s in steps):
        raise InputError(f"{path} is no results.pth of DD's code: it needs a list of (images, labels, learning rate)")
    images, labels = zip(*(read_pair(path, step[:2], f"step {n}") for n, step in enumerate(steps)), strict=True)
    lrs = [as_tensor(step[2], f"{path}: learning rate of step {n}").flatten() for n, step in enumerate(steps)]
    if any(len(lr) != 1 or lr <= 0 for lr in lrs) or len({(x.shape, y.shape) for x, y in zip(images, labels)}) > 1:  # noqa: B905
        raise InputError(f"{path} is no results.pth of DD's code: steps differ in shape, or lack a learning rate > 0")
    same = lambda n: all(torch.equal(x, images[i % n]) for i, x in enumerate(images))  # noqa: E731
    count = next(n for n in range(1, len(steps) + 1) if len(steps) % n == 0 and same(n))
    x, y = torch.cat(images[:count]), torch.cat(labels[:count])
    soft = y.ndim == 2
    by_class = (y.argmax(1) if soft else y).argsort(stable=True)
    order = by_class.argsort().view(count, -1).tolist()
    rates = [float(lr) for lr in lrs]
    training = MethodTraining(order=order, lrs=rates, weights="xavier", fixed=[])
    description = (
        f"{'sldd' if soft else 'dd'}'s results.pth, {count} steps taken {len(steps) // count} times, learning rates "
    )
    description += f"{min(rates):.3g} to {max(rates):.3g} (--protocol own takes these steps from fresh networks)"
    backbone = "lenet" if x.shape[1] == 1 else "alexcifarnet"
    method = "sldd" if soft else "dd"
    x, y, own = x[by_class], y[by_class], {}
    if soft:  # free vectors; students of the standard protocol get the nearest probabilities
        y, own = probabilities(y.float()), {"labels": y.float()}
    return Raw(x, y, method, "normalised", description, "", backbone, training, own)


def _frepo(path: Path, reading: Reading) -> Raw:
    images, labels = _arrays(path, "image", "label")
    count = labels.shape[1]
    # FRePo's initial labels are centred one-hot vectors divided by this factor (lib/datadistillation/frepo.py)
    scaled = labels * (count / 10) ** 0.5
    # augmentation of students in script/eval.py: grey images, which are digits, are not mirrored
    augment = f"{'' if images.shape[1] == 1 else 'flip_'}color_crop_rotate_translate_cutout"
    training = MethodTraining(lr=3e-4, augment=augment)
    soft = _classified(scaled)
    return Raw(images, soft, "frepo", "by data set", "FRePo's .npz", "", "frepo_convnet", training, {"labels": labels})


def _kip(path: Path, reading: Reading) -> Raw:
    images, labels = _arrays(path, "images", "labels")
    name = path.name
    space = "normalised" if "nozca" in name else "whitened" if "zca" in name else "unsaid"
    # students of nn_training.ipynb; for whitened sets they would need KIP's whitening as a layer, which is impossible
    training = MethodTraining()
    if space == "normalised":
        training = MethodTraining(steps=5000, w_std=2**0.5, b_std=0.1)
    return Raw(images, _classified(labels), "kip", space, "KIP's .npz", "", "", training, {"labels": labels})


def _idc(path: Path, reading: Reading) -> Raw:
    path = path / "data.pt" if path.is_dir() else path
    content = read_pickle(path)
    if not isinstance(content, (list, tuple)) or len(content) != 2:
        raise InputError(f"{path} is no data.pt of IDC's code: it needs a list of images and labels")
    images, labels = read_pair(path, content, "")
    factor = reading.factor or factor_in(path)
    if factor is None:
        raise InputError(
            f"{path} does not tell how many images are packed in one: give --factor 2 (IDC), 3 (IDC on ImageNet) or 1 "
            "(IDC-I); --source tensors where it is not IDC's"
        )
    if factor > images.shape[-1]:
        raise InputError(f"--factor is {factor}; the images have {images.shape[-1]} pixels")
    if labels.ndim == 2:
        raise InputError(f"{path} has soft labels; IDC's are classes")
    stored, warnings = len(images), unsorted_warning(labels)
    images, labels = unpacked(images, labels, factor)
    description = f"IDC's data.pt, factor {factor}: {stored} images hold {len(images)}, enlarged bilinearly"
    return Raw(images, labels, "idc", "pixels", description, warnings=warnings)


def _tensors(path: Path, reading: Reading) -> Raw:
    content = read_npz(path) if path.suffix == ".npz" else read_pickle(path)
    found = pair_in(content)
    if found is None:
        raise InputError(
            f"{path} has no two tensors, images and labels: expected (images, labels), a dict of both, or an .npz"
        )
    parts, left = found
    images = with_channels_first(path, as_tensor(parts[0], f"{path}: images"))
    labels = checked_labels(path, as_tensor(parts[1], f"{path}: labels"), len(images))
    images, space, how = pixels_or_unsaid(images)
    description = f"tensors of images and labels{how}{f', without its {brief(left)}' if left else ''}"
    name = re.sub(r"[^A-Za-z0-9_.=+-]+", "_", path.absolute().stem)[:60].strip(".") or "tensors"
    return Raw(images, labels, name, space, description, spaces=SPACES[:2])


def _pictures(path: Path, reading: Reading) -> Raw:
    if not path.is_dir():
        raise InputError(f"{path} is no folder; a set of pictures is a folder that has one folder a class")
    folders = picture_folders(path)
    if not folders:
        raise InputError(f"{path} has no folders of pictures, one for each class")
    images = read_all_pictures([file for files in folders.values() for file in files])
    counts = torch.tensor([len(files) for files in folders.values()])
    labels = torch.arange(len(folders)).repeat_interleave(counts)
    official = all(NUMBERED.fullmatch(name) for name in folders)
    description = (
        "SRe2L's, CDA's or GUARD's pictures (JPEG: not exactly what was optimised)" if official else "pictures"
    )
    stores = [each for each in (*path.glob("FKD*"), *path.parent.glob("FKD*")) if each.is_dir()]
    warnings = ()
    if stores and reading.fkd is None:
        warnings = (f"students learn the classes; for its soft labels give --fkd {stores[0]} --protocol own",)
    backbone = "timm:resnet18" if official and images.shape[-1] >= 64 else ""
    names = tuple(folders)
    method = "sre2l" if official else ""
    return Raw(
        images,
        labels,
        method,
        "pixels",
        description,
        backbone=backbone,
        names=names,
        warnings=warnings,
        spaces=SPACES[:1],
    )


def _ours(path: Path, reading: Reading) -> Raw:
    arrays = read_npz(path) if path.suffix == ".npz" else {}
    if not set(arrays) >= OURS:
        raise InputError(f"{path} is no set of ours: neither distilled.safetensors nor an .npz of `bash run.sh export`")
    try:
        facts = parse_json(str(arrays[FORMAT]))
        images, labels = read_pair(path, [arrays["images"], arrays["labels"]])
        tensors = {name.removeprefix(OWN): as_tensor(a, name) for name, a in arrays.items() if name.startswith(OWN)}
        description = f"our .npz of {brief(facts['method']) or 'a set'} on {brief(facts['dataset'])}"
        names = tuple(facts["classes"])
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a class has no name")
        made_for = tuple(facts.get("made_for", ()))
        if not all(type(c) is int for c in made_for):
            raise TypeError("made_for has no classes")
        constants = checked_constants(facts["mean"], facts["std"], images.shape[1])
        training = MethodTraining.from_json(facts["training"])
        return Raw(
            images,
            labels,
            facts["method"],
            "pixels",
            description,
            facts["augment"],
            facts["backbone"],
            training.alone,
            tensors,
            names=names,
            constants=constants,
            made_for=made_for,
            teacher=facts.get("teacher", ""),
            spaces=SPACES[:1],
        )
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no set of ours: {brief(error, 200)}") from None


# --- parts -------------------------------------------------------------------------------------------------------


def _arrays(path: Path, images: str, labels: str) -> tuple[Tensor, Tensor]:
    """Return images (N, C, H, W), from (N, C, H, W) or (N, H, W, C), and labels (N, K) of an .npz."""
    arrays = read_npz(path)
    if not {images, labels} <= set(arrays):
        raise InputError(f"{path} has arrays {brief(', '.join(arrays)) or '(none)'}; expected {images} and {labels}")
    x, y = read_pair(path, [arrays[images], arrays[labels]], "")
    channels_first = x.shape[1] in (1, 3) and x.shape[3] not in (1, 3)  # as RFAD writes them
    if not (channels_first or x.shape[3] in (1, 3)) or y.ndim != 2:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise InputError(
            f"{path}: {images} and {labels} are {shapes}; expected (N, H, W, 1 or 3) or (N, 1 or 3, H, W), and (N, K)"
        )
    return x if channels_first else x.permute(0, 3, 1, 2).contiguous(), y


def _classified(labels: Tensor) -> Tensor:
    """Return classes (N,) where regression labels are centred one-hot ones, else the nearest probabilities (N, K)."""
    classes = labels.argmax(1)
    if torch.allclose(labels, centred(classes, labels.shape[1]), atol=1e-4):
        return classes
    return probabilities(labels + 1 / labels.shape[1])


SOURCES: dict[str, Callable[[Path, Reading], Raw]] = {
    "ours": _ours,
    "dc": _dc,
    "dd": _dd,
    "mtt": read_mtt,
    "frepo": _frepo,
    "kip": _kip,
    "idc": _idc,
    "tensors": _tensors,
    "sre2l": _pictures,
    "imagefolder": _pictures,
    "hf": read_hugging_face,
}
"""readers by name"""
