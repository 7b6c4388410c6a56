"""Kernel inducing points (KIP): images from which regression with an infinitely wide network predicts the real labels.

    min over S of  1/2 mean (K_ts (K_ss + ridge tr(K_ss) / n I)^-1 Y_s - Y_t)^2

K is a neural tangent kernel (`baselines.kip.kernels`), t a class-balanced batch of real images, drawn anew in each
step; Y are centred one-hot labels. Adam optimises the images, and the labels if they are learned, in normalised (or
whitened) space without clamping. No network is trained or initialised: the only random choices are the initial images
and the batches.

Nguyen, Chen, Lee, "Dataset Meta-Learning from Kernel Ridge-Regression", ICLR 2021 (arXiv 2011.00050), algorithm 1, and
Nguyen, Novak, Xiao, Lee, "Dataset Distillation with Infinitely Wide Convolutional Networks", NeurIPS 2021 (arXiv
2107.13034), which introduces the ConvNet kernel.

The labels of a set are for students of the standard protocol: classes, or the probabilities nearest to learned labels.
The centred labels of the regression are stored in `training_tensors["labels"]`; `baselines.kip.least_squares` trains
finite networks on them with the authors' protocol.

at_kip: the real batch is attacked (`baselines.kip.attack`), as in adversarial KIP (Tsilivis, Su, Kempe, 2022, arXiv
2207.11727). Loss and accuracy in metrics.jsonl are then those of the regression on attacked images.

Deviations from the notebooks (google-research/kip): `zca` is this project's whitening of pixels, with the notebooks'
ridge, 0.1 of the mean variance, but without first making each image zero-mean with unit norm: that step has no inverse,
so the learned images could not be converted to pixels. A batch that is not divisible by the number of classes is
rounded down. CIFAR-10 has DC's standard deviations, not the standard deviations of its images.
Not implemented: augmented targets, the Myrtle kernels, label solve.

Several processes divide the kernels and their gradient (`baselines.kip.tiles`). Each solves the regression, and goes on
with the main process's images and labels after a step.
"""

import os
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from baselines.kip.attack import attacked
from baselines.kip.kernels import Kernel, convnet, fully_connected, pair_bytes
from baselines.kip.least_squares import BATCH, protocol
from baselines.kip.objective import objective
from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.experiment import LATER
from distill.method_training import MethodTraining
from distill.methods.initial import init_with_digest, initial_images
from distill.runs.divergence import check_finite
from distill.runs.divided import from_main
from distill.runs.ranks import barrier, is_main_process
from distill.runs.run import Run
from distill.training.ridge import centred, probabilities
from distill.training.whiten import Whiten
from distill.training.work import PROBE, STEPS, Work, training_steps
from robust import Normalize, threat_named
from robust.ranges import Count, NonNegative, Positive, check_ranges

__all__ = ["Config", "distill", "objective", "protocol", "student_work", "work"]

MEMORY = 2**30
"""approximate limit, in bytes, for the pairs of images of one tile"""
LARGEST = 2**31
"""limit, in bytes, for one pair; a step has thousands of pairs and would be infeasible above"""
ZCA_RIDGE = 0.1
"""regulariser as a fraction of the mean variance of pixels: zca_reg of the notebooks"""


@dataclass(frozen=True)
class Config:
    """The method's settings.

    Raises:
        ValueError: a field is out of its range.
    """

    backbone: str = "convnet"
    """network of students: a name from `bash run.sh list`, options after a colon. Does not affect the kernel"""
    kernel: Literal["convnet", "fc"] = "convnet"
    """infinitely wide network: convolutions, relu and 2x2 mean pooling, or fully connected layers with relu"""
    depth: Count | None = None
    """blocks of the ConvNet (None: 3), or hidden layers of the fully connected network (None: 1)"""
    prepend: bool = True
    """whether the ConvNet has a convolution and a relu before its blocks: the paper's "ConvNet", else "ConvNet3"."""
    w_std: Positive = 2**0.5
    """standard deviation of weights times sqrt(fan in), for the kernel and for students of --protocol own"""
    b_std: NonNegative = 0.1
    """standard deviation of biases, for the kernel and for students of --protocol own"""
    iterations: Count = 1000
    """steps of the images"""
    target_batch: Count = 5000
    """real images per step, equally many of each class; a smaller class contributes all its images"""
    lr: Positive = 0.04
    """learning rate of Adam for images (normalised or whitened units) and labels"""
    ridge: NonNegative = 1e-6
    """regulariser of the regression, in units of the mean of the kernel's diagonal"""
    labels: Literal["hard", "learned"] = "hard"
    """hard: centred one-hot labels; learned: labels are optimised, starting from centred one-hot labels"""
    init: str = "real"
    """initial synthetic images: noise (standard normal), real (random images of the class), or the folder of a
    distilled set, whose images it takes, but not its labels"""
    zca: bool = False
    """whether the kernel and students of --protocol own use whitened images instead of normalised images"""
    precision: Literal["float64", "float32"] = "float64"
    """precision of kernel, regression and images; a ridge of 1e-6 needs float64"""
    chunk: Count | None = None
    """pairs of images whose kernel is computed at once; None: as many as need about 1 GiB"""
    attack: str = field(default="", metadata=LATER)
    """ball in which the regression is attacked at the real images, in pixels: 2/255, l2:0.5; "" for none"""
    attack_steps: Count = field(default=10, metadata=LATER)
    """steps of that attack (PGD)"""
    student_steps: Count = 5000
    """training steps of students with --protocol own"""

    def __post_init__(self) -> None:
        check_ranges(self)
        object.__setattr__(self, "init", init_with_digest(self.init))
        if self.attack:
            threat_named(self.attack)


