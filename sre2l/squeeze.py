"""Squeeze: train a teacher on the real data with any loss of `robust.losses`. GUARD is another loss of this stage.

The teacher is stored in teacher.safetensors with its backbone, number of classes and training time. The name of the
stage's folder is a hash of everything that the teacher depends on, so that all runs with the same teacher share it.

The recipe follows SRe2L and GUARD (SGD with momentum, cosine schedule by epoch, torchvision's training crops). All
processes together take one batch. The gradient is the gradient of the whole batch; BatchNorm uses the statistics of
each process's part unless they are synchronised. DistributedDataParallel wraps the loss, so that a loss may call the
network several times.
"""

import time
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distill.data import ImageSet
from distill.errors import InputError
from distill.models import build
from distill.runs.description import describe
from distill.runs.divergence import is_finite
from distill.runs.files import write_tensors
from distill.runs.locks import locked
from distill.runs.ranks import barrier, is_main_process, rank, world_size
from distill.runs.run import Run
from distill.training.students import LossText
from robust import Loss, Normalize, RobustTeacher, loss_named
from robust.losses import InPixels, drawing_from
from robust.ranges import Count, NonNegative, Positive, UpToOne, Whole, check_ranges, shown
from robust.threat import family_of
from sre2l.checkpoint import DivergenceMonitor
from sre2l.crops import Augment
from sre2l.loading import batches
from sre2l.precision import Compute
from sre2l.sync_batchnorm import synchronised
from sre2l.training import cosine, data_parallel, optimizer_step, require_batch_of_one, seeded
from sre2l.weights import check_classes, check_start, load_start, load_teacher, require_start, start_with_digest

__all__ = ["FILE", "Squeeze", "check", "squeeze", "step"]

FILE = "teacher.safetensors"


@dataclass(frozen=True)
class Squeeze:
    """How the teacher is trained.

    Raises:
        ValueError: a field is out of its range.
    """

    loss: LossText = "cross_entropy"
    """loss of the teacher; h in normalised units, where the papers have h=3 and the default is 0.75, eps and sigma in
    pixels of [0, 1]"""
    start: str = "scratch"
    """weights before training: scratch, pretrained (timm's, downloaded) or pretrained:TAG (tv_in1k is torchvision's
    IMAGENET1K_V1), or a file of weights (.safetensors, .pt, .pth) of this backbone"""
    epochs: Whole = 50
    """passes over the real data; 0 uses the weights of `start` without training"""
    lr: Positive = 0.1
    """learning rate of SGD, cosine to 0 by epoch"""
    momentum: UpToOne = 0.9
    """momentum of SGD"""
    weight_decay: NonNegative = 1e-4
    """L2 penalty of SGD"""
    batch_size: Count = 256
    """images of a step, of all processes together"""
    warmup_epochs: Whole = 0
    """first epochs, in which the learning rate rises linearly from a tenth"""
    augment: Augment = "resized_crop"
    """resized_crop (of 8 to 100 % of the area, enlarged), padded_crop (by an eighth of the side: CIFAR), or none"""
    flip: bool = True
    """whether half of the images are mirrored"""
    accumulate: Count = 1
    """parts of a process's batch that are computed one after another, for less memory"""
    statistics: Whole = 0
    """batches from which BatchNorm's running statistics are estimated before the first step of a network that starts
    from scratch. With 0, as in the official codes, they start at mean 0 and variance 1. GUARD's penalty, which is
    computed in evaluation mode, is then negligible in the first ten to thirty steps. With 4 the penalty is too large at
    the papers' weight of 100: the loss is NaN after one step (docs/sre2l.md)"""
    sync_batchnorm: bool = False
    """whether BatchNorm uses the statistics of the whole batch, not of each process's part; no effect with one process
    """

    def __post_init__(self) -> None:
        check_ranges(self)
        object.__setattr__(self, "start", start_with_digest(self.start))
        if self.epochs == 0 and self.start == "scratch":
            raise ValueError(
                "epochs is 0 and start is scratch: the teacher would be untrained; give --squeeze.start FILE"
            )
        try:
            loss_named(self.loss)
        except ValueError as error:
            raise ValueError(f"loss is {shown(self.loss)}: {error}") from None

    def lr_at(self, epoch: int) -> float:
        """Return the learning rate of an epoch, 0 for the first."""
        return cosine(self.lr, epoch, self.epochs, self.warmup_epochs)


