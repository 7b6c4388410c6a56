"""Batches of augmented real images for a teacher.

Order and crops are addressed by epoch and step, drawn for the whole batch, of which each process takes its part: they
do not depend on how many processes there are, nor on where a run was interrupted.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from distill.data import ImageSet
from distill.ranks import rank, world
from distill.run import Run
from sre2l.crops import Augment, cut, draw_crops

__all__ = ["batches"]

LEAST = 0.08
"""least share of the area of a resized crop, as torchvision has it"""


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
        run: its generators.

    Yields:
        pixels (batch_size / processes, C, H, H) in [0, 1] and classes, on the device of the images.
    """
    order = torch.randperm(len(real), generator=run.generator("squeeze", "order", epoch))
    mine = slice(rank() * batch_size // world(), (rank() + 1) * batch_size // world())
    for step in range(begin, len(real) // batch_size):
        generator = run.generator("squeeze", "crop", epoch, step)
        who = order[step * batch_size : (step + 1) * batch_size][mine].to(real.labels.device)
        x = real.images[who]
        if augment != "none" or flip:
            boxes, flips = draw_crops(augment, flip, batch_size, x.shape[-1], LEAST, generator)
            x = cut(x, boxes[mine], flips[mine])
        yield x, real.labels[who]
