"""Kernel inducing points (KIP): images on which the regression of an infinitely wide network predicts the real ones.

    min over S of  1/2 mean (K_ts (K_ss + ridge tr(K_ss) / n I)^-1 Y_s - Y_t)^2

K is a neural tangent kernel (`baselines.kernels`), t a class-balanced batch of real images, drawn anew in each step; Y
are centred one-hot labels. The images, and labels where they are learned, are moved by Adam in normalised (or whitened)
space, unclamped. No network is trained and none is drawn: all randomness is in the first images and the batches.

Nguyen, Chen, Lee, "Dataset Meta-Learning from Kernel Ridge-Regression", ICLR 2021 (arXiv 2011.00050), algorithm 1, and
Nguyen, Novak, Xiao, Lee, "Dataset Distillation with Infinitely Wide Convolutional Networks", NeurIPS 2021 (arXiv
2107.13034), whose kernel is the ConvNet's.

A set's labels are for a student of the standard protocol: classes, or the probabilities nearest to learned labels. What
the regression has, the centred floats, is `own["labels"]` in its file; `baselines.least_squares` trains finite networks
on those, in the authors' way.

Deviations from the notebooks (google-research/kip): `zca` is the house's whitening of pixels, with the notebooks'
ridge, 0.1 of the mean variance, but no image is made zero-mean and of unit norm first: that has no inverse, so that
images learned behind it could not be put back into pixels. A batch that classes cannot share evenly is rounded down.
CIFAR-10 has DC's standard deviations, not those of its images.
Not here: augmented targets, the Myrtle kernels, label solve.
"""

import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from baselines.kip.kernels import Kernel, convnet, fully_connected, pair_bytes, tiled
from baselines.kip.least_squares import BATCH, protocol
from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.runs.divergence import check_finite
from distill.runs.run import Run
from distill.training.ridge import centred, probabilities, regressed
from distill.training.whiten import Whiten
from distill.training.work import PROBE, STEPS, Work, training_steps
from robust import Normalize
from robust.ranges import Count, NonNegative, Positive, check_ranges

__all__ = ["Config", "distill", "objective", "protocol", "student_work", "work"]

MEMORY = 2**30
"""bytes that the pairs of images of one tile may take, about"""
LARGEST = 2**31
"""bytes of one pair from which a step, which has thousands, is out of reach"""
ZCA_RIDGE = 0.1
"""of the mean variance of pixels: zca_reg of the notebooks"""


@dataclass(frozen=True)
class Config:
    """The method's settings.

    Raises:
        ValueError: a field is out of its range.
    """

    backbone: str = "convnet"
    """network that students have: a name of `bash run.sh list`, options after a colon. The kernel is not its"""
    kernel: Literal["convnet", "fc"] = "convnet"
    """infinitely wide network: convolutions, relu and 2x2 mean pooling, or fully connected layers with relu"""
    depth: Count | None = None
    """blocks of the one, hidden layers of the other; None: 3 of the one, 1 of the other"""
    prepend: bool = True
    """whether the ConvNet has a convolution and a relu before its blocks, as "ConvNet" of the paper, not "ConvNet3"."""
    w_std: Positive = 2**0.5
    """of the weights, over the root of their fan in; of students in the authors' way too"""
    b_std: NonNegative = 0.1
    """of the biases, likewise"""
    iterations: Count = 1000
    """steps of the images"""
    target_batch: Count = 5000
    """real images of a step, as many of each class; all of a class where it has no more"""
    lr: Positive = 0.04
    """learning rate of Adam for images (normalised or whitened units) and labels"""
    ridge: NonNegative = 1e-6
    """of the regression, in units of the mean of the kernel's diagonal"""
    labels: Literal["hard", "learned"] = "hard"
    """centred one-hot, or learned from them on"""
    init: Literal["noise", "real"] = "real"
    """first images: standard normal, or random real ones of the class"""
    zca: bool = False
    """whether kernel and students of --protocol own take whitened images instead of normalised ones"""
    precision: Literal["float64", "float32"] = "float64"
    """of kernel, regression and images; ridges of 1e-6 need the first"""
    chunk: Count | None = None
    """pairs of images whose kernel is taken at once; None: as many as need about 1 GiB"""
    student_steps: Count = 5000
    """steps of students in the authors' way"""

    def __post_init__(self) -> None:
        check_ranges(self)


