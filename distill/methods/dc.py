"""Dataset condensation by gradient matching: DC, DSA, and GUARD on both.

DC:  "Dataset Condensation with Gradient Matching", Zhao et al., ICLR 2021 (arXiv 2006.05929), algorithm 1.
DSA: "Dataset Condensation with Differentiable Siamese Augmentation", Zhao & Bilen, ICML 2021 (arXiv 2102.08259): the
     DC with an augmentation whose random parameters are shared by the real and the synthetic batch of a class.
GUARD: DC or DSA with the curvature-regularised loss on the real batch (Xue et al., arXiv 2403.10045, section 7.1):

    min over S of  sum over steps t and classes c of  D( grad_theta L(S_c, theta_t), grad_theta L_real(T_c, theta_t) )

theta_t is a network after t rounds of training on S; each iteration initialises a new network. D is
`matching.layerwise`. S is optimised in normalised space without clamping, which the learning rate of S assumes.

Deviations from the official code: K iterations, not K + 1; the gradients of classes (or groups of classes) are computed
one after another and summed, which needs the memory of one group and gives the same sum (S_c enters no other class's
term; several processes divide the classes); the whole network is in evaluation mode during matching, where the official
code only freezes BatchNorm (equal for networks without dropout); each random draw has a separate seed
(`Run.generator`).

Deviations from GUARD's paper: the paper uses "He initialization" (section 7.1) and its analysis starts DC from real
images (section 4, figure 1). The recipes use PyTorch's initialisation and start from noise, like DC's official code, on
which the paper builds. `--backbone convnet:init=he` and `--init real` select the paper's settings; docs/methods/dc.md
shows their effect.

This file is above 300 lines: the settings, the loop and the matching step are read together.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import vmap

from distill.data import ImageSet, facts_named
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.methods.initial import init_with_digest, initial_images
from distill.models import build
from distill.runs.divergence import check_finite, remedy_of
from distill.runs.divided import block, blocks, gathered, network_from_main
from distill.runs.ranks import is_main_process, world_size
from distill.runs.run import Run
from distill.training.augment import Augmentation, augmentation
from distill.training.augment_dc import augmentation_of_students
from distill.training.matching import DISTANCES, freeze_batchnorm, gradients_by_class
from distill.training.real_side import of_all, real_gradients, share_moved, siamese_view
from distill.training.sgd import SGD
from distill.training.students import overhead_bound, train_epochs
from distill.training.work import PROBE, STEPS, Work, training_steps
from robust import CompiledGradients, CrossEntropy, Loss, Normalize, RobustTeacher
from robust.losses import on_inputs, written
from robust.ranges import Count, Positive, check_ranges

__all__ = ["Config", "distill", "loops", "match", "teacher_of", "work"]

Matching = Callable[..., tuple[Tensor, Tensor]]
"""a function with the signature of `match`"""

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""ipc -> (matching steps per iteration, epochs on S between two matching steps): the official table."""

CHUNK_ON_CPU = 64
GROUP = 5
"""most classes whose synthetic gradients are computed in one pass: no faster with more, and processes divide groups"""

REMEDY = ("--lr-img", "--lr-net")
"""flags to reduce when matching diverges, besides the strength of the loss"""
NEGLIGIBLE_SHARE = 0.01
"""share of the minimised distance; a loss that moves the real gradients by less has no effect on the distilled set"""


