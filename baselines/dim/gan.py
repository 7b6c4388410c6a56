"""A conditional generator of images, and its training against a critic that classifies too (WGAN-GP, AC-GAN).

    generator   min over G of  -E D(G(z, y)) + CE(C(G(z, y)), y)                                     y of real images
    critic      min over D of   E D(G(z', y')) - E D(x) + CE(C(G(z', y')), y') + CE(C(x), y)
                                + penalty E (||grad D(a x + (1 - a) G(z', y'))|| - 1)^2              y' uniform
    a step      one of Adam (betas 0 and 0.9) for the generator, then one for the critic

z is standard normal, and its first K entries are the class, one-hot; D and C are linear layers on the same features; a
is uniform, one an image; images are in [-1, 1], those of the generator by tanh.

As gen_condense.py and gan_model.py of DiM's official code have it, with its generator and critic: at 32 px

    generator   linear to 4x4, up, three convolutions, up, one, up, one to the channels; each with BatchNorm and ReLU
    critic      a convolution, down, one, down, three, down, each with layer norm over the whole map and LeakyReLU, then
                max pooling of 4x4 and the two linear layers

(up: a transposed convolution of stride 2; down: a convolution of stride 2) and at 28 px the same by 4, 7, 14, 28.

Deviations: other sizes than 28 and 32 px have fewer or more ups and downs; noise has at least 90 entries beside the
class (there 100 in all, for ten classes); a training set smaller than a batch is one; seeds are addressed, and runs of
all seeds share one pre-training.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.dim.networks import SIZES, Critic, Generator
from distill.data import ImageSet
from distill.errors import InputError
from distill.runs.description import describe
from distill.runs.divergence import check_finite
from distill.runs.locks import locked
from distill.runs.run import Run
from robust.second_order.layers import SecondOrder

__all__ = ["SIZES", "Adversarial", "Gan", "batches", "conditioned", "gradient_penalty"]

Draw = Callable[..., torch.Generator]
"""(address) -> the CPU generator of a step's part"""


@dataclass(frozen=True)
class Adversarial:
    """How a generator is trained against a critic: all that it depends on besides the data."""

    width: int
    """channels of all convolutions but the last"""
    dim_noise: int
    """entries of the generator's input, classes included"""
    epochs: int
    """of the training"""
    epoch_steps: int | None
    """steps of an epoch; None: of a pass over the data"""
    batch_size: int
    """real images of a step, and generated ones"""
    lr: float
    """learning rate of both"""
    penalty: float
    """weight of the gradient penalty"""
    seed: int
    """root of the randomness"""


# --- the training ------------------------------------------------------------------------------------------------


def conditioned(labels: Tensor, num_classes: int, dim_noise: int, generator: torch.Generator) -> Tensor:
    """Return noise (N, dim_noise) for classes (N,), on their device.

    >>> conditioned(torch.tensor([2, 0]), 3, 5, torch.Generator())[:, :3].tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    noise = torch.randn(len(labels), dim_noise, generator=generator).to(labels.device)
    noise[:, :num_classes] = F.one_hot(labels, num_classes).to(noise)
    return noise


def gradient_penalty(critic: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Return the mean over points of (||gradient of the critic|| - 1)^2, differentiable by the critic's parameters.

    Args:
        critic: points (N, ...) to values (N,), each of its own point alone.
        points: (N, ...).
    """
    points = points.detach().requires_grad_()
    with SecondOrder(points) as layers:
        value = critic(points).sum()
    gradient = layers.gradient(value, points)
    return (torch.linalg.vector_norm(gradient.flatten(1), dim=1) - 1).square().mean()


