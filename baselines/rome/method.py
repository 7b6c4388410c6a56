"""ROME: features of distilled images match those of attacked real images, in a pool of robust networks.

    min over S of  sum over classes c of  a D(mean psi(A(T_c + delta)), mean psi(A(S_c))) + (1 - a) w r CE(A(S_c), c)
    D(p, q) = (1/2 |p - q|_1)^2,   the squared total variation of two distributions

psi is the input of the classifier layer of a network that is drawn from the pool (`baselines.rome.pool`), r the share
of training images that this network classifies correctly. A is DSA's augmentation, drawn once for both batches of a
class; delta is found by PGD on the augmented real batch. S is stored as IDC does: an image holds factor^2 images of a
fraction of the pixels, which are enlarged before use (`distill.training.packing`). After each step of the images some
networks of the pool train on attacked real images.

rome: "ROME is Forged in Adversity: Robust Distilled Datasets via Information Bottleneck", Zhou et al., ICML 2025, read
      in its released code (zhouzhengqd/ROME, 2ceed90).
idm:  "Improved Distribution Matching for Dataset Condensation", Zhao, Li, Qin, Yu, CVPR 2023 (arXiv 2307.09742), read
      in its code (uitrbn/IDM), on which ROME's is built: plain networks, features of clean real images, the squared
      distance of means plus w r times the cross-entropy, r in percent.

Deviations from the released code, which are its faults (`form published` has the first three): attacks are untargeted,
while the code aims at class + 1 in training and in its test; they are on pixels, while the code clamps normalised
images to [0, 1], so that every pixel below the mean becomes the mean; r is a share, not a percentage, so that w is not
50 times as large; the result is the last set, not the best on attacked test images; one step moves the images of all
classes, while the codes' momentum moves all images in the step of each class (IDM's too). r is measured on clean images
over the last steps of a network; in the codes it is of the images that the network trains on, attacked in ROME's, since
their last evaluation. Each random draw has a separate seed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.rome.attack import attacked, attacked_as_published
from baselines.rome.loop import (
    PoolConfig,
    Problem,
    check,
    distil_in_pool,
    moved,
    plain_training,
    pool_work,
    training_batch,
)
from baselines.rome.pool import Member, Train
from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.runs.run import Run
from distill.training.augment import Augmentation
from distill.training.features import embedding, features_and_logits
from distill.training.packing import unpacked
from distill.training.real_side import siamese_view
from distill.training.work import PROBE, Work
from robust import Normalize
from robust.ranges import Count, NonNegative, Range

__all__ = ["Config", "check", "distill", "match", "work"]


@dataclass(frozen=True)
class Config(PoolConfig):
    """The method's settings.

    Raises:
        ValueError: a field is out of its range.
    """

    batch_real: Count = 256
    """real images per class and step of the images"""
    form: Literal["right", "published"] = "right"
    """right: untargeted attacks on pixels, and a share of images as the weight r; published: the attack of ROME's code
    on normalised images, also in the training of the pool, and r in percent"""
    robust_weight: Annotated[float, Range(least=0, most=1)] | None = 0.2
    """a: weight of the distance of features; the cross-entropy has the rest. None: both count whole, as in IDM"""
    performance_weight: NonNegative = 0.5
    """w: factor of the cross-entropy of the distilled images"""
    percent: bool = False
    """whether the cross-entropy counts by r in percent, as in the code of IDM and ROME: 100 times as much"""
    distance: Literal["tv2", "mean"] = "tv2"
    """of mean features. tv2: squared total variation, (1/2 |p - q|_1)^2; mean: |p - q|_2^2, as in DM and IDM"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form == "published" and self.threat is None:
            raise ValueError("form is published; it attacks real images, and neither attack nor pool_loss has a ball")


