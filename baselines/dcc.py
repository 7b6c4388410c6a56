"""Dataset condensation with contrastive signals: DC, DSA and GUARD's DC on the gradient of all classes together.

DCC:  "Dataset Condensation with Contrastive Signals", Lee et al., ICML 2022 (arXiv 2202.02916):

    min over S of  sum over steps t of  D( grad_theta mean_c L(S_c, theta_t), grad_theta mean_c L(T_c, theta_t) )

where DC (`distill.methods.dc`, whose loop this is) sums a distance for each class: what tells the classes apart is in
the sum of their gradients, and most of what they have in common is not. Matched so from iteration `outer_warmup` on,
and before it from step `inner_warmup` of an iteration on; elsewhere class by class, as DC does.

dsac:      the same with DSA's siamese augmentation, drawn once for both batches of a class.
guard_dcc: the same with the curvature-regularised loss on the real batches, in the one field real_loss, where GUARD has
           it in DC (Xue et al., arXiv 2403.10045, section 7.1). Neither paper has it.

Deviations from the official code: those of `distill.methods.dc`; the gradient of S is taken in two passes, the second
for a group of classes at a time (by the chain rule through the sum), which needs one group's memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill.data import Facts, ImageSet
from distill.distilled import DistilledSet
from distill.experiment import Evaluation, Recipe
from distill.methods import dc
from distill.methods.dc_recipes import GUARD_WEIGHT, GUARD_WEIGHT_ELSEWHERE
from distill.methods.method import Method, presets
from distill.models.convnet import convnet_for
from distill.runs.run import Run
from distill.training.augment import Augmentation, dsa_strategy
from distill.training.matching import DISTANCES, gradients_by_class
from distill.training.students import TOGETHER, overhead_bound
from distill.training.work import Work
from robust import CompiledGradients, CrossEntropy, CurvatureRegularizedLoss, cross_entropy
from robust.ranges import Whole, check_ranges

__all__ = ["LOOPS", "METHODS", "Config", "distill", "match", "settled", "work"]

LOOPS = dc.LOOPS | {1: (10, 5)}
"""ipc -> (matching steps of an iteration, epochs on S between them): the official table."""


@dataclass(frozen=True)
class Config(dc.Config):
    """DC's settings, and when the classes are matched together.

    Raises:
        ValueError: a field is out of its range.
    """

    init: Literal["noise", "real"] = "real"
    """first images: standard normal in normalised space, or random real ones of the class"""
    outer_warmup: Whole = 250
    """iterations before all classes are matched together in every step"""
    inner_warmup: Whole = 10
    """steps of an iteration before they are, while those last"""

    def __post_init__(self) -> None:
        check_ranges(self)
        super().__post_init__()
        if self.outer_warmup > self.iterations:
            raise ValueError(f"outer_warmup is {self.outer_warmup}; it must be <= iterations, {self.iterations}")


def settled(config: Config, ipc: int) -> Config:
    """Return the config with the loops of an ipc in it, from the table where it has none.

    >>> [settled(Config(CrossEntropy()), ipc).inner_loop for ipc in (1, 5, 10)]
    [5, 25, 50]
    """
    outer, inner = dc.loops(config, ipc, LOOPS)
    return replace(config, outer_loop=outer, inner_loop=inner)


def distill(real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Distil a data set; continues from the run's checkpoint.

    Args:
        real: the training set, on the device to work on.
        ipc: images per class.
        config: the settings.
        run: its generators, checkpoints, scalars and progress.

    Returns:
        `ipc` images of each class, sorted by class, in pixels, on the device of `real`.
    """

    def matching(iteration: int, step: int) -> dc.Matching:
        return match if iteration >= config.outer_warmup or step >= config.inner_warmup else dc.match

    return dc.distill(real, ipc, config, run, matching, LOOPS)