def squeeze(real: ImageSet, backbone: str, config: Squeeze, compute: Compute, run: Run) -> tuple[RobustTeacher, str]:
    """Train the teacher, or load it if an earlier run has trained it.

    Args:
        real: the training images.
        backbone: network of the teacher.
        config: the settings.
        compute: how the arithmetic runs.
        run: the run of the method; the stage has its own folder in `run.stages`.

    Returns:
        the teacher, in evaluation mode and with frozen parameters, and the name of the stage's folder.

    Raises:
        InputError: there are fewer images than a batch has, weights do not fit, or the loss is not finite.
    """
    settings = {"data": real.identity(), "backbone": backbone, "squeeze": describe(config)}
    require_start(config.start, backbone)
    if not config.epochs:
        check_classes(config.start, backbone, real.num_classes)
    stage = run.stage("squeeze", settings | {"compute": describe(compute)})
    loss = loss_named(config.loss, family_of(*real.image_shape[:2]))
    channels = real.image_shape[0]
    network = build(backbone, like=real, generator=stage.generator("teacher"))
    with locked(stage.folder, wait=True):
        path = stage.folder / FILE
        barrier()
        if not path.exists():
            if config.start != "scratch":
                load_start(network, config.start, backbone, channels)
            seconds = _train(network, loss, real, config, compute, stage) if config.epochs else 0.0
            if is_main_process():
                facts = {"backbone": backbone, "classes": str(real.num_classes), "seconds": f"{seconds:.1f}"}
                facts |= {"stage": stage.folder.name}
                write_tensors(path, network.state_dict(), facts)
            barrier()
            stage.finish()
        load_teacher(network, path)
    network = network.to(run.device).eval().requires_grad_(False)
    return RobustTeacher(network, loss), stage.folder.name


def check(network: nn.Module, real: ImageSet, backbone: str, config: Squeeze, processes: int) -> None:
    """Refuse before any work what `squeeze` would refuse later.

    Args:
        network: of the teacher; the weights that training starts from may be loaded into it.
        real: the training images, on the device of the run.
        backbone: of the network.
        config: the settings.
        processes: number of processes.

    Raises:
        InputError: there are fewer images than a batch has, weights do not fit, or these images have no such loss.
    """
    try:
        loss_named(config.loss, family_of(*real.image_shape[:2]))
    except ValueError as error:
        raise InputError(f"--squeeze.loss: {error}") from None
    check_start(config.start, backbone, network)
    if not config.epochs:
        check_classes(config.start, backbone, real.num_classes)
    else:
        _check_batches(network, real, config, processes)


def _check_batches(network: nn.Module, real: ImageSet, config: Squeeze, processes: int) -> None:
    """Refuse a batch size that cannot be shared by the processes, is too large, or too small for BatchNorm.

    Raises:
        InputError: the message names the setting to change.
    """
    per_process, rest = divmod(config.batch_size, processes * config.accumulate)
    if rest or not per_process:
        raise InputError(
            f"squeeze.batch_size is {config.batch_size}; it must be a multiple of {processes} processes times "
            f"accumulate {config.accumulate}"
        )
    if len(real) < config.batch_size:
        raise InputError(f"squeeze.batch_size is {config.batch_size}; {real.name} has {len(real)} images")
    if per_process == 1 and not (config.sync_batchnorm and processes > 1):
        many = f"{processes} processes times accumulate {config.accumulate}"
        what = f"squeeze.batch_size is {config.batch_size} for {many}"
        require_batch_of_one(network, real.image_shape, f"{what}; take at least twice as many images")


