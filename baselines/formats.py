"""The files of official repositories, each read as it is: one function a format.

DC, DSA and DM (VICO-UoE/DatasetCondensation), CAFE and DCC, which share theirs; DD (SsnL/dataset-distillation) and
SLDD; MTT and TESLA; FRePo; KIP (google-research/kip); IDC (snu-mllab/Efficient-Dataset-Condensation); SRe2L, CDA and
GUARD.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.ridge import centred, probabilities
from baselines.spaces import Constants
from distill.data.image_files import LIMIT, ImageFiles
from distill.data.pictures import NUMBERED, decode_pictures, picture_folders, read_all_pictures
from distill.distilled import is_probability
from distill.errors import InputError
from distill.reading import Reading, companions, factor_in
from distill.unpickled import as_tensor, read_npz, read_pickle
from robust import Normalize

__all__ = ["OURS", "SOURCES", "STEP", "Raw", "images_in", "unpacked"]

OURS = {"images", "labels", "guard-distilled-1"}
"""arrays of an .npz of `bash run.sh export`"""
STEP = 3
"""images, labels and learning rate of a step of DD"""
NAMES = ("images", "labels")
"""parts of a pair"""


@dataclass(frozen=True)
class Raw:
    """A set as its file has it."""

    images: Tensor | ImageFiles
    """(N, C, H, W)"""
    labels: Tensor
    """(N,) int64, or (N, K) float32"""
    method: str
    """name of the method, as far as it is known"""
    space: str
    """"pixels", "normalised", "whitened", "by data set" (FRePo), or "unsaid" """
    said: str
    """what it is, for the user"""
    augment: str = ""
    """of its students; "dsa", "dc": what DSA's or DC's code trains students with on the data set"""
    backbone: str = ""
    """of students; "" for a ConvNet of the size"""
    training: dict[str, Any] = field(default_factory=dict)
    """of `DistilledSet`"""
    own: dict[str, Tensor] = field(default_factory=dict)
    """of `DistilledSet`"""
    names: tuple[str, ...] | None = None
    """of the classes that labels count; None for those of the data set"""
    warnings: tuple[str, ...] = ()
    """what is odd about it"""
    constants: Constants | None = None
    """mean and std of its students, where the file says them"""
    dataset: str = ""
    """the data set, where the name of the file has it"""


def _dc(path: Path, reading: Reading) -> Raw:
    if path.is_dir() and (found := sorted(path.glob("res_*.pt"))):
        path = _only(path, found)
    content = read_pickle(path)
    sets = content.get("data") if isinstance(content, dict) else None
    if not isinstance(sets, (list, tuple)) or not sets:
        raise InputError(f"{path} is no file of DC's code: it needs a dict whose data is a list of [images, labels]")
    if not -len(sets) <= reading.experiment < len(sets):
        raise InputError(f"--experiment is {reading.experiment}; {path} has {len(sets)}, from 0 to {len(sets) - 1}")
    number = reading.experiment % len(sets)
    images, labels = _pair(path, sets[number], f"experiment {number}")
    named = re.search(r"(?:^|_)(DCC|DC|DSAC|DSA|DM|CAFE)_([A-Za-z0-9]+)_", path.name)
    method, dataset = (named[1].lower(), named[2]) if named else ("dc", "")
    said = f"{method} in the format of DC's code, experiment {number} of {len(sets)}"
    if not named:
        said += " (its name does not say which method)"
    augment = "dsa" if method in ("dsa", "dsac", "dm") else "dc"
    return Raw(images, labels, method, "normalised", said, augment, warnings=_unsorted(labels), dataset=dataset)


def _dd(path: Path, reading: Reading) -> Raw:
    path = path / "results.pth" if path.is_dir() else path
    steps = read_pickle(path)
    if not isinstance(steps, (list, tuple)) or any(not isinstance(s, (list, tuple)) or len(s) != STEP for s in steps):
        raise InputError(f"{path} is no results.pth of DD's code: it needs a list of (images, labels, learning rate)")
    images, labels = zip(*(_pair(path, step[:2], f"step {n}") for n, step in enumerate(steps)), strict=True)
    lrs = [as_tensor(step[2], f"{path}: learning rate of step {n}").flatten() for n, step in enumerate(steps)]
    if any(len(lr) != 1 or lr <= 0 for lr in lrs) or len({(x.shape, y.shape) for x, y in zip(images, labels)}) > 1:  # noqa: B905
        raise InputError(f"{path} is no results.pth of DD's code: steps differ in shape, or lack a learning rate > 0")
    same = lambda n: all(torch.equal(x, images[i % n]) for i, x in enumerate(images))  # noqa: E731
    count = next(n for n in range(1, len(steps) + 1) if len(steps) % n == 0 and same(n))
    x, y = torch.cat(images[:count]), torch.cat(labels[:count])
    soft = y.ndim == 2
    by_class = (y.argmax(1) if soft else y).argsort(stable=True)
    order = by_class.argsort().view(count, -1).tolist()
    rates = [lr.item() for lr in lrs]
    training = {"order": order, "lrs": rates, "weights": "xavier", "fixed": []}
    said = f"{'sldd' if soft else 'dd'}'s results.pth, {count} steps taken {len(steps) // count} times, learning rates "
    said += f"{min(rates):.3g} to {max(rates):.3g} (--protocol own takes these steps from fresh networks)"
    backbone = "lenet" if x.shape[1] == 1 else "alexcifarnet"
    method = "sldd" if soft else "dd"
    x, y, own = x[by_class], y[by_class], {}
    if soft:  # free vectors, of which the nearest probabilities are for students of the standard protocol
        y, own = probabilities(y.float()), {"labels": y.float()}
    return Raw(x, y, method, "normalised", said, "", backbone, training, own)


def _mtt(path: Path, reading: Reading) -> Raw:
    if path.is_dir():
        found = images_in(path)
        if not found:
            raise InputError(f"{path} has no images_*.pt with labels_*.pt beside it, as MTT's code writes them")
        path = found[0] if found[0].stem.endswith("images_best") else _only(path, found)
    if not re.match(r"(ema_)?images", path.name):
        raise InputError(f"{path} is a single tensor; of sets of MTT and its heirs give the file images_*.pt")
    beside, lr, space = companions(path), reading.lr, "unsaid"
    if "labels" not in beside:
        wanted = path.name.replace("images_zca", "images").replace("images", "labels")
        raise InputError(f"there is no file {path.with_name(wanted)}, with the labels of {path.name}")
    images, labels = _pair(path, [read_pickle(path), read_pickle(beside["labels"])], "")
    if lr is None and "lr" in beside:  # of DATM
        rate = as_tensor(read_pickle(beside["lr"]), str(beside["lr"])).flatten()
        if len(rate) != 1 or not 0 < rate < torch.inf:
            raise InputError(f"{beside['lr']} holds no learning rate, one number > 0; give --lr")
        lr = rate.item()
    constants = None
    if "images_zca" in path.name:
        space = "pixels"  # it is the inverse that the official code writes for the eye
    elif card := beside.get("card"):  # of our export
        try:
            kept = json.loads(card.read_text(encoding="utf-8"))
            lr, space = lr or kept["lr"], {"normalised": "normalised", "whitened": "whitened"}[kept["space"]]
            if space == "normalised" and reading.space == "auto" and "mean" in kept:
                constants = _card_constants(kept["mean"], kept["std"], images.shape[1])
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{card} is damaged; delete it and give --lr and --space") from None
    said = f"{path.name} with {beside['labels'].name} of MTT or its heirs, learning rate "
    said += "not in the file (--lr gives it to --protocol own)" if lr is None else f"{lr:.3g}"
    if constants is not None:  # not every data set has constants in MTT's code
        images, space = Normalize(*constants).inverse(images), "pixels"
        said += f", normalised with the mean and std in {card.name}, undone"
    training, own = {} if lr is None else {"lr": float(lr), "epochs": 1000}, {}
    if labels.ndim == 2 and not is_probability(labels):
        said, own, labels = f"{said}, labels are logits (DATM's)", {"labels": labels}, labels.softmax(1)
    warnings = _unsorted(labels)
    return Raw(images, labels, "mtt", space, said, "dsa", "", training, own, warnings=warnings, constants=constants)


def _frepo(path: Path, reading: Reading) -> Raw:
    images, labels = _arrays(path, "image", "label")
    count = labels.shape[1]
    # its labels begin as centred one-hot ones divided by this (lib/datadistillation/frepo.py)
    scaled = labels * (count / 10) ** 0.5
    # its students, as script/eval.py trains them: images of digits, which are grey, are not mirrored
    augment = f"{'' if images.shape[1] == 1 else 'flip_'}color_crop_rotate_translate_cutout"
    training, own = {"steps": None, "lr": 3e-4, "augment": augment}, {"labels": labels}
    soft = _classified(scaled)
    return Raw(images, soft, "frepo", "by data set", "FRePo's .npz", "", "frepo_convnet", training, own)


def _kip(path: Path, reading: Reading) -> Raw:
    images, labels = _arrays(path, "images", "labels")
    name = path.name
    space = "normalised" if "nozca" in name else "whitened" if "zca" in name else "unsaid"
    # students of nn_training.ipynb; those of whitened sets would need KIP's whitening as a layer, which it cannot be
    training = {"steps": 5000, "w_std": 2**0.5, "b_std": 0.1} if space == "normalised" else {}
    return Raw(images, _classified(labels), "kip", space, "KIP's .npz", "", "", training, {"labels": labels})


def _idc(path: Path, reading: Reading) -> Raw:
    path = path / "data.pt" if path.is_dir() else path
    content = read_pickle(path)
    if not isinstance(content, (list, tuple)) or len(content) != 2:
        raise InputError(f"{path} is no data.pt of IDC's code: it needs a list of images and labels")
    images, labels = _pair(path, content, "")
    factor = reading.factor or factor_in(path)
    if factor is None:
        raise InputError(
            f"{path} does not say how many images are packed in one: give --factor 2 (IDC), 3 (IDC on ImageNet) or 1 "
            "(IDC-I)"
        )
    if factor > images.shape[-1]:
        raise InputError(f"--factor is {factor}; the images have {images.shape[-1]} pixels")
    if labels.ndim == 2:
        raise InputError(f"{path} has soft labels; IDC's are classes")
    stored, warnings = len(images), _unsorted(labels)
    images, labels = unpacked(images, labels, factor)
    said = f"IDC's data.pt, factor {factor}: {stored} images hold {len(images)}, enlarged bilinearly"
    return Raw(images, labels, "idc", "pixels", said, warnings=warnings)


def unpacked(images: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return the images that IDC packs into each, enlarged to its size, sorted by class.

    Args:
        images: (N, C, H, H); where factor does not divide H, they are first filled up with 0.5 below and at the right.
        labels: (N,) classes.
        factor: images along a side.

    Returns:
        (N factor², C, H, H), of each class first all upper left ones, then the next to the right, ...; (N factor²,).
    """
    size, side = images.shape[-1], ceil(images.shape[-1] / factor)
    filled = F.pad(images, (0, -size % factor, 0, -size % factor), value=0.5)
    corners = [(side * row, side * column) for row in range(factor) for column in range(factor)]
    parts = torch.cat([filled[:, :, top : top + side, left : left + side] for top, left in corners])
    labels = labels.repeat(factor**2)
    order = labels.argsort(stable=True)
    return F.interpolate(parts[order], size, mode="bilinear", align_corners=False), labels[order]


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
    said = "SRe2L's, CDA's or GUARD's pictures (JPEG: not exactly what was optimised)" if official else "pictures"
    stores = [each for each in (*path.glob("FKD*"), *path.parent.glob("FKD*")) if each.is_dir()]
    warnings = ()
    if stores and reading.fkd is None:
        warnings = (f"students learn the classes; for its soft labels give --fkd {stores[0]} --protocol own",)
    backbone = "timm:resnet18" if official and images.shape[-1] >= 64 else ""
    names = tuple(folders)
    method = "sre2l" if official else ""
    return Raw(images, labels, method, "pixels", said, backbone=backbone, names=names, warnings=warnings)


