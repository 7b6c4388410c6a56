"""Trajectories of parameters: those of experts, kept in files, and how far a few images lead from them.

An expert's is  theta*_0, theta*_1, ..., theta*_E,  a snapshot before training on the real data and one after each epoch
of SGD, as buffer.py of MTT's official code makes them (no momentum, no weight decay, constant learning rate, images
augmented one by one), with any loss. One file an expert, in a folder that is named by the data and all of `Expert`
(`Run.stage`), so that runs of all seeds which ask for the same experts share them: one that is there is not made again,
more are made beside them, and one whose training was cut short goes on after its last kept epoch.

Deviations: the experts are not tested on the test set; an epoch may be a random part of the data; seeds are addressed.

    NNN.safetensors    parameters (E + 1, P): each snapshot flat, in the order of `network.parameters()`

`match` is MTT's loss, with its gradient by the images and the learning rate alpha:

    || theta_N - target ||^2 / || start - target ||^2,   theta_0 = start,   theta_(i+1) = theta_i - alpha g_i(theta_i)

with g_i the gradient of the mean cross-entropy of step i's images. There are three ways to that gradient:

unrolled   through the graph of all N steps, as MTT's code has it.
replayed   the same gradient with the graph of one step in memory, and N times P numbers. The steps are taken without a
           graph; then, from the last to the first, each is taken again from its kept theta_i, and the cotangent lambda
           of theta_(i+1) becomes that of theta_i:
               lambda = 2 (theta_N - target) / || start - target ||^2,  then for i = N - 1 ... 0
               dS += -alpha d<lambda, g_i>/dS,   dalpha += -<lambda, g_i>,   lambda += -alpha d<lambda, g_i>/dtheta_i
tesla      that of TESLA (Cui et al., ICML 2023, arXiv 2211.10586): the same, but lambda stays what it is at first.
           theta_N = start - alpha sum_i g_i is exact, and so is the part of dS through the images of step i in g_i;
           that theta_i itself depends on the images of the steps before, and on alpha, is left out. Equal to the others
           for N = 1 only; it saves the pass backward through theta_i.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parameters_to_vector

from distill.data import ImageSet
from distill.errors import InputError
from distill.models import build
from distill.runs.divergence import check_finite, remedy_of
from distill.runs.run import Run, describe, locked
from distill.training.augment import Augmentation, augmentation
from distill.training.students import train_epochs
from robust import Loss
from robust.losses import drawing_from, on_inputs
from robust.losses.in_pixels import Preprocessing
from robust.second_order.layers import SecondOrder

__all__ = ["Expert", "Gradient", "Trajectories", "experts", "logits_at", "match"]

Gradient = Literal["unrolled", "replayed", "tesla"]
Batch = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""(step, images (N, C, H, W)) -> the images of that step, augmented, and their labels; the same for every call"""

LOOKED_AT = 1000
"""training images on which an expert is told to be good or bad"""


@dataclass(frozen=True)
class Expert:
    """How an expert is trained: all that its trajectory depends on besides the data and its number."""

    loss: Loss
    """h is in the units of the images that the network takes, eps and sigma are in pixels of [0, 1]"""
    backbone: str
    """its network"""
    augment: str
    """see distill/training/augment.py, drawn for each image"""
    zca: bool
    """whether it sees whitened images; normalised ones otherwise"""
    epochs: int
    """E, >= 1"""
    lr: float
    """learning rate of SGD"""
    batch_size: int
    """images of a step"""
    epoch_images: int | None
    """images of an epoch, drawn anew for each; None for all"""
    seed: int
    """root of the randomness of all of them, whatever the run's is"""


class Trajectories:
    """Snapshots of experts, read from their files one at a time.

    Args:
        paths: a file for each expert.
    """

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def snapshot(self, number: int, epoch: int) -> Tensor:
        """Return an expert's parameters after an epoch, (P,), on the CPU; 0 is before the first.

        Raises:
            InputError: the file is damaged, or gone.
        """
        path = self.paths[number]
        try:
            with safe_open(path, "pt") as file:
                return file.get_slice("parameters")[epoch : epoch + 1][0]
        except Exception as error:  # safetensors has one exception for all it refuses, and it is not public
            line = str(error).splitlines()[0]
            raise InputError(f"{path} is no whole trajectory ({line}); delete it to have it made anew") from None


