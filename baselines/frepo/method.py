"""FRePo: images and labels from which ridge regression on a network's features predicts the labels of real images.

    min over S and Y of  mean of 1/2 || K_ts (K_ss + ridge tr(K_ss) / n I)^-1 Y - y_t ||^2  +  margin(Y)
    K_ts = phi(T) phi(S)^T,  K_ss = phi(S) phi(S)^T,  margin(Y) = mean of -min(largest - second largest of y, 1 / K)

phi is the input of a network's last layer (evaluation mode), treated as constant for the real images T. Each step draws
a network from a pool of networks of different ages. After the step, this network takes one Adam step on the squared
error to Y on S; a network with more than max_online_updates such steps is replaced by an untrained network instead.
With use_flip the kernel contains S and its mirror image. Labels are centred: one-hot minus 1 / K, initially divided by
sqrt(K / 10).

"Dataset Distillation using Neural Feature Regression", Zhou, Nezhadarya & Ba, NeurIPS 2022 (arXiv 2206.00719),
algorithm 1. As in the official code, LAMB optimises S and Y, and images are normalised by channel before whitening,
with a regulariser of 0.1 times the mean variance (`Whiten.fit_normalised`; MTT whitens differently).

--protocol own trains students by regression on Y (`baselines.frepo.students`). The standard protocol uses
cross-entropy; for it, the labels of the file are the probabilities nearest to Y, rescaled and uncentred.

Deviations from the official code: the result is the last set, not the best on the test set; each step draws its real
batch from all images, not from a moving buffer; images of 128 px and more are not whitened (the official code whitens
blocks); CIFAR-10 has DC's standard deviations (official: .247 .243 .262); see also `distill.models.frepo_convnet`; each
random draw has a separate seed (`Run.generator`).

Several processes divide the images whose features are computed (`baselines.frepo.features`). Each solves the
regression, and goes on with the main process's images and labels. The main process trains the pool, and hands out the
network that a step draws: four bytes for each weight. Each process holds the preprocessed data set.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from baselines.frepo.config import Config
from baselines.frepo.objective import margin, objective
from baselines.frepo.students import LARGEST_BATCH, protocol, squared, steps_for
from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.method_training import MethodTraining
from distill.models import build
from distill.runs.divergence import check_finite, diverged
from distill.runs.divided import from_main, network_from_main
from distill.runs.ranks import barrier, is_main_process
from distill.runs.run import Run
from distill.training.features import embedding
from distill.training.ridge import centred, probabilities
from distill.training.whiten import Whiten
from distill.training.work import PROBE, Work, training_steps
from distill.training.work import STEPS as TIMED_STEPS
from robust import Normalize

__all__ = ["distill", "protocol", "student_work", "work"]

REMEDY = "--lr-img or --lr-net, or a larger --ridge"
"""flags to change when the regression diverges"""

ONLINE_BATCH = 1000  # most distilled images in a training step of a pool network


@dataclass
class Online:
    """A network of the pool."""

    network: nn.Module
    optimizer: torch.optim.Adam
    age: int
    """training steps of the network; the first networks start with different ages"""


def distill(real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Distil a data set; resumes from the run's checkpoint, including the networks of the pool.

    Args:
        real: the training set, on the device to work on.
        ipc: images per class.
        config: the settings.
        run: supplies random generators, checkpoints, scalars, the progress bar and stages.

    Returns:
        `ipc` images of each class, sorted by class, in pixels, on the device of `real`, with soft labels; the learned
        labels are `training_tensors["labels"]`.

    Raises:
        InputError: images are too large for whitening, the backbone has no features, or the regression diverged.
    """
    from timm.optim.lamb import Lamb  # slow to import

    real = real.in_memory() if config.zca else real
    device, count = real.images.device, real.num_classes
    space, whitening = _space(real, config, run)
    preprocessed = space(real.images) if isinstance(real.images, Tensor) else None
    state = run.restore() or _initial(real, ipc, space, run)
    images, labels = (state[name].to(device).requires_grad_() for name in ("images", "labels"))
    learned = [images, labels] if config.learn_label else [images]
    # as in optax.lamb, which the paper uses: no clipping, no weight decay, but the ratio of norms
    optimizer = Lamb(learned, config.lr_img, weight_decay=0.0, max_grad_norm=None, always_adapt=True)
    if "optimizer" in state:
        optimizer.load_state_dict(state["optimizer"])
    pool = [_online(real, config, run, number, 0) for number in range(config.num_nn_state)]
    for number, stored in enumerate(state.get("pool", [])):
        pool[number].network.load_state_dict(stored["network"])
        pool[number].optimizer.load_state_dict(stored["optimizer"])
        pool[number].age = stored["age"]

    with run.progress("distil", config.iterations, state["iteration"]) as bar:
        for iteration in range(state["iteration"], config.iterations):
            begun = time.perf_counter()
            number = int(torch.randint(len(pool), (), generator=run.generator("pool", iteration)))
            indices = torch.randperm(len(real), generator=run.generator("real", iteration))[: config.batch_real]
            indices = indices.to(device, non_blocking=True)
            network_from_main(pool[number].network)  # which alone trains it
            x = space(real.images[indices]) if preprocessed is None else preprocessed[indices]
            try:
                targets = centred(real.labels[indices], count).to(labels)
                loss, accuracy = objective(pool[number].network, images, labels, x, targets, config)
                label_loss = -margin(labels)
                gradients = torch.autograd.grad(loss + label_loss, learned)
            except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]  # also where features are not finite
                raise diverged("the regression", iteration, "no positive definite kernel", REMEDY) from None
            value = loss.item()
            check_finite("the regression", iteration, {"loss": value}, REMEDY)
            for leaf, gradient in zip(learned, gradients, strict=True):
                leaf.grad = gradient
            optimizer.param_groups[0]["lr"] = _rate(iteration, config)
            optimizer.step()
            for leaf in learned:
                from_main(leaf.detach())

            if is_main_process():
                if pool[number].age > config.max_online_updates:
                    pool[number] = _online(real, config, run, number, iteration + 1)
                else:
                    _update(pool[number], images.detach(), labels.detach(), run.generator("online", iteration))
            bar.set_postfix(loss=f"{value:.4g}", refresh=False)
            bar.update()
            scalars = {"loss": value, "label_loss": label_loss.detach(), "accuracy": 100 * accuracy}
            run.log(iteration, **scalars, seconds=time.perf_counter() - begun)
            if run.due() or iteration == config.iterations - 1:
                state = {"iteration": iteration + 1, "images": images.detach(), "labels": labels.detach()}
                state["pool"] = [
                    {"network": o.network.state_dict(), "optimizer": o.optimizer.state_dict(), "age": o.age}
                    for o in pool
                ]
                run.save(iteration + 1, state | {"optimizer": optimizer.state_dict()}, REMEDY)

    images, labels = images.detach(), labels.detach()
    training = MethodTraining(
        steps=config.student_steps,
        lr=config.student_lr,
        augment=config.student_augment,
        whitening=None if whitening is None else os.path.relpath(whitening, run.folder),
    )
    return DistilledSet.of(
        real,
        space.inverse(images),
        probabilities(labels * _scale(count) + 1 / count),
        augment=config.augment,
        backbone=config.backbone,
        training=training,
        training_tensors={"labels": labels},
        classes=torch.arange(count).repeat_interleave(ipc),
    )


