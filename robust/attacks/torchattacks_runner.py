"""Runs the attacks of torchattacks 3.5.1 (an optional package, imported when an attack runs): see apgd, fab and square.

Only a single run of each attack comes from torchattacks. Restarts, target classes, randomness and the decision which
points count as successes are implemented here, because torchattacks differs from the papers or has side effects:

  - APGD and FAB take 10 steps by default (the papers: 100), and `n_classes` is 10 for every model. All settings are
    passed explicitly here.
  - FAB calls `.backward()`, which fills `.grad` of the parameters; every call puts modules into training mode that the
    user had in evaluation mode; the seed of torch's generators is reset, by default to 0. None of this reaches the
    user: `_ModelOfPixels` hides the model, the random state is restored, and nothing is printed.
  - APGD takes an (N, D) batch for one image. APGD and FAB get images as (N, D, 1, 1), so inputs may have any shape.
  - A gradient that is NaN makes the point NaN, and NaN logits are classified as class 0. Such points are no successes.
  - All points are projected on the ball and classified again before they count as successes.

The attacks run in float32. Random numbers are drawn on the CPU, so another device changes results only by rounding.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from robust.attacks.pgd import check_pixels
from robust.attacks.record import Cascade
from robust.network.expectation import Expected
from robust.network.inference import outside_inference
from robust.network.modes import Model, evaluating
from robust.ranges import check_ranges
from robust.threat import Threat

__all__ = ["NORMS", "SingleRun", "TorchattacksAttack", "class_of_rank"]

NORMS = {"linf": "Linf", "l2": "L2"}
"""our names of norms -> torchattacks' names"""


class SingleRun(Protocol):
    """One run of an attack on all examples that are not fooled yet."""

    def __call__(self, images: Tensor, targets: Tensor, /) -> Tensor:
        """Return one point for each image."""
        ...


@dataclass(frozen=True)
class TorchattacksAttack:
    """An attack of torchattacks as an `Attack`: a subclass names the single runs that follow one another.

    Raises:
        ValueError: a field is out of its range.
    """

    flattens: ClassVar[bool] = True
    """whether images are passed as (N, D, 1, 1), so that inputs may have any shape"""

    threat: Threat
    """the ball"""

    def __post_init__(self) -> None:
        check_ranges(self)

    def __call__(
        self, model: Model, images: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return a misclassified point of the ball for each image, or the image where none is found, (N, ...).

        Args:
            model: maps pixels (N, ...) in [0, 1] to logits (N, K), normalisation inside; in evaluation mode meanwhile.
            images: (N, ...) pixels in [0, 1].
            targets: (N,) class indices.
            generator: CPU generator of the seed; None takes torch's default.

        Raises:
            ValueError: images outside [0, 1], or of a shape that the attack does not take.
            ModuleNotFoundError: torchattacks is not installed.
        """
        self.check_shape(images)
        return _attacked(self, self.attacked_model(model), images, targets, generator)

    def check_shape(self, images: Tensor) -> None:
        """Refuse images of a shape that the attack does not take; every shape is allowed by default."""

    def attacked_model(self, model: Model) -> Model:
        """Return the model that the attack sees."""
        return model

    def single_runs(self, library: ModuleType, network: nn.Module, classes: int, random: bool) -> Iterator[SingleRun]:
        """Yield the single runs of the attack, each on the examples that all runs before it did not fool.

        Args:
            library: the package torchattacks.
            network: the model as a module, in float32.
            classes: K of the model.
            random: whether the model's answers are random, so that no classification is final.
        """
        raise NotImplementedError


@outside_inference
def _attacked(
    attack: TorchattacksAttack, model: Model, images: Tensor, targets: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Return a misclassified point of the ball in [0, 1] for each image, or the image where no run found one.

    Of a random model, whose next answer may be another, it is the point of the largest expected margin of all runs.
    """
    check_pixels(images)
    threat = attack.threat
    images = images.detach()
    if threat.eps == 0 or len(images) == 0:
        return images.clone()
    library = _torchattacks(type(attack).__name__)
    seed = int(torch.randint(2**31, (), generator=generator))
    shape = (images[0].numel(), 1, 1) if attack.flattens else images.shape[1:]
    random = isinstance(model, Expected)
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torchattacks draws on the CPU; the fork restores the state
        logits = model(images)
        cascade = Cascade(images, targets, logits, random)
        for run in attack.single_runs(library, _ModelOfPixels(model, images), logits.shape[1], random):
            if len(cascade.standing) == 0:
                break
            clean, labels = images[cascade.standing], targets[cascade.standing]
            points = run(clean.reshape(-1, *shape).contiguous().float(), labels)
            points = threat.project(points.detach().reshape(clean.shape).to(clean), clean)
            finite = points.flatten(1).isfinite().all(1).view(-1, *[1] * (clean.ndim - 1))
            points = points.where(finite, clean)
            cascade.update(points, model(points))
    return cascade.images


class _ModelOfPixels(nn.Module):
    """The model in the form that torchattacks needs: a module on a device, in float32, without its parameters."""

    def __init__(self, model: Model, images: Tensor):
        super().__init__()
        self.device_marker = nn.Parameter(torch.empty(0, device=images.device))  # torchattacks reads the device here
        shape, dtype = images.shape[1:], images.dtype
        self.logits = lambda pixels: model(pixels.reshape(-1, *shape).to(dtype)).float()

    def forward(self, pixels: Tensor) -> Tensor:
        if torch.is_grad_enabled() and pixels.requires_grad:
            return _GradientOfPixels.apply(pixels, self.logits)  # pyright: ignore[reportReturnType]
        with torch.no_grad():
            return self.logits(pixels).clone()


class _GradientOfPixels(torch.autograd.Function):
    """Logits whose backward pass ends at the pixels, so that `.backward()` does not change the parameters' `.grad`."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, logits_of: Model) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        with torch.enable_grad():
            ctx.pixels = pixels.detach().requires_grad_()
            ctx.logits = logits_of(ctx.pixels)
        return ctx.logits.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not ctx.logits.requires_grad:
            return torch.zeros_like(ctx.pixels), None
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        return torch.autograd.grad(ctx.logits, ctx.pixels, gradients, **options)[0], None


def class_of_rank(logits: Tensor, rank: int) -> Tensor:
    """Return the class of each example whose logit has this rank, 0 for the largest, (N, K) -> (N,)."""
    return logits.sort(1).indices[:, -1 - rank]


def _torchattacks(attack: str) -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its dependency `requests` warns about installed versions
            import torchattacks
    except ModuleNotFoundError as error:
        if error.name != "torchattacks":
            raise
        raise ModuleNotFoundError(
            f"{attack} needs torchattacks: pip install --no-deps torchattacks", name="torchattacks"
        ) from None
    return torchattacks
