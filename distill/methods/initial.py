"""Initial images of a distillation: noise, random real images, or the images of another distilled set.

A set is named by its path and the digest of its file (`distill.runs.named_files`).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from distill.data import ImageSet
from distill.distilled import DistilledSet, digest_of
from distill.errors import InputError
from distill.runs.named_files import NAMED, unchanged

__all__ = ["check_initial", "init_with_digest", "initial_images"]

WORDS = ("noise", "real")


def init_with_digest(init: str, words: Sequence[str] = WORDS) -> str:
    """Return `init`, with the digest of the set if it is the path of one.

    Args:
        init: one of `words`, or a path.
        words: the initial images that a method makes itself.

    Raises:
        ValueError: it is not among `words`, and no set is there.

    >>> init_with_digest("real"), init_with_digest("runs/dc@0123456789ab")
    ('real', 'runs/dc@0123456789ab')
    >>> init_with_digest("zeros")
    Traceback (most recent call last):
    ValueError: init is zeros; it takes noise, real, or the folder of a distilled set
    """
    if init in words or NAMED.fullmatch(init):
        return init
    if not init or not Path(init).exists():
        raise ValueError(f"init is {init or 'empty'}; it takes {', '.join(words)}, or the folder of a distilled set")
    try:
        return f"{init}@{_digest(Path(init))[:12]}"
    except InputError as error:
        raise ValueError(
            f"init: {error}; `evaluate` reads a published set, and its folder is in runs/published"
        ) from None


def check_initial(real: ImageSet, ipc: int, config: Any, _: int) -> None:
    """Check that a run can start from the images that its config names; the `check` of a method.

    Args:
        real: the training set.
        ipc: images per class.
        config: with the field `init`, as `init_with_digest` returns it.

    Raises:
        InputError: the set is missing, has changed, or has other classes, images of another size or another number.
    """
    if NAMED.fullmatch(config.init):
        _images(config.init, real, ipc)


def initial_images(
    init: str, real: ImageSet, ipc: int, space: nn.Module, generator: Callable[..., Generator]
) -> Tensor:
    """Return the initial images in the networks' units, (K, ipc, C, H, W), on the device of `real`.

    Args:
        init: as `init_with_digest` returns it.
        real: the training set.
        ipc: images per class.
        space: pixels to the networks' units: normalisation or whitening.
        generator: of an address, as `Run.generator`; "initial" and the class are taken.

    Raises:
        InputError: as `check_initial`, or a class has fewer than `ipc` real images to start from.
    """
    if init == "noise":
        images = torch.randn(real.num_classes, ipc, *real.image_shape, generator=generator("initial"))
        return images.to(real.images.device)
    if init == "real":
        drawn = [real.sample(c, ipc, generator("initial", c)) for c in range(real.num_classes)]
        if (smallest := min(map(len, drawn))) < ipc:
            which = f"the smallest class of {real.name} has {smallest} images"
            raise InputError(f"ipc is {ipc}; {which}; take --init noise")
        pixels = torch.cat(drawn)
    else:
        pixels = _images(init, real, ipc).to(real.images.device).flatten(0, 1)
    return space(pixels).unflatten(0, (-1, ipc))


def _images(init: str, real: ImageSet, ipc: int) -> Tensor:
    """Return the images of a set by class, (K, ipc, C, H, W), in pixels."""
    path = unchanged(init, "--init", _digest)
    start = DistilledSet.load(_file(path))
    if start.classes != real.classes:
        raise InputError(f"--init {path}: a set of {start.dataset}; its classes are not those of {real.name}")
    if start.image_shape != real.image_shape:
        theirs, ours = ("x".join(map(str, shape)) for shape in (start.image_shape, real.image_shape))
        raise InputError(f"--init {path}: its images are {theirs}, those of {real.name} here {ours}; see --image-size")
    classes = start.image_classes
    if classes.bincount(minlength=real.num_classes).ne(ipc).any():
        raise InputError(f"--init {path}: it has {start.ipc:g} images per class; --ipc is {ipc}")
    return start.images[:][classes.argsort(stable=True)].unflatten(0, (-1, ipc))


def _digest(path: Path) -> str:
    return digest_of(_file(path))


def _file(path: Path) -> Path:
    """Return the file of a set."""
    return path / "distilled.safetensors" if path.is_dir() else path
