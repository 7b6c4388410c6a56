"""Trajectories of the parameters of experts, stored in files.

A trajectory is  theta*_0, theta*_1, ..., theta*_E:  a snapshot before training on the real data and a snapshot after
each epoch of SGD, as in buffer.py of MTT's official code (no momentum, no weight decay, constant learning rate, images
augmented individually), with any loss. With `average` a snapshot is an exponential average of the weights (MAT). Each
expert has a file, in a folder whose name depends on the data and on all fields of `Expert` (`Run.stage`). Runs with
different seeds therefore share identical experts: existing experts are reused, missing experts are added, and an
interrupted expert resumes after its last stored epoch.

Deviations: the experts are not evaluated on the test set; an epoch may use a random subset of the data; each random
draw has a separate seed (`Run.generator`).

    NNN.safetensors    parameters (E + 1, P): each snapshot flat, in the order of `network.parameters()`
    NNN/               scalars of the expert's training, and its checkpoint while it is incomplete

Experts are independent, so that the processes of a run divide them, each process the next one that is missing.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from tqdm import tqdm

from distill.data import ImageSet
from distill.errors import InputError
from distill.experiment import LATER
from distill.models import build
from distill.runs.description import describe
from distill.runs.divergence import check_finite, remedy_of
from distill.runs.locks import locked
from distill.runs.ranks import barrier
from distill.runs.run import Run
from distill.runs.tasks import Task, do_all
from distill.training.augment import Augmentation, augmentation
from distill.training.sgd import SGD
from distill.training.students import train_epochs
from robust import Loss
from robust.losses import drawing_from, on_inputs
from robust.losses.in_pixels import Preprocessing

__all__ = ["AveragingSGD", "Expert", "Trajectories", "experts"]

MONITORED_IMAGES = 1000
"""approximate number of training images for monitoring an expert's loss and accuracy"""


@dataclass(frozen=True)
class Expert:
    """All settings, besides the data and the expert's number, on which an expert's trajectory depends."""

    loss: Loss
    """training loss; h in the units of the network's input, eps and sigma in pixels of [0, 1]"""
    backbone: str
    """network of the expert"""
    augment: str
    """augmentation, drawn for each image; see distill/training/augment.py"""
    zca: bool
    """whether the network takes whitened images; otherwise normalised images"""
    epochs: int
    """E, >= 1"""
    lr: float
    """learning rate of SGD"""
    batch_size: int
    """images per step"""
    epoch_images: int | None
    """images per epoch, drawn anew in each epoch; None: all"""
    seed: int
    """root of the random seeds of all experts, independent of the seed of the run"""
    average: float = field(default=0.0, metadata=LATER)
    """length in epochs of the exponential average of the weights that the trajectory stores; 0: the weights"""


class AveragingSGD(SGD):
    """SGD that also keeps an exponential average of the parameters, updated after each step.

    Args:
        parameters: changed in place by `step`.
        lr: learning rate.
        decay: share of the average that a step keeps, in [0, 1).
        average: the average so far, shaped like the parameters; changed in place.

    >>> weight, mean = torch.ones(1, requires_grad=True), torch.ones(1)
    >>> optimizer = AveragingSGD([weight], lr=1.0, decay=0.75, average=[mean])
    >>> weight.sum().backward()
    >>> optimizer.step()
    >>> weight.item(), mean.item()
    (0.0, 0.75)
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, *, decay: float, average: Sequence[Tensor]):
        super().__init__(parameters, lr)
        self.decay, self.average = decay, average

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by one step, and move their average towards them."""
        super().step()
        for mean, parameter in zip(self.average, self.parameters, strict=True):
            mean.lerp_(parameter, 1 - self.decay)


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
        """Return an expert's parameters (P,) after `epoch` epochs, on the CPU; epoch 0 is before training.

        Raises:
            InputError: the file is damaged or missing.
        """
        path = self.paths[number]
        try:
            with safe_open(path, "pt") as file:
                return file.get_slice("parameters")[epoch : epoch + 1][0]
        except Exception as error:  # safetensors raises one private exception class for every damaged file
            line = str(error).splitlines()[0]
            raise InputError(f"{path} is not a complete trajectory ({line}); delete it to create it again") from None


