"""Distilled images as folders of pictures: write them for viewing and for other code, and read published ones.

The files CLASS/NNNN.png are written, rounded to bytes; the exact floats are in the set's safetensors file. Such folders
can be read, and those of the official code of SRe2L, CDA and GUARD: newCCC/classCCC_idIII.jpg, with class number CCC.
"""

import hashlib
import io
import os
import re
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill.data.decode import Header, decode, header, reason, scaled
from distill.data.image_files import ENDINGS, LIMIT, ImageFiles
from distill.data.images import Images
from distill.errors import InputError
from distill.runs.files import write_atomic
from distill.runs.foreign import open_regular

__all__ = [
    "NUMBERED",
    "class_of",
    "decode_pictures",
    "digest_of_pictures",
    "picture_folders",
    "read_all_pictures",
    "read_pictures",
    "write_pictures",
]

LARGEST = 1024
"""largest side of an image in pixels"""
LONGEST = 200
"""largest size in bytes of a folder's name; file systems allow 255"""
NUMBERED = re.compile(r"new(\d{3,})")
"""a class's folder in the official code of SRe2L"""


def write_pictures(images: Images, labels: Tensor, classes: tuple[str, ...], folder: Path) -> None:
    """Write each image as a PNG file.

    Args:
        images: (N, C, H, W) pixels.
        labels: (N,) classes.
        classes: distinct names of the classes; `folder_of` converts them to names of folders.
        folder: output folder; created if needed.
    """
    from torchvision.transforms.v2.functional import to_pil_image  # slow to import, and only needed here

    numbers = [0] * len(classes)
    for image, label in zip(chain.from_iterable(images.split(256)), labels.tolist(), strict=True):
        path = folder / folder_of(classes[label]) / f"{numbers[label]:04d}.png"
        numbers[label] += 1
        if not path.exists():
            picture = to_pil_image((image.clamp(0, 1) * 255).round().byte().cpu())
            write_atomic(path, lambda temporary, picture=picture: picture.save(temporary, "PNG"))


def read_pictures(folder: Path, classes: tuple[str, ...], ipc: int, shape: tuple[int, int, int]) -> Tensor:
    """Read the images of a folder of pictures.

    Args:
        folder: folder with a subfolder of pictures for each class, with the name of the class or newCCC (its number).
        classes: names of the classes.
        ipc: images to take from each class, sorted by file name.
        shape: (C, H, W) that the images must have.

    Returns:
        (classes * ipc, C, H, W) pixels, sorted by class.

    Raises:
        InputError: a class or an image is missing, a file is not an image, or an image has another size.
    """
    if not folder.is_dir():
        raise InputError(f"recover.images is {folder}: no such folder")
    subfolders: dict[int | None, Path] = {}
    for subfolder in sorted(each for each in folder.iterdir() if each.is_dir()):
        number = class_of(subfolder.name, classes)
        if number is not None and number in subfolders:
            raise InputError(
                f"{subfolders[number]} and {subfolder} are both for class {classes[number]}: keep one of them"
            )
        subfolders[number] = subfolder
    found: list[Tensor] = []
    for number, name in enumerate(classes):
        subfolder = subfolders.get(number)
        if subfolder is None:
            names = dict.fromkeys((name, folder_of(name), f"new{number:03d}"))
            raise InputError(f"{folder} has no folder for class {name} (looked for {', '.join(names)})")
        files = _pictures_in(subfolder)
        if len(files) < ipc:
            raise InputError(f"{subfolder} has {len(files)} images, fewer than ipc {ipc}")
        for path in files[:ipc]:
            found.append(_read(path, shape[0]))
            if tuple(found[-1].shape) != shape:
                size = "x".join(map(str, found[-1].shape[1:]))
                raise InputError(f"{path} has {size} pixels, the data set {shape[1]}x{shape[2]}; give --image-size")
    return torch.stack(found)


def picture_folders(folder: Path) -> dict[str, list[Path]]:
    """Return name -> image files for each subfolder that has image files."""
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return {path.name: files for path in subfolders if (files := _pictures_in(path))}


def digest_of_pictures(folder: Path) -> str:
    """Return a hash of the pictures in the subfolders of a folder, 64 hex digits (`ImageFiles.fingerprint`).

    Raises:
        OSError: there is no such folder.
    """
    paths = [str(path) for paths in picture_folders(folder).values() for path in paths]
    return ImageFiles(np.array(paths), 1, "square").fingerprint(str(folder))


def class_of(name: str, classes: Sequence[str]) -> int | None:
    """Return the class of a folder, whose name is that of the class or contains its number as in new003; else None.

    >>> [class_of(name, ("cat", "a/dog")) for name in ("cat", "a%2Fdog", "a_dog", "new001", "new002", "dog")]
    [0, 1, 1, 1, None, None]
    >>> [class_of(name, ("a dog", "a_dog")) for name in ("a dog", "a_dog")]
    [0, 1]
    """
    for spelled in (folder_of, str, _earlier_folder_of):
        found = [number for number, each in enumerate(classes) if name == spelled(each)]
        if len(found) == 1:
            return found[0]
    numbered = NUMBERED.fullmatch(name)
    return int(numbered[1]) if numbered and int(numbered[1]) < len(classes) else None