def distill(real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Distil a data set; continues from the run's checkpoint.

    Args:
        real: the training set, on the device to work on.
        ipc: images per class.
        config: the settings.
        run: its generators, checkpoints, scalars, progress, and the stage of the whitening.

    Returns:
        `ipc` images of each class, sorted by class, in pixels, on the device of `real`.

    Raises:
        InputError: images that the kernel cannot take, a class with fewer than `ipc`, a batch below one image a class,
            a kernel that is singular, or a loss that became NaN.
    """
    device, dtype = real.images.device, getattr(torch, config.precision)
    of_class = _targets_of_class(real, config, run)
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
            drawn = [real.sample(c, of_class, run.generator("target", iteration, c)) for c in range(real.num_classes)]
            targets = space(torch.cat(drawn)).to(dtype)
            truth = classes.repeat_interleave(torch.tensor([len(each) for each in drawn], device=device))
            loss, right = objective(kernel, images, labels, targets, truth, config.ridge, chunk)
            check_finite("the regression", iteration, {"loss": loss}, "--lr")
            gradients = torch.autograd.grad(loss, learned)
            for leaf, gradient in zip(learned, gradients, strict=True):
                leaf.grad = gradient
            optimizer.step()
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
    )


def objective(
    kernel: Kernel, images: Tensor, labels: Tensor, targets: Tensor, truth: Tensor, ridge: float, chunk: int
) -> tuple[Tensor, Tensor]:
    """Return the loss of the regression on a batch, and the share of it that is predicted right.

    Args:
        kernel: of images.
        images: (S, C, H, W) of the support.
        labels: (S, K), centred.
        targets: (T, C, H, W).
        truth: (T,) their classes.
        ridge: in units of the mean of the kernel's diagonal.
        chunk: pairs whose kernel is taken at once.

    Raises:
        InputError: the kernel of the support is singular.
    """
    k_ss, k_ts = (tiled(kernel, each, images, chunk) for each in (images, targets))
    try:
        said = regressed(k_ss, k_ts, labels, ridge)
    except torch.linalg.LinAlgError:
        line = f"the kernel of the {len(images)} images is not positive definite at ridge {ridge:g}"
        raise InputError(f"{line}; take a larger --ridge, a smaller --lr, or --precision float64") from None
    loss = 0.5 * (said - centred(truth, labels.shape[1]).to(said)).square().mean()
    return loss, (said.argmax(1) == truth).float().mean()


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
    """Return how many pairs are taken at once.

    Raises:
        InputError: a pair of such images needs too much memory.
    """
    dtype, depth = getattr(torch, config.precision), _depth(config)
    held = 10 * depth * dtype.itemsize if config.kernel == "fc" else pair_bytes(size, depth, dtype)
    if held > LARGEST:
        raise InputError(
            f"the ConvNet's kernel of one pair of {size} px images takes about {held / 2**30:.1f} GiB at depth "
            f"{depth}, and a step has {config.target_batch} pairs for each distilled image; take --kernel fc "
            "or a smaller --image-size"
        )
    return config.chunk or max(1, MEMORY // held)


def _targets_of_class(real: ImageSet, config: Config, run: Run) -> int:
    """Return how many real images of a class a step has, and say where classes have fewer.

    Raises:
        InputError: none.
    """
    each, counts = config.target_batch // real.num_classes, real.labels.bincount(minlength=real.num_classes)
    if each < 1:
        raise InputError(
            f"target_batch is {config.target_batch}; {real.name} has {real.num_classes} classes, take more"
        )
    if (taken := int(counts.clamp(max=each).sum())) < each * real.num_classes:
        run.notify(
            f"target_batch is {config.target_batch}, but classes of {real.name} have fewer: a step has {taken} images"
        )
    return each


def _space(real: ImageSet, config: Config, run: Run) -> tuple[Normalize | Whiten, Path | None]:
    """Return pixels to what the kernel takes, and the file of the whitening, which all runs on this data share."""
    if not config.zca:
        return Normalize(real.mean, real.std).to(real.images.device), None
    path = run.stage("whitening", {"ridge": ZCA_RIDGE} | real.identity(), seed=0).folder / "whitening.safetensors"
    if not path.exists():
        images = real.in_memory().images
        Whiten.fit(images, eps=ZCA_RIDGE * images.flatten(1).var(0).mean().item()).save(path)
    return Whiten.load(path).to(real.images.device), path


def _initial(real: ImageSet, ipc: int, space: nn.Module, config: Config, run: Run) -> dict[str, Any]:
    labels = centred(torch.arange(real.num_classes).repeat_interleave(ipc), real.num_classes)
    if config.init == "noise":
        images = torch.randn(len(labels), *real.image_shape, generator=run.generator("initial"))
        return {"iteration": 0, "images": images, "labels": labels}
    drawn = [real.sample(c, ipc, run.generator("initial", c)) for c in range(real.num_classes)]
    if (fewest := min(map(len, drawn))) < ipc:
        raise InputError(f"ipc is {ipc}; the smallest class of {real.name} has {fewest} images; take --init noise")
    return {"iteration": 0, "images": space(torch.cat(drawn)), "labels": labels}


# --- how long it takes -------------------------------------------------------------------------------------------

PROBED = (4, 1, 16, 128)
"""target and support images of a timed step with the ConvNet's kernel, their side in pixels; targets with the other"""


def work(config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return what a distillation consists of, for an estimate: each kind of step, and how often it is taken.

    The ConvNet's kernel is timed on a corner of larger images, as often as that goes into them.
    """
    support, target = ipc * num_classes, min(config.target_batch, examples)
    few = config.kernel == "fc"
    targets, images = (min(PROBED[3], target), support) if few else PROBED[:2]
    labels, kernel = centred(torch.zeros(images, dtype=torch.long), num_classes).double(), _kernel(config)

    def step(network: nn.Module, shape: tuple[int, ...]) -> None:
        channels, size, _ = shape
        corner = size if few else min(size, PROBED[2])
        chunk = _chunk(config, size) if few else targets // 2  # tiles, whose kernel is taken twice, as in a run
        for _ in range(-(-(size**2) // corner**2)):
            x, y = (torch.randn(n, channels, corner, corner, dtype=labels.dtype) for n in (images, targets))
            truth = torch.zeros(targets, dtype=torch.long)
            loss, _ = objective(kernel, x.requires_grad_(), labels, y, truth, max(config.ridge, 1e-6), chunk)
            torch.autograd.grad(loss, x)

    return [(config.iterations * support * (support + target) / (images * (images + targets)), step)]


def student_work(config: Config, ipc: int, num_classes: int) -> list[Work]:
    """Return what the training of one student in the authors' way consists of."""
    batch = min(BATCH, ipc * num_classes)
    probe = min(batch, PROBE)
    return [(config.student_steps * batch / probe / STEPS, partial(training_steps, images=probe))]
