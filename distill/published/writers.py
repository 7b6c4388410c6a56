"""Writers of distilled sets in the formats of other codes; `distill.app.export` is the command that uses them."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from distill.data import facts_named
from distill.data.facts import Constants
from distill.data.pictures import write_pictures
from distill.distilled import FIELDS, FORMAT, OWN, DistilledSet
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.published.card import card
from distill.published.hub import as_pictures, datasets_for, write_hub
from distill.published.whole import write_whole
from distill.training.whiten import preprocessing
from robust import Normalize

__all__ = ["AS_MTT", "EXPORTS"]

AS_MTT = ("mtt", "tesla", "guard_mtt", "datm", "mtt_learned_labels", "tesla_learned_labels")
"""methods with the whitening (ZCA of pixels) and the learned learning rate of MTT's code"""


IMAGEFOLDER = """\
from torchvision.datasets import ImageFolder

images = ImageFolder("FOLDER OF THIS FILE")"""
"""how an image folder is read"""


def write_dc(distilled: DistilledSet, folder: Path, out: Path) -> list[str]:
    """Write `res_METHOD_DATASET_NETWORK_Nipc.pt`, the layout of DC's code: one experiment, normalised images.

    Returns:
        messages for the user.

    Raises:
        InputError: the set has soft labels.
    """
    _refuse_soft_labels(distilled, "dc")
    constants = _constants("dc", distilled)
    images = Normalize(*constants)(distilled.images[:])
    names = (
        distilled.method.replace(":", ".").upper() or "SET",
        facts_named(distilled.dataset).official or distilled.dataset.replace(":", "."),
    )
    network = "ConvNet" if distilled.backbone == "convnet" else re.sub(r"[^\w.=-]+", "_", distilled.backbone)
    path = out / f"res_{'_'.join(names)}_{network}_{round(distilled.ipc)}ipc.pt"
    torch.save({"data": [[images, distilled.labels]], "accs_all_exps": {network: []}}, path)
    return [f"dc: one experiment, {_normalisation_text(constants)}"]


def write_mtt(distilled: DistilledSet, folder: Path, out: Path) -> list[str]:
    """Write `images_best.pt` and `labels_best.pt`, the layout of MTT's code, and `learned_lr.json`.

    The whitening and the learning rate are written only for AS_MTT.

    Returns:
        messages for the user.
    """
    as_mtt = distilled.method in AS_MTT
    training = distilled.training if as_mtt else MethodTraining()
    constants = _constants("mtt", distilled)
    space = "whitened" if training.whitening is not None else "normalised"
    layer = preprocessing(distilled, folder) if space == "whitened" else Normalize(*constants)
    with torch.no_grad():
        torch.save(layer(distilled.images[:]).contiguous(), out / "images_best.pt")
    torch.save(distilled.labels, out / "labels_best.pt")
    card = {"lr": training.lr, "space": space, "mean": constants[0], "std": constants[1]}
    (out / "learned_lr.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    lr = "no learned learning rate" if card["lr"] is None else f"the learned learning rate {card['lr']:.4g}"
    if space == "whitened":
        return [f"mtt: whitened (kornia's ZCA, eps 0.1); {lr} in learned_lr.json"]
    return [f"mtt: {_normalisation_text(constants)}; {lr} in learned_lr.json{_left_out(distilled)}"]


def write_imagefolder(distilled: DistilledSet, folder: Path, out: Path) -> list[str]:
    """Write `CLASS/NNNN.png`, and README.md, a dataset card.

    Returns:
        messages for the user.

    Raises:
        InputError: the set has soft labels.
    """
    _refuse_soft_labels(distilled, "imagefolder")
    write_pictures(distilled.images, distilled.labels, distilled.classes, out)
    (out / "README.md").write_text(card(distilled, folder, IMAGEFOLDER), encoding="utf-8")
    outside = sum(int(((part < 0) | (part > 1)).sum()) for part in distilled.images.split(256))
    return [
        "imagefolder: lossy: PNG has 8 bits. Pixels are rounded to 1/255 and clipped to [0, 1] "
        f"({outside / distilled.images.numel():.1%} are outside); npz and hf are exact"
    ]


SOFT = ("made_for", "teacher")
"""fields of sets with soft labels; other files have the bytes that they had before these were stored"""


def write_npz(distilled: DistilledSet, folder: Path, out: Path) -> list[str]:
    """Write `distilled.npz`: exact images, labels, training tensors, and the other fields as a JSON text."""
    training = distilled.training.alone.to_json()
    fields = {name: getattr(distilled, name) for name in FIELDS} | {"training": training}
    fields |= {name: kept for name in SOFT if (kept := getattr(distilled, name))}
    arrays = {"images": distilled.images[:].numpy(), "labels": distilled.labels.numpy()}
    arrays |= {f"{OWN}{name}": tensor.numpy() for name, tensor in distilled.training_tensors.items()}
    arrays[FORMAT] = np.array(json.dumps(fields))
    np.savez(out / "distilled.npz", **arrays)  # pyright: ignore[reportArgumentType]  # no array is named allow_pickle
    return [f"npz: images (N, C, H, W) in pixels, exact; labels; {FORMAT}, a JSON text{_left_out(distilled)}"]


def write_hf(distilled: DistilledSet, folder: Path, out: Path) -> list[str]:
    """Write a folder of Hugging Face datasets.

    Returns:
        messages for the user.

    Raises:
        InputError: the package datasets is missing.
    """
    datasets = datasets_for("hf")
    images, hard = distilled.images[:], distilled.labels.ndim == 1
    name = "label" if hard else "soft_label"
    kind = datasets.ClassLabel(names=list(distilled.classes)) if hard else datasets.Sequence(datasets.Value("float32"))
    exact = datasets.Array3D(tuple(images.shape[1:]), "float32")
    features = datasets.Features({"image": datasets.Image(), "pixels": exact, name: kind})
    columns = {"image": as_pictures(images), "pixels": list(images.numpy()), name: distilled.labels.tolist()}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(out))
    return [f"hf: column pixels is exact, column image has 8 bits for viewing{_left_out(distilled)}"]


def _refuse_soft_labels(distilled: DistilledSet, form: str) -> None:
    if distilled.labels.ndim == 2:
        raise InputError(f"the set has soft labels, but {form} stores classes; use --to mtt, npz or hf")


def _constants(code: str, distilled: DistilledSet) -> Constants:
    """Return mean and std with which a code normalises the data set; the set's constants if the code lacks it."""
    return facts_named(distilled.dataset).constants.get(code, (distilled.mean, distilled.std))


def _normalisation_text(constants: Constants) -> str:
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in constants)
    return f"normalised with mean {mean}, std {std}"


def _left_out(distilled: DistilledSet) -> str:
    """Return what of a set a format has no place for."""
    training = distilled.training
    lines = ["the whitening is left out"] if training.whitening is not None else []
    lines += ["the labels of its views are left out, --to set has them"] if training.labels is not None else []
    return "".join(f"; {line}" for line in lines)


EXPORTS: dict[str, Callable[[DistilledSet, Path, Path], list[str]]] = {
    "dc": write_dc,
    "mtt": write_mtt,
    "imagefolder": write_imagefolder,
    "npz": write_npz,
    "hf": write_hf,
    "hub": write_hub,
    "set": write_whole,
}
"""name of a format -> function (set, folder of the set's file, output folder) -> lines for the user

The folder of the set's file is where `write_mtt` and `write_whole` look for what the set names. Output folders exist
and are empty.
"""