def distill(real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Distil a data set; arguments, result and errors as of `distil_in_pool`."""

    def step(
        problem: Problem, member: Member, images: Tensor, velocity: Tensor, iteration: int
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        def real_batch(class_: int) -> Tensor:
            return problem.normalize(real.sample(class_, config.batch_real, run.generator("real", iteration, class_)))

        gradient, losses = match(
            member.network,
            member.right,
            images,
            problem.labels,
            config,
            problem.normalize,
            real_batch=real_batch,
            siamese=problem.siamese,
            generator=partial(run.generator, "augment", iteration),
            attack=run.generator("attack", iteration),
        )
        images, velocity = moved(images, velocity, gradient, config.lr_img)
        distance, entropy = losses.tolist()
        return images, velocity, {"distance": distance, "cross_entropy": entropy}

    training = _published_training if config.form == "published" else plain_training
    return distil_in_pool(real, ipc, config, run, step, partial(training, config))


def match(
    network: nn.Module,
    right: float,
    images: Tensor,
    labels: Tensor,
    config: Config,
    normalize: Normalize,
    *,
    real_batch: Callable[[int], Tensor],
    siamese: Augmentation | None,
    generator: Callable[[int], torch.Generator],
    attack: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the loss with respect to the stored images.

    Args:
        network: in evaluation mode, with frozen parameters.
        right: share of training images that it classifies correctly.
        images: (K ipc, C, H, W), stored, normalised, sorted by class.
        labels: (K ipc,) classes.
        config: weights, distance, factor and attack are used.
        normalize: from pixels to the network's inputs.
        real_batch: class -> its real images (N, C, H, W), normalised.
        siamese: augmentation of both batches of a class, or None.
        generator: class -> generator of its augmentation's parameters.
        attack: generator of the attack's random points.

    Returns:
        the gradient, shaped like `images`, and a tensor (2,): the distance and the cross-entropy, means over classes.
    """
    count = int(labels[-1]) + 1
    batches = [siamese_view(c, real_batch(c), siamese, generator) for c in range(count)]
    sizes = [len(batch) for batch in batches]
    reals = torch.cat(batches)
    truth = torch.cat([labels.new_full((size,), c) for c, size in enumerate(sizes)])
    if config.form == "published":
        reals = attacked_as_published(network, reals, truth, count, config.attack_steps, attack)
    elif config.threat is not None:
        reals = attacked(network, reals, truth, normalize, config.threat, config.attack_steps, attack)
    with torch.no_grad():
        targets = torch.stack([features.mean(0) for features in embedding(network, reals).split(sizes)])
    leaf = images.detach().requires_grad_()
    synthetic, classes = unpacked(leaf, labels, config.factor)
    of_class = synthetic.split(len(synthetic) // count)
    views = torch.cat([siamese_view(c, batch, siamese, generator) for c, batch in enumerate(of_class)])
    features, logits = features_and_logits(network, views)
    difference = targets - features.unflatten(0, (count, -1)).mean(1)
    distances = (0.5 * difference.abs().sum(1)).square() if config.distance == "tv2" else difference.square().sum(1)
    entropies = F.cross_entropy(logits, classes, reduction="none").unflatten(0, (count, -1)).mean(1)
    share = 100 * right if config.percent or config.form == "published" else right
    a, rest = (1.0, 1.0) if config.robust_weight is None else (config.robust_weight, 1 - config.robust_weight)
    loss = (a * distances + rest * config.performance_weight * share * entropies).sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient, torch.stack([distances.mean(), entropies.mean()]).detach()


def _published_training(config: Config, problem: Problem) -> Train:
    """Return the step of ROME's released code: cross-entropy on its attack, whose network is in training mode."""

    def step(network: nn.Module, number: int, count: int) -> tuple[Tensor, Tensor]:
        x, y = training_batch(config, problem, number, count)
        generator = problem.run.generator("pool loss", number, count)
        x = attacked_as_published(network, x, y, problem.real.num_classes, config.attack_steps, generator)
        logits = network(x)
        return F.cross_entropy(logits, y), (logits.detach().argmax(1) == y).float().mean()

    return step


def work(config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return the work of a distillation for the time estimate: each kind of step and the number of such steps."""
    real = min(config.batch_real, examples // num_classes)
    probe, synthetic = min(real, PROBE), min(config.factor**2 * ipc, PROBE)

    def features_of_real(network: nn.Module, shape: tuple[int, ...]) -> None:
        x, y = torch.rand(probe, *shape), torch.zeros(probe, dtype=torch.long)
        same = Normalize((0.0,) * shape[0], (1.0,) * shape[0])
        if config.threat is not None:
            x = attacked(network.eval(), x, y, same, config.threat, config.attack_steps, torch.Generator())
        with torch.no_grad():
            embedding(network, x)

    def gradient_of_images(network: nn.Module, shape: tuple[int, ...]) -> None:
        leaf = torch.randn(synthetic, *shape, requires_grad=True)
        features, logits = features_and_logits(network.eval(), leaf)
        torch.autograd.grad(features.sum() + logits.sum(), leaf)

    return [
        (config.iterations * num_classes * real / probe, features_of_real),
        (config.iterations * num_classes * config.factor**2 * ipc / synthetic, gradient_of_images),
        *pool_work(config),
    ]
