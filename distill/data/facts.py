"""What is known of a data set before any of its images is read: one record, of which recipes are functions."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from distill.data.image_files import View
from robust.threat import family_of

__all__ = ["CODES", "Constants", "Facts", "depth_at"]

Constants = tuple[tuple[float, ...], tuple[float, ...]]
"""mean and std, a number a channel, of pixels in [0, 1]"""
CODES = ("dc", "dd", "mtt", "frepo")
"""code bases that publish sets and normalise with constants of their own (`Facts.constants`): VICO-UoE/
DatasetCondensation (utils.py; CAFE and DCC have the same), SsnL/dataset-distillation (datasets/__init__.py),
GeorgeCazenavette/mtt-distillation (utils.py) and yongchaoz/FRePo (lib/dataset/dataloader.py)"""


@dataclass(frozen=True)
class Facts:
    """A data set, as recipes, readers of published sets and the evaluation know it.

    Raises:
        ValueError: numbers that no data set has, or constants of another number of channels.
    """

    name: str
    """on the command line: the name of the set's file in distill/data"""
    classes: int
    """number of classes, >= 2"""
    channels: int
    """1 for grey images, 3 for RGB"""
    size: int
    """height and width in pixels at which recipes see the images, >= 1"""
    examples: int
    """training images, >= 1"""
    mean: tuple[float, ...] = ()
    """per channel, of pixels in [0, 1]; what models normalise with. Empty where the training images decide"""
    std: tuple[float, ...] = ()
    """per channel, as `mean`; > 0"""
    constants: Mapping[str, Constants] = field(default_factory=dict, hash=False)
    """one of CODES -> mean and std that its sets are normalised with; a code that lacks the data set is absent"""
    official: str = ""
    """name of the data set in torchvision and in the file names of official codes; empty where both have `name`"""
    flips: bool = True
    """whether a mirrored image has the same class; a mirrored digit is another sign"""
    whitened: tuple[str, ...] = ()
    """methods whose papers distil this set whitened (ZCA): kip, frepo. MTT's table says it of each row"""
    dc_students: str = ""
    """augmentation with which DC's code trains students on a set of DC; "" for none"""
    files: bool = False
    """whether the set is image files of any size, which are decoded at `size`"""
    view: View = "square"
    """what is seen of an image file that is not a square of `size`"""
    parts: bool = False
    """whether users bring any number of the classes: `classes` and `examples` are then those of the whole set"""
    derived: bool = False
    """whether no paper has this set: the user's own images, or a data set of another package"""

    def __post_init__(self) -> None:
        if self.classes < 2 or self.channels not in (1, 3) or self.size < 1 or self.examples < 1:
            numbers = f"{self.classes} classes, {self.channels} channels, {self.size} px, {self.examples} images"
            raise ValueError(f"{self.name} has {numbers}; it needs 2 classes, 1 or 3 channels, 1 px and 1 image")
        for mean, std in ((self.mean, self.std), *self.constants.values()):
            if len(mean) != len(std) or len(mean) not in (0, self.channels):
                raise ValueError(f"{self.name} has {self.channels} channels, and mean {mean} and std {std}")
        if unknown := set(self.constants) - set(CODES):
            raise ValueError(f"{self.name} has constants of {', '.join(sorted(unknown))}; known are {', '.join(CODES)}")

    @property
    def grey(self) -> bool:
        """Whether images have one channel."""
        return self.channels == 1

    @property
    def depth(self) -> int:
        """Depth of the field's ConvNet for these images."""
        return depth_at(self.size)

    @property
    def threats(self) -> str:
        """Family of `robust`'s threat presets: mnist, cifar10 or imagenet."""
        return family_of(self.channels, self.size)

    def resized(self, size: int | None) -> "Facts":
        """Return the facts of the same set at another size in pixels; None keeps the set's own."""
        return self if size is None else replace(self, size=size)


def depth_at(size: int) -> int:
    """Return the depth that the field's codes give the ConvNet: three at 28 and 32 px, one more a doubling.

    The last map is then about 4 x 4. Of 8 pixels a third pooling would leave one, with which DC ends at chance.

    >>> [depth_at(size) for size in (8, 16, 28, 32, 64, 128, 224)]
    [2, 3, 3, 3, 4, 5, 5]
    """
    return 2 if size < 16 else 3 if size < 64 else min(size.bit_length() - 3, 6)
