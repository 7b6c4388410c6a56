"""`bash run.sh export RUN --to FORMAT`: a distilled set as files of other code."""

import glob
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

from distill.app.flags import parse
from distill.data import facts_named
from distill.data.facts import Constants
from distill.data.pictures import picture_folders, write_pictures
from distill.distilled import FIELDS, FORMAT, OWN, DistilledSet
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.runs.files import UNFINISHED, disk_errors, hash_of, remove_unfinished, write_text
from distill.runs.foreign import reachable, read_json
from distill.training.whiten import preprocessing
from robust import Normalize

__all__ = ["EXPORTS", "export", "run_export"]

MANIFEST = ".guard-export.json"
"""lists what an export wrote, with hashes: nothing else is ever replaced or deleted"""
FOREIGN = (".npz", ".pt", ".pth")
"""endings of files that are read before they are exported"""
AS_MTT = ("mtt", "tesla", "guard_mtt")
"""methods whose whitening and learning rate are those of MTT's code: its ZCA of pixels, and a rate that is learned"""


@dataclass(frozen=True)
class ExportCommand:
    """Write a distilled set as files that other code reads."""

    path: tyro.conf.Positional[Path]
    """distilled.safetensors, or the folder of its run"""
    to: Literal["dc", "mtt", "imagefolder", "npz", "hf"]
    """dc: res_*.pt, mtt: images_best.pt and labels_best.pt, imagefolder: CLASS/NNNN.png, npz: one exact file of numpy,
    hf: a folder of Hugging Face datasets (docs/published.md)"""
    out: Path | None = None
    """folder to write to; None: export/FORMAT beside the set"""
    overwrite: bool = False
    """replace what an earlier export wrote there; files of others are never replaced or deleted"""


def run_export(flags: list[str]) -> int:
    """Write a distilled set in the layout of other code.

    Returns:
        the exit code.

    Raises:
        InputError: there is no such set, the format cannot hold it, or files are in the way.
    """
    if not flags or (flags[0].startswith("-") and flags[0] not in ("-h", "--help")):
        raise InputError(f"export takes a path first: bash run.sh export RUN --to {'|'.join(EXPORTS)}")
    default = ExportCommand(Path(), tyro.MISSING)
    asked = parse(ExportCommand, default, flags, "bash run.sh export")
    if reachable(asked.path).suffix in FOREIGN and asked.path.is_file():
        raise InputError(
            f"{asked.path} is not a whole safetensors file but, by its name, a published set: read it first, "
            f"bash run.sh evaluate {asked.path} --dataset NAME, and export the folder that it is kept in"
        )
    folder = asked.path if asked.path.is_dir() else asked.path.parent
    distilled = DistilledSet.load(asked.path)
    out = asked.out or folder / "export" / asked.to
    for line in export(distilled, folder, asked.to, out, overwrite=asked.overwrite):
        print(line, file=sys.stderr)
    print(out)
    return 0


