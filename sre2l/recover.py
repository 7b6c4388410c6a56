"""Recover: optimise noise until the teacher classifies it and its BatchNorm statistics match the real data.

SRe2L, "Squeeze, Recover and Relabel", Yin et al., NeurIPS 2023 (arXiv 2306.13092), equations 5 to 8:

    min over x of  CE(f(A(x)), y) + r_bn * sum over layers l of w_l (||v_l - V_l|| + ||m_l - M_l||)

f is the squeezed teacher in evaluation mode. A is a random crop, enlarged, mirrored and rolled, the same for the whole
batch. m and v are mean and biased variance of the batch at the input of a BatchNorm, M and V the running statistics of
that BatchNorm. Norms are not squared. w is `first_bn` for the first BatchNorm and 1 for the others. The optimizer is
Adam with betas (0.5, 0.9) and a cosine schedule to 0 without warm-up; after each step images are clamped to valid
pixels; the last iterate is the result. CDA, "Dataset Distillation via Curriculum Data Synthesis in Large Data Era",
Yin & Shen (arXiv 2311.18838): the least area of a crop falls from 1 to `crop_min` over the share `milestone` of the
steps.

A batch is an independent unit with its own generators and file. It has one image each of up to `batch_size` classes
(with fewer classes, images of several indices). Processes share the units without communication, and the images do not
depend on the number of processes.

Deviations: hooks are registered once, while the official code adds them again for each index and never removes them;
images are written as floats, while the official code rounds them down to bytes and saves lossy JPEG files.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from distill.data import ImageSet
from distill.data.pictures import digest_of_pictures
from distill.errors import InputError
from distill.runs.description import describe
from distill.runs.divided import every_nth
from distill.runs.named_files import with_digest
from distill.runs.ranks import barrier
from distill.runs.run import Run
from robust import Normalize, RobustTeacher
from robust.ranges import Count, Fraction, NonNegative, Positive, Range, check_ranges
from sre2l.checkpoint import DivergenceMonitor, OwnedCheckpoint
from sre2l.crops import cut_same_box, draw_boxes, draw_flips
from sre2l.precision import Compute
from sre2l.units import unit_file, write_unit

__all__ = ["BatchNormMatch", "Recover", "least_area", "recover", "units"]


@dataclass(frozen=True)
class Recover:
    """How images are recovered.

    Raises:
        ValueError: a field is out of its range.
    """

    iterations: Count = 4000
    """optimisation steps of each unit"""
    lr: Positive = 0.25
    """learning rate of Adam, normalised units"""
    r_bn: NonNegative = 0.01
    """weight of the BatchNorm statistics"""
    first_bn: NonNegative = 10.0
    """weight of the first BatchNorm relative to the others"""
    jitter: tuple[int, int] = (0, 32)
    """least and largest shift in pixels, down and to the right, rolled around the edge"""
    crop: bool = True
    """whether the teacher sees a random crop of the images, enlarged; else the whole images"""
    crop_min: Annotated[float, Range(above=0, most=1)] = 0.08
    """least share of the area of a crop, in (0, 1]"""
    flip: bool = True
    """whether the images are mirrored in half of the steps"""
    milestone: Fraction = 0.0
    """CDA's curriculum: share of the steps in which the least area falls from 1 to crop_min; 0 is SRe2L"""
    curriculum: Literal["cosine", "linear", "step"] = "cosine"
    """how the least area falls; step: all at once at the milestone"""
    batch_size: Count = 100
    """images of a unit"""
    images: str = ""
    """a folder of pictures to use in place of recovered images, written by this program or published"""

    def __post_init__(self) -> None:
        check_ranges(self)
        object.__setattr__(self, "images", with_digest(self.images, digest_of_pictures))
        if self.jitter[0] > self.jitter[1]:
            raise ValueError(f"jitter is {self.jitter}; the first number must not be larger than the second")


