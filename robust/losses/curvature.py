r"""The curvature-regularised loss of GUARD.

Equation 8 of "Towards Adversarially Robust Dataset Distillation by Curvature Regularization" (Xue et al., AAAI 2025,
arXiv 2403.10045). For an example x with label y, and l its cross-entropy under the model:

    l_R(x) = l(x) + weight * || grad l(x + h z) - grad l(x) ||^2,     z = grad l(x) / || grad l(x) ||

All gradients are with respect to x. To first order the difference is h H z with H the Hessian of l in x: the penalty
flattens the loss in the direction of an attack. z is a constant; both gradients are differentiated.

Choices where the paper and the released code are silent or disagree:
  - Gradients are computed per example (of the *sum* of the losses), and the penalties are averaged. Gradients of the
    mean loss, as in the released code, make the weight depend on the batch size (100 at batch 128 acts as 0.8).
  - h and weight are in the units of `inputs`. GUARD's h = 3 is an L2 length in normalised space: 2.8/255 a pixel (rms)
    on 3x32x32 CIFAR-10 images, 0.45/255 on 3x224x224 ones.
  - The 1/h^2 of the finite difference is inside the weight, as in the paper.

This file is above 300 lines: the loss is one equation, and its variants share every line of it.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.nn.attention import SDPBackend, sdpa_kernel

from robust.losses.calling import takes_network
from robust.losses.cross_entropy import cross_entropy
from robust.losses.traits import Loss, Named, Traits
from robust.network.inference import outside_inference
from robust.network.modes import Model, evaluating, is_training, keeping_buffers, network_inside, uncompiled
from robust.network.precision import lift
from robust.per_example import norms, unit
from robust.ranges import NonNegative, Positive, Range, check_number, check_ranges
from robust.second_order.layers import SecondOrder

__all__ = ["CurvatureRegularizedLoss", "curvature_penalty"]

Direction = Literal["grad", "sign"]
Penalty = Literal["squared", "norm", "loss_difference"]
BatchNorm = Literal["eval", "train"]
Criterion = Callable[[Tensor, Tensor], Tensor]


@outside_inference
def curvature_penalty(
    model: Model,
    inputs: Tensor,
    targets: Tensor,
    *,
    h: float,
    direction: Direction | Tensor = "grad",
    penalty: Penalty = "squared",
    criterion: Criterion = cross_entropy,
) -> tuple[Tensor, Tensor]:
    """Return the loss and the curvature penalty of each example, from two forward passes.

    Loss and penalty share the graph at `inputs`. The model's mode is not changed: use evaluation mode if an example
    must not depend on the others. If gradients are disabled, the results have no graph.

    Args:
        model: maps (N, ...) to outputs that `criterion` takes, logits (N, K) by default.
        inputs: (N, ...), floating point, in the space in which `h` is measured.
        targets: (N,) class indices or (N, K) class probabilities.
        h: L2 length of the step, > 0, in the units of `inputs`.
        direction: "grad" for z = grad / ||grad||, "sign" for z = sign(grad) / ||sign(grad)|| (CURE, Moosavi-Dezfooli
            et al. 2019), or z itself, shaped as `inputs`.
        penalty: "squared" for the squared norm of the gradient difference (eq. 8), "norm" for the norm (CURE's code),
            "loss_difference" for l(x + h z) - l(x) without a second derivative (GUARD's rebuttal; signed, per example).
        criterion: (outputs, targets) -> loss of each example (N,).

    Returns:
        losses (N,) and penalties (N,), both differentiable with respect to the parameters of the model.

    Raises:
        ValueError: h is not a finite number > 0, a name is unknown, or the criterion returns a mean.

    For a quadratic loss x'Ax/2 the squared penalty is h^2 ||A z||^2, at every x and h:

    >>> a = torch.diag(torch.tensor([1.0, 2.0]))
    >>> quadratic = lambda x: (x @ a * x).sum(1) / 2
    >>> x, z = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> loss, value = curvature_penalty(quadratic, x, x, h=3.0, direction=z, criterion=lambda out, _: out)
    >>> loss.item(), value.item()
    (0.5, 36.0)
    """
    if isinstance(direction, str):
        _choice("direction", direction, get_args(Direction))
    _choice("penalty", penalty, get_args(Penalty))
    check_number("h", h, Positive)
    recording = torch.is_grad_enabled()
    with torch.enable_grad():
        losses, penalties = _penalty(model, inputs, targets, h, direction, penalty, criterion)
    return (losses, penalties) if recording else (losses.detach(), penalties.detach())


def _penalty(
    model: Model,
    inputs: Tensor,
    targets: Tensor,
    h: float,
    direction: Direction | Tensor,
    penalty: Penalty,
    criterion: Criterion,
) -> tuple[Tensor, Tensor]:
    second_order = penalty != "loss_difference"
    first = uncompiled(model) if second_order else model
    losses, gradients = _losses_and_gradients(_losses_of(first, targets, criterion), inputs, second_order)
    if isinstance(direction, Tensor):
        z = direction
    else:
        z = unit(gradients.detach().sign() if direction == "sign" else gradients.detach())
    with keeping_buffers(model):
        moved = (inputs + h * z).to(inputs.dtype)
        again = _losses_of(network_inside(model), targets, criterion)
        if not second_order:
            return losses, again(moved) - losses
        _, moved_gradients = _losses_and_gradients(again, moved, second_order)
    distances = norms(moved_gradients - gradients)
    return losses, distances if penalty == "norm" else distances.square()


def losses_and_gradients(
    model: Model, inputs: Tensor, targets: Tensor, criterion: Criterion = cross_entropy
) -> tuple[Tensor, Tensor]:
    """Return each example's loss (N,) and its gradient in `inputs` (N, ...), both differentiable in the parameters."""
    return _losses_and_gradients(_losses_of(uncompiled(model), targets, criterion), inputs, create_graph=True)


def _losses_of(model: Model, targets: Tensor, criterion: Criterion) -> Callable[[Tensor], Tensor]:
    def losses_at(x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            return _of_each(criterion(model(x), targets))

    return losses_at


def _of_each(losses: Tensor) -> Tensor:
    if losses.ndim != 1:
        returned = "one number" if losses.ndim == 0 else tuple(losses.shape)
        raise ValueError(f"criterion returns {returned}; it must return each example's loss (N,): reduction='none'")
    return losses


def _losses_and_gradients(
    losses_at: Callable[[Tensor], Tensor], inputs: Tensor, create_graph: bool
) -> tuple[Tensor, Tensor]:
    """Return each example's loss (N,) and its gradient with respect to `inputs` (N, ...)."""
    # torch.compile can trace torch.func and differentiate it twice; inside torch.func only torch.func works
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():

        def total(x: Tensor) -> tuple[Tensor, Tensor]:
            losses = losses_at(x)
            return losses.sum(), losses

        with nullcontext() if torch.compiler.is_compiling() else SecondOrder():
            gradients, (_, losses) = grad_and_value(total, has_aux=True)(inputs)
        return losses, gradients
    is_constant = not inputs.requires_grad
    if is_constant:
        inputs = inputs.detach().requires_grad_()
    if not create_graph:
        losses = losses_at(inputs)
        (gradients,) = torch.autograd.grad(losses.sum(), inputs, retain_graph=True)
        return losses, gradients
    with SecondOrder(inputs if is_constant else None) as layers:
        losses = losses_at(inputs)
    factor = lift(inputs)
    if factor == 1:
        return losses, layers.gradient(losses.sum(), inputs)
    return losses, layers.gradient(losses.sum() * factor, inputs) / factor


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    if weights is not None and weights.shape != values.shape:
        raise ValueError(f"weights are {tuple(weights.shape)}; they must be (N,), as the losses {tuple(values.shape)}")
    return values.mean() if weights is None else (weights * values).mean()


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose from {', '.join(choices)}")


@dataclass(frozen=True)
class CurvatureRegularizedLoss(Loss):
    """GUARD's loss, eq. 8: cross-entropy plus `weight` times the squared change of the input gradient over a step h z.

    A drop-in for any code that can call `loss(model, inputs, targets)`. It changes no `.grad` and no mode; buffers
    change only as in one plain forward pass. Works under autocast, `torch.no_grad()` and `torch.inference_mode()`
    (value only), DistributedDataParallel and `torch.compile` (compile the whole step, gradient included, with
    `torch.func`). Modes and buffers can be controlled only in a module: a plain function around a network in training
    mode is called unchanged. On a CPU, `robust.keep_memory()` before the training makes steps faster.

    Raises:
        ValueError: a field is out of its range.

    >>> loss = CurvatureRegularizedLoss(weight=0.0)
    >>> model = torch.nn.Linear(4, 3)
    >>> x, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    >>> bool(torch.isclose(loss(model, x, y), torch.nn.functional.cross_entropy(model(x), y)))
    True
    """

    traits: ClassVar[Traits] = Traits(strength="weight")

    weight: NonNegative = 1.0
    """lambda of the paper, >= 0; unit for "squared": loss / (gradient norm)^2."""
    h: Positive = 3.0
    """L2 length of the step, > 0, in the units of `inputs` (normalised images in every recipe)."""
    direction: Direction = "grad"
    """z: "grad" is the unit gradient (GUARD), "sign" the unit sign of the gradient (CURE)."""
    penalty: Penalty = "squared"
    """"squared" (eq. 8), "norm" (code of CURE and GUARD), "loss_difference" (rebuttal of GUARD, no second order)."""
    batchnorm: BatchNorm = "eval"
    """Mode of the penalty's passes for a model in training mode. "eval": running statistics and no dropout, so that
    examples stay independent (CURE's code); "train": the model's mode is not changed (CURE's later fix)."""
    fraction: Annotated[float, Range(above=0, most=1)] = 1.0
    """share of a batch, in (0, 1], whose penalty is computed. The first examples are used, which for a shuffled batch
    is unbiased; a training step takes 1 + 4 fraction (ResNet-18) to 1 + 6 fraction (small networks) times the time of a
    plain step"""
    h_warmup: tuple[Positive, ...] = ()
    """h in the first epochs of a teacher's training: see `at`. CURE: linspace(0.1, 3, 5)."""

    def __post_init__(self) -> None:
        check_ranges(self)
        _choice("direction", self.direction, get_args(Direction))
        _choice("penalty", self.penalty, get_args(Penalty))
        _choice("batchnorm", self.batchnorm, get_args(BatchNorm))

    @property
    def passes(self) -> float:
        """Measured on a CPU with a ConvNet and a narrow ResNet-18 in training mode; docs/sre2l.md has larger networks.

        With `batchnorm` "eval", or `fraction` < 1, the penalty needs separate passes beside the training pass.
        """
        shared = self.batchnorm == "train" and self.fraction == 1
        first_order, second_order = (1.4, 4.7) if shared else (2.4, 6.0)
        more = first_order if self.penalty == "loss_difference" else second_order
        return 1 + more * self.fraction if self.weight else 1.0

    @property
    def scheduled(self) -> bool:
        """Whether h has a schedule."""
        return bool(self.h_warmup)

    @property
    def only_in_training(self) -> str:
        """Names of `h_warmup` and `batchnorm=train`, if set."""
        fields = {"h_warmup": self.scheduled, "batchnorm=train": self.batchnorm != "eval"}
        return " and ".join(name for name, is_set in fields.items() if is_set)

    def at(self, epoch: int) -> "CurvatureRegularizedLoss":
        """Return the loss of a training epoch, 0 for the first: h is from `h_warmup` in the first epochs.

        >>> [CurvatureRegularizedLoss(h=3.0, h_warmup=(0.1, 1.0)).at(epoch).h for epoch in range(3)]
        [0.1, 1.0, 3.0]
        """
        return replace(self, h=self.h_warmup[epoch]) if epoch < len(self.h_warmup) else self

    @takes_network
    def __call__(
        self,
        model: Model,
        inputs: Tensor,
        targets: Tensor,
        *,
        weights: Tensor | None = None,
        criterion: Criterion = cross_entropy,
    ) -> Tensor:
        """Return the mean regularised loss, a scalar.

        Args:
            model: maps inputs to logits (N, K), or to outputs that `criterion` takes.
            inputs: (N, ...), as the model takes them; they need not require a gradient.
            targets: (N,) class indices or (N, K) class probabilities (of MixUp, of CutMix, of a teacher, smoothed).
            weights: (N,), by which each example's loss and penalty are multiplied before the mean over N; None for 1.
            criterion: (outputs, targets) -> loss of each example (N,).

        Raises:
            ValueError: the criterion returns a mean.
        """
        recording = torch.is_grad_enabled()
        with torch.enable_grad():
            value = self._value(model, inputs, targets, weights, criterion)
        return value if recording else value.detach()

    def _value(
        self, model: Model, inputs: Tensor, targets: Tensor, weights: Tensor | None, criterion: Criterion
    ) -> Tensor:
        if self.weight == 0:
            return _mean(_of_each(criterion(model(inputs), targets)), weights)
        options = {"h": self.h, "direction": self.direction, "penalty": self.penalty, "criterion": criterion}
        count = max(1, round(self.fraction * len(inputs)))
        separate = is_training(model) and self.batchnorm == "eval"
        if separate or count < len(inputs):
            with keeping_buffers(model), evaluating(model) if separate else nullcontext():
                first, penalties = curvature_penalty(network_inside(model), inputs[:count], targets[:count], **options)
            # examples of an evaluated network do not depend on each other: the penalty's pass has the first losses
            done = count if isinstance(model, torch.nn.Module) and not is_training(model) else 0
            # after the penalty, so that the penalty does not see the statistics of this batch
            losses = _of_each(criterion(model(inputs[done:]), targets[done:]))
            losses = torch.cat((first, losses)) if done else losses
        else:
            losses, penalties = curvature_penalty(model, inputs, targets, **options)
        return _mean(losses, weights) + self.weight * _mean(penalties, None if weights is None else weights[:count])


NAMED_ON_INPUTS: Named = {
    "cure": lambda threat: CurvatureRegularizedLoss(weight=4.0, h=3.0, direction="sign", penalty="norm"),
    "guard": lambda threat: CurvatureRegularizedLoss(weight=1.0, h=3.0),
    "guard_released": lambda threat: CurvatureRegularizedLoss(weight=1e-4, h=3.0, penalty="loss_difference"),
}
"""The papers' h, for normalised images. `guard_released` is the loss of GUARD's code at ImageNet scale: the difference
of the losses with weight 1e-4, whatever the code's flag --lamda is."""

NAMED: Named = {
    "cure": lambda threat: CurvatureRegularizedLoss(weight=4.0, h=0.75, direction="sign", penalty="norm"),
    "guard": lambda threat: CurvatureRegularizedLoss(weight=1.0, h=0.75),
    "guard_released": lambda threat: CurvatureRegularizedLoss(weight=1e-4, h=0.75, penalty="loss_difference"),
}
"""The same losses for pixels in [0, 1]: h = 0.75 is the papers' 3 in normalised units if the standard deviation of
pixels is 0.25 (CIFAR-10). The weights are not converted. Gradients by pixels are four times as long, so that at one
weight the penalty of `guard` is 16 times, that of `cure` 4 times that of normalised images; `guard:weight=0.0625` and
`cure:weight=1` are the papers' losses."""