def distill(real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Distil a data set; continues from the run's checkpoint.

    Args:
        real: the training set, on the device to work on.
        ipc: images per class.
        config: the settings.
        run: supplies random generators, checkpoints, scalars, the progress bar and the stage of the whitening.

    Returns:
        `ipc` images of each class, sorted by class, in pixels, on the device of `real`.

    Raises:
        InputError: the kernel does not support the image size, a class has fewer than `ipc` images, target_batch is
            below the number of classes, the kernel is singular, or the loss became NaN.
    """
    device, dtype = real.images.device, getattr(torch, config.precision)
    per_class = _targets_of_class(real, config, run)
    kernel, chunk = _kernel(config), _chunk(config, real.image_shape[1])
    if device.type == "mps" and dtype == torch.float64:
        raise InputError("mps has no float64; take --precision float32 with a larger --ridge, or --device cpu")
    space, whitening = _space(real, config, run)
    classes = torch.arange(real.num_classes, device=device)
    state = run.restore() or _initial(real, ipc, space, config, run)
    images, labels = (state[name].to(device, dtype) for name in ("images", "labels"))
    learned = [images.requires_grad_()] + ([labels.requires_grad_()] if config.labels == "learned" else [])
    optimizer = torch.optim.Adam(learned, lr=config.lr)
    if "optimizer" in state:
        optimizer.load_state_dict(state["optimizer"])

    with run.progress("distil", config.iterations, state["iteration"]) as bar:
        for iteration in range(state["iteration"], config.iterations):
            start = time.perf_counter()
            drawn = [real.sample(c, per_class, run.generator("target", iteration, c)) for c in range(real.num_classes)]
            pixels = torch.cat(drawn)
            truth = classes.repeat_interleave(torch.tensor([len(each) for each in drawn], device=device))
            if config.attack:
                how = {"ridge": config.ridge, "chunk": chunk, "steps": config.attack_steps}
                how |= {"threat": threat_named(config.attack), "generator": run.generator("attack", iteration)}
                pixels = attacked(kernel, images, labels, pixels, truth, space, **how)
            targets = space(pixels).to(dtype)
            loss, right = objective(kernel, images, labels, targets, truth, config.ridge, chunk)
            check_finite("the regression", iteration, {"loss": loss}, "--lr")
            gradients = torch.autograd.grad(loss, learned)
            for leaf, gradient in zip(learned, gradients, strict=True):
                leaf.grad = gradient
            optimizer.step()
            for leaf in learned:
                from_main(leaf.detach())
            value, share = loss.item(), 100 * right.item()
            bar.set_postfix(loss=f"{value:.4g}", accuracy=f"{share:.1f}", refresh=False)
            bar.update()
            run.log(iteration, loss=value, accuracy=share, seconds=time.perf_counter() - start)
            if run.due() or iteration == config.iterations - 1:
                state = {"iteration": iteration + 1, "images": images.detach(), "labels": labels.detach()}
                run.save(iteration + 1, state | {"optimizer": optimizer.state_dict()}, "--lr")

    hard, labels = classes.repeat_interleave(ipc), labels.detach().float()
    file = None if whitening is None else os.path.relpath(whitening, run.folder)
    training = MethodTraining(steps=config.student_steps, w_std=config.w_std, b_std=config.b_std, whitening=file)
    return DistilledSet.of(
        real,
        space.inverse(images.detach().float()),
        probabilities(labels + 1 / real.num_classes) if config.labels == "learned" else hard,
        backbone=config.backbone,
        training=training,
        training_tensors={"labels": labels},
        classes=hard,
    )


def _depth(config: Config) -> int:
    return config.depth or (1 if config.kernel == "fc" else 3)


def _kernel(config: Config) -> Kernel:
    fields = {"depth": _depth(config), "w_std": config.w_std, "b_std": config.b_std}
    return (
        partial(fully_connected, **fields)
        if config.kernel == "fc"
        else partial(convnet, prepend=config.prepend, **fields)
    )


def _chunk(config: Config, size: int) -> int:
    """Return the number of pairs whose kernel is computed at once.

    Raises:
        InputError: one pair of images needs too much memory.
    """
    dtype, depth = getattr(torch, config.precision), _depth(config)
    pair = 10 * depth * dtype.itemsize if config.kernel == "fc" else pair_bytes(size, depth, dtype)
    if pair > LARGEST:
        raise InputError(
            f"the ConvNet's kernel of one pair of {size} px images takes about {pair / 2**30:.1f} GiB at depth "
            f"{depth}, and a step has {config.target_batch} pairs for each distilled image; take --kernel fc "
            "or a smaller --image-size"
        )
    return config.chunk or max(1, MEMORY // pair)


def _targets_of_class(real: ImageSet, config: Config, run: Run) -> int:
    """Return the number of real images per class and step; notify the user if a class has fewer images.

    Raises:
        InputError: the number is 0.
    """
    each, counts = config.target_batch // real.num_classes, real.labels.bincount(minlength=real.num_classes)
    if each < 1:
        raise InputError(
            f"target_batch is {config.target_batch}; {real.name} has {real.num_classes} classes, take more images"
        )
    if (size := int(counts.clamp(max=each).sum())) < each * real.num_classes:
        run.notify(
            f"target_batch is {config.target_batch}, but classes of {real.name} have fewer: a step has {size} images"
        )
    return each


def _space(real: ImageSet, config: Config, run: Run) -> tuple[Normalize | Whiten, Path | None]:
    """Return the preprocessing of pixels, and the file of the whitening, which all runs on this data share, or None."""
    if not config.zca:
        return Normalize(real.mean, real.std).to(real.images.device), None
    path = run.stage("whitening", {"ridge": ZCA_RIDGE} | real.identity(), seed=0).folder / "whitening.safetensors"
    if is_main_process() and not path.exists():
        images = real.in_memory().images[:]
        Whiten.fit(images, eps=ZCA_RIDGE * images.flatten(1).var(0).mean().item()).save(path)
    barrier()
    return Whiten.load(path).to(real.images.device), path


def _initial(real: ImageSet, ipc: int, space: nn.Module, config: Config, run: Run) -> dict[str, Any]:
    labels = centred(torch.arange(real.num_classes).repeat_interleave(ipc), real.num_classes)
    images = initial_images(config.init, real, ipc, space, run.generator).flatten(0, 1)
    return {"iteration": 0, "images": images, "labels": labels}


# --- time estimate -----------------------------------------------------------------------------------------------

PROBE_SIZES = (4, 1, 16, 128)
"""a timed step: target images, support images and their side in pixels (ConvNet kernel); target images (fc kernel)"""


def work(config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return the work of a distillation for the time estimate: each kind of step and the number of such steps.

    For large images, the ConvNet's kernel is timed on a corner, repeated as often as the corner fits into the image.
    """
    support, target = ipc * num_classes, min(config.target_batch, examples)
    is_fc = config.kernel == "fc"
    targets, images = (min(PROBE_SIZES[3], target), support) if is_fc else PROBE_SIZES[:2]
    labels, kernel = centred(torch.zeros(images, dtype=torch.long), num_classes).double(), _kernel(config)

    def step(network: nn.Module, shape: tuple[int, ...]) -> None:
        channels, size, _ = shape
        corner = size if is_fc else min(size, PROBE_SIZES[2])
        chunk = _chunk(config, size) if is_fc else targets // 2  # tiles, whose kernel is computed twice, as in a run
        for _ in range(-(-(size**2) // corner**2)):
            x, y = (torch.randn(n, channels, corner, corner, dtype=labels.dtype) for n in (images, targets))
            truth = torch.zeros(targets, dtype=torch.long)
            loss, _ = objective(kernel, x.requires_grad_(), labels, y, truth, max(config.ridge, 1e-6), chunk)
            torch.autograd.grad(loss, x)

    steps = config.iterations * support * (support + target) / (images * (images + targets))
    attacks = config.attack_steps * target / (support + target) if config.attack else 0  # each about one gradient
    return [(steps * (1 + attacks), step)]


def student_work(config: Config, ipc: int, num_classes: int) -> list[Work]:
    """Return the work of training one student with the authors' protocol."""
    batch = min(BATCH, ipc * num_classes)
    probe = min(batch, PROBE)
    return [(config.student_steps * batch / probe / STEPS, partial(training_steps, images=probe))]