def least_area(config: Recover, step: int) -> float:
    """Return the least share of the area of a crop at a step: CDA's curriculum.

    >>> config = Recover(iterations=100, milestone=0.5, crop_min=0.08)
    >>> [round(least_area(config, step), 2) for step in (0, 25, 50, 99)]
    [1.0, 0.54, 0.08, 0.08]
    """
    end = config.milestone * config.iterations
    if step >= end:
        return config.crop_min
    share = step / end
    rest = {"cosine": (1 + math.cos(math.pi * share)) / 2, "linear": 1 - share, "step": 1.0}[config.curriculum]
    return config.crop_min + (1 - config.crop_min) * rest


def units(num_classes: int, ipc: int, batch_size: int) -> list[Tensor]:
    """Return the images of each unit as numbers class * ipc + index: all classes of index 0, then of index 1, ...

    >>> [unit.tolist() for unit in units(num_classes=3, ipc=2, batch_size=4)]
    [[0, 2, 4, 1], [3, 5]]
    >>> [unit.tolist() for unit in units(num_classes=3, ipc=2, batch_size=2)]
    [[0, 2], [4], [1, 3], [5]]
    """
    order = torch.arange(num_classes * ipc).view(num_classes, ipc).T
    if num_classes > batch_size:  # as in the official code: a unit has images of one index only
        return [unit for index in order for unit in index.split(batch_size)]
    return list(order.flatten().split(batch_size))


def recover(
    teacher: RobustTeacher, teacher_stage: str, real: ImageSet, ipc: int, config: Recover, compute: Compute, run: Run
) -> Path:
    """Recover all images whose files are missing.

    Args:
        teacher: the squeezed network, frozen; it takes normalised images.
        teacher_stage: name of the teacher's stage.
        real: the real set, for its shape, classes, mean and std.
        ipc: images per class.
        config: the settings.
        compute: how the arithmetic runs.
        run: the run of the method; the stage has its own folder in `run.stages`.

    Returns:
        the folder of the stage, with a file of each unit (`sre2l.units`).

    Raises:
        InputError: the teacher has no BatchNorm to match.
    """
    settings = {"teacher": teacher_stage, "recover": describe(config), "compute": describe(compute)}
    settings |= {"classes": real.num_classes, "ipc": ipc, "shape": list(real.image_shape)}
    stage = run.stage("recover", settings)
    normalize = Normalize(real.mean, real.std).to(run.device)
    network = compute.place(teacher.network, run.device)
    assigned = every_nth(list(enumerate(units(real.num_classes, ipc, config.batch_size))))
    todo = [(n, members) for n, members in assigned if not unit_file(stage.folder, n).exists()]
    with stage.progress("recover", len(assigned) * config.iterations, unit="step") as bar:
        bar.update((len(assigned) - len(todo)) * config.iterations)
        with BatchNormMatch(network, config.first_bn, required=config.r_bn > 0) as match:
            faster = compute.faster(network)
            for number, members in todo:
                images = _recover_unit(
                    faster, match, members // ipc, number, normalize, real, config, compute, stage, bar
                )
                write_unit(stage.folder, number, normalize.inverse(images).clamp(0, 1), members)
                unit_file(stage.folder, number, ".pt").unlink(missing_ok=True)
    barrier()
    return stage.folder