def experts(real: ImageSet, space: Preprocessing, expert: Expert, count: int, run: Run) -> Trajectories:
    """Train experts, or take those that an earlier run left.

    Args:
        real: the training set, on the device to work on.
        space: pixels (N, C, H, W) to what networks take, and back.
        expert: how they are trained.
        count: how many.
        run: of the whole; the experts have their own folder among `run.stages`.

    Returns:
        their trajectories.

    Raises:
        InputError: one diverged.
    """
    stage = run.stage("experts", {"data": real.identity(), "expert": describe(expert)}, expert.seed)
    paths = [stage.folder / f"{number:03d}.safetensors" for number in range(count)]
    with locked(stage.folder, wait=True):
        missing = [number for number, path in enumerate(paths) if not stage.has_tensors(path.name)]
        if missing:
            _train(missing, paths, real, space, expert, stage)
    return Trajectories(paths)


def _train(
    missing: list[int], paths: list[Path], real: ImageSet, space: Preprocessing, expert: Expert, stage: Run
) -> None:
    """Train the experts of these numbers, from where the checkpoint is."""
    remedy = remedy_of(("--lr-expert",), "--expert-loss", expert.loss)
    images, siamese = space(real.images), augmentation(expert.augment, real.mean, real.std)
    state = stage.restore() or {}
    unfinished = len(state["snapshots"]) - 1 if state.get("number") in missing else 0
    if unfinished:
        missing = [state["number"], *(number for number in missing if number != state["number"])]
    with stage.progress("experts", len(missing) * expert.epochs, unfinished, unit="epoch") as bar:
        for number in missing:
            network = _untrained(real, expert, stage, number).to(images)
            snapshots = [_flat(network)]
            if state.get("number") == number:
                network.load_state_dict(state["network"])
                snapshots = list(state["snapshots"])
            for epoch in range(len(snapshots) - 1, expert.epochs):
                start = time.perf_counter()
                _epoch(network, images, real.labels, siamese, space, expert, stage, number, epoch)
                snapshots.append(_flat(network))
                loss, accuracy = _judge(network, images, real.labels)
                check_finite(f"expert {number}", epoch, {"loss": loss}, remedy, "epoch")
                bar.set_postfix(expert=number, loss=f"{loss:.3g}", accuracy=f"{accuracy:.1f}%", refresh=False)
                bar.update()
                step = number * expert.epochs + epoch
                stage.log(step, loss=loss, accuracy=accuracy, seconds=time.perf_counter() - start)
                if stage.due():
                    kept = {"number": number, "network": network.state_dict(), "snapshots": torch.stack(snapshots)}
                    stage.save(step + 1, kept, remedy)
            stage.write_tensors(
                paths[number].name, {"parameters": torch.stack(snapshots)}, {"backbone": expert.backbone}
            )
            stage.save((number + 1) * expert.epochs, {})


def _untrained(real: ImageSet, expert: Expert, stage: Run, number: int) -> nn.Module:
    return build(expert.backbone, like=real, generator=stage.generator("expert", number))


def _flat(network: nn.Module) -> Tensor:
    return parameters_to_vector(network.parameters()).detach().cpu()


def _epoch(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    siamese: Augmentation | None,
    space: Preprocessing,
    expert: Expert,
    stage: Run,
    number: int,
    epoch: int,
) -> None:
    """Train an expert in place for an epoch."""
    if expert.epoch_images is not None and expert.epoch_images < len(images):
        drawn = torch.randperm(len(images), generator=stage.generator("images", number, epoch))[: expert.epoch_images]
        images, labels = images[drawn.to(images.device)], labels[drawn.to(labels.device)]
    train_epochs(
        network,
        images,
        labels,
        torch.optim.SGD(network.parameters(), lr=expert.lr),
        epochs=1,
        batch_size=expert.batch_size,
        generator=stage.generator("training", number, epoch),
        augmentation=siamese,
        loss=drawing_from(on_inputs(expert.loss.at(epoch), space), stage.generator("expert_loss", number, epoch)),
    )


