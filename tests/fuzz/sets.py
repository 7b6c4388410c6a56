"""Small whole sets, one of each format that is read, in a folder each."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from distill import distilled
from distill.app.export import export
from distill.distilled import DistilledSet
from distill.method_training import MethodTraining
from distill.training.whiten import Whiten
from tests.toy import toy

REAL = toy(n=60)
X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Z = (X - 0.4) / 0.25
Y = torch.tensor([0, 0, 1, 1])
ROWS = X.permute(0, 2, 3, 1).numpy()
CENTRED = np.eye(2, dtype="f4")[Y.numpy()] - 0.5
MADE = DistilledSet.of(REAL, X, Y, method="dm", training=MethodTraining(lr=0.1, epochs=3))


def _dc(folder: Path, *, zipped: bool = True) -> None:
    content = {"data": [[Z, Y], [Z + 1, Y]], "accs_all_exps": {"ConvNet": [0.5, np.float64(0.25)]}}
    torch.save(content, folder / "res_DSA_toy_ConvNet_2ipc.pt", _use_new_zipfile_serialization=zipped)


def _mtt(folder: Path) -> None:
    torch.save(Z, folder / "images_best.pt")
    torch.save(Y, folder / "labels_best.pt")
    card = {"lr": 0.02, "space": "normalised", "mean": [0.4] * 3, "std": [0.25] * 3}
    (folder / "learned_lr.json").write_text(json.dumps(card))


def _datm(folder: Path) -> None:
    for number in range(2):
        torch.save(Z * (1 - 2 * number), folder / f"images_{number}.pt")
        torch.save(5 * torch.eye(2)[Y], folder / f"labels_{number}.pt")
        torch.save(torch.tensor(0.01), folder / f"lr_{number}.pt")


def _dd(folder: Path) -> None:
    torch.save([(Z[n::2], Y[n::2], torch.tensor([0.1])) for n in (0, 1)] * 2, folder / "results.pth")


def _pictures(folder: Path, names: tuple[str, str], ending: str) -> None:
    for number, image in enumerate((255 * X).byte()):
        path = folder / names[number // 2] / f"{number % 2}.{ending}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def _deep(folder: Path) -> None:
    for number, name in enumerate(("above", "below")):
        (folder / name).mkdir()
        grey = Image.fromarray((np.arange(64, dtype="u2") * 900).reshape(8, 8))
        grey.save(folder / name / f"{number}.{'png' if number else 'tif'}")


def _ours(folder: Path) -> None:
    kept = distilled.SHARD
    distilled.SHARD = 4 * X[:2].numel()
    try:
        Whiten.fit(REAL.images).save(folder / "whitening.safetensors")
        named = replace(MADE.training, whitening="whitening.safetensors")
        replace(MADE, training=named, training_tensors={"labels": X[:, 0, 0]}).save(folder / "distilled.safetensors")
    finally:
        distilled.SHARD = kept


WRITERS: dict[str, Callable[[Path], object]] = {
    "dc": _dc,
    "dc legacy": lambda folder: _dc(folder, zipped=False),
    "mtt": _mtt,
    "datm": _datm,
    "dd": _dd,
    "npz": lambda folder: export(MADE, folder, "npz", folder),
    "frepo": lambda folder: np.savez(folder / "a.npz", image=ROWS, label=CENTRED),
    "kip": lambda folder: np.savez(folder / "a_nozca.npz", images=ROWS, labels=CENTRED),
    "idc": lambda folder: torch.save([X, Y], folder / "data.pt"),
    "tensors": lambda folder: torch.save({"images": X, "labels": Y}, folder / "a.pth"),
    "arrays": lambda folder: np.savez_compressed(folder / "a.npz", x=ROWS, y=Y.numpy()),
    "sre2l": lambda folder: _pictures(folder, ("new000", "new001"), "jpg"),
    "imagefolder": lambda folder: _pictures(folder, ("above", "below"), "png"),
    "16 bits": _deep,
    "safetensors": _ours,
    "hf": lambda folder: export(MADE, folder, "hf", folder),
}
"""of whole sets into an empty folder, by kind"""

HOW = {"idc": {"factor": 1}, "datm": {"space": "normalised"}}
"""flags that a kind needs"""