def _rate(iteration: int, config: Config) -> float:
    """Return the learning rate of an iteration: a cosine from lr_img to a tenth of it."""
    return config.lr_img * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * iteration / config.iterations)))


def _scale(num_classes: int) -> float:
    return math.sqrt(num_classes / 10)


def _initial(real: ImageSet, ipc: int, space: nn.Module, run: Run) -> dict[str, Any]:
    images = space(torch.cat([real.sample(c, ipc, run.generator("initial", c)) for c in range(real.num_classes)]))
    classes = torch.arange(real.num_classes, device=images.device).repeat_interleave(ipc)
    labels = centred(classes, real.num_classes).to(images) / _scale(real.num_classes)
    return {"iteration": 0, "images": images, "labels": labels}


# --- the pool ---------------------------------------------------------------------------------------------------


def _online(real: ImageSet, config: Config, run: Run, number: int, born: int) -> Online:
    """Return an untrained network for the pool; the first networks get different ages."""
    network = build(config.pool_backbone, like=real, generator=run.generator("network", number, born))
    network = network.to(real.images.device).to(memory_format=torch.channels_last)  # 1.7 times as fast on a CPU
    age = 0 if born else config.max_online_updates // config.num_nn_state * number
    return Online(network, torch.optim.Adam(network.parameters(), lr=config.lr_net), age)


def _update(online: Online, images: Tensor, labels: Tensor, generator: torch.Generator) -> None:
    """Train a pool network for one step on the images, or on ONLINE_BATCH random images if there are more."""
    if len(images) > ONLINE_BATCH:
        indices = torch.randperm(len(images), generator=generator)[:ONLINE_BATCH].to(images.device, non_blocking=True)
        images, labels = images[indices], labels[indices]
    online.optimizer.zero_grad(set_to_none=True)
    squared(online.network.train()(images), labels).backward()
    online.optimizer.step()
    online.age += 1


# --- whitening --------------------------------------------------------------------------------------------------


def _space(real: ImageSet, config: Config, run: Run) -> tuple[Normalize | Whiten, Path | None]:
    """Return the preprocessing of pixels, and the file of the whitening, which all runs on this data share, or None."""
    normalize = Normalize(real.mean, real.std).to(real.images.device)
    if not config.zca:
        return normalize, None
    path = run.stage("whitening-normalised", real.identity(), seed=0).folder / "whitening.safetensors"
    if is_main_process() and not path.exists():
        Whiten.fit_normalised(real.images, normalize).save(path)
    barrier()
    return Whiten.load(path).to(real.images.device), path


# --- time estimate ----------------------------------------------------------------------------------------------


def work(config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return the work of a distillation for the time estimate: each kind of step and the number of such steps."""
    synthetic, batch = ipc * num_classes, min(config.batch_real, examples)
    probe, real = min(synthetic, PROBE), min(batch, PROBE)
    copies = 2 if config.use_flip else 1

    def features(network: nn.Module, shape: tuple[int, ...]) -> None:
        with torch.no_grad():
            embedding(network.eval(), torch.randn(real, *shape))

    def matching_step(network: nn.Module, shape: tuple[int, ...]) -> None:
        images = torch.randn(probe, *shape, requires_grad=True)
        torch.autograd.grad(embedding(network.eval(), images).square().sum(), images)

    online: Callable[..., None] = partial(training_steps, images=probe)
    return [
        (config.iterations * batch / real, features),
        (config.iterations * copies * synthetic / probe, matching_step),
        (config.iterations * min(synthetic, ONLINE_BATCH) / probe / TIMED_STEPS, online),
    ]


def student_work(config: Config, ipc: int, num_classes: int) -> list[Work]:
    """Return the work of training one student with the authors' protocol."""
    batch = min(ipc * num_classes, LARGEST_BATCH)
    steps, probe = config.student_steps or steps_for(ipc * num_classes), min(batch, PROBE)
    return [(steps * batch / probe / TIMED_STEPS, partial(training_steps, images=probe))]
