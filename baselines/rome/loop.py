"""Distillation in a pool of networks: the loop that ROME, IDM and C2R share, which differ in the step of the images.

    each iteration: draw a network of the pool; move the images; train some networks of the pool on real images

The images are stored as IDC does: an image holds factor^2 images of a fraction of the pixels, which are enlarged before
use (`distill.training.packing`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from baselines.rome.pool import Member, Pool, Train
from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.models import build
from distill.runs.divergence import check_finite, remedy_of
from distill.runs.run import Run
from distill.training.augment import Augmentation, augmentation
from distill.training.packing import check_factor, packed, unpacked
from distill.training.work import PROBE, Work
from robust import Loss, Normalize, Threat, threat_named
from robust.losses import drawing_from, on_inputs
from robust.ranges import Count, Positive, Range, check_ranges

__all__ = [
    "PoolConfig",
    "Problem",
    "Step",
    "check",
    "distil_in_pool",
    "drawn_batch",
    "moved",
    "plain_training",
    "pool_work",
    "training_batch",
]


@dataclass(frozen=True)
class PoolConfig:
    """Settings of a distillation in a pool of networks.

    Raises:
        ValueError: a field is out of its range.
    """

    pool_loss: Loss
    """loss with which the networks of the pool train on real images; eps in pixels of [0, 1], h in normalised units"""
    backbone: str = "convnet"
    """network of the pool and of students: a name from `bash run.sh list`, options after a colon"""
    iterations: Count = 20_000
    """iterations; in each a network of the pool is drawn, the images move, and networks of the pool train"""
    attack: str = "pool"
    """ball in which images are attacked in the images' loss, in pixels: 2/255, l2:0.5; pool: that of --pool-loss, where
    it has one; "" for none"""
    attack_steps: Count = 10
    """steps of the attack on real images (PGD)"""
    factor: Annotated[int, Range(least=1, most=16)] = 2
    """images along a side of a stored image: 2 trains on four times as many images"""
    lr_img: Positive = 0.2
    """learning rate of the images (SGD, momentum 0.5), normalised units"""
    init: Literal["noise", "real"] = "real"
    """initial synthetic images: standard normal noise in normalised space, or random real images of the class"""
    augment: str = ""
    """siamese augmentation: "" for none, a DSA strategy, or kornia:... (see distill/training/augment.py)"""
    pool_start: Count = 3
    """networks of the pool at the start; the first iteration adds another"""
    pool_most: Count = 100
    """most networks of the pool; then the oldest leaves"""
    pool_every: Count = 30
    """an untrained network joins the pool in each iteration that is a multiple of this number, also in iteration 0"""
    pool_members: Count = 2
    """different networks, drawn from the pool, that train after each step of the images"""
    pool_steps: Count = 10
    """steps of their training"""
    batch_train: Count = 256
    """real images per step of their training"""
    pool_augment: str = ""
    """augmentation of the images that the pool trains on, as --augment; "" for none, as in the code of IDM and ROME"""
    lr_net: Positive = 0.01
    """learning rate of their training (SGD, momentum 0.9, weight decay 5e-4)"""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.attack not in ("", "pool"):
            threat_named(self.attack)
        augmentation(self.augment)
        augmentation(self.pool_augment)

    @property
    def threat(self) -> Threat | None:
        """The ball of the attack, None for none."""
        if self.attack == "pool":
            return getattr(self.pool_loss, "threat", None)
        return threat_named(self.attack) if self.attack else None


@dataclass(frozen=True)
class Problem:
    """What the step of the images needs besides the images."""

    real: ImageSet
    """the training set, on the device to work on"""
    labels: Tensor
    """(K ipc,) classes of the stored images, sorted"""
    normalize: Normalize
    """from pixels to the networks' inputs"""
    siamese: Augmentation | None
    pool_augment: Augmentation | None
    run: Run
    memory: dict[str, Tensor]
    """what the step keeps from iteration to iteration; checkpoints hold it"""


Step = Callable[[Problem, Member, Tensor, Tensor, int], tuple[Tensor, Tensor, dict[str, float]]]
"""(problem, the network that was drawn, images, their velocity, iteration) -> images, velocity, scalars"""


def check(real: ImageSet, ipc: int, config: PoolConfig, _: int) -> None:
    """Refuse a factor that does not fit the images; arguments as of `distill`.

    Raises:
        InputError: factor does not divide the size of the images, or a class has too few images to start from.
    """
    check_factor(config.factor, real.image_shape[1])
    n = config.factor**2 * ipc
    smallest = int(real.labels.bincount(minlength=real.num_classes).min())
    if config.init == "real" and n > smallest:
        text = f"--factor {config.factor} with ipc {ipc} starts from {n} images of each class"
        raise InputError(f"{text}; the smallest class of {real.name} has {smallest}; take --init noise")


