"""DiM's protocol for students: a generator makes new images in each epoch (see `baselines.dim.method`)."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from baselines.dim.gan import Generator, conditioned
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.runs.run import Run
from distill.training.augment import DSA
from distill.training.protocol import Protocol
from distill.training.students import train_epochs
from robust import Normalize

__all__ = ["STUDENT_BATCH", "Groups", "drawn", "protocol", "rebuilt", "sgd", "without_cutout"]

STUDENT_BATCH = 128
"""images per training step of a student"""
INSTEAD = "take --protocol standard"


def protocol(distilled: DistilledSet, folder: Path, run: Run) -> Protocol:
    """Return the authors' protocol: each epoch trains on newly generated images, as many as the set has.

    Args:
        distilled: the set including the generator, on the device to work on.
        folder: not used.
        run: the evaluation, which supplies random generators.

    Raises:
        InputError: the set has no complete generator, or lacks fields of this protocol.
    """
    generator, (epochs, lr, augment), labels = rebuilt(distilled), _settings(distilled.training), distilled.labels
    normalize, groups = Normalize(distilled.mean, distilled.std).to(labels.device), Groups(augment)

    def train(network: nn.Module, name: str) -> None:
        optimizer = sgd(network, lr)
        for epoch in range(epochs):
            pixels = drawn(generator, labels, len(distilled.classes), run.generator("student", name, "noise", epoch))
            train_epochs(
                network,
                normalize(pixels),
                labels,
                optimizer,
                epochs=1,
                batch_size=STUDENT_BATCH,
                generator=run.generator("student", name, "training", epoch),
                augmentation=groups,
            )

    return Protocol(train, epochs)


def _settings(training: MethodTraining) -> tuple[int, float, str]:
    """Return epochs, learning rate and augmentation of students.

    Raises:
        InputError: the set lacks one of these fields.
    """
    epochs, lr, augment = training.epochs, training.lr, training.augment
    if epochs is None or lr is None or augment is None:
        raise _lacking(training)
    return epochs, lr, augment


def _lacking(training: MethodTraining) -> InputError:
    missing = training.missing("width", "dim_noise", "epochs", "lr", "augment")
    return InputError(f"the set lacks {', '.join(missing)} of dim's training; {INSTEAD}")


def rebuilt(distilled: DistilledSet) -> Generator:
    """Return the generator of a set, in evaluation mode.

    Raises:
        InputError: fields or tensors are missing, have the wrong type or shape, or are unknown.
    """
    training, (channels, size, _) = distilled.training, distilled.image_shape
    if distilled.labels.ndim != 1:
        raise InputError(f"the set has soft labels, but a generator of dim needs classes; {INSTEAD}")
    _settings(training)
    width, dim_noise = training.width, training.dim_noise
    if width is None or dim_noise is None:
        raise _lacking(training)
    if dim_noise <= distilled.num_classes:
        wanted = f"it must be a whole number >= {distilled.num_classes + 1}"
        raise InputError(f"dim_noise of the set is {dim_noise}; {wanted}, or {INSTEAD}")
    with torch.device("meta"):  # allocates no memory before the file is checked
        generator = Generator(channels, size, dim_noise, width)
    expected = {name: tensor for name, tensor in generator.state_dict().items() if tensor.is_floating_point()}
    for name in sorted(expected.keys() | distilled.training_tensors.keys()):
        wanted, found = (
            f"{tensor.dtype} {tuple(tensor.shape)}".removeprefix("torch.") if tensor is not None else "absent"
            for tensor in (expected.get(name), distilled.training_tensors.get(name))
        )
        if wanted != found:
            raise InputError(f"{name} of the set's generator is {found}, it must be {wanted}; {INSTEAD}")
        if not distilled.training_tensors[name].isfinite().all():
            raise InputError(f"{name} of the set's generator has values that are not finite; {INSTEAD}")
    counters = {
        name: torch.zeros((), dtype=torch.long, device=distilled.labels.device)
        for name in generator.state_dict()
        if name not in expected
    }
    generator.load_state_dict({**distilled.training_tensors, **counters}, assign=True)
    return generator.eval().requires_grad_(False)


@torch.no_grad()
def drawn(generator: Generator, labels: Tensor, num_classes: int, noise: torch.Generator) -> Tensor:
    """Return generated images (N, C, H, W) of classes (N,), in pixels; the generator must be in evaluation mode."""
    chunks = conditioned(labels, num_classes, generator.dim_noise, noise).split(256)
    return torch.cat([(generator(chunk) + 1) / 2 for chunk in chunks])


def sgd(network: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return the optimizer for students and for matched networks."""
    return torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)


def without_cutout(strategy: str) -> str:
    """Return a strategy without the group cutout.

    >>> without_cutout("color_crop_cutout"), without_cutout("cutout")
    ('color_crop', '')
    """
    return "_".join(group for group in strategy.split("_") if group != "cutout")


@dataclass(frozen=True)
class Groups:
    """DiM's augmentation of normalised images: flip, color and cutout if named, and one random group of the others.

    Raises:
        InputError: an unknown group.
    """

    strategy: str
    """groups of DSA joined by "_", or "" for none"""

    def __post_init__(self) -> None:
        _ = self.parts

    @cached_property
    def parts(self) -> list[DSA]:
        """The augmentations, in the order in which they are applied."""
        named = self.strategy.split("_") if self.strategy not in ("", "none") else []
        always = ("flip", "color", "cutout")
        others = "_".join(group for group in named if group not in always)
        return [DSA(part) for part in ("flip", "color", others, "cutout") if part and (part in named or part == others)]

    def sample(self, n: int | None, shape: tuple[int, ...], generator: torch.Generator) -> list[Any]:
        """Return random parameters for each of `parts`: see `distill.training.augment.Augmentation`."""
        return [part.sample(n, shape, generator) for part in self.parts]

    def apply(self, images: Tensor, parameters: list[Any]) -> Tensor:
        """Return the augmented images."""
        for part, values in zip(self.parts, parameters, strict=True):
            images = part.apply(images, values)
        return images
