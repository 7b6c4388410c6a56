"""Relabel: the teacher's logits for crops of the distilled images, stored so that students see the very same crops.

The files of the store are described in `distill.training.crop_labels`. CutMix and MixUp take lambda from
Beta(alpha, alpha). Each epoch is labelled independently, so that processes share the epochs without communication.

Deviation: the teacher is in evaluation mode (for CIFAR the official code leaves it in training mode, where its
statistics drift).
"""

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from distill.data.images import Images
from distill.errors import InputError
from distill.experiment import LATER
from distill.runs.description import describe
from distill.runs.divided import every_nth
from distill.runs.foreign import read_json
from distill.runs.ranks import barrier, is_main_process
from distill.runs.run import Run
from distill.training.crop_labels import Batch, batches, digest, epoch_file, facts_in, write_epoch, write_facts
from robust import Normalize, RobustTeacher
from robust.ranges import Count, Positive, Range, check_ranges
from sre2l.crops import cut, cut_box, draw_crops, draw_strips, shuffled
from sre2l.precision import Compute
from sre2l.training import require_batch_of_one

__all__ = ["Relabel", "check", "has_batch_of_one", "label_missing_epochs", "relabel", "view"]

PARTS = ("relabel", "compute")
"""entries of a stage's settings that are dataclasses"""


@dataclass(frozen=True)
class Relabel:
    """Which crops the teacher labels.

    Raises:
        ValueError: a field is out of its range.
    """

    epochs: Count = 300
    """labels for each image, which are the epochs of a student"""
    batch_size: Count = 100
    """images of a step of a student, which are mixed with one another"""
    mix: Literal["cutmix", "mixup", "none"] = "cutmix"
    """how each image of a batch is mixed with another"""
    alpha: Positive = 1.0
    """parameter of Beta(alpha, alpha), from which the ratio of mixing is drawn"""
    augment: Literal["resized_crop", "padded_crop"] = "resized_crop"
    """crop of a random area, enlarged; or crop of the image padded by an eighth of its side (CIFAR)"""
    flip: bool = True
    """whether half of the images are mirrored"""
    crop_min: Annotated[float, Range(above=0, most=1)] = 0.08
    """least share of the area of a resized crop, in (0, 1]"""
    strips: Annotated[int, Range(least=1, most=255)] = field(default=1, metadata=LATER)
    """horizontal and vertical strips of an image that are put in random order before the crop (RDED); 1 for none"""

    def __post_init__(self) -> None:
        check_ranges(self)


def check(network: nn.Module, images: int, shape: tuple[int, ...], config: Relabel) -> None:
    """Refuse before any work batches that `relabel` or a student of this network would refuse later.

    Args:
        network: of the students.
        images: number of distilled images.
        shape: (C, H, W) of an image.
        config: the settings.

    Raises:
        InputError: there are too few images for a batch, or the network cannot be trained on the last batch.
    """
    size = config.batch_size
    if images < size:
        raise InputError(
            f"relabel.batch_size is {size}, but there will be {images} distilled images; take a smaller batch"
        )
    if has_batch_of_one(images, size):
        advice = "take a size that leaves no last batch of one image"
        require_batch_of_one(network, shape, f"relabel.batch_size is {size}, of {images} images; {advice}")


def relabel(
    teacher: RobustTeacher,
    teacher_stage: str,
    images: Images,
    normalize: Normalize,
    config: Relabel,
    compute: Compute,
    run: Run,
) -> Path:
    """Label all epochs that are not labelled yet.

    Args:
        teacher: the squeezed network, frozen; it takes normalised images.
        teacher_stage: name of the teacher's stage.
        images: (N, C, H, H) the distilled images, pixels.
        normalize: the teacher's normalisation.
        config: the settings.
        compute: how the arithmetic runs.
        run: the run of the method; the stage has its own folder in `run.stages`.

    Returns:
        the folder of the stage.

    Raises:
        InputError: there are fewer images than a batch has.
    """
    if len(images) < config.batch_size:
        raise InputError(f"relabel.batch_size is {config.batch_size}, but there are {len(images)} distilled images")
    settings = {"teacher": teacher_stage, "images": digest(images), "relabel": describe(config)}
    stage = run.stage("relabel", settings | {"compute": describe(compute)})
    _label(teacher.network, images, normalize, config, compute, stage)
    return stage.folder