def experts(real: ImageSet, space: Preprocessing, expert: Expert, count: int, run: Run) -> Trajectories:
    """Train experts, or load existing experts of earlier runs.

    Args:
        real: the training set, on the device to work on.
        space: invertible preprocessing of pixels (N, C, H, W): normalisation or whitening.
        expert: settings of the training.
        count: number of experts.
        run: the run of the method; experts have a separate folder (`Run.stage`).

    Returns:
        the trajectories of the experts.

    Raises:
        InputError: the training of an expert diverged.
    """
    stage = run.stage("experts", {"data": real.identity(), "expert": describe(expert)}, expert.seed)
    paths = [stage.folder / f"{_name(number)}.safetensors" for number in range(count)]
    with locked(stage.folder, wait=True):
        barrier()  # until the main process has the lock
        missing = [number for number, path in enumerate(paths) if not stage.has_tensors(path.name)]
        barrier()  # until all processes have looked
        if missing:
            images, siamese = space(real.images[:]), augmentation(expert.augment, real.mean, real.std)
            with stage.progress("experts", len(missing) * expert.epochs, unit="epoch") as bar:
                train = partial(_train, images, real, siamese, space, expert, stage, bar)
                do_all([Task(_name(number), partial(train, number), units=expert.epochs) for number in missing], bar)
    return Trajectories(paths)


def _name(number: int) -> str:
    return f"{number:03d}"


def _train(
    images: Tensor,
    real: ImageSet,
    siamese: Augmentation | None,
    space: Preprocessing,
    expert: Expert,
    stage: Run,
    bar: tqdm,
    number: int,
    _: Mapping[str, Any],
) -> None:
    """Train an expert, resuming from its checkpoint, and write its file."""
    remedy = remedy_of(("--lr-expert",), "--expert-loss", expert.loss)
    run, network = stage.of_task(_name(number)), _untrained(real, expert, stage, number).to(images)
    snapshots = [_flat(network)]
    if (state := run.restore()) is not None:
        network.load_state_dict(state["network"])
        snapshots = list(state["snapshots"])
        bar.update(len(snapshots) - 1)
    average = [p.detach().clone() for p in network.parameters()] if expert.average else []
    vector_to_parameters(snapshots[-1].to(images, copy=True), average)
    for epoch in range(len(snapshots) - 1, expert.epochs):
        start = time.perf_counter()
        _epoch(network, images, real.labels, siamese, space, expert, stage, number, epoch, average)
        snapshots.append(parameters_to_vector(average).cpu() if average else _flat(network))
        loss, accuracy = _loss_and_accuracy(network, images, real.labels)
        check_finite(f"expert {number}", epoch, {"loss": loss}, remedy, "epoch")
        bar.set_postfix(expert=number, loss=f"{loss:.3g}", accuracy=f"{accuracy:.1f}%", refresh=False)
        bar.update()
        run.log(epoch, loss=loss, accuracy=accuracy, seconds=time.perf_counter() - start)
        if run.due():
            run.save(epoch + 1, {"network": network.state_dict(), "snapshots": torch.stack(snapshots)}, remedy)
    trajectory = {"parameters": torch.stack(snapshots)}
    stage.write_tensors(f"{_name(number)}.safetensors", trajectory, {"backbone": expert.backbone})
    run.finish()


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
    average: Sequence[Tensor],
) -> None:
    """Train an expert in place for one epoch; `average` moves towards its weights, unless it is empty."""
    if expert.epoch_images is not None and expert.epoch_images < len(images):
        drawn = torch.randperm(len(images), generator=stage.generator("images", number, epoch))[: expert.epoch_images]
        images, labels = images[drawn.to(images.device)], labels[drawn.to(labels.device)]
    optimizer = SGD(network.parameters(), expert.lr)
    if average:
        steps = expert.average * -(-len(images) // expert.batch_size)
        optimizer = AveragingSGD(network.parameters(), expert.lr, decay=max(0.0, 1 - 1 / steps), average=average)
    train_epochs(
        network,
        images,
        labels,
        optimizer,
        epochs=1,
        batch_size=expert.batch_size,
        generator=stage.generator("training", number, epoch),
        augmentation=siamese,
        loss=drawing_from(on_inputs(expert.loss.at(epoch), space), stage.generator("expert_loss", number, epoch)),
    )


@torch.no_grad()
def _loss_and_accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the cross-entropy and the accuracy, in percent, on about MONITORED_IMAGES training images."""
    step = max(1, len(images) // MONITORED_IMAGES)
    logits, labels = network.eval()(images[::step]), labels[::step]
    accuracy = 100 * (logits.argmax(1) == labels).double().mean()
    return F.cross_entropy(logits, labels).item(), accuracy.item()
