"""DiM: the data in the weights of a generator, from which students draw fresh images in each epoch.

    first   a conditional generator is trained against a critic on the real data (`baselines.gan`)
    then    so on, with the generator's loss  L_adversarial(G) + weight mean over images and classes of
                ( log p(class | A(x)) - log p(class | A(G(z, y))) )^2
            p of a network that is trained on the real data beside it: net_steps mini-batches before each step. An epoch
            has a new one, of an architecture drawn from a pool. A is siamese: one draw serves x and G(z, y), whose
            images have the same classes.

"DiM: Distilling Dataset into Generative Model", Wang, Gu, Zhou, Zhu, Jiang & You, 2023 (arXiv 2303.04707), as
gen_condense.py, pool_match.py --match logit --match-aug and validate.py of its official code have it.

No step depends on ipc, so that runs of all ipc share the generator (`Run.stage`), and those of all seeds what came
first. A set's file has its weights (`DistilledSet.training_tensors`). With them --protocol own trains students as the
authors do: on `ipc` images a class, drawn anew in each epoch. `images` are one such draw, for whatever needs images.
`training` has width, dim_noise, and the epochs, learning rate and augmentation of those students.

Deviations from the official code: the last generator, and the last state of a student, not the best on the test set;
images of [-1, 1] become pixels before they are normalised (its pool_match.py normalises them as if they were pixels,
its MNIST tests on other units than it trains on); tested networks are in evaluation mode; an epoch of ipc images a
class has exactly those, also where they fill no batch; ResNets with PyTorch's first weights, and for all data those of
CIFAR; and those of `baselines.gan`, whose generator makes images of 8 to 64 px: ImageNet's 224 are refused.
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
"""flags that the matching of logits diverges by"""

OFFICIAL_POOL = (
    "convnet",
    "resnet18:norm=batch,width=32,blocks=1",
    "resnet18:norm=batch,width=32",
    "resnet18_ap:norm=batch,width=32,blocks=1,head=mean",
    "resnet18_ap:norm=batch,width=32,head=mean",
)
"""there: convnet, resnet10, resnet18, resnet10_ap, resnet18_ap, with the widths that they have on CIFAR-10"""


@dataclass(frozen=True)
class Config:
    """The method's settings.

    Raises:
        ValueError: a field is out of its range.
    """

    backbone: str = "convnet"
    """network of the students: a name of `bash run.sh list`, options after a colon"""
    width: Count = 196
    """channels of generator and critic"""
    dim_noise: Count | None = None
    """entries of the generator's input, of which the first are the class; None: 90 beside it, and at least 100"""
    gan_epochs: Count = 150
    """epochs of the first part"""
    gan_epoch_steps: Count | None = None
    """steps of such an epoch; None: of a pass over the real data"""
    gan_batch: Count = 128
    """real images of such a step"""
    gan_lr: Positive = 1e-4
    """learning rate of generator and critic in it (Adam, betas 0 and 0.9)"""
    gan_seed: Whole = 0
    """root of its randomness: runs of all seeds share it"""
    penalty: NonNegative = 10.0
    """weight of the critic's gradient penalty, in both parts"""
    match_epochs: Whole = 100
    """epochs of the second part, each with a network of its own"""
    match_epoch_steps: Count | None = None
    """steps of such an epoch; None: of a pass over the real data"""
    match_batch: Count = 64
    """real images of such a step, and of one of the network"""
    match_lr: Positive = 5e-6
    """learning rate of generator and critic in it"""
    match_weight: NonNegative = 0.01
    """weight of the distance of logits"""
    pool: tuple[str, ...] = OFFICIAL_POOL
    """networks that are drawn from"""
    net_steps: Whole = 16
    """mini-batches that the network is trained on before each step"""
    lr_net: Positive = 0.01
    """learning rate of the network and of students in the authors' way (SGD, momentum 0.9, weight decay 5e-4)"""
    augment: str = "color_crop_cutout"
    """groups of DSA: flip, color and cutout always, of the others one; the networks' own training is without cutout"""
    student_epochs: Count = 1000
    """epochs of students in the authors' way, each on new images"""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.pool:
            raise ValueError("pool is empty; it takes at least one network")
        Groups(self.augment)