def distil_in_pool(
    real: ImageSet, ipc: int, config: PoolConfig, run: Run, step: Step, training: Callable[[Problem], Train]
) -> DistilledSet:
    """Distil a data set; continues from the run's checkpoint.

    Args:
        real: the training set, on the device to work on.
        ipc: stored images per class; the set has factor^2 times as many.
        config: the settings.
        run: supplies random generators, checkpoints, scalars and the progress bar.
        step: moves the images.
        training: makes the step with which networks of the pool train.

    Returns:
        the images, sorted by class, in pixels, on the device of `real`, as students see them.

    Raises:
        InputError: the backbone has no features before a linear classifier, or the training diverged.
    """
    device = real.images.device
    problem = Problem(
        real,
        torch.arange(real.num_classes, device=device).repeat_interleave(ipc),
        Normalize(real.mean, real.std).to(device),
        augmentation(config.augment, real.mean, real.std),
        augmentation(config.pool_augment, real.mean, real.std),
        run,
        {},
    )
    pool = Pool(partial(_fresh, real, config, run), config.pool_most, config.lr_net)
    state = run.restore()
    if state is None:
        images = _initial(problem, ipc, config)
        state = {"iteration": 0, "images": images, "velocity": torch.zeros_like(images)}
        for _ in range(config.pool_start):
            pool.add()
    else:
        pool.restore(state["pool"])
        problem.memory.update({name: tensor.to(device) for name, tensor in state["memory"].items()})
    images, velocity = (state[name].to(device) for name in ("images", "velocity"))
    train = training(problem)
    remedy = remedy_of(("--lr-img", "--lr-net"), "--pool-loss", config.pool_loss)
    with run.progress("distil", config.iterations, state["iteration"]) as bar:
        for iteration in range(state["iteration"], config.iterations):
            start = time.perf_counter()
            if iteration % config.pool_every == 0:
                pool.add()
            (member,) = pool.draw(run.generator("network", iteration))
            member.network.eval().requires_grad_(False)
            images, velocity, found = step(problem, member, images, velocity, iteration)
            losses = [
                pool.train(each, config.pool_steps, train)
                for each in pool.draw(run.generator("trained", iteration), config.pool_members)
            ]
            found |= {"pool_loss": sum(losses) / len(losses), "pool_right": member.right}
            check_finite("the distillation", iteration, found, remedy)
            bar.set_postfix({name: f"{value:.3g}" for name, value in found.items()}, refresh=False)
            bar.update()
            run.log(iteration, **found, seconds=time.perf_counter() - start)
            if run.due() or iteration == config.iterations - 1:
                state = {"iteration": iteration + 1, "images": images, "velocity": velocity, "pool": pool.state()}
                run.save(iteration + 1, state | {"memory": problem.memory}, remedy)

    images, labels = unpacked(problem.normalize.inverse(images), problem.labels, config.factor)
    return DistilledSet.of(
        real,
        images,
        labels,
        augment=config.augment,
        backbone=config.backbone,
        training=MethodTraining(factor=config.factor if config.factor > 1 else None),
    )


def moved(images: Tensor, velocity: Tensor, gradient: Tensor, lr: float) -> tuple[Tensor, Tensor]:
    """Return images and velocity after a step of SGD with momentum 0.5."""
    velocity = 0.5 * velocity + gradient
    return images - lr * velocity, velocity


def drawn_batch(
    problem: Problem, size: int, augment: Augmentation | None, *address: str | int
) -> tuple[Tensor, Tensor]:
    """Return random real images, normalised and each augmented by itself, and their classes."""
    real, run = problem.real, problem.run
    drawn = torch.randint(len(real), (size,), generator=run.generator("batch", *address)).to(real.labels.device)
    x, y = problem.normalize(real.images[drawn]), real.labels[drawn]
    if augment is not None:
        x = augment.apply(x, augment.sample(len(x), tuple(x.shape[1:]), run.generator("batch augment", *address)))
    return x, y


def training_batch(config: PoolConfig, problem: Problem, number: int, count: int) -> tuple[Tensor, Tensor]:
    """Return the images and classes of a step of the pool, given the numbers of its network and of its step."""
    return drawn_batch(problem, config.batch_train, problem.pool_augment, "pool", number, count)


def plain_training(config: PoolConfig, problem: Problem) -> Train:
    """Return the step with which networks of the pool train on real images, by `pool_loss`."""
    loss = on_inputs(config.pool_loss, problem.normalize)

    def step(network: nn.Module, number: int, count: int) -> tuple[Tensor, Tensor]:
        x, y = training_batch(config, problem, number, count)
        with torch.no_grad():
            share = (network.eval()(x).argmax(1) == y).float().mean()
        network.train()
        return drawing_from(loss, problem.run.generator("pool loss", number, count))(network, x, y), share

    return step


def _fresh(real: ImageSet, config: PoolConfig, run: Run, number: int) -> nn.Module:
    return build(config.backbone, like=real, generator=run.generator("pool", number)).to(real.images.device)


def _initial(problem: Problem, ipc: int, config: PoolConfig) -> Tensor:
    """Return the initial stored images (K ipc, C, H, W), normalised."""
    real, run = problem.real, problem.run
    if config.init == "noise":
        shape = real.num_classes * ipc, *real.image_shape
        return torch.randn(shape, generator=run.generator("initial")).to(real.images.device)
    n = config.factor**2 * ipc
    drawn = [real.sample(c, n, run.generator("initial", c)) for c in range(real.num_classes)]
    return problem.normalize(torch.cat([packed(of_class, config.factor) for of_class in drawn]))


def pool_work(config: PoolConfig) -> list[Work]:
    """Return the work of the training of the pool's networks."""
    training = min(config.batch_train, PROBE)

    def step_of_pool(network: nn.Module, shape: tuple[int, ...]) -> None:
        x, y = torch.rand(training, *shape), torch.zeros(training, dtype=torch.long)
        torch.autograd.grad(config.pool_loss(network.train(), x, y), list(network.parameters()))

    steps = config.iterations * config.pool_members * config.pool_steps
    return [(steps * config.batch_train / training, step_of_pool)]
