"""A conditional generator of images, trained against a critic that also classifies (WGAN-GP, AC-GAN).

    generator   min over G of  -E D(G(z, y)) + CE(C(G(z, y)), y)                                     y of real images
    critic      min over D of   E D(G(z', y')) - E D(x) + CE(C(G(z', y')), y') + CE(C(x), y)
                                + penalty E (||grad D(a x + (1 - a) G(z', y'))|| - 1)^2              y' uniform
    a step      an Adam step (betas 0 and 0.9) of the generator, then one of the critic

z is standard normal, except that its first K entries are the one-hot class; D and C are linear layers on the same
features; a is uniform and drawn for each image; images are in [-1, 1], by tanh for generated images.

The training follows gen_condense.py and gan_model.py of DiM's official code, with the same generator and critic. At 32
px:

    generator   linear to 4x4, up, three convolutions, up, one, up, one to the channels; each with BatchNorm and ReLU
    critic      a convolution, down, one, down, three, down, each with layer norm over the whole map and LeakyReLU, then
                4x4 max pooling and the two linear layers

(up: a transposed convolution of stride 2; down: a convolution of stride 2). At 28 px the sides are 4, 7, 14, 28.

Deviations: for sizes other than 28 and 32 px the number of ups and downs differs; noise has at least 90 entries besides
the class (the official code: 100 entries including ten classes); a training set smaller than a batch is one batch; each
random draw has a separate seed (`Run.generator`), and runs with different seeds share one pre-training.
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
"""address of a random draw -> CPU generator for this draw"""


@dataclass(frozen=True)
class Adversarial:
    """All settings, besides the data, on which the trained generator and critic depend."""

    width: int
    """channels of all convolutions except the last"""
    dim_noise: int
    """entries of the generator's input, including the class"""
    epochs: int
    """training epochs"""
    epoch_steps: int | None
    """steps per epoch; None: one pass over the data"""
    batch_size: int
    """real images per step; as many images are generated"""
    lr: float
    """learning rate of generator and critic"""
    penalty: float
    """weight of the gradient penalty"""
    seed: int
    """root of all random seeds"""


# --- the training ------------------------------------------------------------------------------------------------


def conditioned(labels: Tensor, num_classes: int, dim_noise: int, generator: torch.Generator) -> Tensor:
    """Return noise (N, dim_noise) for class labels (N,), on the device of the labels.

    >>> conditioned(torch.tensor([2, 0]), 3, 5, torch.Generator())[:, :3].tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    noise = torch.randn(len(labels), dim_noise, generator=generator).to(labels.device, non_blocking=True)
    noise[:, :num_classes] = F.one_hot(labels, num_classes).to(noise)
    return noise


def gradient_penalty(critic: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Return the mean over points of (||gradient of the critic|| - 1)^2, differentiable by the critic's parameters.

    Args:
        critic: maps points (N, ...) to values (N,); each value depends only on the point with the same index.
        points: (N, ...).
    """
    points = points.detach().requires_grad_()
    with SecondOrder(points) as layers:
        value = critic(points).sum()
    gradient = layers.gradient(value, points)
    return (torch.linalg.vector_norm(gradient.flatten(1), dim=1) - 1).square().mean()


def batches(count: int, size: int, first: int, total: int, generator: Draw) -> Iterator[Tensor]:
    """Yield the indices of each step's batch; each pass is a new permutation, without an incomplete last batch.

    Args:
        count: number of examples.
        size: batch size; at most `count` is used.
        first: first step.
        total: end of the steps (exclusive).
        generator: number of a pass -> generator of the permutation.
    """
    size, order = min(size, count), torch.empty(0)
    for step in range(first, total):
        passes, batch = divmod(step, count // size)
        if batch == 0 or step == first:
            order = torch.randperm(count, generator=generator(passes))
        yield order[batch * size : (batch + 1) * size]


class Gan:
    """A generator and a critic, each with an Adam optimizer.

    Args:
        shape: (C, H, W) of an image.
        num_classes: K.
        settings: sizes of the networks, and settings of the training.
        generator: CPU generator for the initial weights; torch's global generator does not change.
        device: device of the networks.

    Raises:
        InputError: the generator does not support the image size, or dim_noise does not exceed the number of classes.
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
        """Return the state that `load` accepts."""
        networks = {"generator": self.generator.state_dict(), "critic": self.critic.state_dict()}
        return networks | {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load(self, state: dict[str, Any], lr: float | None = None) -> None:
        """Load a state; `lr` replaces the stored learning rate unless it is None."""
        self.generator.load_state_dict(state["generator"])
        self.critic.load_state_dict(state["critic"])
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
            for group in optimizer.param_groups:
                group["lr"] = lr or group["lr"]

    def step(
        self, x: Tensor, y: Tensor, draw: Draw, more: Callable[[Tensor], Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Train the generator, then the critic, for one step.

        Args:
            x: (N, C, H, W) real images in [-1, 1].
            y: (N,) classes of x.
            draw: name of a random draw -> generator for this step.
            more: additional loss on the generated images, or None.

        Returns:
            scalar losses by name: "generator", "critic", and "more" if `more` is not None.
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

        labels = torch.randint(self.num_classes, (len(x),), generator=draw("labels")).to(y.device, non_blocking=True)
        with torch.no_grad():
            made = self.generator(self._noise(labels, draw("noise of labels")))
        source, logits = self.critic(torch.cat([made, x]))
        fake, true = source.split(len(x))
        share = torch.rand(len(x), 1, 1, 1, generator=draw("share")).to(x, non_blocking=True)
        penalty = gradient_penalty(lambda points: self.critic(points)[0], share * x + (1 - share) * made)
        by_class = [F.cross_entropy(*pair) for pair in zip(logits.split(len(x)), (labels, y), strict=True)]
        loss = fake.mean() - true.mean() + sum(by_class) + self.settings.penalty * penalty
        self._descend(1, loss)
        return losses | {"critic": loss.detach()}

    def _noise(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        return conditioned(labels, self.num_classes, self.settings.dim_noise, generator)

    def _descend(self, index: int, loss: Tensor) -> None:
        parameters = list((self.generator, self.critic)[index].parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        self.optimizers[index].step()


def checked(losses: dict[str, Tensor], step: int, remedy: str) -> dict[str, float]:
    """Return the losses as numbers.

    Raises:
        InputError: a loss is not finite.
    """
    values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
    check_finite("the adversarial training", step, values, remedy, "step")
    return values


def pretrained(real: ImageSet, settings: Adversarial, run: Run) -> dict[str, Any]:
    """Train a generator and a critic, or load them if an earlier run has trained them.

    Args:
        real: the training set, on the device to work on.
        settings: sizes of the networks, and settings of the training.
        run: the run of the method; this training has a separate folder (`Run.stage`).

    Returns:
        the state that `Gan.load` accepts.

    Raises:
        InputError: the generator does not support the image size, or the training diverged.
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
            for step, indices in zip(range(first, total), orders, strict=True):
                start = time.perf_counter()
                indices = indices.to(device, non_blocking=True)
                x, y = 2 * real.images[indices] - 1, real.labels[indices]
                losses = gan.step(x, y, lambda name, here=step: stage.generator(name, here))
                values = checked(losses, step, "--gan-lr")
                bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()}, refresh=False)
                bar.update()
                stage.log(step, **values, seconds=time.perf_counter() - start)
                if stage.due() or step == total - 1:
                    stage.save(step + 1, {"step": step + 1} | gan.state(), "--gan-lr")
    return gan.state()