def match(
    network: nn.Module,
    images: Tensor,
    config: dc.Config,
    *,
    real_batch: Callable[[int], Tensor],
    siamese: Augmentation | None,
    generator: Callable[[int], torch.Generator],
    draws: Callable[[int], torch.Generator] | None = None,
    compiled: CompiledGradients | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the distance of all classes together, with respect to the synthetic images.

    Args:
        network: in evaluation mode.
        images: (K, ipc, C, H, W), normalised.
        config: real_loss, distance and chunk are read.
        real_batch: class -> its real images (N, C, H, W), normalised.
        siamese: augmentation of both batches of a class, or None.
        generator: class -> generator of its augmentation's parameters.
        draws: class -> generator of a random real_loss; None where it is not random.
        compiled: programs for the gradients of the real batches; None to run them eagerly.

    Returns:
        the gradient, shaped as `images`, and (2,): K times the distance, so that a class's share is the distance, and
        the sum over classes of the real loss.
    """
    teacher, count = dc.teacher_of(network, config, images.device, compiled), len(images)
    parameters = [p for p in network.parameters() if p.requires_grad]
    total, target = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    leaf, ours, losses = images.detach().requires_grad_(), [], images.new_zeros(2)
    for class_, synthetic in enumerate(leaf):
        synthetic, real_loss, gradients = dc.real_side(
            class_, synthetic, teacher, real_batch, siamese, generator, draws
        )
        losses[1] += real_loss
        target = [t + g / count for t, g in zip(target, gradients, strict=True)]
        ours.append(synthetic)
    augmented = torch.stack(ours)
    groups = torch.arange(count, device=images.device).split(TOGETHER if overhead_bound(images[0]) else 1)

    def labels(classes: Tensor) -> Tensor:
        return classes.repeat_interleave(images.shape[1])

    for classes in groups:
        loss = cross_entropy(network(augmented[classes].detach().flatten(0, 1)), labels(classes)).mean()
        gradients = torch.autograd.grad(loss * (len(classes) / count), parameters)
        total = [(t + g).detach().requires_grad_() for t, g in zip(total, gradients, strict=True)]
    distance = DISTANCES[config.distance](total, target)
    outer = torch.autograd.grad(distance, total, allow_unused=True, materialize_grads=True)

    inner = []
    for classes in groups:
        part = augmented[classes].detach().requires_grad_()
        gradients = gradients_by_class(network, part.flatten(0, 1)[None], labels(classes)[None])
        value = torch.stack([(o * g[0]).sum() for o, g in zip(outer, gradients, strict=True)]).sum()
        inner += torch.autograd.grad(value * (len(classes) / count), part)
    losses[0] += distance.detach() * count
    return torch.autograd.grad(augmented, leaf, torch.cat(inner))[0], losses


def work(config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return what a distillation consists of, for an estimate: that of DC, whose steps cost about the same."""
    return dc.work(settled(config, ipc), ipc, num_classes, examples)


# --- recipes -----------------------------------------------------------------------------------------------------

# Warm-up of quick, on a tenth of the training set held out: `dcc cifar10 --recipe quick --split validation --image-size
# 16 --ipc 10 --iterations 10 --students 2 --student.epochs 250 --test-images 500`, seed 0, two students, percent: clean
# 29.8, linf 8.8 without (--outer-warmup 0), 30.5, 10.7 with 5 iterations of it. Quick has the paper's quarter. GUARD's
# weights are those that were searched for DC; on DCC they were not.


def _recipe(name: str, method: str, facts: Facts, ipc: int) -> Recipe:
    fields: dict[str, Any] = {}
    if method == "dsac":
        fields["augment"] = dsa_strategy(facts.flips)
    weight = GUARD_WEIGHT.get((facts.name, ipc > 1), GUARD_WEIGHT_ELSEWHERE)
    real_loss = CurvatureRegularizedLoss(weight, h=3.0) if method == "guard_dcc" else CrossEntropy()
    if name == "paper":  # the official code: 1000 iterations, batch 256, 20 students
        fields["backbone"] = convnet_for(facts.depth)
        return Recipe(Config(real_loss, **fields), Evaluation(students=20))
    fields |= {"batch_real": 64, "backbone": convnet_for(facts.depth, 32), "iterations": 20, "outer_warmup": 5}
    fields |= {"outer_loop": 10, "inner_loop": 5 if ipc == 1 else 10}
    return Recipe(Config(real_loss, **fields), Evaluation(students=3, test_images=2000))


_smoke = partial(
    replace,
    iterations=3,
    outer_loop=2,
    inner_loop=1,
    outer_warmup=1,
    inner_warmup=1,
    batch_real=8,
    backbone="convnet:width=8,depth=2",
)

_method = partial(Method, distill=distill, work=work)

METHODS = (
    _method(
        "dcc",
        "DC that matches the gradient of several classes together (contrastive signals)",
        "Lee et al., ICML 2022, arXiv 2202.02916",
        "dcc",
        presets(_recipe, "dcc", smoke=_smoke),
    ),
    _method(
        "dsac",
        "DCC with DSA's siamese augmentation",
        "Lee et al., ICML 2022, arXiv 2202.02916",
        "dcc",
        presets(_recipe, "dsac", smoke=_smoke),
    ),
    _method(
        "guard_dcc",
        "DCC with the curvature-regularised loss on the real images",
        "Xue et al., arXiv 2403.10045",
        "guard",
        presets(_recipe, "guard_dcc", smoke=_smoke),
    ),
)