def read_all_pictures(paths: Sequence[Path]) -> Tensor | ImageFiles:
    """Read images that are squares of one size, as one channel if all are grey.

    Args:
        paths: at least one file.

    Returns:
        (N, 1 or 3, H, H) pixels; images that take more than 8 GiB stay in their files.

    Raises:
        InputError: a file is not an image, images are not squares, or sizes differ.
    """
    heads = [_header(path) for path in paths]
    channels, size = _common([str(path) for path in paths], heads)
    if 4 * len(paths) * channels * size**2 <= LIMIT:
        return torch.stack([_read(path, channels) for path in paths])
    return ImageFiles(np.array([str(path) for path in paths]), size, "square", channels=channels)


def decode_pictures(contents: Sequence[bytes | None], what: str) -> Tensor:
    """Decode images that are squares of one size from the bytes of their files, as one channel if all are grey.

    Args:
        contents: the bytes of at least one file; None for a reference to a file or address, which is not opened.
        what: name of the source, for errors.

    Returns:
        (N, 1 or 3, H, H) pixels.

    Raises:
        InputError: bytes are missing or not an image, images are not squares, sizes differ, or the images take more
            than 8 GiB.
    """
    for number, content in enumerate(contents):
        if not content:
            raise InputError(f"{what} has no bytes in row {number}; referenced files and addresses are not opened")
    files = {f"{what}, row {number}": content for number, content in enumerate(contents) if content}
    channels, size = _common(list(files), [_header(io.BytesIO(each), name) for name, each in files.items()])
    if 4 * len(files) * channels * size**2 > LIMIT:
        raise InputError(f"{what} has {len(files):,} images, which take more than {LIMIT / 2**30:g} GiB")
    return torch.stack([_read(io.BytesIO(each), channels, name) for name, each in files.items()])


def _pictures_in(folder: Path) -> list[Path]:
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))  # macOS leaves ._0.png beside 0.png
    return sorted(path for path in visible if path.suffix.lower() in ENDINGS)


def _common(names: list[str], heads: list[Header]) -> tuple[int, int]:
    """Return the channels (1 if all images are grey) and the side of images that must be squares of one size.

    Raises:
        InputError: an image is not a square, is too large, or sizes differ.
    """
    size = heads[0].width
    if heads[0].height != size or size > LARGEST:
        line = f"{names[0]} has {size}x{heads[0].height} pixels"
        raise InputError(f"{line}; images must be squares of one size, at most {LARGEST}")
    for name, head in zip(names, heads, strict=True):
        if (head.width, head.height) != (size, size):
            line = f"{name} has {head.width}x{head.height} pixels, the first one {size}x{size}"
            raise InputError(f"{line}; images must be squares of one size")
    return 1 if all(head.grey for head in heads) else 3, size


def _header(file: Path | io.BytesIO, name: str = "") -> Header:
    """Return the header of an image, without decoding the pixels.

    Raises:
        InputError: the file is not an image, or exceeds Pillow's limit for decompression bombs.
    """
    try:
        with _opened(file) as data, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return header(data)
    except Exception as error:  # as in `header`
        raise _refusal(name or file, error) from None


def _read(file: Path | io.BytesIO, channels: int, name: str = "") -> Tensor:
    """Return the pixels of an image, (channels, H, W) float32 in [0, 1], with all of 16 bits per channel.

    Raises:
        InputError: as in `_header`; or the image is damaged, or has colours although the data set is grey.
    """
    if channels == 1 and not _header(file, name).grey:
        raise _refusal(name or file, ValueError("it has colours, and the images of the data set are grey"))
    try:
        with _opened(file) as data:
            pixels = scaled(decode(data.read()))
    except Exception as error:  # as in `decode`
        raise _refusal(name or file, error) from None
    return torch.from_numpy(pixels).permute(2, 0, 1)[:channels].contiguous()


def _opened(file: Path | io.BytesIO) -> AbstractContextManager[BinaryIO]:
    """Open a file at the first byte."""
    if isinstance(file, io.BytesIO):
        file.seek(0)
        return nullcontext(file)
    return open_regular(file)


def _refusal(name: Path | str | io.BytesIO, error: Exception) -> InputError:
    return InputError(f"{name} cannot be read as an image ({reason(error)})")


def folder_of(name: str) -> str:
    """Return the folder name of a class: the class name, with characters unsafe in files or shells written as %XX.

    Different names have different folders. A name of more than 200 bytes is truncated and ends with a hash.

    >>> [folder_of(name) for name in ("a dog", "a_dog", "+", "../x", "..", ".", "", "50%")]
    ['a dog', 'a_dog', '+', '%2E.%2Fx', '%2E%2E', '%2E', '%', '50%25']
    """
    text = re.sub(r"[^\w .+=,()&'@~-]|^[. ]|[. ]$", lambda found: _escaped(found[0]), name) or "%"
    if len(os.fsencode(text)) <= LONGEST:
        return text
    start = os.fsencode(text)[: LONGEST - 20].decode(errors="ignore")
    return f"{start}%{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:16]}"


def _escaped(sign: str) -> str:
    return "".join(f"%{byte:02X}" for byte in sign.encode(errors="surrogatepass"))


def _earlier_folder_of(name: str) -> str:
    """Return the folder name of a class in earlier versions, in which several classes could share a folder."""
    folder = re.sub(r"[^\w.-]+", "_", name)
    return folder.replace(".", "_") or "_" if folder in ("", ".", "..") else folder