class _Loss(nn.Module):
    """The loss of a batch as a module, so that DistributedDataParallel sees one forward pass."""

    def __init__(self, network: nn.Module, normalize: Normalize, loss: Loss, sync_batchnorm: bool = False):
        super().__init__()
        self.network, self.normalize, self.loss, self.sync_batchnorm = network, normalize, loss, sync_batchnorm

    def forward(self, pixels: Tensor, targets: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
        """Return the loss, a scalar."""
        loss = self.loss.at(epoch)
        with synchronised(self.sync_batchnorm):
            if loss.traits.units == "pixels":
                return InPixels(loss, self.normalize).of_pixels(self.network, pixels, targets, generator=generator)
            return drawing_from(loss, generator)(self.network, self.normalize(pixels), targets)


def _train(network: nn.Module, loss: Loss, real: ImageSet, config: Squeeze, compute: Compute, run: Run) -> float:
    """Train in place, continuing from the checkpoint; return the seconds of training."""
    _check_batches(network, real, config, world_size())
    compute.place(network, run.device).train()
    normalize = Normalize(real.mean, real.std).to(run.device)
    whole = _Loss(compute.faster(network), normalize, loss, config.sync_batchnorm)
    objective = data_parallel(whole, run.device)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    scale = compute.scaler(run.device)
    steps = len(real) // config.batch_size
    done, seconds, total, counted = 0, 0.0, torch.zeros((), device=run.device), 0
    if (state := run.restore()) is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        scale.load_state_dict(state["scaler"])
        done, seconds = state["done"], state["seconds"]
        total, counted = state["total"].to(run.device), state["counted"]
        if not is_finite(state):
            raise InputError(f"the checkpoint in {run.folder} is of a teacher that diverged; delete that folder")
    elif config.start == "scratch" and config.statistics:
        _estimate_statistics(network, real, normalize, config, compute, run)
    begun = time.perf_counter() - seconds
    monitor = DivergenceMonitor("the teacher", f"--squeeze.lr than {config.lr:g}", run.device)
    with run.progress("squeeze", config.epochs * steps, done, unit="step") as bar:
        while done < config.epochs * steps:
            epoch, begin = divmod(done, steps)
            for group in optimizer.param_groups:
                group["lr"] = config.lr_at(epoch)
            for x, y in batches(real, config.augment, config.flip, config.batch_size, epoch, begin, run):
                generator = run.generator("squeeze", "loss", done)
                with seeded(run.generator("squeeze", "dropout", done, rank()), run.device):
                    found = step(objective, x, y, optimizer, scale, config.accumulate, compute, epoch, generator)
                monitor.record(done, found)
                total += found
                counted, done = counted + 1, done + 1
                bar.update()
                if done % steps == 0 or done % 100 == 0:
                    monitor.check()
                    value = total.item() / counted
                    run.log(done - 1, squeeze_loss=value, lr=config.lr_at(epoch))
                    bar.set_postfix(epoch=epoch + 1, loss=f"{value:.4g}", refresh=False)
                    total, counted = torch.zeros_like(total), 0
                if run.due() or done == config.epochs * steps:
                    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
                    monitor.check(state)
                    state |= {"scaler": scale.state_dict(), "done": done, "seconds": time.perf_counter() - begun}
                    run.save(done, state | {"total": total, "counted": counted})
    return time.perf_counter() - begun


def _estimate_statistics(
    network: nn.Module, real: ImageSet, normalize: Normalize, config: Squeeze, compute: Compute, run: Run
) -> None:
    """Set BatchNorm's running statistics of an untrained network to the means over the first batches.

    Each process computes the statistics of its part of each batch, unless they are synchronised. The statistics of the
    first process are used, since DistributedDataParallel sends its buffers to the others.
    """
    layers = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = None  # the mean over all batches, not an exponential average
    draws = seeded(run.generator("squeeze", "statistics", rank()), run.device)
    with draws, torch.no_grad(), compute.autocast(run.device), synchronised(config.sync_batchnorm):
        ahead = batches(real, config.augment, config.flip, config.batch_size, 0, 0, run)
        for x, _ in islice(ahead, config.statistics):
            for part in x.chunk(config.accumulate):
                network(normalize(part))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.zero_()


def step(
    objective: nn.Module,
    pixels: Tensor,
    targets: Tensor,
    optimizer: torch.optim.Optimizer,
    scale: torch.amp.GradScaler,
    accumulate: int,
    compute: Compute,
    epoch: int,
    generator: torch.Generator,
) -> Tensor:
    """Take one step of the teacher on this process's part of a batch; return the loss, a scalar without graph."""

    def share_of_loss(x: Tensor, y: Tensor) -> Tensor:
        return objective(x, y, epoch, generator) * (len(x) / len(pixels))

    parts = list(zip(pixels.chunk(accumulate), targets.chunk(accumulate), strict=True))
    return optimizer_step(objective, parts, share_of_loss, optimizer, scale, compute)