def _hf(path: Path, reading: Reading) -> Raw:
    try:
        import datasets  # an extra: heavy, and only needed here
    except ImportError:
        raise InputError(f"{path} needs the package datasets: pip install datasets, or export it as pictures") from None
    try:
        found = datasets.load_from_disk(str(path))
        if isinstance(found, datasets.DatasetDict):
            found = found["train"] if "train" in found else next(iter(found.values()))
        exact = "pixels" in found.column_names
        column = next((name for name in ("pixels", "image", "img") if name in found.column_names), None)
        target = next((name for name in ("soft_label", "label", "labels") if name in found.column_names), None)
        if column is None or target is None:
            raise InputError(f"{path} has columns {', '.join(found.column_names)}; expected image and label")
        names, kind = getattr(found.features[target], "names", None), found.features[column]
        found = found.select_columns([column, target]).with_format("numpy")
        if max(found.data.nbytes, 4 * len(found)) > LIMIT:
            raise InputError(f"{path} has more than {LIMIT / 2**30:g} GiB")
        encoded = isinstance(kind, datasets.Image)
        for name in (target,) if encoded else (target, column):
            if not _is_plain(found.features[name]):  # audio, lists of images: datasets would open their paths
                raise InputError(f"{path}: column {name} holds {type(found.features[name]).__name__}, not numbers")
        if encoded:  # datasets would open the path, or the address, of a cell without bytes
            cells = found.with_format(None).cast_column(column, datasets.Image(decode=False))[column]
            images = decode_pictures([cell and cell["bytes"] for cell in cells], f"{path}: column {column}")
        else:
            images = as_tensor(found[:][column], f"{path}: {column}")
        labels = as_tensor(found.select_columns([target])[:][target], f"{path}: {target}")
    except InputError:
        raise
    except Exception as error:  # pyarrow and datasets raise anything
        raise InputError(f"{path} cannot be read by datasets ({type(error).__name__}: {str(error)[:100]})") from None
    if not encoded and not exact:
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        images = images.float() / 255
    said = f"a folder of Hugging Face datasets, column {column}"
    return Raw(images, labels, "", "pixels", said, names=None if names is None else tuple(names))


