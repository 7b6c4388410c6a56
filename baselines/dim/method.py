"""DiM: stores the data in the weights of a generator, which makes new images for students in each epoch.

    first stage    a conditional generator is trained against a critic on the real data (`baselines.dim.gan`)
    second stage   the training continues with the generator's loss  L_adversarial(G) + weight mean over images and
                   classes of  ( log p(class | A(x)) - log p(class | A(G(z, y))) )^2
                   p is a network that is trained on the real data at the same time: net_steps mini-batches before each
                   step. Each epoch has a new network, of an architecture drawn from a pool. A is siamese: x and
                   G(z, y), whose images have the same classes, share the random parameters.

"DiM: Distilling Dataset into Generative Model", Wang, Gu, Zhou, Zhu, Jiang & You, 2023 (arXiv 2303.04707), following
gen_condense.py, pool_match.py --match logit --match-aug and validate.py of the official code.

No step depends on ipc. Runs with any ipc therefore share the generator (`Run.stage`), and runs with any seed share the
first stage. A set's file contains the weights of the generator (`DistilledSet.training_tensors`), so that --protocol
own trains students as the authors do: on `ipc` images per class, drawn anew in each epoch. `images` is one such draw,
for commands that need images. `training` has width, dim_noise, and the epochs, learning rate and augmentation of
these students.

Deviations from the official code: the last generator and the last state of a student are used, not the best on the test
set; images in [-1, 1] become pixels before normalisation (the official pool_match.py normalises them as if they were
pixels, and the official MNIST code tests in other units than it trains in); networks are tested in evaluation mode; an
epoch has exactly ipc images per class, even if they do not fill a batch; ResNets have PyTorch's initial weights, and
the CIFAR variants are used for all data; and the deviations of `baselines.dim.gan`, whose generator makes images of 8
to 64 px: ImageNet's 224 px are rejected.

This file is above 300 lines: the settings, the generator's training and the matching are read together.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from baselines.dim.gan import Adversarial, Gan, Generator, batches, checked, pretrained
from baselines.dim.generated import STUDENT_BATCH, Groups, drawn, protocol, sgd, without_cutout
from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.method_training import MethodTraining
from distill.models import build
from distill.runs.description import describe
from distill.runs.locks import locked
from distill.runs.run import Run
from distill.training.students import train_epochs
from distill.training.work import PROBE, STEPS, Work, training_steps
from robust import Normalize
from robust.ranges import Count, NonNegative, Positive, Whole, check_ranges

__all__ = ["Config", "distill", "logit_distance", "protocol", "student_work", "work"]

REMEDY = "--match-lr, --match-weight or --lr-net"
"""flags to reduce when the matching of logits diverges"""

OFFICIAL_POOL = (
    "convnet",
    "resnet18:norm=batch,width=32,blocks=1",
    "resnet18:norm=batch,width=32",
    "resnet18_ap:norm=batch,width=32,blocks=1,head=mean",
    "resnet18_ap:norm=batch,width=32,head=mean",
)
"""in DiM's code: convnet, resnet10, resnet18, resnet10_ap, resnet18_ap, with the widths used there for CIFAR-10"""


@dataclass(frozen=True)
class Config:
    """The method's settings.

    Raises:
        ValueError: a field is out of its range.
    """

    backbone: str = "convnet"
    """network of the students: a name from `bash run.sh list`, options after a colon"""
    width: Count = 196
    """channels of generator and critic"""
    dim_noise: Count | None = None
    """entries of the generator's input, including the one-hot class; None: number of classes + 90, at least 100"""
    gan_epochs: Count = 150
    """epochs of the first stage (generator against critic)"""
    gan_epoch_steps: Count | None = None
    """steps per epoch of the first stage; None: one pass over the real data"""
    gan_batch: Count = 128
    """real images per step of the first stage"""
    gan_lr: Positive = 1e-4
    """learning rate of generator and critic in the first stage (Adam, betas 0 and 0.9)"""
    gan_seed: Whole = 0
    """root of the random seeds of the first stage, which runs with different seeds share"""
    penalty: NonNegative = 10.0
    """weight of the critic's gradient penalty, in both stages"""
    match_epochs: Whole = 100
    """epochs of the second stage (matching), each with a new network"""
    match_epoch_steps: Count | None = None
    """steps per epoch of the second stage; None: one pass over the real data"""
    match_batch: Count = 64
    """real images per step of the second stage, for the generator and for the network"""
    match_lr: Positive = 5e-6
    """learning rate of generator and critic in the second stage"""
    match_weight: NonNegative = 0.01
    """weight of the distance between logits"""
    pool: tuple[str, ...] = OFFICIAL_POOL
    """networks from which each epoch of the second stage draws one"""
    net_steps: Whole = 16
    """mini-batches that train the network before each step of the second stage"""
    lr_net: Positive = 0.01
    """learning rate of the network, and of students with --protocol own (SGD, momentum 0.9, weight decay 5e-4)"""
    augment: str = "color_crop_cutout"
    """DSA groups: flip, color and cutout always, one of the others at random; training of networks omits cutout"""
    student_epochs: Count = 1000
    """epochs of students with --protocol own, each on new images"""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.pool:
            raise ValueError("pool is empty; it takes at least one network")
        Groups(self.augment)


