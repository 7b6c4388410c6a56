"""The settings of trajectory matching: MTT, TESLA, DATM, with hard labels, labels of experts, or learned labels."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from baselines.mtt.matching import Gradient
from baselines.robust_labels.labels import RobustLabels
from distill.experiment import LATER
from distill.methods.initial import init_with_digest
from distill.training.augment import augmentation
from robust import Loss
from robust.ranges import Count, NonNegative, Positive, Range, Whole, check_ranges

__all__ = ["Config"]

STARTS = ("noise", "real", "correct")
"""initial images that need no other set"""


@dataclass(frozen=True)
class Config:
    """The method's settings, named as in the official code where possible.

    Raises:
        ValueError: a field is out of its range, or two fields are incompatible.
    """

    expert_loss: Loss
    """loss for training experts; h in the units of their inputs, eps and sigma in pixels of [0, 1]"""
    backbone: str = "convnet"
    """network of experts and of students: a name from `bash run.sh list`, options after a colon"""
    num_experts: Annotated[int, Range(least=1, most=100_000)] = 100
    """number of expert trajectories"""
    expert_seed: Whole = 0
    """root of the random seeds of experts; runs with different seeds share experts, as in the paper"""
    train_epochs: Count = 50
    """training epochs of an expert"""
    expert_images: Count | None = None
    """real images per epoch of an expert, drawn anew in each epoch; None: all"""
    lr_expert: Positive = 0.01
    """learning rate of an expert (SGD, no momentum)"""
    batch_train: Count = 256
    """real images per training step of an expert"""
    expert_average: NonNegative = field(default=0.0, metadata=LATER)
    """length in epochs of the exponential average of an expert's weights that a trajectory stores (MAT); 0: the weights
    themselves"""
    iterations: Count = 5000
    """K: steps of the images"""
    syn_steps: Annotated[int, Range(least=1, most=100_000)] = 20
    """N: training steps on the synthetic images per iteration"""
    expert_epochs: Count = 3
    """M: epochs of an expert that the N steps are matched with"""
    max_start_epoch: Count = 25
    """the N steps start from an expert's random epoch below this number"""
    batch_syn: Count | None = None
    """synthetic images in each of the N steps; None: all"""
    lr_img: Positive = 1000.0
    """learning rate of the images (SGD, momentum 0.5), in normalised or whitened units"""
    lr_lr: NonNegative = 1e-5
    """learning rate of the students' learning rate (SGD, momentum 0.5)"""
    lr_init: Positive = 0.01
    """initial value of the students' learning rate"""
    init: str = "real"
    """initial synthetic images: noise (standard normal), real, correct (real ones that the first expert classifies
    correctly, as in DATM), or the folder of a distilled set"""
    augment: str = ""
    """augmentation of experts, matching and students: "" for none, a DSA strategy, or kornia:..."""
    zca: bool = False
    """whether networks take images whitened over whole images (ZCA, eps 0.1) instead of normalised images"""
    gradient: Gradient = "replayed"
    """replayed; unrolled (same gradient, all graphs in memory); tesla (approximate): see baselines/mtt/matching.py"""
    labels: Literal["hard", "expert", "learned"] = "hard"
    """hard: classes; expert: probabilities of the expert at theta*_(t+M), updated in each iteration (TESLA); learned:
    softmax of logits that are optimised with the images (DATM)"""
    labels_start: Literal["teacher", "hard", "expert", "first_expert"] = field(default="teacher", metadata=LATER)
    """initial learned labels: probabilities of the networks of --label-teacher; hard: 0.9 for the class of the image;
    expert: mean logits of the experts, at their last epoch, that classify the image correctly (DATM); first_expert:
    logits of the first expert at its last epoch, right or wrong (DATM's code with init real)"""
    lr_labels: NonNegative = field(default=2.0, metadata=LATER)
    """learning rate of the logits of learned labels (SGD, momentum 0.9), DATM's lr_y; 0 keeps the initial labels"""
    label_teacher: RobustLabels = field(default_factory=RobustLabels, metadata=LATER)
    """teachers of the initial learned labels with labels_start teacher"""
    order: Literal["any", "easy_first"] = field(default="any", metadata=LATER)
    """any: start epochs are in [min_start_epoch, max_start_epoch) throughout; easy_first: at first they are below
    current_max_start_epoch, and the bound rises linearly to max_start_epoch (DATM's sequential generation)"""
    min_start_epoch: Whole = field(default=0, metadata=LATER)
    """the N steps start at this epoch of an expert at least"""
    current_max_start_epoch: Count = field(default=20, metadata=LATER)
    """bound of start epochs in the first iteration, with order easy_first"""
    expansion_end_epoch: Count = field(default=3000, metadata=LATER)
    """iteration from which the bound of start epochs is max_start_epoch, with order easy_first"""
    threshold: Positive | None = field(default=None, metadata=LATER)
    """iterations with a larger loss change nothing (DATM); None: all iterations count"""
    student_epochs: Count = 1000
    """E of students with --protocol own, see --student.epochs"""

    def __post_init__(self) -> None:
        check_ranges(self)
        object.__setattr__(self, "init", init_with_digest(self.init, STARTS))
        first, name = self.max_start_epoch, "max_start_epoch"
        if self.order == "easy_first":
            first, name = self.current_max_start_epoch, "current_max_start_epoch"
        if first > self.max_start_epoch:
            raise ValueError(f"{name} is {first}; it must be at most max_start_epoch {self.max_start_epoch}")
        if self.min_start_epoch >= first:
            raise ValueError(f"min_start_epoch is {self.min_start_epoch}; it must be below {name} {first}")
        last = self.max_start_epoch - 1 + self.expert_epochs
        if last > self.train_epochs:
            raise ValueError(
                f"train_epochs is {self.train_epochs}; a start below max_start_epoch {self.max_start_epoch} and "
                f"expert_epochs {self.expert_epochs} need {last}"
            )
        if self.zca and self.augment.startswith("kornia:"):
            raise ValueError("augment is kornia's, which cannot augment whitened images; with zca take a DSA strategy")
        augmentation(self.augment)

    @property
    def teacher_starts(self) -> bool:
        """Whether the learned labels start at those of `label_teacher`."""
        return self.labels == "learned" and self.labels_start == "teacher"

    def start_epochs(self, iteration: int) -> range:
        """Return the epochs of an expert from which an iteration may start.

        Args:
            iteration: from 0.
        """
        if self.order == "any":
            return range(self.min_start_epoch, self.max_start_epoch)
        first = self.current_max_start_epoch
        bound = first + int((self.max_start_epoch - first) * iteration / self.expansion_end_epoch)
        return range(self.min_start_epoch, min(bound, self.max_start_epoch))