def batches(count: int, size: int, first: int, total: int, generator: Draw) -> Iterator[Tensor]:
    """Yield the indices of each step's batch; a pass is a permutation, less the last batch where that is not whole.

    Args:
        count: examples.
        size: of a batch, at most all of them.
        first: step to begin with.
        total: step to end before.
        generator: pass -> generator of its order.
    """
    size = min(size, count)
    for step in range(first, total):
        passes, batch = divmod(step, count // size)
        if batch == 0 or step == first:
            order = torch.randperm(count, generator=generator(passes))
        yield order[batch * size : (batch + 1) * size]


class Gan:
    """A generator, its critic, and the Adam of each.

    Args:
        shape: (C, H, W) of an image.
        num_classes: K.
        settings: their sizes, and their training's.
        generator: CPU generator of the first weights; torch's own is left as it was.
        device: where they live.

    Raises:
        InputError: images of that size cannot be made, or noise has no room beside the class.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        settings: Adversarial,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ):
        if settings.dim_noise <= num_classes:
            line = f"dim_noise is {settings.dim_noise}; {num_classes} of its entries are the class"
            raise InputError(f"{line}: it must be larger, or None")
        self.num_classes, self.settings = num_classes, settings
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            self.generator = Generator(shape[0], shape[1], settings.dim_noise, settings.width).to(device)
            self.critic = Critic(shape[0], shape[1], num_classes, settings.width).to(device)
        self.optimizers = [
            torch.optim.Adam(network.parameters(), lr=settings.lr, betas=(0.0, 0.9))
            for network in (self.generator, self.critic)
        ]

    def state(self) -> dict[str, Any]:
        """Return what `load` takes."""
        networks = {"generator": self.generator.state_dict(), "critic": self.critic.state_dict()}
        return networks | {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load(self, state: dict[str, Any], lr: float | None = None) -> None:
        """Take a state, and another learning rate where one is given."""
        self.generator.load_state_dict(state["generator"])
        self.critic.load_state_dict(state["critic"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
            for group in optimizer.param_groups:
                group["lr"] = lr or group["lr"]

    def step(
        self, x: Tensor, y: Tensor, draw: Draw, more: Callable[[Tensor], Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Train the generator, then the critic, for a step.

        Args:
            x: (N, C, H, W) real images in [-1, 1].
            y: (N,) their classes.
            draw: the step's generators.
            more: another loss of the generator's images, or None.

        Returns:
            the losses, scalars: those of the generator and of the critic, and `more` where it is.
        """
        self.generator.train()
        made = self.generator(self._noise(y, draw("noise")))
        source, logits = self.critic(made)
        loss = F.cross_entropy(logits, y) - source.mean()
        losses = {"generator": loss.detach()}
        if more is not None:
            extra = more(made)
            losses["more"] = extra.detach()
            loss = loss + extra
        self._descend(0, loss)

        labels = torch.randint(self.num_classes, (len(x),), generator=draw("labels")).to(y.device)
        with torch.no_grad():
            made = self.generator(self._noise(labels, draw("noise of labels")))
        source, logits = self.critic(torch.cat([made, x]))
        fake, true = source.split(len(x))
        share = torch.rand(len(x), 1, 1, 1, generator=draw("share")).to(x)
        penalty = gradient_penalty(lambda points: self.critic(points)[0], share * x + (1 - share) * made)
        by_class = [F.cross_entropy(*pair) for pair in zip(logits.split(len(x)), (labels, y), strict=True)]
        loss = fake.mean() - true.mean() + sum(by_class) + self.settings.penalty * penalty
        self._descend(1, loss)
        return losses | {"critic": loss.detach()}

    def _noise(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        return conditioned(labels, self.num_classes, self.settings.dim_noise, generator)

    def _descend(self, which: int, loss: Tensor) -> None:
        parameters = list((self.generator, self.critic)[which].parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        self.optimizers[which].step()


def checked(losses: dict[str, Tensor], step: int, remedy: str) -> dict[str, float]:
    """Return the losses as numbers.

    Raises:
        InputError: one is not finite.
    """
    values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
    check_finite("the adversarial training", step, values, remedy, "step")
    return values


def pretrained(real: ImageSet, settings: Adversarial, run: Run) -> dict[str, Any]:
    """Train a generator and its critic, or take those that an earlier run left.

    Args:
        real: the training set, on the device to work on.
        settings: how.
        run: of the whole; this part has its own folder among `run.stages`.

    Returns:
        the state that `Gan.load` takes.

    Raises:
        InputError: images of that size cannot be made, or the training diverged.
    """
    device = real.labels.device
    stage = run.stage("gan", {"data": real.identity(), "adversarial": describe(settings)}, settings.seed)
    size = min(settings.batch_size, len(real))
    total = settings.epochs * (settings.epoch_steps or len(real) // size)
    with locked(stage.folder, wait=True):
        gan, first = Gan(real.image_shape, real.num_classes, settings, stage.generator("networks"), device), 0
        if (state := stage.restore()) is not None:
            gan.load(state)
            first = state["step"]
        orders = batches(len(real), size, first, total, lambda passes: stage.generator("order", passes))
        with stage.progress("generator and critic", total, first) as bar:
            for step, which in zip(range(first, total), orders, strict=True):
                start = time.perf_counter()
                which = which.to(device)
                x, y = 2 * real.images[which] - 1, real.labels[which]
                losses = gan.step(x, y, lambda name, here=step: stage.generator(name, here))
                values = checked(losses, step, "--gan-lr")
                bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()}, refresh=False)
                bar.update()
                stage.log(step, **values, seconds=time.perf_counter() - start)
                if stage.due() or step == total - 1:
                    stage.save(step + 1, {"step": step + 1} | gan.state(), "--gan-lr")
    return gan.state()
