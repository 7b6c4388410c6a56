"""Labels of robust teachers: the class probabilities that adversarially trained networks give to distilled images.

    y_i = (1 - a) mean over teachers of softmax(f_k(x_i) / T) + a onehot(c_i)

A teacher f_k is trained on the real images by any loss of `robust.losses` (adversarial training, TRADES, GUARD's
curvature-regularised loss; cross-entropy as the control), or comes from a file. Students are trained on (x_i, y_i) by
the standard protocol, without attacks.

Sources: the labels of robust teachers as in RSLAD, "Revisiting Adversarial Robustness Distillation" (Zi et al., ICCV
2021), whose students see attacked images too; soft labels with the images' classes as in Hinton et al. (2015, arXiv
1503.02531). Deviation from Hinton: students are trained at temperature 1, so that T only flattens the labels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from distill.data import Facts, ImageSet
from distill.data.images import Images
from distill.errors import InputError
from distill.models import build
from distill.runs.files import read_tensors
from distill.runs.named_files import path_of, with_digest
from distill.runs.ranks import barrier, is_main_process
from distill.runs.run import Run
from distill.runs.threads import by_itself
from robust import Normalize, loss_named
from robust.losses.named import METAVAR
from robust.ranges import Count, NonNegative, Positive, UpToOne, Whole, check_ranges, shown
from sre2l.crops import Augment
from sre2l.precision import Compute
from sre2l.squeeze import Squeeze, squeeze
from sre2l.squeeze import check as check_squeeze

__all__ = [
    "EPOCHS",
    "MeanTeacher",
    "RobustLabels",
    "Teacher",
    "TeacherText",
    "check_teachers",
    "labels_of",
    "labels_recipe",
    "robust_labels",
    "squeezes",
    "teachers_of",
]

WEIGHTS = (".safetensors", ".pt", ".pth")
"""endings of files of weights"""
FLAGS = {"squeeze.start": "--teacher", "squeeze.batch_size": "--teacher-batch-size"}
"""setting of `squeeze` -> the flag that sets it here"""
TeacherText = Annotated[str, tyro.conf.arg(metavar=f"{METAVAR}|FILE,...")]


@dataclass(frozen=True)
class RobustLabels:
    """Which teachers label the images, and how they are trained.

    Raises:
        ValueError: a field is out of its range, or a loss is unknown.
    """

    teacher: TeacherText = "pgd_at:steps=3@4/255"
    """loss of the teacher, or a file of its weights (.safetensors, .pt, .pth); several, separated by commas, give the
    mean of their probabilities: pgd_at@2/255,pgd_at@8/255. h, eps and sigma as of --squeeze.loss"""
    teacher_backbone: str = ""
    """network of the teachers; "" for the network of a file, else that of the images"""
    teacher_epochs: Count = 30
    """passes over the real data"""
    teacher_lr: Positive = 0.05
    """learning rate of SGD, momentum 0.9, cosine to 0 by epoch"""
    teacher_weight_decay: NonNegative = 5e-4
    """L2 penalty of SGD"""
    teacher_batch_size: Count = 128
    """real images a step"""
    teacher_warmup_epochs: Whole = 1
    """first epochs, in which the learning rate rises linearly from a tenth"""
    teacher_augment: Augment = "padded_crop"
    """crops of the real images: padded_crop (by an eighth of the side), resized_crop, or none"""
    teacher_flip: bool = True
    """whether half of the real images are mirrored"""
    temperature: Positive = 1.0
    """T of the softmax of a teacher's logits"""
    hard: UpToOne = 0.0
    """weight a of the image's own class"""

    def __post_init__(self) -> None:
        check_ranges(self)
        object.__setattr__(self, "teacher", teacher_with_digest(self.teacher))
        if not self.teachers:
            raise ValueError(f"teacher is {shown(self.teacher)}; it is a loss, such as pgd_at@4/255, or a file")
        for text in self.teachers:
            if not _is_file(text):
                try:
                    loss_named(text)
                except ValueError as error:
                    raise ValueError(f"teacher is {shown(text)}: {error}") from None

    @property
    def teachers(self) -> tuple[str, ...]:
        """The texts of the teachers, one each.

        >>> RobustLabels("trades:beta=3,steps=5@2/255,cross_entropy").teachers
        ('trades:beta=3,steps=5@2/255', 'cross_entropy')
        """
        return _split(self.teacher)

    @property
    def written(self) -> str:
        """The labels as a set and its tables name them; a file is named without its folder.

        >>> RobustLabels("pgd_at@4/255", temperature=2.0, hard=0.5).written
        'pgd_at@4/255 T=2 hard=0.5'
        """
        names = (path_of(text).name if _is_file(text) else text for text in self.teachers)
        temperature = f" T={self.temperature:g}" if self.temperature != 1 else ""
        return f"{','.join(names)}{temperature}{f' hard={self.hard:g}' if self.hard else ''}"


EPOCHS = {"paper": 30, "quick": 10, "smoke": 2}
"""recipe -> epochs of a teacher; other recipes have those of "paper" """


