"""Facts of a data set that are known before any image is read: a record, from which recipes are computed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from distill.data.image_files import View
from robust.threat import family_of

__all__ = ["CODES", "Constants", "Facts", "depth_at"]

Constants = tuple[tuple[float, ...], tuple[float, ...]]
"""mean and std per channel, of pixels in [0, 1]"""
CODES = ("dc", "cafe", "dd", "mtt", "frepo")
"""code bases that publish sets and define normalisation constants (`Facts.constants`): VICO-UoE/
DatasetCondensation (utils.py), kaiwang960112/CAFE (utils.py; Saehyung-Lee/DCC has the same), SsnL/dataset-distillation
(datasets/__init__.py), GeorgeCazenavette/mtt-distillation (utils.py) and yongchaoz/FRePo (lib/dataset/dataloader.py)"""


@dataclass(frozen=True)
class Facts:
    """The metadata of a data set for recipes, for readers of published sets and for the evaluation.

    Raises:
        ValueError: a number is impossible, or constants have another number of channels.
    """

    name: str
    """name on the command line, which is the name of the set's module in distill/data"""
    classes: int
    """number of classes, >= 2"""
    channels: int
    """1 for grey images, 3 for RGB"""
    size: int
    """height and width in pixels of the images in recipes, >= 1"""
    examples: int
    """number of training images, >= 1"""
    mean: tuple[float, ...] = ()
    """mean per channel, of pixels in [0, 1], with which models normalise; empty: measured on the training images"""
    std: tuple[float, ...] = ()
    """std per channel, as `mean`; > 0"""
    constants: Mapping[str, Constants] = field(default_factory=dict, hash=False)
    """key of CODES -> mean and std with which that code normalises; a code without this data set has no entry, nor has
    cafe where its constants are those of dc"""
    official: str = ""
    """name of the data set in torchvision and in the file names of official codes; empty if equal to `name`"""
    flips: bool = True
    """whether a mirrored image has the same class; false for digits"""
    whitened: tuple[str, ...] = ()
    """methods whose papers distil this set whitened (ZCA): kip, frepo. In MTT this differs by row of its table"""
    dc_students: str = ""
    """augmentation with which DC's code trains students on DC's distilled sets; "" for none"""
    files: bool = False
    """whether the set consists of image files of any size, which are decoded at `size`"""
    view: View = "square"
    """how an image file that is not a square of `size` is cropped and resized"""
    parts: bool = False
    """whether users may have only some of the classes; `classes` and `examples` are the numbers of the whole set"""
    derived: bool = False
    """whether no paper uses this set: the user's images, or a data set of another package"""
    licence: str = "unknown"
    """of the images, as the Hugging Face Hub names it"""
    terms: str = ""
    """a sentence about the licence, for dataset cards; empty: it is not known"""

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
        """Depth of the standard ConvNet for these images."""
        return depth_at(self.size)

    @property
    def threats(self) -> str:
        """Family of `robust`'s threat presets: mnist, cifar10 or imagenet."""
        return family_of(self.channels, self.size)

    def resized(self, size: int | None) -> "Facts":
        """Return the facts of the same set at another size in pixels; None keeps the size."""
        return self if size is None else replace(self, size=size)


def depth_at(size: int) -> int:
    """Return the depth of the ConvNet in published codes: 3 at 28 and 32 px, one more for each doubling of the size.

    The last feature map is then about 4 x 4. At 8 px a third pooling would leave one pixel, and DC stays at chance.

    >>> [depth_at(size) for size in (8, 16, 28, 32, 64, 128, 224)]
    [2, 3, 3, 3, 4, 5, 5]
    """
    return 2 if size < 16 else 3 if size < 64 else min(size.bit_length() - 3, 6)
