"""RDED, stage after stage: squeeze -> select -> relabel -> validate; all but `select` are SRe2L's.

Sun et al., CVPR 2024 (arXiv 2312.03526). The set's images are real crops. With --protocol own students train on the
teacher's labels of random crops of the images, as in the paper. The set's own `labels`, which any other training uses,
are the teacher's probabilities of the whole images, or their classes (`Config.labels`).
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from distill.data import ImageSet
from distill.data.images import Images
from distill.distilled import DistilledSet
from distill.models import build
from distill.runs.run import Run
from robust import Normalize
from sre2l import select as selection
from sre2l.precision import Compute
from sre2l.relabel import Relabel, relabel
from sre2l.relabel import check as check_relabel
from sre2l.select import Select, select
from sre2l.squeeze import Squeeze, squeeze
from sre2l.squeeze import check as check_squeeze
from sre2l.stages import finished_set
from sre2l.units import read_units
from sre2l.validate import Validate

__all__ = ["Config", "check", "distill", "probabilities"]


@dataclass(frozen=True)
class Config:
    """The settings of all stages.

    Raises:
        ValueError: a field of a stage is out of its range.
    """

    squeeze: Squeeze = field(default_factory=Squeeze)
    """training of the teacher"""
    select: Select = field(default_factory=Select)
    """selection of crops by the teacher"""
    relabel: Relabel = field(default_factory=Relabel)
    """labels by the teacher"""
    validate: Validate = field(default_factory=Validate)
    """training of students"""
    compute: Compute = field(default_factory=Compute)
    """how the arithmetic of all stages runs"""
    backbone: str = "timm:resnet18"
    """network of the teacher and of the students"""
    pictures: bool = True
    """whether the images are also written as PNG files, pictures/CLASS/*.png"""
    labels: Literal["teacher", "classes"] = "teacher"
    """the set's own labels, for students of the standard protocol: the teacher's probabilities of the whole images
    (temperature 1), or the classes of the crops"""


def distill(real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Run the first three stages; each continues where it was interrupted.

    Args:
        real: the training set, on the device of the run.
        ipc: images per class.
        config: the settings.
        run: has the generators, stages and progress.

    Returns:
        `ipc` images of each class, sorted by class, in pixels.

    Raises:
        InputError: a stage refuses its input.
    """
    teacher, squeezed = squeeze(real, config.backbone, config.squeeze, config.compute, run)
    images = read_units(select(teacher, squeezed, real, ipc, config.select, config.compute, run))
    normalize, there = Normalize(real.mean, real.std).to(run.device), images.to(run.device)
    store = relabel(teacher, squeezed, there, normalize, config.relabel, config.compute, run)
    soft = None
    if config.labels == "teacher":
        soft = probabilities(teacher.network, there, normalize, config.compute)
    return finished_set(real, images, squeezed, store, config, run, soft)


@torch.no_grad()
def probabilities(network: nn.Module, images: Images, normalize: Normalize, compute: Compute) -> Tensor:
    """Return a teacher's probabilities of whole images, (N, K) float32 on the CPU.

    Args:
        network: takes normalised images, in evaluation mode.
        images: (N, C, H, W) pixels.
        normalize: the teacher's normalisation.
        compute: how the arithmetic runs.
    """
    with compute.autocast(images.device):
        logits = [network(normalize(part)) for part in images.split(selection.AT_ONCE)]
    return torch.cat(logits).float().softmax(1).cpu()


def check(real: ImageSet, ipc: int, config: Config, processes: int) -> None:
    """Refuse before any work what a stage would refuse later.

    Args:
        real: the training set, on the device of the run.
        ipc: images per class.
        config: the settings.
        processes: number of processes.

    Raises:
        InputError: a class has too few images, there are too few images for a batch, the last batch has one image, or
            the weights of the teacher do not exist.
    """
    selection.check(real, ipc, config.select)
    network = build(config.backbone, like=real, generator=torch.Generator())
    check_relabel(network, ipc * real.num_classes, real.image_shape, config.relabel)
    check_squeeze(network, real, config.backbone, config.squeeze, processes)
