"""The data sets of torchvision: read from torchvision's layout, or downloaded, either completely or not at all."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any

import numpy as np
import torch

from distill.data.facts import Facts
from distill.data.imageset import ImageSet
from distill.errors import InputError

__all__ = ["find_or_download"]

_SILENCE = 15.0
"""seconds without an answer after which a download fails; torchvision has no limit"""


def find_or_download(facts: Facts, root: Path) -> tuple[ImageSet, ImageSet]:
    """Load a data set; download it first if files are missing.

    Args:
        facts: facts of the data set; `official` names a class of torchvision, a CIFAR or an MNIST.
        root: data folder, in which the set has a subfolder; absolute.

    Returns:
        training and test set, images (N, C, H, W).

    Raises:
        InputError: the files are missing and cannot be downloaded, or are damaged.
    """
    import torchvision.datasets

    kind, name = getattr(torchvision.datasets, facts.official), facts.name
    files, archives = _layout(kind)
    folder = (root / files[0]).parent
    if not all((root / file).is_file() for file in files):
        try:
            _download(kind, root, files, archives)
        except (OSError, RuntimeError, HTTPException) as error:
            raise InputError(
                f"{name} is not in {root} and the download failed ({_line(error)}); put {folder.relative_to(root)}/ "
                "there, or set --data-dir or DATA_DIR; the data set digits needs no files"
            ) from None
    try:
        train, test = (_image_set(kind(root, train=train), facts) for train in (True, False))
    except Exception as error:  # on damaged bytes, parsers raise anything from EOFError to AssertionError
        raise InputError(
            f"{folder} cannot be read as {name} ({_line(error)}): delete that folder and run again"
        ) from None
    return train, test


def _layout(kind: type) -> tuple[list[str], list[str]]:
    """Return the files that the class reads and the archives that contain these files, relative to the data folder.

    CIFAR's files are pickles; torchvision compares the MD5 of every file with the official MD5 before unpickling.
    """
    if hasattr(kind, "base_folder"):
        names = [name for name, _ in [*kind.train_list, *kind.test_list]] + [kind.meta["filename"]]
        return [f"{kind.base_folder}/{name}" for name in names], [kind.filename]
    archives = [f"{kind.__name__}/raw/{name}" for name, _ in kind.resources]
    return [archive.removesuffix(".gz") for archive in archives], archives


def _download(kind: type, root: Path, files: list[str], archives: list[str]) -> None:
    """Download a set into a temporary folder and move the files when all are complete and verified.

    An interrupted download leaves no files behind, and two processes can download at the same time. Archives in `root`
    are used (torchvision checks their MD5), so that a machine without network needs only copies of these archives.
    """
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=root, prefix=f".{kind.__name__}-download-") as temporary:
        for archive in archives:
            if (root / archive).is_file():
                copy = Path(temporary, archive)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / archive, copy)
        with _time_limit(), redirect_stdout(None):  # older versions print each step; the progress bar is on stderr
            kind(temporary, download=True)
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(temporary, file), root / file)


@contextmanager
def _time_limit() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _line(error: Exception) -> str:
    return shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")


def _image_set(found: Any, facts: Facts) -> ImageSet:
    pixels = torch.from_numpy(np.asarray(found.data))  # uint8, (N, H, W, 3) or (N, H, W)
    pixels = pixels.permute(0, 3, 1, 2) if pixels.ndim == 4 else pixels.unsqueeze(1)
    return ImageSet(
        name=facts.name,
        images=pixels.float().div_(255).contiguous(),
        labels=torch.as_tensor(found.targets, dtype=torch.int64),
        classes=tuple(found.classes),
        mean=facts.mean,
        std=facts.std,
    )
