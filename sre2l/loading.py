"""Batches of augmented real images for a teacher: cut from tensors, or from files that worker processes decode ahead.

Order and crops are addressed by epoch and step, drawn for the whole batch, of which each process takes its part: they
do not depend on how many processes or workers there are, nor on where a run was interrupted. A resized crop is one of
the whole file, as in torchvision's training on ImageNet; of images in memory, one of the square that is there.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as TF

from distill.data import ImageSet
from distill.data.image_files import ImageFiles
from distill.errors import InputError
from distill.runs.ranks import rank, world_size
from distill.runs.run import Run
from sre2l.crops import Augment, cut, draw_crops

__all__ = ["batches"]

LEAST = 0.08
"""least share of the area of a resized crop, as torchvision has it"""
AHEAD = 4
"""batches that each worker decodes ahead"""


def batches(
    real: ImageSet, augment: Augment, flip: bool, batch_size: int, epoch: int, begin: int, run: Run
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this process's part of each batch of an epoch, from step `begin` on; an incomplete last batch is left out.

    Args:
        real: the training images.
        augment: what is cut from each image.
        flip: whether half of the images are mirrored.
        batch_size: of all processes together.
        epoch: from 0.
        begin: first step.
        run: its generators and workers.

    Yields:
        pixels (batch_size / processes, C, H, H) in [0, 1] and classes, on the device of the images.

    Raises:
        InputError: a file is damaged.
    """
    steps = len(real) // batch_size
    order = torch.randperm(len(real), generator=run.generator("squeeze", "order", epoch))
    order = order[: steps * batch_size].view(steps, batch_size)
    mine = slice(rank() * batch_size // world_size(), (rank() + 1) * batch_size // world_size())
    if isinstance(real.images, ImageFiles):
        seeds = torch.randint(2**62, (steps, batch_size), generator=run.generator("squeeze", "crop", epoch))
        keys = torch.stack([order, seeds], -1)[begin:, mine]
        pixels = _decoded(_Crops(real.images.to("cpu"), augment, flip), keys, run)
    else:
        pixels = _cut(real.images, augment, flip, order, begin, mine, epoch, run)
    for x, who in zip(pixels, order[begin:, mine], strict=True):
        yield x, real.labels[who.to(real.labels.device)]


def _cut(
    images: Tensor, augment: Augment, flip: bool, order: Tensor, begin: int, mine: slice, epoch: int, run: Run
) -> Iterator[Tensor]:
    """Yield the pixels of the batches of images in memory."""
    for step in range(begin, len(order)):
        x = images[order[step, mine].to(images.device)]
        if augment != "none" or flip:
            generator = run.generator("squeeze", "crop", epoch, step)
            boxes, flips = draw_crops(augment, flip, order.shape[1], *x.shape[2:], LEAST, generator)
            x = cut(x, boxes[mine], flips[mine])
        yield x


class _Crops(Dataset):
    """Crops of image files, (3, size, size) uint8, by (index, seed)."""

    def __init__(self, files: ImageFiles, augment: Augment, flip: bool):
        self.files, self.augment, self.flip = files, augment, flip

    def __getitem__(self, key: tuple[int, int]) -> Tensor | InputError:
        index, seed = key
        try:
            whole = self.augment == "resized_crop"
            image = self.files.decode(index) if whole else (self.files[index] * 255).round().byte()
        except InputError as error:  # a DataLoader would put the worker's traceback into its line
            return error
        generator, size = torch.Generator().manual_seed(seed), self.files.size
        boxes, flips = draw_crops(self.augment, self.flip, 1, *image.shape[1:], LEAST, generator)
        image = TF.resized_crop(image, *boxes[0].tolist(), [size, size], antialias=True)
        return image.flip(2) if flips[0] else image


def _together(crops: list[Tensor | InputError]) -> Tensor | InputError:
    """Return crops as one batch, or the first error among them."""
    errors = [crop for crop in crops if isinstance(crop, InputError)]
    return errors[0] if errors else torch.stack(crops)


def _decoded(crops: _Crops, keys: Tensor, run: Run) -> Iterator[Tensor]:
    """Yield the pixels of batches (steps, batch, 2) of crops, decoded ahead by the run's workers.

    Raises:
        InputError: a file is damaged.
    """
    ahead = {"num_workers": run.workers, "prefetch_factor": AHEAD} if run.workers else {}
    order, pinned = map(Tensor.tolist, keys), run.device.type == "cuda"
    for batch in DataLoader(crops, batch_sampler=order, collate_fn=_together, pin_memory=pinned, **ahead):
        if isinstance(batch, InputError):
            raise batch
        yield batch.to(run.device, non_blocking=True).float().div_(255)
