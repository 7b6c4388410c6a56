"""A labelled set of images: tensors, the fastest form for small images, or files that are decoded when used."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.data.blur import blurred, check_blur
from distill.data.image_files import LIMIT, ImageFiles
from distill.errors import InputError

__all__ = ["ImageSet"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with labels, class names and normalisation constants.

    Raises:
        ValueError: shapes, types, lengths or labels are inconsistent.
    """

    name: str
    """name of the data set"""
    images: Tensor | ImageFiles
    """(N, C, H, W) float32, pixels in [0, 1]; files are not decoded here"""
    labels: Tensor
    """(N,) int64 in [0, number of classes)"""
    classes: tuple[str, ...]
    """name of each class"""
    mean: tuple[float, ...]
    """mean per channel, of pixels in [0, 1], with which models normalise"""
    std: tuple[float, ...]
    """std per channel, as `mean`; > 0"""
    source: str = ""
    """hash of the source of the images, such as the bytes of their files; empty if the pixels are the source"""

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.dtype != torch.float32 or images.numel() == 0:
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; they must be float32 (N, C, H, W)")
        if labels.shape != (len(images),) or labels.dtype != torch.int64:
            raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}; they must be int64 ({len(images)},)")
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0 or highest >= len(self.classes):
            raise ValueError(f"labels go from {lowest} to {highest}; there are {len(self.classes)} classes, from 0")
        if not len(self.mean) == len(self.std) == images.shape[1] or min(self.std) <= 0:
            raise ValueError(
                f"mean {self.mean} and std {self.std} must give each of {images.shape[1]} channels, std > 0"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, with or without examples."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @cached_property
    def digest(self) -> str:
        """Hash of the data, 64 hex digits: of the labels and `source`, or the pixels if empty (1.7 GB take a second).

        Decoded or resized pixels are not hashed, because decoders and rounding differ between machines.
        """
        source = self.source or (self.images if isinstance(self.images, Tensor) else self.images.fingerprint())
        return _hash(source, self.labels)

    def identity(self) -> dict[str, Any]:
        """Return the identity of this set, on which the folders of runs and of their shared stages depend."""
        counts = self.labels.bincount(minlength=self.num_classes).tolist()
        sizes = {"name": self.name, "shape": list(self.image_shape), "counts": counts, "classes": list(self.classes)}
        # Six digits: the last digits of a mean over all pixels depend on the number of threads.
        numbers = {"mean": [round(value, 6) for value in self.mean], "std": [round(value, 6) for value in self.std]}
        return sizes | numbers | {"digest": self.digest}

    @property
    def summary(self) -> str:
        """The data in a few words, with the first digits of their hash."""
        channels, height, width = self.image_shape
        return f"{len(self)} images of {channels}x{height}x{width}, {self.digest[:16]}"

    @cached_property
    def _of_class(self) -> tuple[Tensor, ...]:
        """For each class the indices of the examples, ascending, on the CPU."""
        labels = self.labels.cpu()
        counts = torch.bincount(labels, minlength=self.num_classes)
        return labels.argsort(stable=True).split(counts.tolist())

    def _take(self, indices: Tensor) -> "ImageSet":
        indices = indices.to(self.labels.device)
        lazy = isinstance(self.images, ImageFiles)
        images = self.images.take(indices) if lazy else self.images[indices]
        return replace(self, images=images, labels=self.labels[indices], source=_hash(self.digest, indices))

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the set with its tensors on a device."""
        moved = replace(self, images=self.images.to(device), labels=self.labels.to(device))
        if "digest" in self.__dict__:  # the same data
            moved.__dict__["digest"] = self.digest
        return moved

    def ordered_as(self, classes: tuple[str, ...]) -> "ImageSet":
        """Return the same images with the classes in another order, and with labels for that order.

        Args:
            classes: the same names in the new order.
        """
        new_label = torch.tensor([classes.index(name) for name in self.classes], device=self.labels.device)
        return replace(self, labels=new_label[self.labels], classes=classes)

    def in_memory(self) -> "ImageSet":
        """Return the set with all images in memory.

        Raises:
            InputError: the images would take more than 8 GiB, or a file is damaged.
        """
        size = 4 * self.images.numel()
        if isinstance(self.images, Tensor):
            return self
        if size > LIMIT:
            raise InputError(
                f"this step needs all images of {self.name} in memory, where at {self.image_shape[1]} px they take "
                f"{size / 2**30:.0f} GiB, more than {LIMIT / 2**30:g}: give a smaller --image-size, or another method"
            )
        return replace(self, images=self.images[:])

    def sample(self, class_: int, n: int, generator: torch.Generator) -> Tensor:
        """Draw images of one class without replacement.

        Args:
            class_: the class, in [0, num_classes).
            n: images to draw; if the class has fewer, all are returned, shuffled (as in the official code of DC).
            generator: on the CPU, for images on any device.

        Returns:
            (at most n, C, H, W), pixels in [0, 1], on the device of the images.
        """
        indices = self._of_class[class_]
        drawn = indices[torch.randperm(len(indices), generator=generator)[:n]]
        return self.images[drawn.to(self.images.device)]

    def split(self, fraction: float, generator: torch.Generator) -> tuple["ImageSet", "ImageSet"]:
        """Hold out a random part of every class.

        Args:
            fraction: share of each class to hold out, in (0, 1): round(fraction * count) examples, at least 1.
            generator: on the CPU.

        Returns:
            the remaining and the held-out examples, both in the original order.

        Raises:
            ValueError: the fraction is out of its range.
            InputError: no example would remain in a class.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction is {fraction}; it must be in (0, 1)")
        held_out = torch.zeros(len(self), dtype=torch.bool)
        for name, indices in zip(self.classes, self._of_class, strict=True):
            n = max(1, round(fraction * len(indices)))
            if n >= len(indices):
                raise InputError(f"class {name} of {self.name} has {len(indices)} examples: too few to hold {n} out")
            held_out[indices[torch.randperm(len(indices), generator=generator)[:n]]] = True
        return self._take((~held_out).nonzero()[:, 0]), self._take(held_out.nonzero()[:, 0])

    def subset(self, n: int | None) -> "ImageSet":
        """Return a fixed random subset with classes as balanced as possible.

        The subset is random because the order of a set can depend on the images: in MNIST's test set the first 200
        images of each class are harder than the rest. The subset for a larger n contains the subset for a smaller n.

        Args:
            n: number of examples, >= 1; the whole set if it has no more examples, or for None.

        Returns:
            the subset, in the original order.

        Raises:
            ValueError: n is below 1.
        """
        if n is None or n >= len(self):
            return self
        if n < 1:
            raise ValueError(f"n is {n}; it must be >= 1, or None for all")
        generator = torch.Generator().manual_seed(0)
        rank = torch.empty(len(self), dtype=torch.int64)  # 0 for one example of each class, 1 for another, ...
        for indices in self._of_class:
            rank[indices] = torch.randperm(len(indices), generator=generator)
        in_turns = (rank * self.num_classes + self.labels.cpu()).argsort()
        return self._take(in_turns[:n].sort().values)

    def resized(self, size: int) -> "ImageSet":
        """Return the images at another size, with the same `mean` and `std`.

        In tensors, each new pixel is the mean over the area that it covers; files are decoded at the new size.

        Args:
            size: the new height and width in pixels.

        Returns:
            the set with images (N, C, size, size), pixels in [0, 1].
        """
        if self.image_shape[1:] == (size, size):
            return self
        if isinstance(self.images, ImageFiles):
            return replace(self, images=self.images.resized(size), source=self.digest)
        images = self.images.new_empty(*self.images.shape[:2], size, size)
        for new, old in zip(images.split(1024), self.images.split(1024), strict=True):
            new.copy_(F.interpolate(old, (size, size), mode="area"))
        return replace(self, images=images, source=self.digest)

    def blurred(self, sigma: float) -> "ImageSet":
        """Return the images after a Gaussian blur, with the same `mean` and `std` (`distill.data.blur`).

        Tensors are blurred here, files whenever they are decoded.

        Args:
            sigma: standard deviation of the kernel in pixels; the set itself for 0.

        Returns:
            the set with pixels in [0, 1].

        Raises:
            InputError: the kernel is too wide for the images.
        """
        if sigma == 0:
            return self
        check_blur(sigma, self.image_shape[1])
        source = _hash(self.digest, f"blur {sigma!r}")
        if isinstance(self.images, ImageFiles):
            return replace(self, images=replace(self.images, blur=sigma), source=source)
        images = torch.empty_like(self.images)
        for new, old in zip(images.split(1024), self.images.split(1024), strict=True):
            new.copy_(blurred(old, sigma))
        return replace(self, images=images, source=source)


def _hash(*parts: str | Tensor) -> str:
    """Return the sha256 of texts and tensors, 64 hex digits."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()
