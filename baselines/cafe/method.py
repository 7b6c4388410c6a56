"""CAFE: synthetic images whose mean features match those of the real images of a class in every layer.

"CAFE: Learning to Condense Dataset by Aligning Features", Wang et al., CVPR 2022 (arXiv 2203.01531). In a network
theta, with f_l the output of its activation l, f_L what its classifier sees, and c_k(S) = mean f_L(S_k) the centre of a
class:

    min over S of  sum over layers l and classes k of  w_l || mean f_l(S_k) - mean f_l(T_k) ||^2
                   + inner_weight * sum over real images (x, y) of  CE( (f_L(x) . c_k(S))_k, y )

so that the centres of S also classify real images. theta follows a dynamic bi-level optimisation: between two steps of
the images, the network is trained on S until its accuracy on real images has changed by more than lambda_2. The
accuracy is also measured after each step of the images; once it stays within lambda_1, a new network is initialised.

cafe_dsa:   CAFE with DSA's siamese augmentation of both batches, of the training on S, and of student training.
guard_cafe: GUARD's loss (Xue et al., arXiv 2403.10045, eq. 8) replaces CE in the second term, the only loss of real
            images that depends on S, so that real images are classified by the centres of S with a loss of low
            curvature. Only the field real_loss differs from `cafe`; neither paper has this combination. Two
            alternatives were rejected: CE(net(T)), which the official code adds, has no gradient with respect to S; and
            a network trained robustly on S or T would be a robust feature extractor, which does not make S robust
            (GUARD's appendix B; guard_dm).

Deviations from the official code, which supports only CIFAR-10 and ConvNet-3: both loops stop after `max_steps` and
`max_epochs` if their criterion is not met (the official loops do not stop); each accuracy is computed from zero (the
official code adds a K-th of the previous accuracy); layers are tapped by hooks, in any network (the two equal terms of
the last pooling and its flattened form are one term with twice the weight); networks match in evaluation mode, with
BatchNorm as in DC (the official code uses the statistics of each batch); K iterations, not K + 1; the learning rate
falls at the same fractions of any K; classes go through the network one after another (the sums are the same);
CE(net(T)) is omitted; CIFAR-100 is normalised with its own constants, not with CIFAR-10's; each random draw
has a separate seed (`Run.generator`).

Several processes divide the classes in each step of the images (`baselines.cafe.alignment`) and in each accuracy
(`baselines.cafe.watched`). The main process trains the network on S, and hands it out after each epoch: four bytes for
each weight.
"""

import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn

from baselines.cafe.alignment import Weights, align
from baselines.cafe.watched import accuracy_of, span, train_until_accuracy_changes
from distill.data import ImageSet, facts_named
from distill.distilled import DistilledSet
from distill.methods.initial import init_with_digest, initial_images
from distill.models import build
from distill.runs.divergence import check_finite, remedy_of
from distill.runs.divided import network_from_main
from distill.runs.run import Run
from distill.training.augment import augmentation
from distill.training.augment_dc import augmentation_of_students
from distill.training.matching import freeze_batchnorm
from distill.training.work import PROBE, STEPS, Work, training_steps
from robust import Loss, Normalize
from robust.losses import on_inputs
from robust.ranges import Count, Fraction, NonNegative, Positive, Range, check_ranges

__all__ = ["Config", "distill", "weights", "work"]

REMEDY = ("--lr-img", "--lr-net")
"""flags to reduce when the alignment diverges, besides the strength of the loss"""
MILESTONES = (0.6, 0.8, 0.9)
"""fractions of the iterations at which the learning rate of the images is halved (1200, 1600 and 1800 of 2000)"""


