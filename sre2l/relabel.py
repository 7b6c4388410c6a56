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
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from distill.errors import InputError
from distill.runs.files import read_tensors, write_tensors, write_text
from distill.runs.foreign import read_json
from distill.runs.ranks import barrier, is_main_process, units_of_this_process
from distill.runs.run import Run, describe
from robust import Normalize, RobustTeacher
from robust.ranges import Count, Positive, Range, check_ranges
from sre2l.crops import cut, cut_box, draw_crops
from sre2l.precision import Compute

__all__ = ["FORMAT", "Batch", "Labels", "Relabel", "digest", "epoch_file", "leaves_one", "mend", "relabel", "view"]

FORMAT = "guard-labels-1"
PARTS = ("relabel", "compute")
"""of the settings of a stage, each a dataclass"""


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
    settings = {"teacher": made_by, "images": digest(images), "relabel": describe(config)}
    stage = run.stage("relabel", settings | {"compute": describe(compute)})
    _label(teacher.network, images, normalize, config, compute, stage)
    return stage.folder


def mend(folder: Path, teacher: nn.Module, images: Tensor, normalize: Normalize, run: Run) -> None:
    """Label the epochs again whose files are gone from a store that `relabel` made, if these are its images.

    Args:
        folder: of the store; one that says not how it was made is left as it is.
        teacher: that labelled it, in evaluation mode; it takes normalised images.
        images: (N, C, H, H) pixels.
        normalize: the teacher's normalisation.
        run: of the evaluation.
    """
    try:
        made = read_json(folder / "experiment.json")["experiment"]
        settings, seed = made["config"], made["seed"]
        fields = ({name: value for name, value in settings[part].items() if name != "class"} for part in PARTS)
        relabelled, computed = fields
        config, compute = Relabel(**relabelled), Compute(**computed)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    whole = _facts(folder) is not None and all(epoch_file(folder, n).exists() for n in range(config.epochs))
    if whole or settings.get("images") != digest(images):
        return
    options = {"seed": seed, "device": run.device, "checkpoint_seconds": run.checkpoint_seconds}
    _label(deepcopy(teacher), images, normalize, config, compute, Run(folder, made, **options))


def _label(
    network: nn.Module, images: Tensor, normalize: Normalize, config: Relabel, compute: Compute, stage: Run
) -> None:
    """Label all epochs of a stage that are not there yet."""
    network = compute.faster(compute.place(network, stage.device).eval())
    whole = units_of_this_process(list(range(config.epochs)))
    barrier()  # all processes find the same files
    todo = [epoch for epoch in whole if not epoch_file(stage.folder, epoch).exists()]
    with stage.progress("relabel", len(whole), len(whole) - len(todo), unit="epoch") as bar:
        for epoch in todo:
            drawn = _draw(len(images), images.shape[-1], config, stage.generator("relabel", epoch))
            with torch.no_grad(), compute.autocast(stage.device):
                logits = [network(normalize(view(images, batch, config.mix))) for batch in _batches(drawn, config)]
            drawn["logits"] = torch.cat(logits).half()
            if not drawn["logits"].isfinite().all():
                raise InputError(
                    f"relabelling diverged in iteration {epoch} (the teacher's logits are not finite in float16); "
                    "take a smaller --squeeze.lr"
                )
            write_tensors(epoch_file(stage.folder, epoch), drawn, {"of": f"{stage.folder.name}/{epoch}"})
            bar.update()
    if is_main_process():
        facts = {"format": FORMAT, "images": len(images), "digest": digest(images)} | describe(config)
        write_text(stage.folder / "labels.json", json.dumps(facts, indent=2))
    barrier()


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
        classes: number of classes of the labels; None for any.

    Raises:
        InputError: there is no whole store, or it belongs to other images.
    """

    def __init__(self, folder: Path, images: str, classes: int | None = None):
        self.folder, self.images, self.classes = folder, images, classes
        facts = _facts(folder)
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

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Raises:
            InputError: its file is damaged, or another store's.
        """
        path = epoch_file(self.folder, number)
        tensors, facts = read_tensors(path)
        ours = f"{self.folder.name}/{number}"
        if facts.get("of", ours) != ours or not self._fits(tensors):  # files of earlier versions do not say whose
            raise InputError(f"{path} has not the labels of epoch {number} of these images; delete it")
        yield from _batches(tensors, self)

    def _fits(self, tensors: dict[str, Tensor]) -> bool:
        """Return whether tensors are an epoch of this store."""
        n, batches = self.count, -(-self.count // self.batch_size)
        k = self.classes or (tensors["logits"].shape[-1] if "logits" in tensors else 0)
        shapes = {"order": (n,), "boxes": (n, 4), "flips": (n,), "partners": (n,), "shares": (batches,)}
        shapes |= {"mixed": (batches, 4), "logits": (n, k)}
        if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
            return False
        lengths = torch.tensor([len(part) for part in tensors["order"].split(self.batch_size)])
        partners = tensors["partners"]
        inside = (partners >= 0) & (partners < lengths.repeat_interleave(lengths))
        whole = torch.equal(tensors["order"].long().sort().values, torch.arange(n))
        return whole and bool(inside.all()) and bool(tensors["logits"].isfinite().all())


KINDS = {"format": str, "digest": str, "mix": str, "images": int, "epochs": int, "batch_size": int}
"""of what labels.json must say"""


def _facts(folder: Path) -> dict[str, Any] | None:
    """Return what labels.json says of a store; None where it cannot be read, or lacks something."""
    try:
        facts = read_json(folder / "labels.json")
        sound = all(isinstance(facts[name], kind) for name, kind in KINDS.items()) and facts["batch_size"] > 0
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if sound else None


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
