"""Files of others, read without running anything of theirs: torch's .pt and .pth, numpy's .npz.

A pickle is a program. torch's restricted reader (weights_only) takes tensors, lists, dicts and numbers and refuses all
other names. Published sets hold numpy's numbers too (accuracies of DC's code, rectangles of FKD's): in place of numpy's
two constructors stand two of ours that take a plain number from its bytes, so that not even those run. What a file says
of its sizes is compared with its bytes before memory is taken for it.
"""

import math
import re
import warnings
import zipfile
from pathlib import Path
from textwrap import shorten
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.serialization import safe_globals

from distill.data.image_files import LIMIT
from distill.errors import InputError

__all__ = ["as_tensor", "read_npz", "read_pickle"]

FOR_TRUST = "re-save what you trust as tensors, or as .npz"


class _Type:
    """What a file has the type of a number of numpy's for: its name and the order of its bytes."""

    def __init__(self, *given: object):
        self.name, self.order = str(given[0]) if given else "", "="

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = str(state[1])


class _Nothing:
    """What a file has a number of another kind for."""


def _number(*given: object) -> bool | int | float | _Nothing:
    """Return a number of numpy's as a plain one, from its type and its bytes."""
    match given:
        case (_Type() as kind, bytes() as content):
            known = re.fullmatch(r"b1|[iu][1248]|f[248]", kind.name)
            if known and len(content) == int(kind.name[1:]):
                return np.frombuffer(content, kind.order + kind.name)[0].item()
    return _Nothing()


_DTYPE = ("numpy.dtype",)
_SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
"""the names under which numpy 1 and 2 pickle a number"""


def read_pickle(path: Path) -> Any:
    """Return the tensors, lists, dicts and numbers of a file of torch.save, on the CPU.

    Args:
        path: of the file, in torch's zip format or the older one.

    Returns:
        what it holds; numbers of numpy as plain ones.

    Raises:
        InputError: there is no such file, it is damaged, names anything else, or unpacks to more than it has bytes.
    """
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch writes without compression
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > size:
                raise InputError(f"{path} has {size:,} bytes that unpack to {unpacked:,}: torch.save does not do that")
        ours = [*((_Type, name) for name in _DTYPE), *((_number, name) for name in _SCALAR)]
        with warnings.catch_warnings(), safe_globals(ours):
            warnings.simplefilter("ignore")  # of old storages
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except Exception as error:  # torch.load raises anything from EOFError to UnpicklingError
        text = re.sub(r"\x1b\[\d+m", "", str(error))
        named = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"call (\S+)", text)
        if named and "nsupported" in text:
            line = f"it would run or build {named[1]}, and a set is tensors, lists and numbers; nothing was run"
            raise InputError(f"{path} is refused: {line}. If you trust it, {FOR_TRUST}") from None
        line = shorten(text.split("WeightsUnpickler error:")[-1].strip(), 100, placeholder=" ...")
        raise InputError(f"{path} is not a whole file of torch.save ({type(error).__name__}: {line})") from None


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file of numpy.savez, by name.

    Args:
        path: of the file, compressed or not.

    Returns:
        numbers, booleans and text.

    Raises:
        InputError: there is no such file, it is damaged, has pickled objects, or more than 8 GiB.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if not all(entry.filename.endswith(".npy") for entry in entries):
                raise InputError(f"{path} is not a whole .npz file (it has {entries[0].filename}, ...)")
            if sum(entry.file_size for entry in entries) > LIMIT:
                raise InputError(f"{path} unpacks to more than {LIMIT / 2**30:g} GiB")
            for entry in entries:
                with archive.open(entry) as file:
                    _check_header(path, entry, file)
        with warnings.catch_warnings(), np.load(path, allow_pickle=False) as arrays:
            warnings.simplefilter("ignore")  # of headers as Python 2 wrote them
            return {name: arrays[name] for name in arrays.files}
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except Exception as error:  # numpy and zipfile raise anything from BadZipFile to zlib.error
        line = shorten(f"{type(error).__name__}: {error}", 100, placeholder=" ...")
        raise InputError(f"{path} is not a whole .npz file ({line})") from None


def _check_header(path: Path, entry: zipfile.ZipInfo, file: BinaryIO) -> None:
    """Refuse an array that is of objects, or whose header and bytes differ in size."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    name = entry.filename.removesuffix(".npy")
    if dtype.hasobject:
        line = f"array {name} holds pickled Python objects, which are never unpickled; nothing was run"
        raise InputError(f"{path} is refused: {line}. If you trust it, re-save it as plain numbers")
    said, there = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
    if said != there:
        raise InputError(f"{path} is damaged: array {name} says it has {said:,} bytes, but has {there:,}")


def as_tensor(value: Any, what: str) -> Tensor:
    """Return an array or tensor of a file as a plain tensor: float32 or int64, finite, with memory of its own.

    Args:
        value: what the file has in that place.
        what: the place, for the error.

    Raises:
        InputError: it is none, has more elements than its file, takes more than 8 GiB, or has values not finite.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        value = torch.from_numpy(np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="))))
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_complex():
        raise InputError(f"{what} is no plain tensor but {type(value).__name__}; expected numbers")
    value = value.detach()
    if value.device.type != "cpu":  # torch leaves some where there is no such device
        raise InputError(f"{what} is on {value.device}, without its numbers")
    held, asked = value.untyped_storage().nbytes(), value.numel() * value.element_size()
    if asked > held or 4 * value.numel() > LIMIT:
        raise InputError(f"{what} is {tuple(value.shape)}, {asked:,} bytes; the file holds {held:,}, and 8 GiB is all")
    value = value.float() if value.is_floating_point() else value.long()
    if not value.isfinite().all():
        raise InputError(f"{what} has values that are not finite: that distillation diverged")
    return value.clone(memory_format=torch.contiguous_format)