@torch.no_grad()
def _judge(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the cross-entropy and the accuracy in percent on a part of the training images."""
    step = max(1, len(images) // LOOKED_AT)
    logits, labels = network.eval()(images[::step]), labels[::step]
    accuracy = 100 * (logits.argmax(1) == labels).double().mean()
    return F.cross_entropy(logits, labels).item(), accuracy.item()


# --- the loss and its gradients ----------------------------------------------------------------------------------


def match(
    network: nn.Module,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    lr: Tensor,
    batch: Batch,
    steps: int,
    gradient: Gradient = "replayed",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the matching loss of a trajectory, and its gradients.

    Args:
        network: lends its layers, in training mode; its own parameters are not read.
        start: (P,) parameters to start from, in the order of `network.parameters()`.
        target: (P,) those to arrive at.
        images: (N, C, H, W), as the network takes them.
        lr: learning rate, a scalar.
        batch: what each step trains on.
        steps: how many.
        gradient: the way to them.

    Returns:
        the loss (a scalar), its gradient by the images (shaped as they), and by the learning rate (a scalar).
    """
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        if gradient == "unrolled":
            return _unrolled(network.train(), start, target, images, lr, batch, steps)
        return _replayed(network.train(), start, target, images, lr, batch, steps, exact=gradient == "replayed")


def _unrolled(
    network: nn.Module, start: Tensor, target: Tensor, images: Tensor, lr: Tensor, batch: Batch, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    images, lr = images.detach().requires_grad_(), lr.detach().requires_grad_()
    parameters = start.detach().requires_grad_()
    for step in range(steps):
        parameters = parameters - lr * _step(network, parameters, *batch(step, images), graph=True)
    loss = (parameters - target).square().sum() / (start - target).square().sum()
    to_images, to_lr = torch.autograd.grad(loss, (images, lr))
    return loss.detach(), to_images, to_lr


def _replayed(
    network: nn.Module,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    lr: Tensor,
    batch: Batch,
    steps: int,
    *,
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    images, lr = images.detach(), lr.detach()
    way = [start.detach()]
    for step in range(steps):
        at = way[-1].clone().requires_grad_()
        way.append(way[-1] - lr * _step(network, at, *batch(step, images), graph=False))
    gap, scale = way.pop() - target, (start - target).square().sum()
    cotangent = 2 * gap / scale
    to_images, to_lr = torch.zeros_like(images), torch.zeros_like(lr)
    for step in reversed(range(steps)):
        at, leaf = way.pop().clone().requires_grad_(), images.clone().requires_grad_()
        along = _step(network, at, *batch(step, leaf), graph=True) @ cotangent
        to_lr -= along.detach()
        to_leaf, *to_at = torch.autograd.grad(along, (leaf, at) if exact and step else (leaf,))
        to_images -= lr * to_leaf
        if to_at:
            cotangent = cotangent - lr * to_at[0]
    return gap.square().sum() / scale, to_images, to_lr


def _step(network: nn.Module, parameters: Tensor, x: Tensor, y: Tensor, *, graph: bool) -> Tensor:
    """Return the gradient of the mean cross-entropy by the parameters (P,), differentiable where a graph is asked."""
    with SecondOrder() if graph else nullcontext():
        loss = F.cross_entropy(logits_at(network, parameters, x), y)
    return torch.autograd.grad(loss, parameters, create_graph=graph)[0]


def logits_at(network: nn.Module, parameters: Tensor, x: Tensor) -> Tensor:
    """Return a network's logits (N, K) with other parameters, (P,) in the order of `network.parameters()`."""
    own = dict(network.named_parameters())
    parts = parameters.split([parameter.numel() for parameter in own.values()])
    named = {name: part.view_as(own[name]) for name, part in zip(own, parts, strict=True)}
    return functional_call(network, named, (x,))
