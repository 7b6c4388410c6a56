"""FRePo's protocol for students: Adam on the squared error to the learned labels; the steps depend on the set's size.

As in `script/eval.py` of the official code: the learning rate warms up over 500 steps and then decays as a cosine to a
hundredth. Batches of up to 500 images follow each other in order. Each batch is augmented by one random operation of
the strategy, with separate random parameters for each image. The operations differ from those of the same name in DSA
(`distill.training.augment`): colours change less, warps repeat the border, holes are a quarter of a side and lie inside
the image, shifts are by fractions of pixels. They act on normalised or whitened images, where 0 is the mean.

Deviations: the number of steps is interpolated linearly between the set sizes in the official code; if there are fewer
than 1000 steps, half of them are warm-up.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.distilled import DistilledSet
from distill.errors import InputError, unknown
from distill.runs.run import Run
from distill.training.protocol import Protocol
from distill.training.whiten import preprocessing

__all__ = [
    "OPERATIONS",
    "STEPS",
    "augmented",
    "check_strategy",
    "protocol",
    "rate",
    "squared",
    "steps_for",
    "train_regressor",
]

STEPS = {10: 1000, 100: 2000, 200: 20_000, 400: 5000, 500: 5000, 1000: 10_000, 2000: 40_000, 5000: 40_000}
"""number of images -> training steps of a student, from the official code"""
WARM_UP, LARGEST_BATCH = 500, 500


def squared(predicted: Tensor, targets: Tensor) -> Tensor:
    """Return half the squared distance of rows (N, K), averaged over rows.

    >>> squared(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]])).item()
    1.25
    """
    return 0.5 * (predicted - targets).square().sum(1).mean()


def steps_for(count: int) -> int:
    """Return the training steps for `count` images: STEPS, interpolated, and constant outside the range of STEPS.

    >>> [steps_for(count) for count in (2, 10, 55, 300, 9999)]
    [1000, 1000, 1500, 12500, 40000]
    """
    known = sorted(STEPS)
    count = min(max(count, known[0]), known[-1])
    above = known[bisect_left(known, count)]
    if above == count:
        return STEPS[count]
    below = known[bisect_left(known, count) - 1]
    return round(STEPS[below] + (STEPS[above] - STEPS[below]) * (count - below) / (above - below))


def rate(step: int, steps: int, lr: float) -> float:
    """Return the learning rate of a step; step 0 has learning rate 0."""
    warm_up = min(WARM_UP, steps // 2)
    if step < warm_up:
        return lr * step / warm_up
    done = min((step - warm_up) / max(steps - warm_up, 1), 1.0)
    return lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def train_regressor(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    lr: float,
    strategy: str,
    generator: torch.Generator,
) -> None:
    """Train a network in place.

    Args:
        network: maps `images` (N, C, H, W) to predictions (N, K).
        images: (N, C, H, W), normalised or whitened.
        labels: (N, K), learned labels.
        steps: number of Adam steps.
        lr: highest learning rate.
        strategy: operations joined by "_", or "" for none.
        generator: CPU generator for the augmentation.
    """
    batch = min(len(images), LARGEST_BATCH)
    network.train().to(memory_format=torch.channels_last)  # faster on a CPU
    optimizer = torch.optim.Adam(network.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate(step, steps, lr)
        indices = torch.arange(step * batch, (step + 1) * batch, device=images.device) % len(images)
        optimizer.zero_grad(set_to_none=True)
        squared(network(augmented(images[indices], strategy, generator)), labels[indices]).backward()
        optimizer.step()
    network.to(memory_format=torch.contiguous_format)  # the format of a network read from a file


def protocol(distilled: DistilledSet, folder: Path, run: Run) -> Protocol:
    """Return the authors' protocol: regression on the learned labels.

    Args:
        distilled: the set, on the device to work on; its `training_tensors` have labels, its `training` has lr and
            augment, and steps unless they follow from the number of images.
        folder: the folder of the set's file.
        run: the evaluation, which supplies random generators.

    Returns:
        the protocol.

    Raises:
        InputError: learned labels are missing or damaged, or the file of the whitening is missing.
    """
    training, count, classes = distilled.training, len(distilled.images), len(distilled.classes)
    lr, augment, labels = training.lr, training.augment, distilled.training_tensors.get("labels")
    if lr is None or augment is None or labels is None:
        raise InputError("the set lacks the learned labels, lr or augment of frepo; take --protocol standard")
    if labels.shape != (count, classes) or not labels.isfinite().all():
        found = f"{tuple(labels.shape)}{'' if labels.isfinite().all() else ' and not all finite'}"
        raise InputError(f"the set's learned labels are {found}; {count} images need finite ({count}, {classes})")
    space = preprocessing(distilled, folder).to(distilled.labels.device)
    images, steps = space(distilled.images[:]), training.steps or steps_for(count)
    if training.steps is None and count not in STEPS:
        known = ", ".join(map(str, STEPS))
        run.notify(f"FRePo's code has student steps for {known} images; for {count} images they are {steps}")

    def train(network: nn.Module, name: str) -> None:
        generator = run.generator("student", name, "training")
        train_regressor(network, images, labels, steps=steps, lr=lr, strategy=augment, generator=generator)

    return Protocol(train, max(1, round(steps * min(count, LARGEST_BATCH) / count)), preprocess=space)


# --- augmentation: each operation takes three random numbers in [0, 1) per image


def augmented(x: Tensor, strategy: str, generator: torch.Generator) -> Tensor:
    """Return images augmented by one operation of a strategy, with different random parameters for each image.

    Args:
        x: (N, C, H, H).
        strategy: names of OPERATIONS joined by "_"; "" for none.
        generator: CPU generator.
    """
    if not strategy:
        return x
    names = strategy.split("_")
    name = names[int(torch.randint(len(names), (), generator=generator))]
    return OPERATIONS[name](x, torch.rand(3, len(x), generator=generator).to(x, non_blocking=True))


def check_strategy(strategy: str) -> None:
    """Check the operations of a strategy.

    Raises:
        InputError: an operation is unknown.
    """
    for name in filter(None, strategy.split("_")):
        if name not in OPERATIONS:
            raise unknown("operation of student_augment", name, OPERATIONS)


def _signed(u: Tensor) -> Tensor:
    """Map u in [0, 1) to [-1, 1), with a shape that broadcasts over images."""
    return (2 * u - 1).view(-1, 1, 1, 1)


def _flip(x: Tensor, u: Tensor) -> Tensor:
    return torch.where((u[0] < 0.5).view(-1, 1, 1, 1), x.flip(3), x)


def _color(x: Tensor, u: Tensor) -> Tensor:
    x = x + 0.25 * _signed(u[0])
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * (0.25 * _signed(u[1])).exp() + mean
    gray = x.mean(1, keepdim=True)
    return (x - gray) * (0.25 * _signed(u[2])).exp() + gray


def _warp(x: Tensor, rows: list[list[Tensor]]) -> Tensor:
    """Return images whose value at (x, y), in [-1, 1], is the value of the input at matrix (x, y, 1)."""
    matrices = torch.stack([torch.stack(row, 1) for row in rows], 1)
    grid = F.affine_grid(matrices, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _crop(x: Tensor, u: Tensor) -> Tensor:
    """Zoom by 0.8 to 1.25, with a random position that keeps the crop in the image, or the image in the crop."""
    zoom = (math.log(1.25) * (2 * u[0] - 1)).exp()
    room, inverse, zero = (zoom - 1).abs() / zoom, 1 / zoom, torch.zeros_like(zoom)
    return _warp(x, [[inverse, zero, room * (2 * u[1] - 1)], [zero, inverse, room * (2 * u[2] - 1)]])


def _rotate(x: Tensor, u: Tensor) -> Tensor:
    angle = math.radians(15) * (2 * u[0] - 1)
    sine, cosine, zero = angle.sin(), angle.cos(), torch.zeros_like(angle)
    return _warp(x, [[cosine, -sine, zero], [sine, cosine, zero]])


def _translate(x: Tensor, u: Tensor) -> Tensor:
    one, zero = torch.ones_like(u[0]), torch.zeros_like(u[0])
    return _warp(x, [[one, zero, 0.25 * (2 * u[0] - 1)], [zero, one, 0.25 * (2 * u[1] - 1)]])


def _cutout(x: Tensor, u: Tensor) -> Tensor:
    size = x.shape[3]
    side, pixel = size // 4, torch.arange(size, device=x.device)
    first = (u[:2] * (size - side + 1)).long()[:, :, None]
    rows, columns = (pixel >= first) & (pixel < first + side)
    return x * ~(rows[:, None, :, None] & columns[:, None, None, :])


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "flip": _flip,
    "color": _color,
    "crop": _crop,
    "rotate": _rotate,
    "translate": _translate,
    "cutout": _cutout,
}
"""name -> function of images (N, C, H, H) and random numbers in [0, 1) (3, N) that returns the augmented images"""
