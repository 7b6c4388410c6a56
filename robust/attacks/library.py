"""APGD, FAB and Square of torchattacks 3.5.1 (an optional package, imported when one of them runs), built right.

Papers: APGD, Croce & Hein 2020 (arXiv 2003.01690); FAB, Croce & Hein 2020 (arXiv 1907.02044); Square, Andriushchenko et
al. 2020 (arXiv 1912.00049). Only the inner run of each attack is theirs; restarts, targets, randomness and what counts
as success are ours. What is wrong in torchattacks, and what is done about it:

  - APGD and FAB take 10 steps by default (the papers 100), Square rescales its schedule to the number of queries (the
    official evaluation does not), `n_classes` is 10 whatever the model has and means one target less. All are given.
  - Targeted APGD in l2 gives every example the step size of the first of the batch. Ours is plain APGD with the
    targeted loss (eq. 7), which is the same attack without that slip; in linf both are equal.
  - Targeted losses index the fourth largest logit and fail below four classes. There, cross-entropy.
  - FAB calls `.backward()`, which fills `.grad` of the parameters; every call turns on training mode in modules that
    the user had in evaluation mode; the seed of torch's generators is reset, by default to 0. None of this gets
    through: the model is hidden behind a function of the pixels, the random state is put back, nothing is printed.
  - Square writes into the logits that the model returns. It gets a copy.
  - APGD takes an (N, D) batch for one image. APGD and FAB see (N, D, 1, 1), and so attack inputs of any shape.
  - FAB discards points outside the ball. Ours are projected first, which can only find more.
  - A gradient that is NaN makes the point NaN, and class 0 of its logits. Such a point is no success.
  - Its `eot_iter` averages gradients, but compares losses of single passes, and counts one unlucky pass as success (so
    does the official code). Ours ascends the loss of the expected answer over `eot` passes, compares these, and returns
    the point of the highest.
  - Square counts an exact tie of logits as success. All successes are classified anew.
  - Left as it is, since the official code has it too: Square's small squares never reach the last row and column, which
    keep their first stripes in linf; all examples of a batch share the place of the squares, so that a result depends
    on the batch; its l2 start does not fit images that are not square or of some sizes (refused here, by name).

They run in float32. Random numbers are drawn on the CPU, so a device changes nothing but rounding.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from robust.attacks.pgd import check_pixels
from robust.network.expectation import Expected
from robust.network.inference import outside_inference
from robust.network.modes import Model, evaluating
from robust.ranges import Count, check_ranges
from robust.registry import Named
from robust.threat import Threat

__all__ = ["APGD", "FAB", "Square", "targeted_difference_of_logits_ratio"]

Loss = Literal["ce", "dlr", "targeted"]
Run = Callable[[Tensor, Tensor], Tensor]
"""(images, targets) of standing examples -> points"""
Plan = Callable[[ModuleType, nn.Module, int], Iterator[Run]]
"""(torchattacks, network, K) -> the runs, each on those who stand after the runs before"""

NORMS = {"linf": "Linf", "l2": "L2"}
FEWEST = 4
"""classes that DLR needs"""


def targeted_difference_of_logits_ratio(logits: Tensor, targets: Tensor, goals: Tensor) -> Tensor:
    """Return the goal's logit minus the target's over the scale of the logits: targeted DLR.

    Equation 7 of Croce & Hein 2020 (arXiv 2003.01690), with their code's 1e-12 in the denominator.

    Args:
        logits: (N, K), K >= 4.
        targets: (N,) true classes.
        goals: (N,) wrong classes.

    Returns:
        (N,).

    >>> targeted_difference_of_logits_ratio(torch.tensor([[4.0, 3.0, 2.0, 0.0]]), torch.tensor([0]), torch.tensor([2]))
    tensor([-0.6667])
    """
    first, _, third, fourth = logits.topk(4, 1).values.unbind(1)
    difference = (logits.gather(1, goals[:, None]) - logits.gather(1, targets[:, None]))[:, 0]
    return difference / (first - (third + fourth) / 2 + 1e-12)


@dataclass(frozen=True)
class APGD:
    """APGD as an `Attack`: PGD of step 2 eps with momentum, which halves its step where the loss stalls.

    Below four classes "dlr" and "targeted" are "ce", as the ratio of logits is not defined. Inputs of any shape.

    Raises:
        ValueError: a field is out of its range.
    """

    threat: Threat
    """the ball"""
    loss: Loss = "ce"
    """"ce" cross-entropy, "dlr" difference of logits ratio, "targeted" that ratio for one wrong class after another"""
    steps: Count = 100
    """gradient steps of a restart"""
    restarts: Count = 1
    """random starts (for each target), each on the examples still standing"""
    targets: Count = 9
    """wrong classes of "targeted", those of the highest logits; all where the model has fewer"""
    eot: Count = 1
    """forward passes that each gradient is averaged over, for models with random answers"""

    def __post_init__(self) -> None:
        if self.loss not in get_args(Loss):
            raise ValueError(f"loss is {self.loss!r}; choose from {', '.join(get_args(Loss))}")
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
            ValueError: images outside [0, 1].
            ModuleNotFoundError: torchattacks is not installed.
        """
        if self.eot > 1 and not isinstance(model, Expected):
            model = Expected(model, self.eot)
        # Of random answers the point of the highest loss, else the last misclassified one.
        plan = partial(self._runs, best=0 if isinstance(model, Expected) else 3)
        return _attacked(self, plan, model, images, targets, generator)

    def _runs(self, library: ModuleType, network: nn.Module, classes: int, best: int) -> Iterator[Run]:
        loss = self.loss if classes >= FEWEST else "ce"
        attack = library.APGD(
            network,
            norm=NORMS[self.threat.norm],
            eps=self.threat.eps,
            steps=self.steps,
            loss="ce" if loss == "ce" else "dlr",
        )

        def towards(rank: int) -> Run:
            def run(images: Tensor, targets: Tensor) -> Tensor:
                goals = _ranked(network(images), rank)
                attack.dlr_loss = lambda logits, y: targeted_difference_of_logits_ratio(logits, y, goals)
                return attack.attack_single_run(images, targets)[best]

            return run

        for rank in range(1, 1 + min(self.targets, classes - 1)) if loss == "targeted" else (0,):
            for _ in range(self.restarts):
                yield towards(rank) if rank else lambda images, targets: attack.attack_single_run(images, targets)[best]