def _is_plain(kind: Any) -> bool:
    """Return whether a column of datasets is of numbers or lists of them, which need no decoding."""
    inner = kind[0] if isinstance(kind, list) and kind else getattr(kind, "feature", None)
    return type(kind).__name__ in _PLAIN if inner is None else _is_plain(inner)


_PLAIN = ("Value", "ClassLabel", "Array2D", "Array3D", "Array4D", "Array5D")


def _ours(path: Path, reading: Reading) -> Raw:
    arrays = read_npz(path) if path.suffix == ".npz" else {}
    if not set(arrays) >= OURS:
        raise InputError(f"{path} is no set of ours: neither distilled.safetensors nor an .npz of `bash run.sh export`")
    try:
        kept = json.loads(str(arrays["guard-distilled-1"]))
        images, labels = (as_tensor(arrays[name], f"{path}: {name}") for name in ("images", "labels"))
        own = {name.removeprefix("own."): as_tensor(a, name) for name, a in arrays.items() if name.startswith("own.")}
        said, names = f"our .npz of {kept['method'] or 'a set'} on {kept['dataset']}", tuple(kept["classes"])
        fields = {name: kept[name] for name in ("augment", "backbone", "training")}
        constants = (tuple(kept["mean"]), tuple(kept["std"]))
        if not isinstance(fields["training"], dict) or not all(isinstance(name, str) for name in names):
            raise TypeError("training is no dict, or a class has no name")
        fields["training"].pop("whitening", None)  # a path to a file that an .npz does not have
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is no set of ours: {error}") from None
    return Raw(images, labels, kept["method"], "pixels", said, own=own, names=names, constants=constants, **fields)


