"""Relabel: what the teacher says of crops of the distilled images, kept so that students see the very same crops.

FKD ("A Fast Knowledge Distillation Framework", Shen & Xing, ECCV 2022), as SRe2L uses it: an epoch of a student's
training is an order of the images, a crop and a flip of each, a mixture of each batch (CutMix or MixUp with lambda from
Beta(alpha, alpha)), and the teacher's logits of the mixed crops. The folder of the stage holds

    labels.json               number and digest of the images, batch size, mixture, epochs
    epoch-NNNN.safetensors    order (N,) int32, boxes (N, 4) int16, flips (N,) bool, partners (N,) int32: positions in
                              the order, shares (batches,) float32, mixed (batches, 4) int16: the rectangle of CutMix,
                              logits (N, K) float16

Each epoch is a unit of its own, so that processes share them without a word. The official store is read by a patched
fetcher of torch, keyed by the index of a batch's first image; this one by `epoch`, a list of batches.

Deviation: the teacher is in evaluation mode (for CIFAR the official code leaves it in training mode, where its
statistics drift).
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from distill.errors import InputError
from distill.files import read_tensors, write_tensors, write_text
from distill.ranks import barrier, first, share
from distill.run import Run, describe
from robust import Normalize, RobustTeacher
from robust.ranges import Count, Positive, Range, check_ranges
from sre2l.crops import cut, cut_box, draw_crops
from sre2l.precision import Compute

__all__ = ["FORMAT", "Batch", "Labels", "Relabel", "digest", "epoch_file", "leaves_one", "relabel", "view"]

FORMAT = "guard-labels-1"


@dataclass(frozen=True)
class Relabel:
    """Which crops the teacher labels.

    Raises:
        ValueError: a field is out of its range.
    """

    epochs: Count = 300
    """labels of each image: epochs that a student trains"""
    batch_size: Count = 100
    """images of a step of a student, which are mixed with one another"""
    mix: Literal["cutmix", "mixup", "none"] = "cutmix"
    """how each image of a batch is mixed with another"""
    alpha: Positive = 1.0
    """of the mixture's Beta(alpha, alpha)"""
    augment: Literal["resized_crop", "padded_crop"] = "resized_crop"
    """crop of a random area, enlarged; or of the image padded by an eighth of its side (CIFAR)"""
    flip: bool = True
    """whether half of the images are mirrored"""
    crop_min: Annotated[float, Range(above=0, most=1)] = 0.08
    """least share of the area of a resized crop, in (0, 1]"""

    def __post_init__(self) -> None:
        check_ranges(self)


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
    """MixUp: what stays of the image"""
    mixed: tuple[int, int, int, int]
    """CutMix: top, left, bottom, right of the rectangle that comes from the partner"""
    logits: Tensor
    """(n, K) of the teacher"""


def relabel(
    teacher: RobustTeacher,
    made_by: str,
    images: Tensor,
    normalize: Normalize,
    config: Relabel,
    compute: Compute,
    run: Run,
) -> Path:
    """Label all epochs that are not labelled yet.

    Args:
        teacher: the squeezed network, frozen; it takes normalised images.
        made_by: name of its stage.
        images: (N, C, H, H) the distilled images, pixels.
        normalize: the teacher's normalisation.
        config: the settings.
        compute: how the arithmetic runs.
        run: of the whole; the stage has its own folder among `run.stages`.

    Returns:
        the folder of the stage.

    Raises:
        InputError: there are fewer images than a batch has.
    """
    if len(images) < config.batch_size:
        raise InputError(f"relabel.batch_size is {config.batch_size}, but there are {len(images)} distilled images")
    images_digest = digest(images)
    settings = {"teacher": made_by, "images": images_digest, "relabel": describe(config)}
    stage = run.stage("relabel", settings | {"compute": describe(compute)})
    network = compute.faster(compute.place(teacher.network, run.device).eval())
    whole = share(list(range(config.epochs)))
    todo = [epoch for epoch in whole if not epoch_file(stage.folder, epoch).exists()]
    with stage.progress("relabel", len(whole), len(whole) - len(todo), unit="epoch") as bar:
        for epoch in todo:
            drawn = _draw(len(images), images.shape[-1], config, run.generator("relabel", epoch))
            with torch.no_grad(), compute.autocast(run.device):
                logits = [network(normalize(view(images, batch, config.mix))) for batch in _batches(drawn, config)]
            drawn["logits"] = torch.cat(logits).half()
            if not drawn["logits"].isfinite().all():
                raise InputError(f"the teacher {made_by} gives logits beyond float16; squeeze it with a smaller lr")
            write_tensors(epoch_file(stage.folder, epoch), drawn)
            bar.update()
    if first():
        shape = {"images": len(images), "digest": images_digest}
        write_text(stage.folder / "labels.json", json.dumps({"format": FORMAT} | shape | describe(config), indent=2))
    barrier()
    return stage.folder


