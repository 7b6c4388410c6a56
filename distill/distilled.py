"""The result of a distillation, and its file.

distilled.safetensors holds the tensors
    images  (N, C, H, W) float32, pixels; not clamped: an optimised image may leave [0, 1]. A set larger than SHARD has
            them in files beside it, distilled-00001-of-00031.safetensors, ..., of which the metadata has the names
    labels  (N,) int64 classes, or (N, K) float32 soft labels
    own.*   float32, what the method's own way of training students needs besides: learned labels of another kind than
            probabilities, weights of a generator
and, in the metadata under the one key "guard-distilled-1" (safetensors keeps no order of several), JSON with
    dataset, method   names
    classes           names of the classes
    mean, std         per channel, to normalise pixels for a student's network
    augment           policy of a student's training
    backbone          network that the images were made with, and a student's by default
    training          what the method's own way of training students needs (`distill.training.protocol`)
    config            hash of the settings that made it, which sets of other seeds share
    run               hash of the run that made it
    shards            names of the files with the images, where they are not in this one
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.data.image_files import ImageFiles
from distill.data.imageset import ImageSet
from distill.data.shards import Shards
from distill.errors import InputError
from distill.runs.files import read_tensors, write_tensors
from distill.runs.foreign import brief
from robust.ranges import Positive, check_number

__all__ = ["DistilledSet", "is_probability"]

FORMAT = "guard-distilled-1"
SHARD = 2**30
"""bytes of images in one file, about"""
SHARD_NAME = re.compile(r"[\w.=+ -]+\.safetensors")
"""of a file with a part of the images; never a path"""
OWN = "own."
FIELDS = ("dataset", "method", "classes", "mean", "std", "augment", "backbone")
LATER = ("config", "training", "run")
"""fields that files of earlier versions may lack"""


NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.=+-]*")
"""of a method or a data set; never a path"""


@dataclass(frozen=True)
class DistilledSet:
    """A few images per class, and how a student on them is trained.

    Raises:
        ValueError: tensors that do not fit each other or the classes, fields of another type,
            or a name that no folder may have.
    """

    images: Tensor | Shards | ImageFiles
    """(N, C, H, W) float32 pixels, unclamped; in files where they are larger than memory"""
    labels: Tensor
    """(N,) int64 classes or (N, K) float32 soft labels, probabilities"""
    dataset: str
    """name of the real data set"""
    classes: tuple[str, ...]
    """the K names"""
    mean: tuple[float, ...]
    """per channel, of pixels in [0, 1]"""
    std: tuple[float, ...]
    """per channel"""
    augment: str = ""
    """policy for training students, see `distill.training.augment`; "" for none"""
    backbone: str = "convnet"
    """network of the distillation, and by default of the students"""
    method: str = ""
    """name of the method that made the set"""
    config: str = ""
    """hash of all settings that made the set but the seed, "" where they are unknown: sets of one are one method's"""
    run: str = ""
    """hash of the run that made the set, its seed and data included, "" where it is unknown"""
    training: dict[str, Any] = field(default_factory=dict)
    """of JSON's types: what the method's own way of training students needs, {} where it has none"""
    own: dict[str, Tensor] = field(default_factory=dict)
    """the tensors that it needs besides, by name"""

    def __post_init__(self) -> None:
        for what in ("dataset", "method"):  # folders and files are named by them
            name = getattr(self, what)
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise ValueError(f"{what} is {str(name)[:60]!r}; a name has letters, digits and _ . = + - only")
        texts = (self.augment, self.backbone, self.config, self.run, *self.classes)
        if not all(isinstance(each, str) for each in texts):
            raise ValueError("augment, backbone, config, run and the classes are texts, and one of them is none")
        if not all(each.isprintable() and len(each) <= 500 for each in texts[:4]):
            raise ValueError("augment, backbone, config and run are short texts of signs that can be printed")
        if not isinstance(self.training, dict):
            raise ValueError(f"training is a {type(self.training).__name__}; it must be a dict")
        check_number("mean", self.mean, tuple[float, ...])
        check_number("std", self.std, tuple[Positive, ...])
        n, k, shape = len(self.images), len(self.classes), tuple(self.images.shape)
        if k < 2:
            raise ValueError(f"there is {k} class; students tell at least two apart")
        hard = self.labels.ndim == 1 and not self.labels.is_floating_point()
        soft = self.labels.ndim == 2 and self.labels.is_floating_point() and self.labels.shape[1] == k
        if self.images.ndim != 4 or not self.images.dtype.is_floating_point or n == 0 or shape[2] != shape[3]:
            raise ValueError(f"images are {self.images.dtype} {shape}; a distilled set has float (N, C, H, H), N >= 1")
        if isinstance(self.images, Tensor) and not self.images.isfinite().all():
            raise ValueError("images have values that are not finite")
        if len(self.labels) != n or not (hard or soft):
            found = f"{self.labels.dtype} {tuple(self.labels.shape)}"
            raise ValueError(f"labels are {found}; {n} images of {k} classes have int64 ({n},) or float ({n}, {k})")
        if soft and not is_probability(self.labels):
            raise ValueError("soft labels are no probabilities: rows of numbers >= 0 that sum to 1")
        if hard and not (self.labels.min() >= 0 and self.labels.max() < k):
            raise ValueError(f"labels range over [{self.labels.min()}, {self.labels.max()}]; there are {k} classes")
        if not len(self.mean) == len(self.std) == shape[1]:
            raise ValueError(f"mean {self.mean} and std {self.std} do not fit images of {shape[1]} channels")

    @classmethod
    def of(cls, real: ImageSet, images: Tensor | Shards, labels: Tensor, **fields: Any) -> "DistilledSet":
        """Return the set that stands for a real one: it has its name, classes and normalisation.

        Args:
            real: the training set.
            images: as the field.
            labels: as the field.
            fields: the other fields.
        """
        return cls(images, labels, real.name, real.classes, real.mean, real.std, **fields)

    @property
    def ipc(self) -> float:
        """Images per class, on average."""
        return len(self.images) / len(self.classes)

    def save(self, path: Path) -> None:
        """Write the set atomically; the same set gives the same bytes. The file of the name itself is the last."""
        values = {name: getattr(self, name) for name in (*FIELDS, *LATER)}
        tensors = {"labels": self.labels} | {f"{OWN}{name}": tensor for name, tensor in self.own.items()}
        rows = max(1, SHARD // (4 * self.images.shape[1:].numel()))
        if len(self.images) <= rows:
            tensors["images"] = self.images[:].float()
        else:
            count = -(-len(self.images) // rows)
            values["shards"] = [f"{path.stem}-{n:05d}-of-{count:05d}{path.suffix}" for n in range(1, count + 1)]
            for name, part in zip(values["shards"], self.images.split(rows), strict=True):
                write_tensors(path.with_name(name), {"images": part.float()})
        write_tensors(path, tensors, values, FORMAT)

    @classmethod
    def load(cls, path: Path) -> "DistilledSet":
        """Read a set from its file, or from the run folder that holds it.

        Returns:
            the set, on the CPU.

        Raises:
            InputError: no such file, a damaged one, another format, or tensors of wrong shape.
        """
        path = path / "distilled.safetensors" if path.is_dir() else path
        tensors, values = read_tensors(path, key=FORMAT)
        own = {name.removeprefix(OWN): tensors.pop(name) for name in list(tensors) if name.startswith(OWN)}
        if not {*FIELDS} <= set(values) or not {"labels"} <= set(tensors) <= {"images", "labels"}:
            found = f"tensors {', '.join(sorted(tensors)) or 'none'}, metadata {', '.join(sorted(values)) or 'none'}"
            raise InputError(f"{path} is no distilled set: it has {brief(found)}; expected images, labels and {FORMAT}")
        try:
            if "images" not in tensors:
                names = list(map(str, values["shards"]))
                if not all(SHARD_NAME.fullmatch(name) for name in names):
                    raise ValueError("shards are names of .safetensors beside it, and one of them is none")
                tensors["images"] = Shards([path.with_name(name) for name in names])
            lists = {name: tuple(values[name]) for name in ("classes", "mean", "std")}
            fields = {name: values[name] for name in FIELDS} | {name: values[name] for name in LATER if name in values}
            return cls(**tensors, **fields | lists, own=own)
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise InputError(f"{path} is no distilled set: {brief(error, 200)}") from None

    def to(self, device: torch.device | str) -> "DistilledSet":
        """Return the set with its tensors on a device."""
        moved = {"images": self.images.to(device), "labels": self.labels.to(device)}
        return DistilledSet(**self.__dict__ | moved | {"own": {name: t.to(device) for name, t in self.own.items()}})


def is_probability(labels: Tensor) -> bool:
    """Return whether each row of labels (N, K) is a distribution: >= 0, and its sum is 1 within a percent."""
    return bool((labels >= -1e-6).all() and ((labels.sum(1) - 1).abs() < 0.01).all())