# --- parts -------------------------------------------------------------------------------------------------------


def images_in(folder: Path) -> list[Path]:
    """Return the files images_*.pt of a folder that have labels beside them, images_best.pt first."""
    found = [path for path in folder.glob("*images_*.pt") if "_zca_" not in path.name and "labels" in companions(path)]
    return sorted(found, key=lambda path: (not path.stem.endswith("images_best"), path.name))


def _only(folder: Path, found: list[Path]) -> Path:
    """Return the one file of a set that a folder has."""
    if len(found) > 1:
        raise InputError(f"{folder} has several sets: give one file of {', '.join(each.name for each in found)}")
    return found[0]


def _card_constants(mean: Any, std: Any, channels: int) -> Constants:
    """Return mean and std of a card.

    Raises:
        ValueError, TypeError: they are no finite numbers, one a channel, std > 0.
    """
    constants = tuple(map(float, mean)), tuple(map(float, std))
    if not all(len(each) == channels and all(map(isfinite, each)) for each in constants) or min(constants[1]) <= 0:
        raise ValueError(f"mean and std are {constants}")
    return constants


def _pair(path: Path, pair: Any, which: str) -> tuple[Tensor, Tensor]:
    """Return images and labels of one another's length; labels int64 or float (N, K)."""
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise InputError(f"{path}: {which} is no pair of images and labels")
    images, labels = (
        as_tensor(each, f"{path}: {name} {which}".rstrip()) for each, name in zip(pair, NAMES, strict=True)
    )
    if images.ndim != 4 or labels.ndim not in (1, 2) or len(images) != len(labels):
        shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
        raise InputError(f"{path}: images and labels {which} are {shapes}; expected (N, C, H, W) and (N,) or (N, K)")
    if labels.ndim == 1 and labels.is_floating_point():
        if not torch.equal(labels, labels.round()):
            raise InputError(f"{path}: labels {which} are no whole numbers")
        labels = labels.long()
    return images.float(), labels if labels.ndim == 1 else labels.float()