@dataclass(frozen=True)
class Config:
    """The method's settings; the names are the official code's.

    Raises:
        ValueError: a field is out of its range.
    """

    real_loss: Loss
    """loss on the real batch; h in normalised units, eps and sigma in pixels of [0, 1]"""
    backbone: str = "convnet"
    """network for matching and for students: a name from `bash run.sh list`, options after a colon"""
    iterations: Count = 1000
    """K: number of iterations; each matches a new network"""
    outer_loop: Count | None = None
    """matching steps per iteration; None: from the official table by ipc, interpolated"""
    inner_loop: Count | None = None
    """training epochs of the network on S between two matching steps; None: from the same table"""
    batch_real: Count = 256
    """real images per class in a matching step"""
    batch_train: Count = 256
    """synthetic images per training step of the network"""
    lr_img: Positive = 0.1
    """learning rate of the images (SGD, momentum 0.5), normalised units"""
    lr_net: Positive = 0.01
    """learning rate of the network (SGD, no momentum)"""
    init: str = "noise"
    """initial synthetic images: noise (standard normal, in normalised space), real (random images of the class), or
    those of the distilled set in a folder, such as runs/dc/cifar10/ipc10/seed0"""
    augment: str = ""
    """siamese augmentation: "" for none, a DSA strategy, or kornia:... (see distill/training/augment.py)"""
    augment_students: str = "auto"
    """augmentation for students, in the syntax of `augment`. auto: `augment` if not empty, else as in DC's code:
    dc:crop_scale_rotate on MNIST, dc:crop_noise for a ConvNet with norm=batch, none elsewhere"""
    distance: Literal["layerwise", "mse", "cosine"] = "layerwise"
    """distance between gradients; the paper uses layerwise"""
    chunk: Count | None = None
    """real images of a class whose graph is in memory at once; None: 64 on a CPU (also faster there), the whole batch
    on a GPU. The sum does not depend on it"""
    compile: bool = False
    """compile the gradients of the real batches: a minute at the start, then a tenth less time per step with GUARD"""

    def __post_init__(self) -> None:
        check_ranges(self)
        object.__setattr__(self, "init", init_with_digest(self.init))
        augmentation(self.augment)
        if self.augment_students != "auto":
            augmentation(self.augment_students)
        if fields := self.real_loss.only_in_training:
            raise ValueError(f"real_loss has {fields}, for training a teacher; matched networks are frozen")
        if self.compile and self.real_loss.traits.random:
            raise ValueError(
                "compile is for a real_loss without randomness: a compiled program would repeat the first random draws"
            )


def loops(config: Config, ipc: int, table: dict[int, tuple[int, int]] = LOOPS) -> tuple[int, int]:
    """Return (matching steps per iteration, epochs between them): from the config, else from the table for this ipc.

    Both numbers are interpolated linearly between the rows of the official table. Above ipc 50 the row of 50 is used
    (the authors' advice, issue 2 of their repository).

    >>> plain = Config(CrossEntropy())
    >>> [loops(plain, ipc) for ipc in (1, 5, 10, 25, 100)]
    [(1, 1), (5, 23), (10, 50), (25, 22), (50, 10)]
    """
    below = max(row for row in table if row <= ipc)
    above = min((row for row in table if row >= ipc), default=below)
    share = 0.0 if above == below else (ipc - below) / (above - below)
    outer, inner = (round(a + share * (b - a)) for a, b in zip(table[below], table[above], strict=True))
    return config.outer_loop or outer, config.inner_loop or inner