@dataclass(frozen=True)
class Config:
    """The method's settings, named as in the official code where possible.

    Raises:
        ValueError: a field is out of its range.
    """

    real_loss: Loss
    """loss on real images, classified by the centres of S; h in normalised units, eps and sigma in pixels of [0, 1]"""
    backbone: str = "convnet"
    """network that extracts features, and network of students: a name from `bash run.sh list`, options after a colon"""
    iterations: Count = 2000
    """K: number of iterations, each with a new network"""
    max_steps: Count = 100
    """most steps of the images with one network; the official code has no limit"""
    max_epochs: Count = 100
    """most epochs of the network on S between two steps of the images; the official code has no limit"""
    lambda_1: Fraction = 0.04
    """a network is replaced when its last `window` accuracies after steps of the images span less than this"""
    lambda_2: Fraction = 0.03
    """training of the network on S ends when the last `window` accuracies after epochs span more than this"""
    window: Annotated[int, Range(least=2)] = 10
    """number of accuracies whose span is compared with lambda_1 and lambda_2"""
    batch_watch: Count = 128
    """real images per class for measuring an accuracy, drawn anew each time"""
    batch_real: Count = 256
    """real images per class in a step of the images"""
    batch_train: Count = 256
    """synthetic images per training step of the network"""
    lr_img: Positive = 0.1
    """learning rate of the images (SGD, momentum 0.5), normalised units; halved at MILESTONES"""
    lr_net: Positive = 0.01
    """learning rate of the network (SGD, no momentum)"""
    first_weight: NonNegative = 1.0
    """weight of the last pooling; its flattened form has weight 1, so the total is 1 + first_weight"""
    second_weight: NonNegative = 1.0
    """weight of the last activation"""
    third_weight: NonNegative = 0.1
    """weight of the second last activation"""
    fourth_weight: NonNegative = 0.1
    """weight of all earlier activations"""
    inner_weight: NonNegative = 0.01
    """weight of the loss of the centres, summed over real images"""
    init: str = "noise"
    """initial synthetic images: noise (standard normal, in normalised space), real (random images of the class), or
    those of the distilled set in a folder, such as runs/dc/cifar10/ipc10/seed0"""
    augment: str = ""
    """siamese augmentation: "" for none, a DSA strategy, or kornia:... (see distill/training/augment.py)"""

    def __post_init__(self) -> None:
        check_ranges(self)
        object.__setattr__(self, "init", init_with_digest(self.init))
        augmentation(self.augment)
        if fields := self.real_loss.only_in_training:
            raise ValueError(f"real_loss has {fields}, for training a teacher; aligned networks are frozen")
        if self.real_loss.traits.strength and self.inner_weight == 0:
            raise ValueError("inner_weight is 0, so real_loss is not used; it must be > 0")