def export(distilled: DistilledSet, place: Path, form: str, out: Path, *, overwrite: bool = False) -> list[str]:
    """Write a set into a folder, all of it or nothing.

    Args:
        distilled: the set.
        place: the folder of its file, where its whitening is looked for.
        form: one of EXPORTS.
        out: the folder; made if needed.
        overwrite: whether what an earlier export wrote there, and nobody changed, may be replaced and removed.

    Returns:
        what there is to say, a line each.

    Raises:
        InputError: the format cannot hold the set, or other files are in the way.
    """
    temporary = _beside(out)
    remove_unfinished(temporary.parent, glob.escape(temporary.name.removeprefix(".").split(f".{os.getpid()}.")[0]))
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        with disk_errors(temporary.parent):
            lines = EXPORTS[form](distilled, place, temporary)
        new = _hashes(temporary)
        ours = _manifest(out)
        present = {
            path: hash_of(out / path) for path in {*new, *ours, *_pictures_in(out, form)} if (out / path).is_file()
        }
        differ = sorted(path for path in new if path in present and present[path] != new[path])
        stale = sorted(path for path in present if path not in new)
        foreign = [path for path in (*differ, *stale) if present[path] not in ours.get(path, ())]
        if foreign:
            what = "holds something else" if foreign[0] in new else "is not of this set, but would be read with it"
            raise InputError(
                f"{out / foreign[0]} {what}, and no export wrote it (files: {len(foreign)}); give another --out"
            )
        if (differ or stale) and not overwrite:
            first, count = (differ or stale)[0], len(differ or stale)
            what = "holds something else" if differ else "is of another set, and would be read with this one"
            raise InputError(f"{out / first} {what} (files: {count}); give another --out, or --overwrite to replace")
        out.mkdir(parents=True, exist_ok=True)
        # Both versions are ours until the new one is whole, so that an export which is killed here can be repeated.
        _write_manifest(out, {path: {*ours.get(path, ()), *filter(None, [new.get(path)])} for path in {*ours, *new}})
        for path in stale:
            (out / path).unlink()
        for path in sorted(new):
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary / path, out / path)
        _write_manifest(out, {path: {digest} for path, digest in new.items()})
    except OSError as error:
        raise InputError(f"cannot write to {out} ({error.strerror or error}); choose another --out") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    replaced = len(differ) + len(stale)
    return [*lines, f"{len(new)} files in {out}" + (f", {replaced} of them instead of others" if replaced else "")]


def _hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file in a folder, by its path there."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hash_of(path) for path in files}


