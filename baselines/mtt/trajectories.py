"""Trajectories of the parameters of experts, which are kept in files.

An expert's is  theta*_0, theta*_1, ..., theta*_E,  a snapshot before training on the real data and one after each epoch
of SGD, as buffer.py of MTT's official code makes them (no momentum, no weight decay, constant learning rate, images
augmented one by one), with any loss. One file an expert, in a folder that is named by the data and all of `Expert`
(`Run.stage`), so that runs of all seeds which ask for the same experts share them: one that is there is not made again,
more are made beside them, and one whose training was cut short goes on after its last kept epoch.

Deviations: the experts are not tested on the test set; an epoch may be a random part of the data; seeds are addressed.

    NNN.safetensors    parameters (E + 1, P): each snapshot flat, in the order of `network.parameters()`
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from distill.data import ImageSet
from distill.errors import InputError
from distill.models import build
from distill.runs.description import describe
from distill.runs.divergence import check_finite, remedy_of
from distill.runs.locks import locked
from distill.runs.run import Run
from distill.training.augment import Augmentation, augmentation
from distill.training.students import train_epochs
from robust import Loss
from robust.losses import drawing_from, on_inputs
from robust.losses.in_pixels import Preprocessing

__all__ = ["Expert", "Trajectories", "experts"]

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
