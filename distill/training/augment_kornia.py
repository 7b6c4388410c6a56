"""Augmentation by classes of kornia.augmentation, from a text, as `distill.training.augment.Augmentation` defines it.

kornia acts on pixels in [0, 1] (its colour operations clamp): normalised images are converted to pixels first, and back
at the end.
"""

import ast
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import InputError, unknown
from robust import Normalize

__all__ = ["Kornia"]

NOT_SIAMESE = ("RandomGaussianNoise", "RandomChannelShuffle", "RandomRain", "RandomThinPlateSpline", "RandomPlasma")
"""classes (or beginnings of names) that draw for each image even with same_on_batch (kornia issues 3624 and 2665)"""

NOT_DIFFERENTIABLE = ("RandomClahe",)
"""classes whose result has no gradient with respect to the image"""


@dataclass(frozen=True)
class Kornia:
    """Classes of kornia.augmentation in sequence, from a text such as "RandomAffine(15, p=1.0)+ColorJiggle(0.1)".

    kornia draws from torch's default generator. Here it does so inside a fork of that generator, seeded with the drawn
    parameter.

    Raises:
        InputError: a name that is no augmentation class of kornia, or arguments that it refuses.
    """

    policy: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _ = self._siamese  # so that a policy that cannot be built is refused now

    def sample(self, n: int | None, shape: tuple[int, ...], generator: torch.Generator) -> tuple[bool, int]:
        """Return whether one draw serves all images, and the seed of the draw: see `Augmentation`."""
        return n is None, int(torch.randint(2**62, (), generator=generator))

    def apply(self, images: Tensor, parameters: tuple[bool, int]) -> Tensor:
        """Return changed images: see `Augmentation`.

        Raises:
            InputError: the policy changes the size of images, or cannot take this number of channels.
        """
        siamese, seed = parameters
        normalize = Normalize(self.mean, self.std).to(images) if self.mean else None
        pixels = normalize.inverse(images) if normalize else images
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                pixels = (self._siamese if siamese else self._single)(pixels)
            except ValueError as error:  # hue and saturation need three channels
                line = str(error).splitlines()[0]
                raise InputError(f"augmentation 'kornia:{self.policy}' refuses these images ({line})") from None
        if pixels.shape != images.shape:
            was, now = ("x".join(map(str, x.shape[1:])) for x in (images, pixels))
            raise InputError(f"augmentation 'kornia:{self.policy}' makes images of {now} from {was}; sizes must stay")
        return normalize(pixels) if normalize else pixels

    @cached_property
    def _siamese(self) -> nn.Module:
        return self._sequence(same_on_batch=True)

    @cached_property
    def _single(self) -> nn.Module:
        return self._sequence(same_on_batch=False)

    def _sequence(self, same_on_batch: bool) -> nn.Module:
        import kornia.augmentation  # slow to import

        known = {
            name: kind
            for name, kind in vars(kornia.augmentation).items()
            if name.startswith(("Random", "Color")) and issubclass(kind, kornia.augmentation.AugmentationBase2D)
        }
        operations = []
        for name, positional, named in _calls(self.policy):
            if name.startswith(NOT_SIAMESE):
                raise InputError(f"augmentation kornia:{name} cannot share its draw between two batches; take another")
            if name in NOT_DIFFERENTIABLE:
                raise InputError(f"augmentation kornia:{name} passes no gradient to the images; take another")
            if name not in known:
                fit = sorted(n for n in known if not n.startswith((*NOT_SIAMESE, *NOT_DIFFERENTIABLE)))
                raise unknown("augmentation of kornia", name, fit)
            try:
                operations.append(known[name](*positional, **named, same_on_batch=same_on_batch))
            except Exception as error:  # each class raises another error for bad arguments
                line = str(error).splitlines()[0]
                raise InputError(f"augmentation kornia:{name} refuses its arguments ({line})") from None
        return nn.Sequential(*operations)


def _calls(policy: str) -> list[tuple[str, list[Any], dict[str, Any]]]:
    """Return (name, arguments, named arguments) of each call in a sum of calls; only literals are evaluated."""
    try:
        node: ast.expr = ast.parse(policy, mode="eval").body
        calls = []
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            calls.append(node.right)
            node = node.left
        return [
            (
                call.func.id,
                [ast.literal_eval(value) for value in call.args],
                {str(word.arg): ast.literal_eval(word.value) for word in call.keywords},
            )
            for call in [node, *reversed(calls)]
        ]
    except (SyntaxError, ValueError, AttributeError):
        raise InputError(
            f"augmentation 'kornia:{policy}' is no sum of calls with plain values, "
            "such as kornia:RandomAffine(15, p=1.0)+RandomHorizontalFlip()"
        ) from None
