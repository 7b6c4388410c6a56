"""The result of a distillation, and its file.

distilled.safetensors holds the tensors
    images  (N, C, H, W) float32, pixels; not clamped: an optimised image may leave [0, 1]. The images of a set larger
            than SHARD are in files beside it, distilled-00001-of-00031.safetensors, ..., which the metadata name
    labels  (N,) int64 classes, or (N, K) float32 soft labels
    own.*   float32, further tensors that the method's own protocol needs, `DistilledSet.training_tensors`: learned
            labels that are no probabilities, weights of a generator
and, in the metadata under the one key "guard-distilled-1" (safetensors does not preserve the order of keys), JSON with
    dataset, method   names
    classes           names of the classes
    mean, std         per channel, to normalise pixels for a student's network
    augment           augmentation policy of a student's training
    backbone          network that the images were made with, and a student's by default
    training          settings that the method's own protocol needs (`distill.method_training`)
    config            hash of the settings that made the set; sets that differ only in the seed share it
    run               hash of the run that made the set
    version           of the program that made the set
    teacher           losses of the teachers that gave the soft labels
    shards            names of the files with the images, where they are not in this file
    made_for          class that each image was made for, where the labels are soft and it is known
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from distill.data.images import Images
from distill.data.imageset import ImageSet
from distill.data.shards import Shards
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.runs.files import hash_of, read_tensors, write_tensors
from distill.runs.foreign import brief
from robust.ranges import Positive, check_number

__all__ = ["DistilledSet", "digest_of", "is_probability", "run_of"]

FORMAT = "guard-distilled-1"
SHARD = 2**30
"""bytes of images in one file, about"""
SHARD_NAME = re.compile(r"[\w.=+ -]+\.safetensors")
"""of a file with some of the images; never a path"""
OWN = "own."
"""prefix of the names of `training_tensors` in the file"""
FIELDS = ("dataset", "method", "classes", "mean", "std", "augment", "backbone")
"""metadata that every file has"""
LATER = ("config", "training", "run", "version", "teacher")
"""metadata that files of earlier versions may lack"""
NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.=+-]*(:\w+)?")
"""of a method or a data set; never a path"""


@dataclass(frozen=True)
class DistilledSet:
    """A few images per class, and how students are trained on them.

    Raises:
        ValueError: tensors that do not fit each other or the classes, fields of another type,
            or a name that no folder may have.
    """

    images: Images
    """(N, C, H, W) float32 pixels, unclamped; `Shards` or `ImageFiles` where they are larger than memory"""
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
    """augmentation policy for training students, see `distill.training.augment`; "" for none"""
    backbone: str = "convnet"
    """network of the distillation, and by default of the students"""
    method: str = ""
    """name of the method that made the set"""
    config: str = ""
    """hash of all settings that made the set except the seed, "" where they are unknown"""
    run: str = ""
    """hash of the run that made the set, including its seed and data, "" where the run is unknown"""
    version: str = ""
    """version of the program that made the set, "" where it is unknown"""
    teacher: str = ""
    """losses of the teachers whose probabilities are the labels, as in pgd_at@4/255; "" where no teacher gave them"""
    training: MethodTraining = field(default_factory=MethodTraining)
    """settings that the method's own protocol for students needs"""
    training_tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """tensors that this protocol needs, by name"""
    made_for: tuple[int, ...] = ()
    """class that each image was made for, where the labels are soft: a teacher can find another more probable. () for
    hard labels, and where it is unknown"""

    @property
    def image_classes(self) -> Tensor:
        """The class of each image, (N,): the one that it was made for, or if that is unknown the most probable."""
        if self.made_for:
            return torch.tensor(self.made_for, dtype=torch.int64, device=self.labels.device)
        return self.labels if self.labels.ndim == 1 else self.labels.argmax(1)

    def __post_init__(self) -> None:
        for what in ("dataset", "method"):  # folders and files are named by them
            name = getattr(self, what)
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise ValueError(f"{what} is {str(name)[:60]!r}; a name has letters, digits and _ . = + - only")
        texts = (self.augment, self.backbone, self.config, self.run, self.version, self.teacher, *self.classes)
        if not all(isinstance(each, str) for each in texts):
            raise ValueError(
                "augment, backbone, config, run, version, teacher and the classes are texts, and one of them is none"
            )
        if not all(each.isprintable() and len(each) <= 500 for each in texts[:6]):
            raise ValueError(
                "augment, backbone, config, run, version and teacher are short texts of signs that can be printed"
            )
        if not isinstance(self.training, MethodTraining):
            raise ValueError(f"training is a {type(self.training).__name__}; it must be a MethodTraining")
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
        if self.made_for and not (soft and len(self.made_for) == n and {*self.made_for} <= {*range(k)}):
            raise ValueError(f"made_for does not name one of {k} classes for each of {n} images with a soft label")
        if hard and not (self.labels.min() >= 0 and self.labels.max() < k):
            raise ValueError(f"labels range over [{self.labels.min()}, {self.labels.max()}]; there are {k} classes")
        if not len(self.mean) == len(self.std) == shape[1]:
            raise ValueError(f"mean {self.mean} and std {self.std} do not fit images of {shape[1]} channels")

    @classmethod
    def of(
        cls,
        real: ImageSet,
        images: Images,
        labels: Tensor,
        *,
        augment: str = "",
        backbone: str = "convnet",
        method: str = "",
        teacher: str = "",
        training: MethodTraining | None = None,
        training_tensors: Mapping[str, Tensor] | None = None,
        classes: Tensor | None = None,
    ) -> "DistilledSet":
        """Return the distilled set of a real one, with the real set's name, classes and normalisation.

        Args:
            real: the training set.
            images: as the field.
            labels: as the field.
            augment: as the field.
            backbone: as the field.
            method: as the field.
            teacher: as the field.
            training: as the field; None for no settings.
            training_tensors: as the field; None for no tensors.
            classes: (N,) class that each image was made for; needed where `labels` are soft.
        """
        return cls(
            images,
            labels,
            real.name,
            real.classes,
            real.mean,
            real.std,
            augment=augment,
            backbone=backbone,
            method=method,
            teacher=teacher,
            training=training or MethodTraining(),
            training_tensors=training_tensors or {},
            made_for=() if classes is None or labels.ndim == 1 else tuple(classes.tolist()),
        )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def ipc(self) -> float:
        """Images per class, on average."""
        return len(self.images) / len(self.classes)

    @property
    def stored_ipc(self) -> float:
        """Images per class that storage is counted in, on average: fewer than `ipc` where several share one image."""
        return self.ipc / (self.training.factor or 1) ** 2

    def save(self, path: Path) -> None:
        """Write the set atomically; the same set gives the same bytes. The file of the name itself is the last."""
        values = {name: getattr(self, name) for name in (*FIELDS, *LATER)} | {"training": self.training.to_json()}
        if self.made_for:  # sets with hard labels keep the bytes that they had before this was stored
            values["made_for"] = self.made_for
        tensors = {"labels": self.labels} | {f"{OWN}{name}": tensor for name, tensor in self.training_tensors.items()}
        rows = max(1, SHARD // (4 * self.images.shape[1:].numel()))
        if len(self.images) <= rows:
            tensors["images"] = self.images[:].float()
        else:
            count = -(-len(self.images) // rows)
            values["shards"] = [f"{path.stem}-{n:05d}-of-{count:05d}{path.suffix}" for n in range(1, count + 1)]
            for name, images in zip(values["shards"], self.images.split(rows), strict=True):
                write_tensors(path.with_name(name), {"images": images.float()})
        write_tensors(path, tensors, values, FORMAT)

    @classmethod
    def load(cls, path: Path) -> "DistilledSet":
        """Read a set from its file, or from the run folder that holds it.

        Returns:
            the set, on the CPU.

        Raises:
            InputError: no such file, a damaged one, another or a newer format, or tensors of wrong shape.
        """
        path = path / "distilled.safetensors" if path.is_dir() else path
        tensors, values = read_tensors(path, key=FORMAT)
        training_tensors = {name.removeprefix(OWN): tensors.pop(name) for name in list(tensors) if name.startswith(OWN)}
        if not {*FIELDS} <= set(values) or not {"labels"} <= set(tensors) <= {"images", "labels"}:
            found = f"tensors {', '.join(sorted(tensors)) or 'none'}, metadata {', '.join(sorted(values)) or 'none'}"
            raise InputError(f"{path} is no distilled set: it has {brief(found)}; expected images, labels and {FORMAT}")
        try:
            if "images" in tensors:
                images: Images = tensors["images"]
            else:
                names = list(map(str, values["shards"]))
                if not all(SHARD_NAME.fullmatch(name) for name in names):
                    raise ValueError("shards are names of .safetensors beside it, and one of them is none")
                images = Shards([path.with_name(name) for name in names])
            return cls(
                images,
                tensors["labels"],
                dataset=values["dataset"],
                classes=tuple(values["classes"]),
                mean=tuple(values["mean"]),
                std=tuple(values["std"]),
                augment=values["augment"],
                backbone=values["backbone"],
                method=values["method"],
                config=values.get("config", ""),
                run=values.get("run", ""),
                version=values.get("version", ""),
                teacher=values.get("teacher", ""),
                training=MethodTraining.from_json(values.get("training", {})),
                training_tensors=training_tensors,
                made_for=tuple(values.get("made_for", ())),
            )
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise InputError(f"{path} is no distilled set: {brief(error, 200)}") from None

    def to(self, device: torch.device | str) -> "DistilledSet":
        """Return the set with its tensors on a device."""
        moved = {name: tensor.to(device) for name, tensor in self.training_tensors.items()}
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), training_tensors=moved)


def is_probability(labels: Tensor) -> bool:
    """Return whether each row of labels (N, K) is a distribution: >= 0, and its sum is 1 within a percent."""
    return bool((labels >= -1e-6).all() and ((labels.sum(1) - 1).abs() < 0.01).all())


def run_of(path: Path) -> str:
    """Return the hash of the run that made the set of a file, "" where it is unknown; reads the head of the file alone.

    Raises:
        InputError: no such file, a damaged one, or a newer format.
    """
    return read_tensors(path, (), FORMAT)[1].get("run", "")


def digest_of(file: Path) -> str:
    """Return the sha256 of a distilled set's file; for a set in several files the sha256 of the hashes of all files."""
    images = DistilledSet.load(file).images
    shards = images.paths if isinstance(images, Shards) else []
    digests = [hash_of(path) for path in (file, *shards)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