@dataclass(frozen=True)
class FAB:
    """FAB as an `Attack`: projects on the linearised boundary and pulls back towards the image, for a near point.

    A point outside the ball is projected on it and succeeds if it is still misclassified. Inputs of any shape.

    Raises:
        ValueError: a field is out of its range.
    """

    threat: Threat
    """the ball"""
    steps: Count = 100
    """gradient steps of a restart"""
    restarts: Count = 1
    """restarts (for each target) on the examples still standing; the first begins at the image"""
    targeted: bool = True
    """the boundary to one wrong class after another, else to the nearest (a gradient for each of the K classes)"""
    targets: Count = 9
    """wrong classes if `targeted`, those of the highest logits; all where the model has fewer"""

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
            ValueError: images outside [0, 1].
            ModuleNotFoundError: torchattacks is not installed.
        """
        return _attacked(self, self._runs, model, images, targets, generator)

    def _runs(self, library: ModuleType, network: nn.Module, classes: int) -> Iterator[Run]:
        attack = library.FAB(
            network,
            norm=NORMS[self.threat.norm],
            eps=self.threat.eps,
            steps=self.steps,
            multi_targeted=self.targeted,
        )

        def run_of(rank: int, restart: int) -> Run:
            def run(images: Tensor, targets: Tensor) -> Tensor:
                attack.target_class = rank + 1  # theirs counts from the end of the sorted logits
                inner = attack.attack_single_run_targeted if rank else attack.attack_single_run
                return inner(images, targets, use_rand_start=restart > 0)

            return run

        for rank in range(1, 1 + min(self.targets, classes - 1)) if self.targeted else (0,):
            for restart in range(self.restarts):
                yield run_of(rank, restart)


@dataclass(frozen=True)
class Square:
    """The Square attack as an `Attack`: random search over squares, the margin its loss; takes no gradients.

    Settings of AutoAttack: p = 0.8 at first, on the schedule of 10,000 queries whatever their number. Takes images
    (N, C, H, W) only.

    Raises:
        ValueError: a field is out of its range.
    """

    threat: Threat
    """the ball"""
    queries: Count = 5000
    """forward passes of a restart, besides the first"""
    restarts: Count = 1
    """random starts, each on the examples still standing"""

    def __post_init__(self) -> None:
        check_ranges(self)

    def check_shape(self, images: Tensor) -> None:
        """Refuse images that Square cannot cut into squares.

        Raises:
            ValueError: not (N, C, H, W), or of a height and width on which its l2 start is not defined.
        """
        if images.ndim != 4:
            raise ValueError(f"images are {tuple(images.shape)}; Square takes (N, C, H, W)")
        height, width = images.shape[2:]
        tile = height // 5
        fits = tile == 1 or (tile > 1 and (height - 5 * tile) // 2 + height // tile * tile <= height)
        if self.threat.norm == "l2" and not (height == width and fits):
            raise ValueError(
                f"images are {height}x{width}; Square's l2 start takes squares of 5 and more pixels, "
                "but not of 12, 14, 18, 19 or 24"
            )

    def __call__(
        self, model: Model, images: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return a misclassified point of the ball for each image, or the image where none is found, (N, C, H, W).

        Args:
            model: maps pixels (N, C, H, W) in [0, 1] to logits (N, K), normalisation inside; in evaluation mode
                meanwhile.
            images: (N, C, H, W) pixels in [0, 1].
            targets: (N,) class indices.
            generator: CPU generator of the seed; None takes torch's default.

        Raises:
            ValueError: images outside [0, 1], or of a shape that `check_shape` refuses.
            ModuleNotFoundError: torchattacks is not installed.
        """
        self.check_shape(images)
        return _attacked(self, self._runs, model, images, targets, generator, flat=False)

    def _runs(self, library: ModuleType, network: nn.Module, classes: int) -> Iterator[Run]:
        attack = library.Square(
            network,
            norm=NORMS[self.threat.norm],
            eps=self.threat.eps,
            n_queries=self.queries,
            p_init=0.8,
            loss="margin",
            resc_schedule=False,
        )

        def run(images: Tensor, targets: Tensor) -> Tensor:
            attack.init_hyperparam(images)
            return attack.attack_single_run(images, targets)[1]

        for _ in range(self.restarts):
            yield run


