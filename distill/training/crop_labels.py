"""Stored soft labels of crops: the logits of a teacher for every crop that students see, epoch by epoch.

FKD ("A Fast Knowledge Distillation Framework", Shen & Xing, ECCV 2022): an epoch of a student's training is an order of
the images, a crop and a flip of each, a mixture of each batch (CutMix or MixUp), and a teacher's logits of the mixed
crops. The folder of a store holds

    labels.json               number and digest of the images, batch size, mixture, epochs
    epoch-NNNN.safetensors    order (N,) int32, boxes (N, 4) int16, flips (N,) bool, partners (N,) int32: positions in
                              the order, shares (batches,) float32, mixed (batches, 4) int16: the rectangle of CutMix,
                              logits (N, K) float16; where labels.json has `strips` > 1 also strips (N, 2, strips)
                              uint8: the order of the horizontal and vertical strips of each image

Each epoch has a file of its own, so that processes can write epochs without communication. The store of the official
code is read by a patched fetcher of torch, keyed by the index of a batch's first image; this store by `Labels.epoch`, a
sequence of batches.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.data.images import Images
from distill.errors import InputError
from distill.runs.files import read_tensors, write_tensors, write_text
from distill.runs.foreign import read_json

__all__ = ["Batch", "Labels", "batches", "digest", "epoch_file", "facts_in", "write_epoch", "write_facts"]

FORMAT = "guard-labels-1"
KINDS = {"format": str, "digest": str, "mix": str, "images": int, "epochs": int, "batch_size": int}
"""fields of labels.json that every store has, with their types"""


@dataclass(frozen=True)
class Batch:
    """One step of a student."""

    who: Tensor
    """(n,) indices of the images"""
    boxes: Tensor
    """(n, 4) crops: top, left, height, width"""
    flips: Tensor
    """(n,) bool: mirrored"""
    partners: Tensor
    """(n,) positions in the batch of the images mixed in"""
    share: float
    """MixUp: weight of the image; its partner has the rest"""
    mixed: tuple[int, int, int, int]
    """CutMix: top, left, bottom, right of the rectangle that comes from the partner"""
    logits: Tensor
    """(n, K) of the teacher"""
    strips: Tensor
    """(n, 2, parts) the horizontal and the vertical strip at each place, before the crop; one part: the whole image"""


class Labels:
    """A store of labels, read epoch by epoch.

    Args:
        folder: of the store.
        images: digest of the images that the labels must belong to.
        classes: number of classes of the labels; None for any.

    Raises:
        InputError: there is no whole store, or it belongs to other images.
    """

    def __init__(self, folder: Path, images: str, classes: int | None = None):
        self.folder, self.images, self.classes = folder, images, classes
        facts = facts_in(folder)
        if facts is None:
            raise InputError(
                f"{folder} holds no labels (no readable labels.json); run the method again, or take --protocol standard"
            )
        if facts["format"] != FORMAT:
            raise InputError(f"{folder} has the format {facts['format']}, not {FORMAT}")
        if facts["digest"] != images:
            raise InputError(
                f"the labels in {folder} belong to other images ({facts['images']} of digest {facts['digest'][:12]}, "
                f"these have {images[:12]}); relabel these: run the method again with another --runs"
            )
        missing = [epoch for epoch in range(facts["epochs"]) if not epoch_file(folder, epoch).exists()]
        if missing:
            raise InputError(f"{folder} lacks the labels of {len(missing)} epochs, the first {missing[0]}")
        self.count: int = facts["images"]
        self.epochs: int = facts["epochs"]
        self.mix: str = facts["mix"]
        self.batch_size: int = facts["batch_size"]
        self.strips: int = facts.get("strips", 1)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Raises:
            InputError: the epoch's file is damaged, or of another store.
        """
        path = epoch_file(self.folder, number)
        tensors, facts = read_tensors(path)
        expected = _name_of(self.folder, number)
        if facts.get("of", expected) != expected or not self._fits(tensors):  # files of earlier versions lack `of`
            raise InputError(f"{path} has not the labels of epoch {number} of these images; delete it")
        yield from batches(tensors, self.batch_size)

    def _fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Return whether tensors are an epoch of this store."""
        n, count = self.count, -(-self.count // self.batch_size)
        k = self.classes or (tensors["logits"].shape[-1] if "logits" in tensors else 0)
        shapes = {"order": (n,), "boxes": (n, 4), "flips": (n,), "partners": (n,), "shares": (count,)}
        shapes |= {"mixed": (count, 4), "logits": (n, k)}
        shapes |= {"strips": (n, 2, self.strips)} if self.strips > 1 else {}
        if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
            return False
        lengths = torch.tensor([len(batch) for batch in tensors["order"].split(self.batch_size)])
        partners = tensors["partners"]
        inside = (partners >= 0) & (partners < lengths.repeat_interleave(lengths))
        whole = torch.equal(tensors["order"].long().sort().values, torch.arange(n))
        strips = tensors.get("strips", torch.zeros(n, 2, 1)).long()
        ordered = torch.equal(strips.sort(-1).values, torch.arange(self.strips).expand(n, 2, -1))
        return whole and ordered and bool(inside.all()) and bool(tensors["logits"].isfinite().all())


def batches(tensors: Mapping[str, Tensor], batch_size: int) -> Iterator[Batch]:
    """Yield the batches of an epoch.

    Args:
        tensors: as in the epoch's file; without logits, each batch has none; without strips, images are whole.
        batch_size: images of a batch, except the last.
    """
    parts = [tensors[name].split(batch_size) for name in ("order", "boxes", "flips", "partners")]
    logits = tensors["logits"].split(batch_size) if "logits" in tensors else [torch.empty(0)] * len(parts[0])
    count = len(tensors["order"])
    strips = tensors.get("strips", torch.zeros(count, 2, 1, dtype=torch.uint8)).split(batch_size)
    for number, (who, boxes, flips, partners) in enumerate(zip(*parts, strict=True)):
        top, left, bottom, right = tensors["mixed"][number].tolist()
        share, mixed = float(tensors["shares"][number]), (top, left, bottom, right)
        places = strips[number].long()
        yield Batch(who.long(), boxes.long(), flips, partners.long(), share, mixed, logits[number], places)


def digest(images: Images) -> str:
    """Return the sha256 of images (N, C, H, W) as float32: the same for the same pixels in the same order."""
    whole = hashlib.sha256()
    for part in images.split(256):
        whole.update(part.float().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


def epoch_file(folder: Path, epoch: int) -> Path:
    """Return the path of an epoch's file in a store."""
    return folder / f"epoch-{epoch:04d}.safetensors"


