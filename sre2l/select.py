"""Select: the real crops that a teacher classifies with the most confidence, several of them in one image.

RDED, "On the Diversity and Realism of Distilled Dataset", Sun et al., CVPR 2024 (arXiv 2312.03526):

    the crop of candidate i   x_i = argmin over its crops x of  CE(f(x), y)
    the crops of the class    the factor^2 * ipc candidates with the least CE(f(x_i), y)

f is the squeezed teacher in evaluation mode. A candidate is a random real image of class y. A crop is a random square
of 8 to 100 % of the area, shrunk to size / factor; the teacher sees it in the middle of an image of the mean colour.
Image j of the class has the crops of rank j, ipc + j, 2 ipc + j, ... from left to right and from top to bottom.

A class is an independent unit with its own generators and file. Processes share the classes without communication, and
the images do not depend on the number of processes.

Deviation: images are stored as floats, while the official code rounds them down to bytes and saves lossy JPEG files.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.data import ImageSet
from distill.data.image_files import ImageFiles
from distill.data.threads import in_threads
from distill.errors import InputError
from distill.runs.description import describe
from distill.runs.divided import every_nth
from distill.runs.ranks import barrier
from distill.runs.run import Run
from robust import Normalize, RobustTeacher
from robust.ranges import Count, Range, check_ranges
from sre2l.crops import draw_boxes
from sre2l.precision import Compute
from sre2l.units import unit_file, write_unit

__all__ = ["Select", "check", "scores", "select", "stitched"]

AT_ONCE = 256
"""crops that the teacher scores at once"""


@dataclass(frozen=True)
class Select:
    """Which crops are selected.

    Raises:
        ValueError: a field is out of its range.
    """

    candidates: Count = 300
    """random real images of each class that are considered; all images of a class that has fewer"""
    crops: Count = 5
    """random crops of each candidate, of which one can be selected"""
    factor: Count = 2
    """crops along each side of a distilled image, which has factor^2 crops"""
    crop_min: Annotated[float, Range(above=0, most=1)] = 0.08
    """least share of the area of a crop, in (0, 1]"""

    def __post_init__(self) -> None:
        check_ranges(self)

    def crops_needed(self, ipc: int) -> int:
        """Return the number of crops in the distilled images of a class.

        >>> Select(factor=2).crops_needed(10)
        40
        """
        return self.factor**2 * ipc


def check(real: ImageSet, ipc: int, config: Select) -> None:
    """Refuse before any work settings by which a class has too few crops.

    Args:
        real: the real images.
        ipc: images per class.
        config: the settings.

    Raises:
        InputError: a class or `candidates` has fewer images than crops are needed, or a crop would have no pixel.
    """
    needed, size = config.crops_needed(ipc), real.image_shape[-1]
    if config.factor > size:
        raise InputError(f"select.factor is {config.factor}; images of {size} px have no {config.factor} crops a side")
    why = f"{ipc} images per class of {config.factor} x {config.factor} crops need {needed}"
    if config.candidates < needed:
        raise InputError(f"select.candidates is {config.candidates}; {why}; give --select.candidates {needed}")
    counts = real.labels.bincount(minlength=real.num_classes)
    if (fewest := int(counts.min())) < needed:
        name = real.classes[int(counts.argmin())]
        advice = "give a smaller --select.factor or --ipc" if config.factor > 1 else "give a smaller --ipc"
        raise InputError(f"class {name} of {real.name} has {fewest} images; {why}; {advice}")


def select(
    teacher: RobustTeacher, teacher_stage: str, real: ImageSet, ipc: int, config: Select, compute: Compute, run: Run
) -> Path:
    """Select and stitch the crops of all classes whose files are missing.

    Args:
        teacher: the squeezed network, frozen; it takes normalised images.
        teacher_stage: name of the teacher's stage.
        real: the real images.
        ipc: images per class.
        config: the settings.
        compute: how the arithmetic runs.
        run: the run of the method; the stage has its own folder in `run.stages`.

    Returns:
        the folder of the stage, with a file of each class (`sre2l.units`).

    Raises:
        InputError: a class has too few images, a file is damaged, or the teacher's logits are not finite.
    """
    check(real, ipc, config)
    settings = {"teacher": teacher_stage, "data": real.identity(), "ipc": ipc}
    stage = run.stage("select", settings | {"select": describe(config), "compute": describe(compute)})
    normalize = Normalize(real.mean, real.std).to(run.device)
    network = compute.faster(compute.place(teacher.network, run.device).eval())
    classes = every_nth(list(range(real.num_classes)))
    todo = [class_ for class_ in classes if not unit_file(stage.folder, class_).exists()]
    with stage.progress("select", len(classes), len(classes) - len(todo), unit="class") as bar:
        for class_ in todo:
            crops, losses = _best_crops(network, real, class_, normalize, config, compute, stage)
            if not losses.isfinite().all():
                raise InputError(
                    f"selection of class {real.classes[class_]} diverged (the teacher's cross-entropy is not finite); "
                    "take a smaller --squeeze.lr"
                )
            ranked = crops[losses.argsort(stable=True)[: config.crops_needed(ipc)]]
            images = stitched(ranked, ipc, config.factor, real.image_shape[-1])
            write_unit(stage.folder, class_, images, class_ * ipc + torch.arange(ipc))
            bar.update()
    barrier()
    return stage.folder


def _best_crops(
    network: nn.Module, real: ImageSet, class_: int, normalize: Normalize, config: Select, compute: Compute, run: Run
) -> tuple[Tensor, Tensor]:
    """Return the crop with the least loss of each candidate, (n, C, size / factor, size / factor), and the losses (n,).

    Both are on the CPU, in the random order of the candidates.
    """
    indices = (real.labels.cpu() == class_).nonzero()[:, 0]
    drawn_from = run.generator("select", class_)
    indices = indices[torch.randperm(len(indices), generator=drawn_from)[: config.candidates]]
    seeds = torch.randint(2**62, (len(indices),), generator=drawn_from)
    at_once = max(1, AT_ONCE // config.crops)
    best, least = [], []
    for part, part_seeds in zip(indices.split(at_once), seeds.split(at_once), strict=True):
        crops = torch.stack(list(_crops_of(real, part, part_seeds, config)))
        flat = normalize(crops.flatten(0, 1).to(run.device))
        losses = scores(network, flat, class_, real.image_shape[-1], compute).view(len(part), -1).cpu()
        which = losses.argmin(1)
        best.append(crops[torch.arange(len(part)), which])
        least.append(losses.min(1).values)
    return torch.cat(best), torch.cat(least)


def _crops_of(real: ImageSet, indices: Tensor, seeds: Tensor, config: Select) -> Iterator[Tensor]:
    """Yield the crops of each candidate, (crops, C, size / factor, size / factor) pixels on the CPU.

    Crops of files are cut from the whole picture, crops of images in memory from the square image.
    """
    from torchvision.transforms.v2.functional import resized_crop  # slow to import

    side = real.image_shape[-1] // config.factor
    whole = _whole_images(real, indices)

    def crops_of(number: int) -> Tensor:
        image, generator = whole(number), torch.Generator().manual_seed(int(seeds[number]))
        height, width = image.shape[1:]
        boxes = draw_boxes(config.crops, height, width, config.crop_min, generator, (1.0, 1.0)).tolist()
        return torch.stack([resized_crop(image, *box, size=[side, side], antialias=True) for box in boxes])

    yield from in_threads(crops_of, range(len(indices)))


def _whole_images(real: ImageSet, indices: Tensor) -> Callable[[int], Tensor]:
    """Return number of an index -> its image (C, H, W), pixels on the CPU; files are decoded at their own size."""
    if isinstance(real.images, ImageFiles):
        files = real.images
        return lambda number: files.decode(int(indices[number])).float().div_(255)
    images = real.images[indices.to(real.images.device)].cpu()
    return lambda number: images[number]


@torch.no_grad()
def scores(network: nn.Module, crops: Tensor, class_: int, size: int, compute: Compute) -> Tensor:
    """Return the teacher's cross-entropy of each crop, (n,) float32.

    Args:
        network: takes normalised images, in evaluation mode.
        crops: (n, C, side, side) normalised.
        class_: of all crops.
        size: of the images that the teacher takes; the pixels around a crop are 0, the mean colour.
        compute: how the arithmetic runs.
    """
    before = (size - crops.shape[-1]) // 2
    after = size - crops.shape[-1] - before
    with compute.autocast(crops.device):
        logits = network(F.pad(crops, (before, after, before, after)))
    targets = torch.full((len(crops),), class_, device=crops.device)
    return F.cross_entropy(logits.float(), targets, reduction="none")


def stitched(crops: Tensor, ipc: int, factor: int, size: int) -> Tensor:
    """Return images of factor x factor crops, (ipc, C, size, size).

    Args:
        crops: (factor^2 * ipc, C, size // factor, size // factor), in the order of their rank.
        ipc: number of images.
        factor: crops along each side.
        size: of the images. Where the factor does not divide it, the first rows and columns of crops are a pixel
            larger (nearest neighbour), as in the official code.

    >>> crops = torch.arange(8.0).view(8, 1, 1, 1)
    >>> stitched(crops, ipc=2, factor=2, size=2)[1, 0].tolist()
    [[1.0, 3.0], [5.0, 7.0]]
    """
    small, larger = divmod(size, factor)
    sides = [small + (place < larger) for place in range(factor)]
    cells = [F.interpolate(cell, (sides[n // factor], sides[n % factor])) for n, cell in enumerate(crops.split(ipc))]
    return torch.cat([torch.cat(cells[row * factor : (row + 1) * factor], 3) for row in range(factor)], 2)
