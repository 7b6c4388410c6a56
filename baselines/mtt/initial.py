"""Initial images and learned labels of trajectory matching, and the state that a run starts from.

Learned labels are softmax(logits). The initial logits are, by `Config.labels_start`,

teacher        the logarithms of a teacher's probabilities of the initial images (`baselines.robust_labels`);
expert         the mean logits of the experts at their last epoch that classify the image correctly, as in DATM's code;
first_expert   the logits of the first expert at its last epoch, as in DATM's code with random real images;
hard           the logarithms of smoothed classes, since a one-hot label has no finite logits.

Deviations from DATM's code: an image that no expert classifies correctly has the mean logits of all experts (DATM
divides by zero); images are drawn from random correct ones of their class, judged by the first expert alone.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.mtt.config import Config
from baselines.mtt.matching import logits_at
from baselines.mtt.trajectories import Trajectories
from baselines.robust_labels.labels import robust_labels
from distill.data import ImageSet
from distill.methods.initial import initial_images
from distill.runs.divided import from_main
from distill.runs.run import Run
from distill.training.whiten import Whiten
from robust import Normalize

__all__ = ["initial"]

CONFIDENCE = 0.9
"""probability of the image's class in smoothed labels"""
BATCH = 500
"""images of one forward pass"""


def initial(
    real: ImageSet,
    classes: Tensor,
    space: Normalize | Whiten,
    config: Config,
    teachers: Trajectories,
    network: nn.Module,
    run: Run,
) -> dict[str, Any]:
    """Return the state before the first iteration: images, learning rate, logits (N, K) of learned labels, velocities.

    Without learned labels the logits are empty; with them, the labels that an expert gives are.

    Args:
        real: the training set, on the device to work on.
        classes: (N,) classes of the images, sorted, as many of each.
        space: invertible preprocessing of pixels: normalisation or whitening.
        config: the settings.
        teachers: the experts.
        network: provides the layers of the experts.
        run: supplies random generators and stages; every process of the run calls this.

    Raises:
        InputError: a teacher of the labels cannot be trained or read.
    """
    ipc, network = len(classes) // real.num_classes, network.train()
    if config.init == "correct":
        expert = teachers.snapshot(0, config.train_epochs).to(real.images.device)
        drawn = [_correct(real, c, ipc, space, network, expert, run) for c in range(real.num_classes)]
        images = from_main(torch.cat(drawn).contiguous())
    else:
        images = initial_images(config.init, real, ipc, space, run.generator).flatten(0, 1)
    lr = torch.tensor(config.lr_init, dtype=images.dtype)
    state = {"iteration": 0, "images": images, "velocity": torch.zeros_like(images)}
    state |= {"lr": lr, "lr_velocity": torch.zeros_like(lr), "labels": torch.empty(0)}
    logits = _logits(real, images, classes, space, config, teachers, network, run)
    return state | {"logits": logits, "logits_velocity": torch.zeros_like(logits)}


def _logits(
    real: ImageSet,
    images: Tensor,
    classes: Tensor,
    space: Normalize | Whiten,
    config: Config,
    teachers: Trajectories,
    network: nn.Module,
    run: Run,
) -> Tensor:
    if config.labels != "learned":
        return torch.empty(0)
    if config.labels_start == "teacher":
        probabilities = robust_labels(
            real, config.backbone, space.inverse(images), classes, config.label_teacher, run
        ).clamp_min(torch.finfo(images.dtype).tiny)
        logits = probabilities.log().to(images)
    elif config.labels_start == "expert":
        logits = _mean_logits(teachers, network, images, classes, config.train_epochs)
    elif config.labels_start == "first_expert":
        logits = _logits_of(teachers, 0, network, images, config.train_epochs)
    else:
        rest = (1 - CONFIDENCE) / (real.num_classes - 1)
        one_hot = F.one_hot(classes, real.num_classes).to(images)
        logits = (rest + (CONFIDENCE - rest) * one_hot).log()
    return from_main(logits.contiguous())


@torch.no_grad()
def _correct(
    real: ImageSet, class_: int, ipc: int, space: nn.Module, network: nn.Module, expert: Tensor, run: Run
) -> Tensor:
    """Return random images of a class in the networks' space, first those that an expert (P,) classifies correctly."""
    drawn = space(real.sample(class_, len(real.images), run.generator("initial", class_)))
    logits = torch.cat([logits_at(network, expert, part) for part in drawn.split(BATCH)])
    wrong = (logits.argmax(1) != class_).to(torch.uint8)
    return drawn[wrong.argsort(stable=True)[:ipc]]


@torch.no_grad()
def _logits_of(teachers: Trajectories, number: int, network: nn.Module, images: Tensor, epoch: int) -> Tensor:
    """Return the logits (N, K) of an expert at an epoch."""
    expert = teachers.snapshot(number, epoch).to(images)
    return torch.cat([logits_at(network, expert, part) for part in images.split(BATCH)])


@torch.no_grad()
def _mean_logits(teachers: Trajectories, network: nn.Module, images: Tensor, classes: Tensor, epoch: int) -> Tensor:
    """Return the mean logits (N, K) of the experts that classify an image correctly; of all where none does."""
    logits = torch.stack([_logits_of(teachers, number, network, images, epoch) for number in range(len(teachers))])
    correct = (logits.argmax(2) == classes)[..., None].to(logits)
    count = correct.sum(0)
    return torch.where(count > 0, (correct * logits).sum(0) / count.clamp_min(1), logits.mean(0))