def digest(images: Tensor) -> str:
    """Return a fingerprint of images: the same for the same pixels in the same order."""
    whole = hashlib.sha256()
    for part in images.split(256):
        whole.update(part.float().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


def view(images: Tensor, batch: Batch, mix: str) -> Tensor:
    """Return what the teacher sees, and the students, of a batch: (n, C, H, H) pixels."""
    seen = cut(images[batch.who.to(images.device)], batch.boxes, batch.flips)
    if mix == "none":
        return seen
    others = seen[batch.partners.to(seen.device)]
    if mix == "mixup":
        return others + batch.share * (seen - others)
    top, left, bottom, right = batch.mixed
    seen[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return seen


class Labels:
    """A store of labels, epoch by epoch.

    Args:
        folder: of the stage.
        images: digest of the images that it must belong to.

    Raises:
        InputError: there is no whole store, or it belongs to other images.
    """

    def __init__(self, folder: Path, images: str):
        self.folder = folder
        try:
            facts = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise InputError(
                f"{folder} holds no labels (no readable labels.json); run the method again, or take --protocol standard"
            ) from None
        if facts.get("format") != FORMAT:
            raise InputError(f"{folder} has the format {facts.get('format')}, not {FORMAT}")
        if facts["digest"] != images:
            raise InputError(
                f"the labels in {folder} belong to other images ({facts['images']} of digest {facts['digest'][:12]}, "
                f"these have {images[:12]}); relabel these: run the method again with another --runs"
            )
        missing = [epoch for epoch in range(facts["epochs"]) if not epoch_file(folder, epoch).exists()]
        if missing:
            raise InputError(f"{folder} lacks the labels of {len(missing)} epochs, the first {missing[0]}")
        self.epochs: int = facts["epochs"]
        self.mix: str = facts["mix"]
        self.batch_size: int = facts["batch_size"]

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        tensors, _ = read_tensors(epoch_file(self.folder, number))
        yield from _batches(tensors, self)


def leaves_one(images: int, batch_size: int) -> bool:
    """Return whether a batch of an epoch has a single image.

    >>> leaves_one(100, 33), leaves_one(100, 50)
    (True, False)
    """
    return batch_size == 1 or images % batch_size == 1


def epoch_file(folder: Path, epoch: int) -> Path:
    """Return the file of an epoch in a store."""
    return folder / f"epoch-{epoch:04d}.safetensors"


def _draw(count: int, size: int, config: Relabel, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw all but the logits of an epoch."""
    order = torch.randperm(count, generator=generator)
    batches = order.split(config.batch_size)
    partners = torch.cat([torch.randperm(len(batch), generator=generator) for batch in batches])
    shares = _beta(config.alpha, len(batches), generator)
    mixed = [cut_box(size, float(kept), generator) for kept in shares]
    boxes, flips = draw_crops(config.augment, config.flip, count, size, size, config.crop_min, generator)
    return {
        "order": order.int(),
        "boxes": boxes.short(),
        "flips": flips,
        "partners": partners.int(),
        "shares": shares,
        "mixed": torch.tensor(mixed).short(),
    }


def _beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    """Draw from Beta(alpha, alpha), (count,): of two Gamma variables, the first's share."""
    x, y = torch._standard_gamma(torch.full((2, count), alpha, dtype=torch.float64), generator=generator)
    return (x / (x + y)).float()


def _batches(tensors: dict[str, Tensor], config: Any) -> Iterator[Batch]:
    """Yield the batches of an epoch's tensors, of which logits may be missing."""
    parts = [tensors[name].split(config.batch_size) for name in ("order", "boxes", "flips", "partners")]
    logits = tensors["logits"].split(config.batch_size) if "logits" in tensors else [torch.empty(0)] * len(parts[0])
    for number, (who, boxes, flips, partners) in enumerate(zip(*parts, strict=True)):
        mixed = tuple(tensors["mixed"][number].tolist())
        kept = float(tensors["shares"][number])
        yield Batch(who.long(), boxes.long(), flips, partners.long(), kept, mixed, logits[number])
