"""The steps of the stages, for the estimate of time."""

import torch
from torch import nn

from distill.training.work import PROBE, Work
from robust import loss_named
from sre2l import rded
from sre2l.pipeline import Config
from sre2l.precision import Compute
from sre2l.recover import BatchNormMatch
from sre2l.squeeze import Squeeze
from sre2l.stages import Students
from sre2l.validate import divergence

__all__ = ["labels_work", "selection_work", "squeeze_work", "student_work", "work"]


def work(config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return the kinds of steps of a distillation and their numbers, for the estimate of time."""
    unit, cpu = min(config.recover.batch_size, ipc * num_classes, PROBE), torch.device("cpu")

    def recover_step(network: nn.Module, shape: tuple[int, ...]) -> None:
        x = torch.rand(unit, *shape, requires_grad=True)
        with BatchNormMatch(network.eval(), 1.0, required=False) as match, config.compute.autocast(cpu):
            out = network(x)
        torch.autograd.grad(out.sum() + match.distance, x)

    recovered = 0 if config.recover.images else config.recover.iterations * ipc * num_classes / unit
    return [
        squeeze_work(config.squeeze, config.compute, examples),
        (recovered, recover_step),
        labels_work(config, ipc, num_classes),
    ]


def selection_work(config: rded.Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return the kinds of steps of a distillation by selected crops and their numbers, for the estimate of time."""
    candidates = min(config.select.candidates * num_classes, examples)
    return [
        squeeze_work(config.squeeze, config.compute, examples),
        _forward(config.compute, PROBE, candidates * config.select.crops),
        labels_work(config, ipc, num_classes),
    ]


def squeeze_work(config: Squeeze, compute: Compute, examples: int) -> Work:
    """Return the steps of training a teacher, for the estimate of time.

    Args:
        config: how it is trained.
        compute: how the arithmetic runs.
        examples: size of the training set.
    """
    batch, loss = min(config.batch_size, PROBE), loss_named(config.loss)

    def step(network: nn.Module, shape: tuple[int, ...]) -> None:
        x, y = torch.rand(batch, *shape), torch.zeros(batch, dtype=torch.long)
        with compute.autocast(torch.device("cpu")):
            value = loss(network.train(), x, y)
        torch.autograd.grad(value, list(network.parameters()))

    return config.epochs * examples / batch, step


def labels_work(config: Students, ipc: int, num_classes: int) -> Work:
    """Return the forward passes of a teacher that labels all views of the images."""
    images = ipc * num_classes
    return _forward(config.compute, min(images, PROBE), config.relabel.epochs * images)


def student_work(config: Students, ipc: int, num_classes: int) -> list[Work]:
    """Return the kinds of steps of training one student and their numbers."""
    batch = min(config.relabel.batch_size, ipc * num_classes, PROBE)

    def student_step(network: nn.Module, shape: tuple[int, ...]) -> None:
        with config.compute.autocast(torch.device("cpu")):
            out = network.train()(torch.rand(batch, *shape))
        torch.autograd.grad(divergence(out, out.detach() + 1, 20.0), list(network.parameters()))

    return [(config.relabel.epochs * ipc * num_classes / batch, student_step)]


def _forward(compute: Compute, batch: int, images: float) -> Work:
    """Return forward passes of the teacher over images, in batches."""

    @torch.no_grad()
    def forward(network: nn.Module, shape: tuple[int, ...]) -> None:
        with compute.autocast(torch.device("cpu")):
            network.eval()(torch.rand(batch, *shape))

    return images / batch, forward