class BatchNormMatch:
    """While entered, sums the distances of BatchNorm inputs from the running statistics, over a forward pass.

    Raises:
        InputError: BatchNorm is required, and the network has none.
    """

    def __init__(self, network: nn.Module, first: float, *, required: bool = True):
        layers = [
            module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
        ]
        if required and not layers:
            raise InputError(
                f"{type(network).__name__} has no BatchNorm with statistics to match; take another "
                "--backbone (timm:resnet18, resnet18:norm=batch), or --recover.r-bn 0"
            )
        self.layers, self.first = layers, first
        self.distance = torch.zeros(())

    def __enter__(self) -> "BatchNormMatch":
        self._hooks = [layer.register_forward_pre_hook(self._add) for layer in self.layers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def reset(self) -> None:
        """Set the sum to 0 before a forward pass."""
        self.distance = torch.zeros(())

    def _add(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, _BatchNorm)
        x = inputs[0].float()
        variance, mean = torch.var_mean(x, (0, *range(2, x.ndim)), correction=0)
        assert layer.running_var is not None
        assert layer.running_mean is not None
        distance = (variance - layer.running_var).norm() + (mean - layer.running_mean).norm()
        self.distance = self.distance + (self.first if layer is self.layers[0] else 1.0) * distance


def _recover_unit(
    network: nn.Module,
    match: BatchNormMatch,
    classes: Tensor,
    number: int,
    normalize: Normalize,
    real: ImageSet,
    config: Recover,
    compute: Compute,
    run: Run,
    bar: Any,
) -> Tensor:
    """Return the images of a unit, (n, C, H, W) normalised, continuing from its checkpoint."""
    size, device = real.image_shape[-1], run.device
    low, high = normalize(torch.zeros(1, 1, 1, device=device)), normalize(torch.ones(1, 1, 1, device=device))
    targets = classes.to(device)
    images = torch.randn(len(classes), *real.image_shape, generator=run.generator("noise", number)).to(device)
    images.requires_grad_()
    optimizer = torch.optim.Adam([images], lr=config.lr, betas=(0.5, 0.9), eps=1e-8, foreach=False)
    scale = compute.scaler(device)
    path, owner = unit_file(run.folder, number, ".pt"), f"{run.folder.name}/{number}"
    checkpoint = OwnedCheckpoint(path, owner, run.checkpoint_seconds)
    monitor = DivergenceMonitor(f"recovery of unit {number}", f"--recover.lr than {config.lr:g}", device)
    done = 0
    if (state := checkpoint.restore()) is not None:
        with torch.no_grad():
            images.copy_(state["images"])
        optimizer.load_state_dict(state["optimizer"])
        scale.load_state_dict(state["scaler"])
        done = state["done"]
        bar.update(done)
    generator = run.generator("recover", number)
    low_shift, high_shift = config.jitter
    whole = torch.tensor([0, 0, size, size])
    # All random numbers of a unit are drawn at once, so that a resumed unit continues with the same numbers.
    boxes = [draw_boxes(1, size, size, least_area(config, step), generator)[0] for step in range(config.iterations)]
    flips = (draw_flips(config.iterations, generator) & config.flip).tolist()
    shifts = torch.randint(low_shift, high_shift + 1, (config.iterations, 2), generator=generator).tolist()
    for step in range(done, config.iterations):
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * config.lr * (1 + math.cos(math.pi * step / config.iterations))
        optimizer.zero_grad(set_to_none=True)
        box = boxes[step] if config.crop else whole
        view = cut_same_box(images, box, flips[step]) if config.crop or flips[step] else images
        view = torch.roll(view, shifts[step], (2, 3))
        if compute.channels_last:
            view = view.contiguous(memory_format=torch.channels_last)
        match.reset()
        with compute.autocast(device):
            loss = F.cross_entropy(network(view), targets)
        loss = loss + config.r_bn * match.distance
        monitor.record(step, loss.detach())
        scale.scale(loss).backward()
        scale.step(optimizer)
        scale.update()
        with torch.no_grad():
            images.clamp_(low, high)
        bar.update()
        if step % 100 == 99:
            monitor.check(images)
            bar.set_postfix(unit=number, loss=f"{loss.item():.4g}", refresh=False)
        if checkpoint.due():
            state = {"images": images.detach(), "optimizer": optimizer.state_dict(), "scaler": scale.state_dict()}
            monitor.check(state)
            checkpoint.save(state | {"done": step + 1})
    monitor.check(images)
    return images.detach()
