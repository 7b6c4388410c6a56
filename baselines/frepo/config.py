"""The settings of FRePo."""

from dataclasses import dataclass
from inspect import signature
from typing import Literal

from baselines.frepo.students import check_strategy
from distill.models import BACKBONES
from distill.training.augment import augmentation
from robust.ranges import Count, Positive, check_ranges

__all__ = ["Config"]


@dataclass(frozen=True)
class Config:
    """The method's settings, named as in the official code where possible.

    Raises:
        ValueError: a field is out of its range, or two fields are incompatible.
    """

    backbone: str = "frepo_convnet"
    """network of students and, with pool_norm, of the pool: a name from `bash run.sh list`, options after a colon"""
    pool_norm: Literal["batch", "instance", "layer", "group", "none", "same"] = "batch"
    """normalisation of the pool's networks; same: as in `backbone` (required for a backbone without a norm option)"""
    iterations: Count = 500_000
    """steps of the images (num_train_steps)"""
    batch_real: Count = 1024
    """real images per step"""
    lr_img: Positive = 3e-4
    """initial learning rate of images and labels (LAMB), with cosine decay to a tenth"""
    lr_net: Positive = 3e-4
    """learning rate of the pool's networks (Adam)"""
    num_nn_state: Count = 10
    """number of networks in the pool"""
    max_online_updates: Count = 100
    """a pool network with more training steps is replaced"""
    learn_label: bool = True
    """whether labels are learned; otherwise they keep their initial values"""
    use_flip: bool = False
    """whether the kernel also contains mirrored images"""
    ridge: Positive = 1e-6
    """regulariser of the regression, in units of the mean of the kernel's diagonal"""
    zca: bool = False
    """whether networks take images normalised and then whitened over whole images (ZCA), or only normalised"""
    augment: str = ""
    """augmentation of students with --protocol standard: "" for none, a DSA strategy, or kornia:..."""
    student_augment: str = "color_crop_rotate_translate_cutout"
    """augmentation with --protocol own: flip, color, crop, rotate, translate, cutout joined by _, or "" for none"""
    student_steps: Count | None = None
    """training steps of a student with --protocol own; None: the official number for this number of images"""
    student_lr: Positive = 3e-4
    """highest learning rate of a student with --protocol own (Adam)"""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.zca and self.augment.startswith("kornia:"):
            raise ValueError("augment is kornia's, which cannot augment whitened images; with zca take a DSA strategy")
        augmentation(self.augment)
        check_strategy(self.student_augment)
        name = self.backbone.partition(":")[0]
        normed = [known for known, builder in BACKBONES.items() if "norm" in signature(builder).parameters]
        if self.pool_norm != "same" and name not in normed:
            raise ValueError(
                f"backbone {name} has no option norm={self.pool_norm} for the pool; take pool_norm same, or one of "
                f"{', '.join(normed)}"
            )

    @property
    def pool_backbone(self) -> str:
        """Network of the pool."""
        if self.pool_norm == "same":
            return self.backbone
        name, _, options = self.backbone.partition(":")
        others = [option for option in options.split(",") if option and not option.startswith("norm=")]
        return f"{name}:{','.join([*others, f'norm={self.pool_norm}'])}"