def label_missing_epochs(folder: Path, teacher: nn.Module, images: Images, normalize: Normalize, run: Run) -> None:
    """Label again the epochs whose files are missing in a store of `relabel`, if the store belongs to these images.

    Args:
        folder: of the store; without a readable experiment.json nothing is done.
        teacher: the network that made the labels, in evaluation mode; it takes normalised images.
        images: (N, C, H, H) pixels.
        normalize: the teacher's normalisation.
        run: of the evaluation.
    """
    try:
        made = read_json(folder / "experiment.json")["experiment"]
        settings, seed = made["config"], made["seed"]
        fields = ({name: value for name, value in settings[part].items() if name != "class"} for part in PARTS)
        of_relabel, of_compute = fields
        config, compute = Relabel(**of_relabel), Compute(**of_compute)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    complete = facts_in(folder) is not None and all(epoch_file(folder, n).exists() for n in range(config.epochs))
    if complete or settings.get("images") != digest(images):
        return
    options = {"seed": seed, "device": run.device, "checkpoint_seconds": run.checkpoint_seconds}
    _label(deepcopy(teacher), images, normalize, config, compute, Run(folder, made, **options))


def _label(
    network: nn.Module, images: Images, normalize: Normalize, config: Relabel, compute: Compute, stage: Run
) -> None:
    """Label all epochs of a stage whose files are missing."""
    network = compute.faster(compute.place(network, stage.device).eval())
    epochs = every_nth(list(range(config.epochs)))
    barrier()  # so that all processes find the same files
    todo = [epoch for epoch in epochs if not epoch_file(stage.folder, epoch).exists()]
    with stage.progress("relabel", len(epochs), len(epochs) - len(todo), unit="epoch") as bar:
        for epoch in todo:
            drawn = _draw(len(images), images.shape[-1], config, stage.generator("relabel", epoch))
            with torch.no_grad(), compute.autocast(stage.device):
                logits = [
                    network(normalize(view(images, batch, config.mix))) for batch in batches(drawn, config.batch_size)
                ]
            drawn["logits"] = torch.cat(logits).half()
            if not drawn["logits"].isfinite().all():
                raise InputError(
                    f"relabelling diverged in iteration {epoch} (the teacher's logits are not finite in float16); "
                    "take a smaller --squeeze.lr"
                )
            write_epoch(stage.folder, epoch, drawn)
            bar.update()
    if is_main_process():
        write_facts(stage.folder, images, config.epochs, config.batch_size, config.mix, describe(config))
    barrier()


def view(images: Images, batch: Batch, mix: str) -> Tensor:
    """Return the cropped and mixed images of a batch, which teacher and students see: (n, C, H, H) pixels."""
    whole = images[batch.who.to(images.device, non_blocking=True)]
    whole = shuffled(whole, batch.strips) if batch.strips.shape[-1] > 1 else whole
    crops = cut(whole, batch.boxes, batch.flips)
    if mix == "none":
        return crops
    others = crops[batch.partners.to(crops.device, non_blocking=True)]
    if mix == "mixup":
        return others + batch.share * (crops - others)
    top, left, bottom, right = batch.mixed
    crops[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return crops


def has_batch_of_one(images: int, batch_size: int) -> bool:
    """Return whether a batch of an epoch has a single image.

    >>> has_batch_of_one(100, 33), has_batch_of_one(100, 50)
    (True, False)
    """
    return batch_size == 1 or images % batch_size == 1


def _draw(count: int, size: int, config: Relabel, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw the order, crops and mixtures of an epoch."""
    order = torch.randperm(count, generator=generator)
    batches = order.split(config.batch_size)
    partners = torch.cat([torch.randperm(len(batch), generator=generator) for batch in batches])
    shares = _beta(config.alpha, len(batches), generator)
    mixed = [cut_box(size, float(share), generator) for share in shares]
    boxes, flips = draw_crops(config.augment, config.flip, count, size, size, config.crop_min, generator)
    strips = {"strips": draw_strips(count, config.strips, generator).byte()} if config.strips > 1 else {}
    return strips | {
        "order": order.int(),
        "boxes": boxes.short(),
        "flips": flips,
        "partners": partners.int(),
        "shares": shares,
        "mixed": torch.tensor(mixed).short(),
    }


def _beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    """Draw from Beta(alpha, alpha), (count,), as x / (x + y) of two Gamma variables."""
    shapes = torch.full((2, count), alpha, dtype=torch.float64)
    x, y = torch._standard_gamma(shapes, generator=generator)  # pyright: ignore[reportPrivateImportUsage]
    return (x / (x + y)).float()