@outside_inference
def _attacked(
    attack: Any,
    plan: Plan,
    model: Model,
    images: Tensor,
    targets: Tensor,
    generator: torch.Generator | None,
    flat: bool = True,
) -> Tensor:
    """Return a point of the ball in [0, 1] for each image that a run got misclassified, else the image itself."""
    check_pixels(images)
    threat: Threat = attack.threat
    images = images.detach()
    found = images.clone()
    if threat.eps == 0 or len(images) == 0:
        return found
    library = _torchattacks(type(attack).__name__)
    seed = int(torch.randint(2**31, (), generator=generator))
    shape = (images[0].numel(), 1, 1) if flat else images.shape[1:]
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torchattacks draws on the CPU; the fork puts the state back
        logits = model(images)
        who = (logits.argmax(1) == targets).nonzero().flatten()
        for run in plan(library, _Lent(model, images), logits.shape[1]):
            if len(who) == 0:
                break
            clean, labels = images[who], targets[who]
            points = run(clean.reshape(-1, *shape).contiguous().float(), labels)
            points = threat.project(points.detach().reshape(clean.shape).to(clean), clean)
            finite = points.flatten(1).isfinite().all(1).view(-1, *[1] * (clean.ndim - 1))
            points = points.where(finite, clean)
            fooled = model(points).argmax(1) != labels
            settled = torch.ones_like(fooled) if isinstance(model, Expected) else fooled  # another draw may be fooled
            found[who[settled]] = points[settled]
            who = who[~fooled]
    return found


class _Lent(nn.Module):
    """A model as torchattacks wants one: a module, on a device, in float32; its own parameters out of reach."""

    def __init__(self, model: Model, images: Tensor):
        super().__init__()
        self.place = nn.Parameter(torch.empty(0, device=images.device))  # where torchattacks looks for the device
        shape, dtype = images.shape[1:], images.dtype
        self.logits = lambda pixels: model(pixels.reshape(-1, *shape).to(dtype)).float()

    def forward(self, pixels: Tensor) -> Tensor:
        if torch.is_grad_enabled() and pixels.requires_grad:
            return _Apart.apply(pixels, self.logits)  # pyright: ignore[reportReturnType]
        with torch.no_grad():
            return self.logits(pixels).clone()


class _Apart(torch.autograd.Function):
    """Logits whose backward pass ends at the pixels, so that `.backward()` leaves the parameters alone."""

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


def _ranked(logits: Tensor, rank: int) -> Tensor:
    """Return the class of each row whose logit has this rank, 0 for the largest, (N, K) -> (N,)."""
    return logits.sort(1).indices[:, -1 - rank]


def _torchattacks(attack: str) -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its `requests` warns of the versions that it finds
            import torchattacks
    except ModuleNotFoundError as error:
        if error.name != "torchattacks":
            raise
        raise ModuleNotFoundError(
            f"{attack} needs torchattacks: pip install --no-deps torchattacks", name="torchattacks"
        ) from None
    return torchattacks


NAMED: Named = {
    "apgd_ce": APGD,
    "apgd_dlr": lambda threat: APGD(threat, loss="dlr"),
    "apgd_t": lambda threat: APGD(threat, loss="targeted"),
    "fab": FAB,
    "square": Square,
}
