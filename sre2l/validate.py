"""Validate: train students on the relabelled images with the loss of FKD, as SRe2L and GUARD use it.

    min over theta of  KL( softmax(t / T) || softmax(s / T) ),  mean over the batch

t are the stored logits of the teacher, s the logits of the student for the same mixed crop. The optimizer is AdamW with
weight decay of matrices and kernels only; the learning rate follows a cosine by epoch. Processes share each batch in
parts that differ by at most one image. Fields of `Validate` cover the differences between the official codes: the code
for CIFAR (relabel_cifar.py) applies weight decay to all parameters, and the code for Tiny-ImageNet
(zeyuanyin/tiny-imagenet) multiplies the loss by T^2 and uses SGD with weight decay of all parameters.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.data.images import Images
from distill.experiment import LATER
from distill.runs.ranks import barrier, rank, world_size
from distill.runs.run import Run
from distill.training.crop_labels import Labels
from robust import Normalize
from robust.ranges import Count, NonNegative, Positive, Range, Whole, check_ranges
from sre2l.checkpoint import DivergenceMonitor, OwnedCheckpoint
from sre2l.precision import Compute
from sre2l.relabel import has_batch_of_one, view
from sre2l.training import cosine, data_parallel, optimizer_step, require_batch_of_one, seeded, split_batch

__all__ = ["Decay", "Validate", "divergence", "images_of_this_process", "train"]

Decay = Literal["kernels", "all"]
"""parameters with weight decay: kernels and matrices only (FKD, and SRe2L on ImageNet), or biases and norms as well"""


@dataclass(frozen=True)
class Validate:
    """How students are trained. The labels determine their epochs and batches (see `Relabel`).

    Raises:
        ValueError: a field is out of its range.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw, or SGD with momentum 0.9"""
    lr: Positive = 1e-3
    """learning rate, cosine to 0 by epoch"""
    weight_decay: NonNegative = 0.01
    """weight decay of the parameters in `decay`"""
    decay: Decay = "kernels"
    """which parameters decay: kernels (and matrices) only, or all of them"""
    warmup_epochs: Whole = 0
    """first epochs, in which the learning rate rises from a hundredth linearly"""
    temperature: Positive = 20.0
    """temperature T of the softmax"""
    squared: bool = False
    """whether the loss is multiplied by T^2"""
    accumulate: Count = 1
    """parts of a process's batch that are computed one after another, for less memory"""
    horizon: Annotated[float, Range(least=1)] = field(default=1.0, metadata=LATER)
    """length of the cosine as a multiple of the student's epochs, >= 1: with 2, the last rate is half the first (RDED)
    """

    def __post_init__(self) -> None:
        check_ranges(self)

    def lr_at(self, epoch: int, epochs: int) -> float:
        """Return the learning rate of an epoch, 0 for the first."""
        return cosine(self.lr, epoch, self.horizon * epochs, self.warmup_epochs, 0.01)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return KL(softmax(teacher / T) || softmax(student / T)), summed over the batch, from logits (N, K).

    >>> t = torch.tensor([[2.0, 0.0]])
    >>> divergence(t, t, 4.0).item()
    0.0
    """
    p, q = ((logits.float() / temperature).log_softmax(1) for logits in (teacher, student))
    return F.kl_div(q, p, log_target=True, reduction="sum")


def train(
    network: nn.Module,
    images: Images,
    labels: Labels,
    normalize: Normalize,
    config: Validate,
    compute: Compute,
    run: Run,
    name: str,
) -> None:
    """Train a student in place, continuing from its checkpoint after an interruption.

    Args:
        network: takes normalised images (N, C, H, W) to logits (N, K).
        images: (N, C, H, W) the distilled images, pixels.
        labels: of these images.
        normalize: the student's normalisation.
        config: the settings.
        compute: how the arithmetic runs.
        run: has the folder of the checkpoint and the device.
        name: of the student.

    Raises:
        InputError: a batch has one image, on which the network cannot be trained.
    """
    if has_batch_of_one(len(images), labels.batch_size):
        batches = f"{len(images)} images are labelled in batches of {labels.batch_size}"
        require_batch_of_one(
            network, tuple(images.shape[1:]), f"{batches}; take another --backbone or --protocol standard"
        )
    compute.place(network, run.device).train()
    model = data_parallel(compute.faster(network), run.device)
    optimizer, scale = _optimizer(network, config), compute.scaler(run.device)
    path, owner = run.folder / "students" / f"{name}-training.pt", f"{run.config_hash()}/{run.seed}/{name}"
    checkpoint = OwnedCheckpoint(path, f"{owner}/{labels.images}", run.checkpoint_seconds, main_only=True)
    monitor = DivergenceMonitor(f"student {name}", f"--validate.lr than {config.lr:g}", run.device)
    done = 0
    if (state := checkpoint.restore()) is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        scale.load_state_dict(state["scaler"])
        done = state["done"]
    with run.progress(f"student {name}", labels.epochs, done, unit="epoch") as bar:
        for epoch in range(done, labels.epochs):
            for group in optimizer.param_groups:
                group["lr"] = config.lr_at(epoch, labels.epochs)
            with seeded(run.generator("validate", "dropout", name, epoch, rank()), run.device):
                loss = _epoch(model, images, labels, epoch, normalize, config, compute, optimizer, scale, monitor)
            monitor.check()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.4g}", refresh=False)
            if checkpoint.due():
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
                monitor.check(state)
                checkpoint.save(state | {"scaler": scale.state_dict(), "done": epoch + 1})
    monitor.check(network.state_dict())
    barrier()
    checkpoint.remove()


def images_of_this_process(count: int) -> tuple[slice, float]:
    """Return the images of a batch that this process computes, and the weight of each loss in the averaged gradient.

    With fewer than two images for each process, every process computes the whole batch, as BatchNorm has no statistics
    of a single image. The mean over processes is the same.

    >>> images_of_this_process(50)
    (slice(0, 50, None), 0.02)
    """
    if count < 2 * world_size():
        return slice(0, count), 1 / count
    return slice(rank() * count // world_size(), (rank() + 1) * count // world_size()), world_size() / count


def _optimizer(network: nn.Module, config: Validate) -> torch.optim.Optimizer:
    """Return the optimizer with two groups of parameters: kernels and matrices (selected as in FKD), and all others."""
    named = list(network.named_parameters())
    kernels = [p for name, p in named if "weight" in name and p.ndim > 1]
    others = [p for name, p in named if not ("weight" in name and p.ndim > 1)]
    decays = (config.weight_decay, config.weight_decay if config.decay == "all" else 0.0)
    groups = [{"params": each, "weight_decay": decay} for each, decay in zip((kernels, others), decays, strict=True)]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=config.lr)


def _epoch(
    model: nn.Module,
    images: Images,
    labels: Labels,
    epoch: int,
    normalize: Normalize,
    config: Validate,
    compute: Compute,
    optimizer: torch.optim.Optimizer,
    scale: torch.amp.GradScaler,
    monitor: DivergenceMonitor,
) -> Tensor:
    """Train for an epoch; return the last loss."""
    factor = config.temperature**2 if config.squared else 1.0
    loss = torch.zeros(())
    for number, batch in enumerate(labels.epoch(epoch)):
        # Every process cuts the whole batch, as images of different parts are mixed.
        x, t = normalize(view(images, batch, labels.mix)), batch.logits.to(images.device, non_blocking=True)
        selected, weight = images_of_this_process(len(x))
        parts = split_batch(x[selected], t[selected], config.accumulate)

        def share_of_loss(part: Tensor, target: Tensor, weight: float = weight) -> Tensor:
            return factor * divergence(model(part), target, config.temperature) * weight

        loss = optimizer_step(model, parts, share_of_loss, optimizer, scale, compute)
        monitor.record(epoch * -(-len(images) // labels.batch_size) + number, loss)
    return loss