def write_epoch(folder: Path, number: int, tensors: Mapping[str, Tensor]) -> None:
    """Write the file of an epoch, which names the store that it belongs to.

    Args:
        folder: of the store.
        number: of the epoch, from 0.
        tensors: order, boxes, flips, partners, shares, mixed and logits, and strips where there are several.
    """
    write_tensors(epoch_file(folder, number), tensors, {"of": _name_of(folder, number)})


def write_facts(folder: Path, images: Images, epochs: int, batch_size: int, mix: str, more: Mapping[str, Any]) -> None:
    """Write labels.json, last: a store without it is not whole.

    Args:
        folder: of the store.
        images: (N, C, H, W) that the labels belong to.
        epochs: of the store.
        batch_size: images of a batch, except the last.
        mix: "cutmix", "mixup" or "none".
        more: of JSON's types, what made the labels.
    """
    facts: dict[str, Any] = {"format": FORMAT, "images": len(images), "digest": digest(images), "epochs": epochs}
    write_text(folder / "labels.json", json.dumps(facts | {"batch_size": batch_size, "mix": mix, **more}, indent=2))


def facts_in(folder: Path) -> dict[str, Any] | None:
    """Return the content of a store's labels.json; None where it cannot be read, or lacks a field of KINDS."""
    try:
        facts = read_json(folder / "labels.json")
        sound = all(isinstance(facts[name], kind) for name, kind in KINDS.items()) and facts["batch_size"] > 0
        sound = sound and isinstance(facts.get("strips", 1), int) and 1 <= facts.get("strips", 1) <= 255
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if sound else None


def _name_of(folder: Path, epoch: int) -> str:
    return f"{folder.name}/{epoch}"
