"""Batches of augmented real images for a teacher: cut from tensors, or decoded by workers from files of any size.

Order and crops are addressed by epoch and step, drawn for the whole batch, of which each process takes its part: they
do not depend on how many processes there are, nor on where a run was interrupted.
"""

from collections.abc import Iterator
from typing import Literal

import torch
import torchvision.transforms.v2.functional as TF

try:
    from distill.data.image_files import ImageFiles
except ImportError:
    ImageFiles = ()  # TEMPORARY
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.data import ImageSet
from distill.ranks import rank, world
from distill.run import Run
from sre2l.crops import cut, draw_boxes, draw_flips, padded_boxes

__all__ = ["Augment", "batches"]

Augment = Literal["resized_crop", "padded_crop", "none"]
"""random resized crop of [0.08, 1] of the area; crop of the image padded by an eighth of its side (CIFAR); nothing"""
LEAST = 0.08


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
        run: its generators and device.

    Yields:
        pixels (batch_size / processes, C, H, H) in [0, 1] and classes, on the run's device.
    """
    order = torch.randperm(len(real), generator=run.generator("squeeze", "order", epoch))
    steps = len(real) // batch_size
    mine = slice(rank() * batch_size // world(), (rank() + 1) * batch_size // world())
    if isinstance(real.images, ImageFiles):
        seeds = torch.randint(2**62, (len(real),), generator=run.generator("squeeze", "crop", epoch))
        whole = order[: steps * batch_size].view(steps, batch_size)
        yield from _from_files(
            real.labels, whole[begin:, mine], seeds, _Crops(real.images.to("cpu"), augment, flip), run
        )
        return
    labels = real.labels
    for step in range(begin, steps):
        who = order[step * batch_size : (step + 1) * batch_size]
        generator = run.generator("squeeze", "crop", epoch, step)
        who_here = who[mine].to(labels.device)
        x = real.images[who_here]
        if augment != "none" or flip:
            size = x.shape[-1]
            if augment == "resized_crop":
                boxes = draw_boxes(batch_size, size, size, LEAST, generator)
            else:
                boxes = padded_boxes(batch_size, size, size // 8 if augment == "padded_crop" else 0, generator)
            flips = draw_flips(batch_size, generator) & flip
            x = cut(x, boxes[mine], flips[mine])
        yield x, labels[who_here]


class _Crops(Dataset):
    """Images decoded and cropped by (index, seed)."""

    def __init__(self, files: ImageFiles, augment: Augment, flip: bool):
        self.files, self.augment, self.flip = files, augment, flip

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        index, seed = key
        size, generator = self.files.size, torch.Generator().manual_seed(seed)
        if self.augment == "resized_crop":
            image = self.files.decode(index)
            box = draw_boxes(1, *image.shape[1:], LEAST, generator)[0].tolist()
            image = TF.resized_crop(image, *box, [size, size], antialias=True)
        else:
            image = (self.files[index] * 255).round().byte()
            if self.augment == "padded_crop":
                image = TF.crop(image, *padded_boxes(1, size, size // 8, generator)[0].tolist())
        return image.flip(2) if self.flip and draw_flips(1, generator) else image


def _from_files(
    labels: Tensor, order: Tensor, seeds: Tensor, crops: _Crops, run: Run
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of an order (steps, batch), decoded ahead by worker processes."""
    loader = DataLoader(
        crops,
        batch_sampler=[list(zip(batch.tolist(), seeds[batch].tolist(), strict=True)) for batch in order],
        num_workers=run.workers,
        pin_memory=run.device.type == "cuda",
        prefetch_factor=4 if run.workers else None,
    )
    labels = labels.cpu()
    for batch, who in zip(loader, order, strict=True):
        x = batch.to(run.device, non_blocking=True).float().div_(255)
        yield x, labels[who].to(run.device, non_blocking=True)