def labels_recipe(name: str, facts: Facts, teacher: str = RobustLabels.teacher) -> RobustLabels:
    """Return the labels of a recipe: a teacher of EPOCHS, in "smoke" with small batches.

    Args:
        name: of the recipe.
        facts: of the data set.
        teacher: its loss.
    """
    batch_size = min(16 if name == "smoke" else 128, max(2, facts.examples // 2))
    epochs = EPOCHS.get(name, EPOCHS["paper"])
    return RobustLabels(teacher, teacher_epochs=epochs, teacher_batch_size=batch_size, teacher_flip=facts.flips)


@dataclass(frozen=True)
class Teacher:
    """A trained teacher."""

    network: nn.Module
    """from normalised images (N, C, H, W) to logits (N, K)"""
    stage: str
    """name of its stage"""
    backbone: str
    """name of the network"""


def teacher_with_digest(teacher: str) -> str:
    """Return the text of teachers, with the digests of those that are files.

    >>> teacher_with_digest("pgd_at@2/255, cross_entropy")
    'pgd_at@2/255, cross_entropy'
    """
    texts = _split(teacher)
    return ",".join(with_digest(text) for text in texts) if any(map(_is_file, texts)) else teacher


def _split(teacher: str) -> tuple[str, ...]:
    return tuple(text.strip() for text in re.split(r",(?!\s*\w+=)", teacher) if text.strip())


def _is_file(text: str) -> bool:
    return path_of(text).suffix in WEIGHTS


def squeezes(config: RobustLabels) -> list[Squeeze]:
    """Return how each teacher is trained, or read from its file."""
    fields = {
        "lr": config.teacher_lr,
        "weight_decay": config.teacher_weight_decay,
        "batch_size": config.teacher_batch_size,
        "warmup_epochs": config.teacher_warmup_epochs,
        "augment": config.teacher_augment,
        "flip": config.teacher_flip,
    }
    return [
        Squeeze(start=text, epochs=0) if _is_file(text) else Squeeze(text, epochs=config.teacher_epochs, **fields)
        for text in config.teachers
    ]


def check_teachers(real: ImageSet, backbone: str, config: RobustLabels) -> None:
    """Refuse before any work teachers that cannot be trained or read.

    Args:
        real: the training set.
        backbone: network of the images.
        config: the teachers.

    Raises:
        InputError: a file is missing or of another network, or a loss, a network or a batch size is impossible.
    """
    for text, settings in zip(config.teachers, squeezes(config), strict=True):
        network = _network_of(text, config, backbone)
        built = build(network, like=real, generator=torch.Generator())
        try:
            check_squeeze(built, real, network, settings, 1)
        except InputError as error:
            raise InputError(re.sub("|".join(FLAGS), lambda found: FLAGS[found[0]], str(error))) from None


def _network_of(text: str, config: RobustLabels, backbone: str) -> str:
    """Return the network of a teacher.

    Raises:
        InputError: the file does not exist.
    """
    if config.teacher_backbone:
        return config.teacher_backbone
    if not _is_file(text):
        return backbone
    if not (path := path_of(text)).is_file():
        raise InputError(f"--teacher is {path}: no such file; give a file of weights, or a loss such as pgd_at@4/255")
    named = read_tensors(path)[1].get("backbone") if path.suffix == ".safetensors" else None
    return named if isinstance(named, str) else backbone


def teachers_of(real: ImageSet, backbone: str, config: RobustLabels, run: Run) -> list[Teacher]:
    """Return the teachers, frozen and in evaluation mode.

    The main process trains the missing ones with all cores, while the others wait. Each is a stage that all runs with
    the same data, settings and seed share.

    Args:
        real: the training set, on the device to work on.
        backbone: network of the images.
        config: the teachers.
        run: supplies stages; every process of the run calls this.

    Raises:
        InputError: as of `check_teachers`, or a training diverged.
    """
    found: list[Teacher] = []
    for text, settings in zip(config.teachers, squeezes(config), strict=True):
        network = _network_of(text, config, backbone)
        if is_main_process():
            with by_itself(real.image_shape[1], run.device):
                squeeze(real, network, settings, Compute(), run)
        barrier()
        trained, stage = squeeze(real, network, settings, Compute(), run)
        found.append(Teacher(trained.network.eval(), stage, network))
    return found


def robust_labels(
    real: ImageSet, backbone: str, images: Images, classes: Tensor, config: RobustLabels, run: Run
) -> Tensor:
    """Return the labels of distilled images, training the teachers where they are missing.

    Args:
        real: the training set, on the device to work on.
        backbone: network of the images.
        images: (N, C, H, W) pixels, unclamped.
        classes: (N,) classes of the images, which `hard` mixes in.
        config: the teachers and the temperature.
        run: supplies stages; every process of the run calls this.

    Returns:
        (N, K) float32 probabilities, on the device of `classes`.

    Raises:
        InputError: as of `teachers_of`.
    """
    return labels_of(teachers_of(real, backbone, config, run), real, images, classes, config)


@torch.no_grad()
def labels_of(
    teachers: Sequence[Teacher], real: ImageSet, images: Images, classes: Tensor, config: RobustLabels
) -> Tensor:
    """Return the labels that trained teachers give to images; arguments and result as of `robust_labels`."""
    device = next(teachers[0].network.parameters()).device
    normalize, mean = Normalize(real.mean, real.std).to(device), MeanTeacher(teachers, config.temperature)
    soft = torch.cat([mean(normalize(part.to(device))).exp() for part in images.split(500)]).to(classes.device)
    return (1 - config.hard) * soft + config.hard * F.one_hot(classes, soft.shape[1])


class MeanTeacher(nn.Module):
    """The logarithm of the mean of the teachers' softened probabilities, (N, K), from normalised images.

    Args:
        teachers: one or more.
        temperature: divides their logits.
    """

    def __init__(self, teachers: Sequence[Teacher], temperature: float = 1.0):
        super().__init__()
        self.networks, self.temperature = nn.ModuleList(teacher.network for teacher in teachers), temperature

    def forward(self, images: Tensor) -> Tensor:
        """Return log probabilities for normalised images (N, C, H, W)."""
        each = [(network(images) / self.temperature).log_softmax(1) for network in self.networks]
        return torch.stack(each).logsumexp(0) - log(len(each))
