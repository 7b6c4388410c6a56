"""Dataset condensation with contrastive signals: DC, DSA and GUARD's DC that match the gradient of all classes jointly.

DCC:  "Dataset Condensation with Contrastive Signals", Lee et al., ICML 2022 (arXiv 2202.02916):

    min over S of  sum over steps t of  D( grad_theta mean_c L(S_c, theta_t), grad_theta mean_c L(T_c, theta_t) )

DC (`distill.methods.dc`, whose loop this module uses) instead sums one distance per class. The sum of the class
gradients keeps the differences between classes and drops most of what the classes have in common. All steps from
iteration `outer_warmup` on match classes jointly; earlier iterations do so from step `inner_warmup` on. All other steps
match class by class, as DC does.

dsac:      DCC with DSA's siamese augmentation, drawn once for both batches of a class.
guard_dcc: DCC with the curvature-regularised loss on the real batches; only the field real_loss differs. GUARD uses the
           loss in DC in the same way (Xue et al., arXiv 2403.10045, section 7.1). Neither paper has this combination.

Deviations from the official code: those of `distill.methods.dc`; CIFAR-100 is normalised with its own constants, not
with CIFAR-10's; the gradient with respect to S is computed in two passes, the second for one group of classes at a time
(by the chain rule through the sum), which needs the memory of one group.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from distill.data import Facts, ImageSet
from distill.distilled import DistilledSet
from distill.experiment import Evaluation, Recipe
from distill.methods import dc, dc_recipes
from distill.methods.initial import check_initial
from distill.methods.method import Method, presets
from distill.models.convnet import convnet_for
from distill.runs.divided import block, blocks, gathered
from distill.runs.ranks import world_size
from distill.runs.run import Run
from distill.training.augment import Augmentation, dsa_strategy
from distill.training.matching import DISTANCES, gradients_by_class
from distill.training.real_side import of_all, real_gradients, siamese_view
from distill.training.students import overhead_bound
from distill.training.work import Work
from robust import CompiledGradients, CrossEntropy, CurvatureRegularizedLoss, cross_entropy
from robust.ranges import Whole, check_ranges

__all__ = ["LOOPS", "METHODS", "Config", "distill", "match", "settled", "work"]

LOOPS = dc.LOOPS | {1: (10, 5)}
"""ipc -> (matching steps per iteration, epochs on S between two matching steps): the official table."""


@dataclass(frozen=True)
class Config(dc.Config):
    """DC's settings, and the steps in which classes are matched jointly.

    Raises:
        ValueError: a field is out of its range.
    """

    init: str = "real"
    """initial synthetic images: noise (standard normal, in normalised space), real (random images of the class), or
    those of the distilled set in a folder, such as runs/dc/cifar10/ipc10/seed0"""
    outer_warmup: Whole = 250
    """number of warm-up iterations; after them every step matches all classes jointly"""
    inner_warmup: Whole = 10
    """in a warm-up iteration, number of steps that match class by class before the joint steps"""

    def __post_init__(self) -> None:
        check_ranges(self)
        super().__post_init__()
        if self.outer_warmup > self.iterations:
            raise ValueError(f"outer_warmup is {self.outer_warmup}; it must be <= iterations, {self.iterations}")


def settled(config: Config, ipc: int) -> Config:
    """Return the config with outer_loop and inner_loop filled in from the table for this ipc if they are None.

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
        run: supplies random generators, checkpoints, scalars and the progress bar.

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
    """Return the gradient of the joint distance of all classes with respect to the synthetic images.

    Args:
        network: in evaluation mode.
        images: (K, ipc, C, H, W), normalised.
        config: only real_loss, distance and chunk are used.
        real_batch: class -> real images of the class (N, C, H, W), normalised.
        siamese: augmentation of both batches of a class, or None.
        generator: class -> generator for the parameters of the augmentation.
        draws: class -> generator for a random real_loss; None for a loss without randomness.
        compiled: compiled programs for the gradients of the real batches; None: run eagerly.

    Returns:
        the gradient, shaped like `images`, and a tensor (2,): K times the distance (so that the mean over classes is
        the distance), and the real loss summed over classes.
    """
    teacher, count = dc.teacher_of(network, config, images.device, compiled), len(images)
    parameters = [p for p in network.parameters() if p.requires_grad]
    targets_of = partial(real_gradients, teacher, real_batch, siamese, generator, draws)
    if world_size() > 1:
        targets_of = of_all(targets_of, network, count)
    target, losses = [torch.zeros_like(p) for p in parameters], images.new_zeros(2)
    for class_ in range(count):
        real_loss, gradients = targets_of(class_)
        losses[1] += real_loss
        target = [t + g / count for t, g in zip(target, gradients, strict=True)]
    leaf = images.detach().requires_grad_()
    augmented = torch.stack([siamese_view(c, synthetic, siamese, generator) for c, synthetic in enumerate(leaf)])
    groups = torch.arange(count, device=images.device).split(dc.GROUP if overhead_bound(images[0]) else 1)

    def labels(classes: Tensor) -> Tensor:
        return classes.repeat_interleave(images.shape[1])

    def of_group(number: int) -> tuple[Tensor, Sequence[Tensor]]:
        classes = groups[number]
        loss = cross_entropy(network(augmented[classes].detach().flatten(0, 1)), labels(classes)).mean()
        return loss, torch.autograd.grad(loss * (len(classes) / count), parameters)

    each = of_group if world_size() == 1 else of_all(of_group, network, len(groups))
    total = [torch.zeros_like(p) for p in parameters]
    for number in range(len(groups)):
        total = [(t + g).detach().requires_grad_() for t, g in zip(total, each(number)[1], strict=True)]
    distance = DISTANCES[config.distance](total, target)
    outer = torch.autograd.grad(distance, total, allow_unused=True, materialize_grads=True)

    inner = [images[:0]]
    for classes in block(groups):
        group = augmented[classes].detach().requires_grad_()
        gradients = gradients_by_class(network, group.flatten(0, 1)[None], labels(classes)[None])
        value = torch.stack([(o * g[0]).sum() for o, g in zip(outer, gradients, strict=True)]).sum()
        inner += torch.autograd.grad(value * (len(classes) / count), group)
    through = gathered(torch.cat(inner), [sum(map(len, each)) for each in blocks(groups)])
    losses[0] += distance.detach() * count
    return torch.autograd.grad(augmented, leaf, through)[0], losses


def work(config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return the work of a distillation for the time estimate: that of DC, whose steps cost about the same."""
    return dc.work(settled(config, ipc), ipc, num_classes, examples)


# --- recipes -----------------------------------------------------------------------------------------------------

# Warm-up of quick, measured on a held-out tenth of the training set: `dcc cifar10 --recipe quick --split validation
# --image-size 16 --ipc 10 --iterations 10 --students 2 --student.epochs 250 --test-images 500`, seed 0, two students,
# percent. Without warm-up (--outer-warmup 0): clean 29.8, linf 8.8; with 5 warm-up iterations: 30.5, 10.7. Quick warms
# up for a quarter of its iterations, as the paper does. GUARD's weights were searched for DC, not for DCC.


def _recipe(name: str, method: str, facts: Facts, ipc: int) -> Recipe:
    fields: dict[str, Any] = {}
    if method == "dsac":
        fields["augment"] = dsa_strategy(facts.flips)
    weight = dc_recipes.guard_weight(facts, ipc)
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

_method = partial(Method, distill=distill, work=work, check=check_initial, processes="divided")

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
