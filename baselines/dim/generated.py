"""Students on images that a generator makes anew in each epoch, as DiM trains them: see `baselines.dim`."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from baselines.dim.gan import Generator, conditioned
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.runs.run import Run
from distill.training.augment import DSA
from distill.training.protocol import Protocol
from distill.training.students import train_epochs
from robust import Normalize

__all__ = ["STUDENT_BATCH", "Groups", "drawn", "protocol", "rebuilt", "sgd", "without_cutout"]

STUDENT_BATCH = 128
"""images of a student's step"""


def protocol(distilled: DistilledSet, place: Path, run: Run) -> Protocol:
    """Return the authors' way of training students: in each epoch on as many images as the set has, drawn anew.

    Args:
        distilled: the set, on the device to work on; it has the generator.
        place: not needed.
        run: of the evaluation, its generators.

    Raises:
        InputError: the set has no whole generator, or does not say how students are trained.
    """
    generator, kept, labels = rebuilt(distilled), distilled.training, distilled.labels
    normalize, groups = Normalize(distilled.mean, distilled.std).to(labels.device), Groups(kept["augment"])

    def train(network: nn.Module, name: str) -> None:
        optimizer = sgd(network, kept["lr"])
        for epoch in range(kept["epochs"]):
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

    return Protocol(train, kept["epochs"])


def rebuilt(distilled: DistilledSet) -> Generator:
    """Return the generator of a set, in evaluation mode.

    Raises:
        InputError: fields or tensors are missing, of another kind, or more than it has.
    """
    kept, (_, channels, size, _) = distilled.training, distilled.images.shape
    instead = "take --protocol standard"
    if distilled.labels.ndim != 1:
        raise InputError(f"the set has soft labels, a generator of dim takes classes; {instead}")
    if missing := sorted({"width", "dim_noise", "epochs", "lr", "augment"} - set(kept)):
        raise InputError(f"the set lacks {', '.join(missing)} of dim's training; {instead}")
    for name, least in (("width", 1), ("dim_noise", len(distilled.classes) + 1), ("epochs", 1)):
        if type(kept[name]) is not int or kept[name] < least:
            raise InputError(f"{name} of the set is {kept[name]!r}; it must be a whole number >= {least}, or {instead}")
    if type(kept["lr"]) not in (int, float) or not 0 < kept["lr"] < float("inf"):
        raise InputError(f"lr of the set is {kept['lr']!r}; it must be a finite number > 0, or {instead}")
    if not isinstance(kept["augment"], str):
        raise InputError(f"augment of the set is {kept['augment']!r}; it must name groups of DSA, or {instead}")
    with torch.device("meta"):  # no memory for weights that the file does not have
        generator = Generator(channels, size, kept["dim_noise"], kept["width"])
    expected = {name: tensor for name, tensor in generator.state_dict().items() if tensor.is_floating_point()}
    for name in sorted(expected.keys() | distilled.own.keys()):
        wanted, found = (
            f"{tensor.dtype} {tuple(tensor.shape)}".removeprefix("torch.") if tensor is not None else "absent"
            for tensor in (expected.get(name), distilled.own.get(name))
        )
        if wanted != found:
            raise InputError(f"{name} of the set's generator is {found}, it must be {wanted}; {instead}")
        if not distilled.own[name].isfinite().all():
            raise InputError(f"{name} of the set's generator has values that are not finite; {instead}")
    counters = {
        name: torch.zeros((), dtype=torch.long, device=distilled.labels.device)
        for name in generator.state_dict()
        if name not in expected
    }
    generator.load_state_dict(distilled.own | counters, assign=True)
    return generator.eval().requires_grad_(False)


@torch.no_grad()
def drawn(generator: Generator, labels: Tensor, num_classes: int, noise: torch.Generator) -> Tensor:
    """Return images (N, C, H, W) of classes (N,), in pixels; the generator is in evaluation mode."""
    dim = generator.linear[0].in_features
    parts = conditioned(labels, num_classes, dim, noise).split(256)
    return torch.cat([(generator(part) + 1) / 2 for part in parts])


def sgd(network: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return the optimizer of students, and of the networks that are matched."""
    return torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)


def without_cutout(strategy: str) -> str:
    """Return the groups of a strategy but cutout.

    >>> without_cutout("color_crop_cutout"), without_cutout("cutout")
    ('color_crop', '')
    """
    return "_".join(group for group in strategy.split("_") if group != "cutout")


@dataclass(frozen=True)
class Groups:
    """DiM's augmentation, of normalised images: flip, color and cutout where named, and one of the other groups.

    Raises:
        InputError: an unknown group.
    """

    strategy: str
    """groups of DSA joined by "_", or "" for none"""

    def __post_init__(self) -> None:
        _ = self.parts

    @cached_property
    def parts(self) -> list[DSA]:
        """Those that are applied, in order."""
        named = self.strategy.split("_") if self.strategy not in ("", "none") else []
        always = ("flip", "color", "cutout")
        others = "_".join(group for group in named if group not in always)
        return [DSA(part) for part in ("flip", "color", others, "cutout") if part and (part in named or part == others)]

    def sample(self, n: int | None, shape: tuple[int, ...], generator: torch.Generator) -> list[Any]:
        """Return each part's draws: see `distill.training.augment.Augmentation`."""
        return [part.sample(n, shape, generator) for part in self.parts]

    def apply(self, images: Tensor, parameters: list[Any]) -> Tensor:
        """Return changed images."""
        for part, drawn_ in zip(self.parts, parameters, strict=True):
            images = part.apply(images, drawn_)
        return images