def distill(
    real: ImageSet,
    ipc: int,
    config: Config,
    run: Run,
    matching: Callable[[int, int], Matching] = lambda *_: match,
    table: dict[int, tuple[int, int]] = LOOPS,
) -> DistilledSet:
    """Distil a data set; continues from the run's checkpoint.

    Args:
        real: the training set, on the device to work on.
        ipc: images per class.
        config: the settings.
        run: supplies random generators, checkpoints, scalars and the progress bar.
        matching: (iteration, matching step) -> the function that matches gradients in that step.
        table: loops by ipc, for a config that does not set them.

    Returns:
        `ipc` images of each class, sorted by class, in pixels, on the device of `real`.
    """
    normalize = Normalize(real.mean, real.std).to(real.images.device)
    siamese = augmentation(config.augment, real.mean, real.std)
    outer_loop, inner_loop = loops(config, ipc, table)
    if ipc not in table and ipc < max(table) and None in (config.outer_loop, config.inner_loop):
        run.notify(
            f"no official loops for ipc {ipc}: {outer_loop} matchings, {inner_loop} epochs between (interpolated)"
        )
    labels = torch.arange(real.num_classes, device=real.images.device).repeat_interleave(ipc)

    def sample(class_: int, n: int, *address: str | int) -> Tensor:
        return normalize(real.sample(class_, n, run.generator(*address, class_)))

    state = run.restore()
    if state is None:
        images = initial_images(config.init, real, ipc, normalize, run.generator)
        state = {"iteration": 0, "images": images, "velocity": torch.zeros_like(images)}
    requested, remedy = config.real_loss, remedy_of(REMEDY, "--real-loss", config.real_loss)
    config = replace(config, real_loss=on_inputs(requested, normalize))
    compiled = _compiler(real.images.device) if config.compile else None
    images, velocity = (state[name].to(real.images.device) for name in ("images", "velocity"))

    with run.progress("distil", config.iterations, state["iteration"]) as bar:
        for iteration in range(state["iteration"], config.iterations):
            start = time.perf_counter()
            network = build(config.backbone, like=real, generator=run.generator("network", iteration)).to(images)
            losses = torch.zeros(2, device=images.device)
            for step in range(outer_loop):
                here = (iteration, step)
                freeze_batchnorm(network, [partial(sample, c, 16, "batchnorm", *here) for c in range(len(images))])
                network_from_main(network)  # which alone has trained it
                sides: dict[str, Any] = {
                    "real_batch": lambda c, here=here: sample(c, config.batch_real, "real", *here),
                    "siamese": siamese,
                    "generator": lambda c, here=here: run.generator("augment", *here, c),
                    "draws": lambda c, here=here: run.generator("real_loss", *here, c),
                }
                if here == (0, outer_loop - 1) and requested.traits.strength and is_main_process():
                    plain = replace(config, real_loss=CrossEntropy())
                    robust, usual = (teacher_of(network, each, images.device, None) for each in (config, plain))
                    share = share_moved(images[0], robust, usual, DISTANCES[config.distance], **sides)
                    if share < NEGLIGIBLE_SHARE:
                        run.notify(_negligible_loss(share, requested))
                gradient, loss = matching(iteration, step)(network, images, config, compiled=compiled, **sides)
                velocity = 0.5 * velocity + gradient
                images = images - config.lr_img * velocity
                losses += loss
                if step < outer_loop - 1 and is_main_process():
                    train_epochs(
                        network,
                        images.flatten(0, 1),
                        labels,
                        SGD(network.parameters(), config.lr_net),
                        epochs=inner_loop,
                        batch_size=config.batch_train,
                        generator=run.generator("train", *here),
                        augmentation=siamese,
                    )
            distance, real_loss = (losses / (outer_loop * real.num_classes)).tolist()
            check_finite("the matching", iteration, {"distance": distance, "real loss": real_loss}, remedy)
            bar.set_postfix(loss=f"{distance:.4g}", refresh=False)
            bar.update()
            run.log(iteration, loss=distance, real_loss=real_loss, seconds=time.perf_counter() - start)
            if run.due() or iteration == config.iterations - 1:
                run.save(iteration + 1, {"iteration": iteration + 1, "images": images, "velocity": velocity}, remedy)

    augment = config.augment_students
    if augment == "auto":
        augment = config.augment or augmentation_of_students(facts_named(real.name), config.backbone)
    return DistilledSet.of(
        real, normalize.inverse(images.flatten(0, 1)), labels, augment=augment, backbone=config.backbone
    )


