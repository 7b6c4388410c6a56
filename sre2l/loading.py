"""Batches of augmented real images for a teacher: cut from tensors, or from files that worker processes decode ahead.

Order and crops are addressed by epoch and step and drawn for the whole batch, of which each process takes a part. They
do not depend on the number of processes or workers, nor on interruptions of a run. Resized crops of files are cut from
the whole picture, as in torchvision's training on ImageNet; resized crops of images in memory, and of files that are
blurred (`ImageFiles.blur` counts in pixels of the square image), from the square image.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.data import ImageSet
from distill.data.image_files import ImageFiles
from distill.errors import InputError
from distill.runs.ranks import rank, world_size
from distill.runs.run import Run
from sre2l.crops import Augment, cut, draw_crops

__all__ = ["batches"]

LEAST = 0.08
"""least share of the area of a resized crop, the default of torchvision"""
AHEAD = 4
"""batches that each worker decodes ahead"""


def batches(
    real: ImageSet, augment: Augment, flip: bool, batch_size: int, epoch: int, begin: int, run: Run
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the part of this process of each batch of an epoch, from step `begin` on, without an incomplete last batch.

    Args:
        real: the training images.
        augment: kind of crops.
        flip: whether half of the images are mirrored.
        batch_size: images of all processes together.
        epoch: from 0.
        begin: first step.
        run: has the generators and the number of workers.

    Yields:
        pixels (batch_size / processes, C, H, H) in [0, 1] and classes, on the device of the images.

    Raises:
        InputError: a file is damaged.
    """
    steps = len(real) // batch_size
    order = torch.randperm(len(real), generator=run.generator("squeeze", "order", epoch))
    order = order[: steps * batch_size].view(steps, batch_size)
    part = slice(rank() * batch_size // world_size(), (rank() + 1) * batch_size // world_size())
    if isinstance(real.images, ImageFiles):
        seeds = torch.randint(2**62, (steps, batch_size), generator=run.generator("squeeze", "crop", epoch))
        keys = torch.stack([order, seeds], -1)[begin:, part]
        pixels = _decoded(_Crops(real.images.to("cpu"), augment, flip), keys, run)
    else:
        pixels = _cut(real.images, augment, flip, order, begin, part, epoch, run)
    for x, indices in zip(pixels, order[begin:, part], strict=True):
        yield x, real.labels[indices.to(real.labels.device, non_blocking=True)]


def _cut(
    images: Tensor, augment: Augment, flip: bool, order: Tensor, begin: int, part: slice, epoch: int, run: Run
) -> Iterator[Tensor]:
    """Yield the pixels of the batches of images in memory."""
    for step in range(begin, len(order)):
        x = images[order[step, part].to(images.device, non_blocking=True)]
        if augment != "none" or flip:
            generator = run.generator("squeeze", "crop", epoch, step)
            height, width = x.shape[2:]
            boxes, flips = draw_crops(augment, flip, order.shape[1], height, width, LEAST, generator)
            x = cut(x, boxes[part], flips[part])
        yield x


class _Crops(Dataset):
    """Crops of image files, (3, size, size) uint8, indexed by (index of the image, seed of the crop)."""

    def __init__(self, files: ImageFiles, augment: Augment, flip: bool):
        from torchvision.transforms.v2.functional import resized_crop  # slow to import: once, before workers fork

        self.files, self.flip, self.resized_crop = files, flip, resized_crop
        self.augment: Augment = augment

    def __getitem__(self, key: tuple[int, int]) -> Tensor | InputError:
        index, seed = key
        try:
            whole = self.augment == "resized_crop" and not self.files.blur
            image = self.files.decode(index) if whole else (self.files[index] * 255).round().byte()
        except InputError as error:  # a DataLoader would add the worker's traceback to the message
            return error
        generator, size = torch.Generator().manual_seed(seed), self.files.size
        height, width = image.shape[1:]
        boxes, flips = draw_crops(self.augment, self.flip, 1, height, width, LEAST, generator)
        top, left, crop_height, crop_width = boxes[0].tolist()
        image = self.resized_crop(image, top, left, crop_height, crop_width, [size, size], antialias=True)
        return image.flip(2) if flips[0] else image


def _stacked(crops: list[Tensor | InputError]) -> Tensor | InputError:
    """Return crops as one batch, or the first error among them."""
    images = [crop for crop in crops if isinstance(crop, Tensor)]
    errors = [crop for crop in crops if isinstance(crop, InputError)]
    return errors[0] if errors else torch.stack(images)


def _decoded(crops: _Crops, keys: Tensor, run: Run) -> Iterator[Tensor]:
    """Yield the pixels of batches (steps, batch, 2) of crops, decoded ahead by the run's workers.

    Raises:
        InputError: a file is damaged.
    """
    ahead: dict[str, Any] = {"num_workers": run.workers, "prefetch_factor": AHEAD} if run.workers else {}
    order, pinned = map(Tensor.tolist, keys), run.device.type == "cuda"
    for batch in DataLoader(crops, batch_sampler=order, collate_fn=_stacked, pin_memory=pinned, **ahead):
        if isinstance(batch, InputError):
            raise batch
        yield batch.to(run.device, non_blocking=True).float().div_(255)
