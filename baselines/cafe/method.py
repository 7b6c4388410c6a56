"""CAFE: a few images whose features are, layer by layer and on average over a class, those of the real images.

"CAFE: Learning to Condense Dataset by Aligning Features", Wang et al., CVPR 2022 (arXiv 2203.01531). In a network
theta, with f_l the output of its activation l, f_L what its classifier sees, and c_k(S) = mean f_L(S_k) the centre of a
class:

    min over S of  sum over layers l and classes k of  w_l || mean f_l(S_k) - mean f_l(T_k) ||^2
                   + inner_weight * sum over real images (x, y) of  CE( (f_L(x) . c_k(S))_k, y )

so that the centres of S also classify real images. theta comes from a dynamic bi-level optimisation: a new network is
trained on S between two steps of the images until its accuracy on real images moved by more than lambda_2, and given
up for another one when that accuracy, looked at after each step of the images, has come to rest within lambda_1.

cafe_dsa:   the same with DSA's siamese augmentation on both batches of a class, in the training on S, and of students.
guard_cafe: CE in the second term, the one loss of real images here that S has a part in, becomes GUARD's loss (Xue et
            al., arXiv 2403.10045, eq. 8): the centres of S shall classify real images by a loss that bends little
            around them. It is `cafe` with one other field, real_loss; neither paper has it. Of the other places,
            CE(net(T)), which the official code adds, has no gradient by S; and a network trained robustly on S or on
            T would be a robust extractor of features, which leaves no robustness in S (GUARD's appendix B; guard_dm).

Deviations from the official code, which has CIFAR-10 and ConvNet-3 built in: both loops end after `max_steps` and
`max_epochs` where their criterion is never met (there: never); each accuracy starts from nothing (there a K-th of the
one before is added); layers are tapped by hooks, any network (the two equal terms of the last pooling and its
flattening are one of twice the weight); networks match in evaluation mode, BatchNorm as in DC (there: each batch's
statistics); K iterations, not K + 1; the learning rate falls at the same fractions of any K; classes go one after
another through the network (the sums are the same); CE(net(T)) is left out; seeds are addressed.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from baselines.cafe.alignment import Weights, align
from distill.data import ImageSet, facts_named
from distill.distilled import DistilledSet
from distill.models import build
from distill.runs.divergence import check_finite, remedy_of
from distill.runs.run import Run
from distill.training.augment import Augmentation, augmentation
from distill.training.augment_dc import augmentation_of_students
from distill.training.matching import freeze_batchnorm
from distill.training.students import train_epochs
from distill.training.work import PROBE, STEPS, Work, training_steps
from robust import Loss, Normalize
from robust.losses import on_inputs
from robust.ranges import Count, Fraction, NonNegative, Positive, Range, check_ranges

__all__ = ["Config", "distill", "weights", "work"]

REMEDY = ("--lr-img", "--lr-net")
"""flags that an alignment diverges by, beside the strength of its loss"""
MILESTONES = (0.6, 0.8, 0.9)
"""of the iterations: where the learning rate of the images is halved (1200, 1600 and 1800 of 2000)"""


@dataclass(frozen=True)
class Config:
    """The method's settings; the names are the official code's where it has them.

    Raises:
        ValueError: a field is out of its range.
    """

    real_loss: Loss
    """loss with which centres of S classify real images; h in normalised units, eps and sigma in pixels of [0, 1]"""
    backbone: str = "convnet"
    """network of the features, and of students: a name of `bash run.sh list`, options after a colon"""
    iterations: Count = 2000
    """K: networks, one after another"""
    max_steps: Count = 100
    """steps of the images with one network, at most; the official code has no end"""
    max_epochs: Count = 100
    """epochs of the network on S between two of them, at most; the official code has no end"""
    lambda_1: Fraction = 0.04
    """a network is given up when its last `window` accuracies between steps of the images span less than this"""
    lambda_2: Fraction = 0.03
    """its training on S ends when the last `window` accuracies between epochs span more than this"""
    window: Annotated[int, Range(least=2)] = 10
    """accuracies that are compared"""
    batch_watch: Count = 128
    """real images of a class that an accuracy is measured on, drawn anew for each"""
    batch_real: Count = 256
    """real images of a class in a step of the images"""
    batch_train: Count = 256
    """synthetic images of a step of the network"""
    lr_img: Positive = 0.1
    """learning rate of the images (SGD, momentum 0.5), normalised units; halved at MILESTONES"""
    lr_net: Positive = 0.01
    """learning rate of the network (SGD, no momentum)"""
    first_weight: NonNegative = 1.0
    """of what the last pooling gives: besides the 1 of its flattened form, so that both are 1 + this"""
    second_weight: NonNegative = 1.0
    """of the last activation"""
    third_weight: NonNegative = 0.1
    """of the activation before it"""
    fourth_weight: NonNegative = 0.1
    """of the one before that, and of all earlier ones"""
    inner_weight: NonNegative = 0.01
    """of the centres' loss, summed over real images"""
    init: Literal["noise", "real"] = "noise"
    """first images: standard normal in normalised space, or random real ones of the class"""
    augment: str = ""
    """siamese augmentation: "" for none, a DSA strategy, or kornia:... (see distill/training/augment.py)"""

    def __post_init__(self) -> None:
        check_ranges(self)
        augmentation(self.augment)
        if fields := self.real_loss.only_in_training:
            raise ValueError(f"real_loss has {fields}, for training a teacher; networks align frozen")
        if self.real_loss.traits.strength and self.inner_weight == 0:
            raise ValueError("inner_weight is 0, so real_loss has no part in anything; it must be > 0")