def distill(real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Distil a data set; continues from the checkpoints of its parts, and takes those that are there.

    Args:
        real: the training set, on the device to work on.
        ipc: images per class.
        config: the settings.
        run: its generators, progress, and stages.

    Returns:
        `ipc` images of each class, sorted by class, in pixels, on the device of `real`, and the generator.

    Raises:
        InputError: images of a size that cannot be made, or too large for memory, or the training diverged.
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
    """Return the generator, trained in both parts, or as an earlier run left it."""
    device, settings = real.labels.device, _adversarial(config, real.num_classes)
    gan = Gan(real.image_shape, real.num_classes, settings, torch.Generator(), device)
    part = {name: value for name, value in describe(config).items() if name not in ("backbone", "student_epochs")}
    stage = run.stage("matching", {"data": real.identity(), "config": part})
    a_pass = len(real) // min(config.match_batch, len(real))
    an_epoch = config.match_epoch_steps or a_pass
    total, normalize = config.match_epochs * an_epoch, Normalize(real.mean, real.std).to(device)
    siamese, single = Groups(config.augment), Groups(without_cutout(config.augment))
    with locked(stage.folder, wait=True):
        state = stage.restore()
        if state is not None and state["step"] == total:
            gan.generator.load_state_dict(state["generator"])
            return gan.generator
        gan.load(state or pretrained(real, settings, run), config.match_lr)
        first = 0 if state is None else state["step"]
        orders = batches(len(real), config.match_batch, first, total, partial(stage.generator, "order"))
        network, optimizer = _network(real, config, stage, first // an_epoch)
        if state is not None and first % an_epoch:
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["of_network"])
        with stage.progress("matching", total, first) as bar:
            for step, which in zip(range(first, total), orders, strict=True):
                start = time.perf_counter()
                if step % an_epoch == 0 and step > first:
                    network, optimizer = _network(real, config, stage, step // an_epoch)
                _train(network, optimizer, real, normalize, single, config, stage, step)
                x, y = real.images[which.to(device)], real.labels[which.to(device)]
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
    """Return the weighted distance of logits of real images, in pixels, and images that the generator made."""
    return weight * logit_distance(network, seen(real), seen((made + 1) / 2))


def logit_distance(network: nn.Module, real: Tensor, made: Tensor) -> Tensor:
    """Return the mean squared difference of a network's log-probabilities for two batches, paired image by image.

    Args:
        network: each batch goes through it alone.
        real: (N, C, H, W), normalised; no gradient passes through them.
        made: (N, C, H, W), normalised.
    """
    with torch.no_grad():
        target = network(real).log_softmax(1)
    return (target - network(made).log_softmax(1)).square().mean()


def _network(real: ImageSet, config: Config, stage: Run, epoch: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the untrained network of an epoch, and its optimizer."""
    which = int(torch.randint(len(config.pool), (), generator=stage.generator("pool", epoch)))
    network = build(config.pool[which], like=real, generator=stage.generator("network", epoch)).to(real.labels.device)
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
    """Train an epoch's network on a few mini-batches of real images."""
    size = min(config.match_batch, len(real))
    count = size * min(config.net_steps, len(real) // size)
    if count == 0:
        return
    generator = stage.generator("of the network", step)
    which = torch.randperm(len(real), generator=generator)[:count].to(real.labels.device)
    train_epochs(
        network,
        normalize(real.images[which]),
        real.labels[which],
        optimizer,
        epochs=1,
        batch_size=size,
        generator=generator,
        augmentation=single,
    )


# --- how long it takes -------------------------------------------------------------------------------------------


def work(config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return what a distillation consists of, for an estimate: each kind of step, and how often it is taken.

    All is counted as if no part were there. The networks of the pool are timed, and matching as training.
    """
    few = PROBE if config.width <= 64 else 2  # images of a timed step: wide ones take long, in time as their number
    first, second = (min(batch, examples) for batch in (config.gan_batch, config.match_batch))
    of_gan = config.gan_epochs * (config.gan_epoch_steps or examples // first)
    of_matching = config.match_epochs * (config.match_epoch_steps or examples // second)
    made: dict[Any, Any] = {}

    def adversarial_step(network: nn.Module, shape: tuple[int, int, int]) -> None:
        if shape not in made:
            made[shape] = Gan(shape, num_classes, _adversarial(config, num_classes), torch.Generator())
        labels = torch.zeros(few, dtype=torch.long)
        made[shape].step(torch.randn(few, *shape), labels, lambda name: torch.Generator())

    def network_steps(network: nn.Module, shape: tuple[int, int, int], *, spec: str) -> None:
        if (spec, shape) not in made:
            channels, size, _ = shape
            made[spec, shape] = build(
                spec, channels=channels, image_size=size, num_classes=num_classes, generator=torch.Generator()
            )
        training_steps(made[spec, shape], shape, images=min(second, few))

    each = of_matching * (config.net_steps + 1) * second / min(second, few) / STEPS / len(config.pool)
    return [
        ((of_gan * first + of_matching * second) / few, adversarial_step),
        *((each, partial(network_steps, spec=spec)) for spec in config.pool),
    ]


def student_work(config: Config, ipc: int, num_classes: int) -> list[Work]:
    """Return what the training of one student in the authors' way consists of, the generator's images included."""
    images = ipc * num_classes
    batch, made = min(images, STUDENT_BATCH, PROBE), {}

    def generated(network: nn.Module, shape: tuple[int, int, int]) -> None:
        dim = _adversarial(config, num_classes).dim_noise
        if shape not in made:
            made[shape] = Generator(shape[0], shape[1], dim, config.width).eval()
        drawn(made[shape], torch.zeros(batch, dtype=torch.long), num_classes, torch.Generator())

    count = config.student_epochs * images / batch
    return [(count, generated), (count / STEPS, partial(training_steps, images=batch))]