def distill(real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Distil a data set; continues from the run's checkpoint.

    Args:
        real: the training set, on the device to work on.
        ipc: images per class.
        config: the settings.
        run: supplies random generators, checkpoints, scalars and the progress bar.

    Returns:
        `ipc` images of each class, sorted by class, in pixels, on the device of `real`.

    Raises:
        InputError: the backbone has no activation layers, or no features before a linear classifier; or the alignment
            diverged.
    """
    normalize = Normalize(real.mean, real.std).to(real.images.device)
    siamese = augmentation(config.augment, real.mean, real.std)
    loss_of_real, remedy = on_inputs(config.real_loss, normalize), remedy_of(REMEDY, "--real-loss", config.real_loss)
    labels = torch.arange(real.num_classes, device=real.images.device).repeat_interleave(ipc)

    def sample(class_: int, n: int, *address: str | int) -> Tensor:
        return normalize(real.sample(class_, n, run.generator(*address, class_)))

    def accuracy(network: nn.Module, *address: str | int) -> float:
        return accuracy_of(network.eval(), lambda c: sample(c, config.batch_watch, "watch", *address), real.num_classes)

    state = run.restore()
    if state is None:
        images = initial_images(config.init, real, ipc, normalize, run.generator)
        state = {"iteration": 0, "images": images, "velocity": torch.zeros_like(images)}
    images, velocity = (state[name].to(real.images.device) for name in ("images", "velocity"))

    with run.progress("distil", config.iterations, state["iteration"]) as bar:
        for iteration in range(state["iteration"], config.iterations):
            start = time.perf_counter()
            network = build(config.backbone, like=real, generator=run.generator("network", iteration)).to(images)
            milestones = sum(iteration >= share * config.iterations for share in MILESTONES)
            losses, steps, epochs = torch.zeros(2, device=images.device), 0, 0
            accuracies: deque[float] = deque(maxlen=config.window)
            while True:
                here = (iteration, steps)
                freeze_batchnorm(network, [partial(sample, c, 16, "batchnorm", *here) for c in range(len(images))])
                network_from_main(network)
                gradient, loss = align(
                    network,
                    images,
                    loss_of_real,
                    weights(config),
                    real_batch=lambda c, here=here: sample(c, config.batch_real, "real", *here),
                    siamese=siamese,
                    generator=lambda c, here=here: run.generator("augment", *here, c),
                    draws=lambda c, here=here: run.generator("real_loss", *here, c),
                )
                velocity = 0.5 * velocity + gradient
                images = images - 0.5**milestones * config.lr_img * velocity
                losses, steps = losses + loss, steps + 1
                accuracies.append(accuracy(network, *here))
                if steps == config.max_steps or (
                    len(accuracies) == config.window and span(accuracies) < config.lambda_1
                ):
                    break
                epochs += train_until_accuracy_changes(
                    network,
                    images.flatten(0, 1),
                    labels,
                    lr=config.lr_net,
                    batch_size=config.batch_train,
                    most=config.max_epochs,
                    window=config.window,
                    change=config.lambda_2,
                    generator=lambda epoch, here=here: run.generator("train", *here, epoch),
                    accuracy=lambda epoch, here=here, network=network: accuracy(network, *here, epoch),
                    augment=siamese,
                )
            alignment, discrimination = (losses / steps).tolist()
            check_finite("the alignment", iteration, {"alignment": alignment, "discrimination": discrimination}, remedy)
            scalars = {"alignment": alignment, "discrimination": discrimination, "accuracy": accuracies[-1]}
            bar.set_postfix(loss=f"{alignment + discrimination:.4g}", steps=steps, epochs=epochs, refresh=False)
            bar.update()
            seconds = time.perf_counter() - start
            run.log(iteration, loss=alignment + discrimination, steps=steps, epochs=epochs, seconds=seconds, **scalars)
            if run.due() or iteration == config.iterations - 1:
                run.save(iteration + 1, {"iteration": iteration + 1, "images": images, "velocity": velocity}, remedy)

    facts = facts_named(real.name)
    augment = config.augment or augmentation_of_students(facts, config.backbone)  # CAFE's code has DC's evaluation
    return DistilledSet.of(
        real, normalize.inverse(images.flatten(0, 1)), labels, augment=augment, backbone=config.backbone
    )


def weights(config: Config) -> Weights:
    """Return the weights of the terms from the config.

    >>> from robust import CrossEntropy
    >>> weights(Config(CrossEntropy()))
    Weights(layers=(0.1, 0.1, 1.0, 2.0), inner=0.01)
    """
    late = (config.third_weight, config.second_weight, 1 + config.first_weight)
    return Weights((config.fourth_weight, *late), config.inner_weight)


def work(config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return the work of a distillation for the time estimate: each kind of step and the number of such steps.

    Both loops are assumed to end with their first full window of accuracies, the earliest possible end.
    """
    real, watched = min(config.batch_real, PROBE), min(config.batch_watch, PROBE)
    small = min(config.batch_train, ipc * num_classes, PROBE)
    steps = min(config.max_steps, config.window)
    epochs = (steps - 1) * min(config.max_epochs, config.window)

    def align_real(network: nn.Module, shape: tuple[int, ...]) -> None:
        align_images(network, shape, real)

    def align_images(network: nn.Module, shape: tuple[int, ...], images: int = 1) -> None:
        align(
            network.eval(),
            torch.randn(1, ipc, *shape),
            config.real_loss,
            weights(config),
            real_batch=lambda c: torch.randn(images, *shape),
            siamese=None,
            generator=lambda c: torch.Generator(),
        )

    @torch.no_grad()
    def watch(network: nn.Module, shape: tuple[int, ...]) -> None:
        network.eval()(torch.randn(watched, *shape))

    per_class = config.iterations * num_classes
    return [
        (per_class * steps * config.batch_real / real, align_real),
        (per_class * (steps + epochs) * config.batch_watch / watched, watch),
        (config.iterations * epochs * ipc * num_classes / small / STEPS, partial(training_steps, images=small)),
    ]