def match(
    network: nn.Module,
    images: Tensor,
    config: Config,
    *,
    real_batch: Callable[[int], Tensor],
    siamese: Augmentation | None,
    generator: Callable[[int], torch.Generator],
    draws: Callable[[int], torch.Generator] | None = None,
    compiled: CompiledGradients | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the distances, summed over classes, with respect to the synthetic images.

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
        the gradient, shaped like `images`, and a tensor (2,): distance and real loss, each summed over classes.
    """
    teacher, distance = teacher_of(network, config, images.device, compiled), DISTANCES[config.distance]
    groups = torch.arange(len(images)).split(GROUP if overhead_bound(images[0]) else 1)
    targets_of = partial(real_gradients, teacher, real_batch, siamese, generator, draws)
    if len(groups) < world_size():  # so that every process has real batches
        targets_of = of_all(targets_of, network, len(images))
    gradients, values = [images[:0]], [images.new_zeros(0, 2)]
    for group in block(groups):
        classes = group.tolist()
        leaf = images[classes[0] : classes[-1] + 1].detach().requires_grad_()
        real_losses, targets = zip(*map(targets_of, classes), strict=True)
        pairs = zip(classes, leaf, strict=True)
        augmented = torch.stack([siamese_view(c, synthetic, siamese, generator) for c, synthetic in pairs])
        labels = group.to(images.device, non_blocking=True)[:, None].expand(-1, images.shape[1])
        synthetic_gradients = gradients_by_class(network, augmented, labels)
        distances = vmap(distance)(synthetic_gradients, [torch.stack(same) for same in zip(*targets, strict=True)])
        gradients += torch.autograd.grad(distances.sum(), leaf)
        values.append(torch.stack([distances.detach(), torch.stack(real_losses)], 1))
    sizes = [sum(map(len, each)) for each in blocks(groups)]
    return gathered(torch.cat(gradients), sizes), gathered(torch.cat(values), sizes).sum(0)


def teacher_of(
    network: nn.Module, config: Config, device: torch.device, compiled: CompiledGradients | None
) -> RobustTeacher:
    """Return the network combined with the loss on real batches, which are split into chunks that fit the device."""
    chunk = config.chunk or (CHUNK_ON_CPU if device.type == "cpu" else None)
    return RobustTeacher(network, config.real_loss, chunk, compiled)


def _negligible_loss(share: float, loss: Loss) -> str:
    return (
        f"--real-loss {written(loss, 'inputs')} moves the real gradients of the first iteration by {100 * share:.2g} % "
        "of the distance that is minimised: in effect this run has plain cross-entropy; take a larger "
        f"{loss.traits.strength}"
    )


def _compiler(device: torch.device) -> CompiledGradients:
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler  # slow to import

        try:
            get_cpp_compiler()
        except Exception as error:  # torch's exception class for this is private
            raise InputError(f"--compile needs a C++ compiler on the path ({error}); leave out --compile") from None
    return CompiledGradients()


def work(config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return the work of a distillation for the time estimate: each kind of step and the number of such steps."""
    outer, inner = loops(config, ipc)
    matchings = config.iterations * outer * num_classes
    real, small = min(config.batch_real, PROBE), min(config.batch_train, ipc * num_classes, PROBE)
    group = min(GROUP, num_classes)
    alone = replace(config, real_loss=CrossEntropy(), augment="")

    def gradient_of_real(network: nn.Module, shape: tuple[int, ...]) -> None:
        RobustTeacher(network.eval(), config.real_loss, config.chunk).gradients(
            torch.randn(real, *shape), torch.zeros(real, dtype=torch.long)
        )

    def gradient_of_images(network: nn.Module, shape: tuple[int, ...]) -> None:
        match(
            network.eval(),
            torch.randn(group, ipc, *shape),
            alone,
            real_batch=lambda c: torch.randn(1, *shape),
            siamese=None,
            generator=lambda c: torch.Generator(),
        )

    training = config.iterations * (outer - 1) * inner * ipc * num_classes / small
    return [
        (matchings * config.batch_real / real, gradient_of_real),
        (matchings / group, gradient_of_images),
        (training / STEPS, partial(training_steps, images=small, lr=config.lr_net)),
    ]