def distill(real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Distil a data set; continues from the run's checkpoint.

    Args:
        real: the training set, on the device to work on.
        ipc: images per class.
        config: the settings.
        run: its generators, checkpoints, scalars and progress.

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
        batches = (sample(c, config.batch_watch, "watch", *address) for c in range(real.num_classes))
        return _accuracy(network.eval(), batches)

    state = run.restore() or {"iteration": 0, **_initial(real, ipc, config, run, sample)}
    images, velocity = (state[name].to(real.images.device) for name in ("images", "velocity"))

    with run.progress("distil", config.iterations, state["iteration"]) as bar:
        for iteration in range(state["iteration"], config.iterations):
            start = time.perf_counter()
            network = build(config.backbone, like=real, generator=run.generator("network", iteration)).to(images)
            passed = sum(iteration >= share * config.iterations for share in MILESTONES)
            losses, steps, epochs = torch.zeros(2, device=images.device), 0, 0
            seen: deque[float] = deque(maxlen=config.window)
            while True:
                here = (iteration, steps)
                freeze_batchnorm(network, [partial(sample, c, 16, "batchnorm", *here) for c in range(len(images))])
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
                images = images - 0.5**passed * config.lr_img * velocity
                losses, steps = losses + loss, steps + 1
                seen.append(accuracy(network, *here))
                if steps == config.max_steps or (len(seen) == config.window and _span(seen) < config.lambda_1):
                    break
                epochs += _train_until_it_moved(
                    network,
                    images.flatten(0, 1),
                    labels,
                    config,
                    generator=lambda epoch, here=here: run.generator("train", *here, epoch),
                    accuracy=lambda epoch, here=here, network=network: accuracy(network, *here, epoch),
                    augment=siamese,
                )
            alignment, discrimination = (losses / steps).tolist()
            check_finite("the alignment", iteration, {"alignment": alignment, "discrimination": discrimination}, remedy)
            scalars = {"alignment": alignment, "discrimination": discrimination, "accuracy": seen[-1]}
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
    """Return the weights of the terms of a step.

    >>> from robust import CrossEntropy
    >>> weights(Config(CrossEntropy()))
    Weights(layers=(0.1, 0.1, 1.0, 2.0), inner=0.01)
    """
    late = (config.third_weight, config.second_weight, 1 + config.first_weight)
    return Weights((config.fourth_weight, *late), config.inner_weight)


def _initial(real: ImageSet, ipc: int, config: Config, run: Run, sample: Callable[..., Tensor]) -> dict[str, Any]:
    if config.init == "real":
        images = torch.stack([sample(c, ipc, "initial") for c in range(real.num_classes)])
    else:
        images = torch.randn(real.num_classes, ipc, *real.image_shape, generator=run.generator("initial"))
    return {"images": images, "velocity": torch.zeros_like(images)}


# --- the network -------------------------------------------------------------------------------------------------


def _span(values: deque[float]) -> float:
    return max(values) - min(values)


@torch.no_grad()
def _accuracy(network: nn.Module, batches: Any) -> float:
    """Return the mean over classes of the share of its images that the network gets right."""
    rates = [(network(batch).argmax(1) == class_).float().mean() for class_, batch in enumerate(batches)]
    return torch.stack(rates).mean().item()


def _train_until_it_moved(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: Config,
    *,
    generator: Callable[[int], torch.Generator],
    accuracy: Callable[[int], float],
    augment: Augmentation | None,
) -> int:
    """Train a network on S, epoch by epoch, until its accuracies span more than lambda_2; return how many.

    Args:
        network: is trained in place.
        images: (N, C, H, W), normalised.
        labels: (N,).
        config: lr_net, batch_train, window, lambda_2 and max_epochs are read.
        generator: epoch -> its generator.
        accuracy: epoch -> the accuracy on real images after it.
        augment: augmentation of an epoch's images, or None.

    Returns:
        the epochs.
    """
    optimizer = torch.optim.SGD(network.parameters(), lr=config.lr_net)
    options = {"epochs": 1, "batch_size": config.batch_train, "augmentation": augment}
    seen: deque[float] = deque(maxlen=config.window)
    for epoch in range(config.max_epochs):
        train_epochs(network, images, labels, optimizer, generator=generator(epoch), **options)
        seen.append(accuracy(epoch))
        if len(seen) == config.window and _span(seen) > config.lambda_2:
            return epoch + 1
    return config.max_epochs


def work(config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return what a distillation consists of, for an estimate: each kind of step, and how often it is taken.

    Both loops are counted as ending with their first full window of accuracies, the earliest that they can.
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