def distill(real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Distil a data set; resumes from the checkpoints of both stages, and reuses finished stages.

    Args:
        real: the training set, on the device to work on.
        ipc: images per class.
        config: the settings.
        run: supplies random generators, the progress bar and stages.

    Returns:
        `ipc` images of each class, sorted by class, in pixels, on the device of `real`, and the generator.

    Raises:
        InputError: the generator does not support the image size, the data do not fit in memory, or the training
            diverged.
    """
    real = real.in_memory()
    generator = matched(real, config, run).eval()
    labels = torch.arange(real.num_classes, device=real.labels.device).repeat_interleave(ipc)
    images = [
        drawn(generator, of_class, real.num_classes, run.generator("images", class_))
        for class_, of_class in enumerate(labels.split(ipc))
    ]
    weights = generator.state_dict().items()
    return DistilledSet.of(
        real,
        torch.cat(images),
        labels,
        augment=without_cutout(config.augment),
        backbone=config.backbone,
        training=MethodTraining(
            width=config.width,
            dim_noise=_adversarial(config, real.num_classes).dim_noise,
            epochs=config.student_epochs,
            lr=config.lr_net,
            augment=without_cutout(config.augment),
        ),
        training_tensors={name: tensor for name, tensor in weights if tensor.is_floating_point()},
    )


def _adversarial(config: Config, num_classes: int) -> Adversarial:
    return Adversarial(
        width=config.width,
        dim_noise=config.dim_noise or max(100, num_classes + 90),
        epochs=config.gan_epochs,
        epoch_steps=config.gan_epoch_steps,
        batch_size=config.gan_batch,
        lr=config.gan_lr,
        penalty=config.penalty,
        seed=config.gan_seed,
    )


# --- matching ----------------------------------------------------------------------------------------------------


def matched(real: ImageSet, config: Config, run: Run) -> Generator:
    """Return the generator after both stages, trained or loaded from an earlier run."""
    device, settings = real.labels.device, _adversarial(config, real.num_classes)
    gan = Gan(real.image_shape, real.num_classes, settings, torch.Generator(), device)
    part = {name: value for name, value in describe(config).items() if name not in ("backbone", "student_epochs")}
    stage = run.stage("matching", {"data": real.identity(), "config": part})
    steps_per_pass = len(real) // min(config.match_batch, len(real))
    steps_per_epoch = config.match_epoch_steps or steps_per_pass
    total, normalize = config.match_epochs * steps_per_epoch, Normalize(real.mean, real.std).to(device)
    siamese, single = Groups(config.augment), Groups(without_cutout(config.augment))
    with locked(stage.folder, wait=True):
        state = stage.restore()
        if state is not None and state["step"] == total:
            gan.generator.load_state_dict(state["generator"])
            return gan.generator
        gan.load(state or pretrained(real, settings, run), config.match_lr)
        first = 0 if state is None else state["step"]
        orders = batches(len(real), config.match_batch, first, total, partial(stage.generator, "order"))
        network, optimizer = _network(real, config, stage, first // steps_per_epoch)
        if state is not None and first % steps_per_epoch:
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["of_network"])
        with stage.progress("matching", total, first) as bar:
            for step, indices in zip(range(first, total), orders, strict=True):
                start = time.perf_counter()
                if step % steps_per_epoch == 0 and step > first:
                    network, optimizer = _network(real, config, stage, step // steps_per_epoch)
                _train(network, optimizer, real, normalize, single, config, stage, step)
                indices = indices.to(device, non_blocking=True)
                x, y = real.images[indices], real.labels[indices]
                siblings = siamese.sample(None, real.image_shape, stage.generator("siamese", step))

                def seen(pixels: Tensor, same: Any = siblings) -> Tensor:
                    return siamese.apply(normalize(pixels), same)

                distance = partial(_distance, network, seen, x, config.match_weight)
                losses = gan.step(2 * x - 1, y, lambda name, here=step: stage.generator(name, here), distance)
                losses["match"] = losses.pop("more")
                values = checked(losses, step, REMEDY)
                bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()}, refresh=False)
                bar.update()
                stage.log(step, **values, seconds=time.perf_counter() - start)
                if stage.due() and step < total - 1:
                    nets = {"network": network.state_dict(), "of_network": optimizer.state_dict()}
                    stage.save(step + 1, {"step": step + 1} | gan.state() | nets, REMEDY)
        stage.save(total, {"step": total, "generator": gan.generator.state_dict()}, REMEDY)
    return gan.generator


def _distance(
    network: nn.Module, seen: Callable[[Tensor], Tensor], real: Tensor, weight: float, made: Tensor
) -> Tensor:
    """Return the weighted distance of the logits of real images, in pixels, and generated images, in [-1, 1]."""
    return weight * logit_distance(network, seen(real), seen((made + 1) / 2))


def logit_distance(network: nn.Module, real: Tensor, made: Tensor) -> Tensor:
    """Return the mean squared difference of a network's log-probabilities for two batches, paired image by image.

    Args:
        network: applied to each batch separately.
        real: (N, C, H, W), normalised; no gradient passes through them.
        made: (N, C, H, W), normalised.
    """
    with torch.no_grad():
        target = network(real).log_softmax(1)
    return (target - network(made).log_softmax(1)).square().mean()


def _network(real: ImageSet, config: Config, stage: Run, epoch: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the untrained network of an epoch and an optimizer for this network."""
    number = int(torch.randint(len(config.pool), (), generator=stage.generator("pool", epoch)))
    network = build(config.pool[number], like=real, generator=stage.generator("network", epoch)).to(real.labels.device)
    return network.train(), sgd(network, config.lr_net)


def _train(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    real: ImageSet,
    normalize: nn.Module,
    single: Groups,
    config: Config,
    stage: Run,
    step: int,
) -> None:
    """Train an epoch's network on at most net_steps mini-batches of real images."""
    size = min(config.match_batch, len(real))
    count = size * min(config.net_steps, len(real) // size)
    if count == 0:
        return
    generator = stage.generator("of the network", step)
    indices = torch.randperm(len(real), generator=generator)[:count].to(real.labels.device)
    train_epochs(
        network,
        normalize(real.images[indices]),
        real.labels[indices],
        optimizer,
        epochs=1,
        batch_size=size,
        generator=generator,
        augmentation=single,
    )


# --- how long it takes -------------------------------------------------------------------------------------------


def work(config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return the work of a distillation for the time estimate: each kind of step and the number of such steps.

    Both stages are counted, even if finished. The networks of the pool are timed, and matching as training.
    """
    probe = PROBE if config.width <= 64 else 2  # images of a timed step, whose time is proportional to them
    first, second = (min(batch, examples) for batch in (config.gan_batch, config.match_batch))
    gan_steps = config.gan_epochs * (config.gan_epoch_steps or examples // first)
    matching_steps = config.match_epochs * (config.match_epoch_steps or examples // second)
    made: dict[Any, Any] = {}

    def adversarial_step(network: nn.Module, shape: tuple[int, int, int]) -> None:
        if shape not in made:
            made[shape] = Gan(shape, num_classes, _adversarial(config, num_classes), torch.Generator())
        labels = torch.zeros(probe, dtype=torch.long)
        made[shape].step(torch.randn(probe, *shape), labels, lambda name: torch.Generator())

    def network_steps(network: nn.Module, shape: tuple[int, int, int], *, spec: str) -> None:
        if (spec, shape) not in made:
            channels, size, _ = shape
            made[spec, shape] = build(
                spec, channels=channels, image_size=size, num_classes=num_classes, generator=torch.Generator()
            )
        training_steps(made[spec, shape], shape, images=min(second, probe))

    each = matching_steps * (config.net_steps + 1) * second / min(second, probe) / STEPS / len(config.pool)
    return [
        ((gan_steps * first + matching_steps * second) / probe, adversarial_step),
        *((each, partial(network_steps, spec=spec)) for spec in config.pool),
    ]


def student_work(config: Config, ipc: int, num_classes: int) -> list[Work]:
    """Return the work of training one student with the authors' protocol, including the generation of images."""
    images = ipc * num_classes
    batch, made = min(images, STUDENT_BATCH, PROBE), {}

    def generated(network: nn.Module, shape: tuple[int, int, int]) -> None:
        dim = _adversarial(config, num_classes).dim_noise
        if shape not in made:
            made[shape] = Generator(shape[0], shape[1], dim, config.width).eval()
        drawn(made[shape], torch.zeros(batch, dtype=torch.long), num_classes, torch.Generator())

    count = config.student_epochs * images / batch
    return [(count, generated), (count / STEPS, partial(training_steps, images=batch))]