def _arrays(path: Path, images: str, labels: str) -> tuple[Tensor, Tensor]:
    """Return images (N, C, H, W) of an .npz that has them as (N, H, W, C), and labels (N, K)."""
    arrays = read_npz(path)
    if not {images, labels} <= set(arrays):
        raise InputError(f"{path} has arrays {', '.join(arrays) or '(none)'}; expected {images} and {labels}")
    x, y = _pair(path, [arrays[images], arrays[labels]], "")
    if x.shape[3] not in (1, 3) or y.ndim != 2:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise InputError(f"{path}: {images} and {labels} are {shapes}; expected (N, H, W, 1 or 3) and (N, K)")
    return x.permute(0, 3, 1, 2).contiguous(), y


def _classified(labels: Tensor) -> Tensor:
    """Return classes (N,) where regression labels are centred one-hot ones, else the nearest probabilities (N, K)."""
    classes = labels.argmax(1)
    if torch.allclose(labels, centred(classes, labels.shape[1]), atol=1e-4):
        return classes
    return probabilities(labels + 1 / labels.shape[1])


def _unsorted(labels: Tensor) -> tuple[str, ...]:
    if labels.ndim == 1 and not torch.equal(labels, labels.sort().values):
        return ("labels are not sorted by class, as the official code has them: do they belong to these images?",)
    return ()


SOURCES: dict[str, Callable[[Path, Reading], Raw]] = {
    "ours": _ours,
    "dc": _dc,
    "dd": _dd,
    "mtt": _mtt,
    "frepo": _frepo,
    "kip": _kip,
    "idc": _idc,
    "sre2l": _pictures,
    "imagefolder": _pictures,
    "hf": _hf,
}
"""readers by name"""