def _manifest(out: Path) -> dict[str, list[str]]:
    """Return by path the hashes of what exports wrote into a folder; nothing where none did, or nobody can tell."""
    try:
        content = read_json(out / MANIFEST)["files"]
        return {str(path): list(map(str, hashes)) for path, hashes in content.items() if _inside(path)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _inside(path: str) -> bool:
    parts = Path(path).parts
    return bool(parts) and not Path(path).is_absolute() and ".." not in parts


def _write_manifest(out: Path, files: dict[str, set[str]]) -> None:
    content = {"files": {path: sorted(hashes) for path, hashes in sorted(files.items())}}
    write_text(out / MANIFEST, json.dumps(content, indent=1) + "\n")


def _pictures_in(out: Path, form: str) -> list[str]:
    """Return the pictures in class folders, which would be read with a set of pictures."""
    if form != "imagefolder" or not out.is_dir():
        return []
    return [f"{name}/{file.name}" for name, files in picture_folders(out).items() for file in files]


def _beside(out: Path) -> Path:
    """Return a name beside a folder, for what is not whole yet; also of ".", whose own name is elsewhere.

    Raises:
        InputError: nothing is beside it.
    """
    try:
        place = Path(os.path.realpath(out))
    except OSError as error:  # the current folder is gone
        raise InputError(f"cannot write to {out} ({error.strerror}); choose another --out") from None
    if not place.name:
        raise InputError(f"cannot write to {out} (it has no folder above it); choose another --out")
    return place.with_name(f".{place.name}.{os.getpid()}{UNFINISHED}")


# --- each format -------------------------------------------------------------------------------------------------


def _dc(distilled: DistilledSet, place: Path, out: Path) -> list[str]:
    _hard(distilled, "dc")
    constants = _constants("dc", distilled)
    images = Normalize(*constants)(distilled.images[:])
    names = (
        distilled.method.replace(":", ".").upper() or "SET",
        facts_named(distilled.dataset).official or distilled.dataset.replace(":", "."),
    )
    network = "ConvNet" if distilled.backbone == "convnet" else re.sub(r"[^\w.=-]+", "_", distilled.backbone)
    path = out / f"res_{'_'.join(names)}_{network}_{round(distilled.ipc)}ipc.pt"
    torch.save({"data": [[images, distilled.labels]], "accs_all_exps": {network: []}}, path)
    return [f"dc: one experiment, {_space(constants)}"]


def _mtt(distilled: DistilledSet, place: Path, out: Path) -> list[str]:
    as_mtt = distilled.method in AS_MTT  # other methods have a learning rate and a ZCA of another kind
    training = distilled.training if as_mtt else MethodTraining()
    constants = _constants("mtt", distilled)
    space = "whitened" if training.whitening is not None else "normalised"
    layer = preprocessing(distilled, place) if space == "whitened" else Normalize(*constants)
    with torch.no_grad():
        torch.save(layer(distilled.images[:]).contiguous(), out / "images_best.pt")
    torch.save(distilled.labels, out / "labels_best.pt")
    card = {"lr": training.lr, "space": space, "mean": constants[0], "std": constants[1]}
    (out / "learned_lr.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    lr = "no learned learning rate" if card["lr"] is None else f"the learned learning rate {card['lr']:.4g}"
    how = "whitened (kornia's ZCA, eps 0.1)" if space == "whitened" else _space(constants)
    lost = "" if space == "whitened" else _lost(distilled)
    return [f"mtt: {how}; {lr} in learned_lr.json{lost}"]


def _imagefolder(distilled: DistilledSet, place: Path, out: Path) -> list[str]:
    _hard(distilled, "imagefolder")
    write_pictures(distilled.images, distilled.labels, distilled.classes, out)
    outside = sum(int(((part < 0) | (part > 1)).sum()) for part in distilled.images.split(256))
    return [
        "imagefolder: lossy: PNG has 8 bits, so that pixels are rounded to 1/255, and those outside [0, 1] are cut "
        f"({outside / distilled.images.numel():.1%} of them); npz and hf are exact"
    ]


def _npz(distilled: DistilledSet, place: Path, out: Path) -> list[str]:
    training = replace(distilled.training, whitening=None).to_json()
    fields = {name: getattr(distilled, name) for name in FIELDS} | {"training": training}
    arrays = {"images": distilled.images[:].numpy(), "labels": distilled.labels.numpy()}
    arrays |= {f"{OWN}{name}": tensor.numpy() for name, tensor in distilled.training_tensors.items()}
    arrays[FORMAT] = np.array(json.dumps(fields))
    np.savez(out / "distilled.npz", **arrays)  # pyright: ignore[reportArgumentType]  # no array is named allow_pickle
    return [f"npz: images (N, C, H, W) in pixels, exact; labels; {FORMAT}, a JSON text{_lost(distilled)}"]


def _hf(distilled: DistilledSet, place: Path, out: Path) -> list[str]:
    try:
        import datasets  # an extra: heavy, and only needed here
    except ImportError:
        raise InputError("export to hf needs the package datasets: pip install datasets; or take --to npz") from None
    from torchvision.transforms.v2.functional import to_pil_image

    images, hard = distilled.images[:], distilled.labels.ndim == 1
    name = "label" if hard else "soft_label"
    kind = datasets.ClassLabel(names=list(distilled.classes)) if hard else datasets.Sequence(datasets.Value("float32"))
    exact = datasets.Array3D(tuple(images.shape[1:]), "float32")
    features = datasets.Features({"image": datasets.Image(), "pixels": exact, name: kind})
    pictures = [to_pil_image((image.clamp(0, 1) * 255).round().byte()) for image in images]
    columns = {"image": pictures, "pixels": list(images.numpy()), name: distilled.labels.tolist()}
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(out))
    return [f"hf: column pixels is exact, column image has 8 bits for the eye{_lost(distilled)}"]


def _hard(distilled: DistilledSet, form: str) -> None:
    if distilled.labels.ndim == 2:
        raise InputError(f"the set has soft labels, and {form} holds classes; take --to mtt, npz or hf")


def _constants(code: str, distilled: DistilledSet) -> Constants:
    """Return what a code normalises the data set with; of one that it does not have, the set's own."""
    return facts_named(distilled.dataset).constants.get(code, (distilled.mean, distilled.std))


def _space(constants: Constants) -> str:
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in constants)
    return f"normalised with mean {mean}, std {std}"


def _lost(distilled: DistilledSet) -> str:
    return "; the whitening is left out" if distilled.training.whitening is not None else ""


EXPORTS: dict[str, Callable[[DistilledSet, Path, Path], list[str]]] = {
    "dc": _dc,
    "mtt": _mtt,
    "imagefolder": _imagefolder,
    "npz": _npz,
    "hf": _hf,
}
"""formats by name"""
