"""Reads files of other people without executing anything in them: torch's .pt and .pth, NumPy's .npz.

The pickle in a file of torch is checked by `distill.published.pickle_check` before torch's restricted reader
(weights_only) executes it. Published sets also hold NumPy numbers (accuracies of DC's code, rectangles of FKD's). Two
constructors of ours replace NumPy's and make a plain number from its bytes, so that not even NumPy's are executed. The
sizes that a file states are compared with its bytes before memory is allocated.
"""

import math
import re
import sys
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import safe_globals

from distill.data.image_files import LIMIT
from distill.errors import InputError
from distill.published.pickle_check import DTYPE, SCALARS, check_pickles, refusal
from distill.runs.foreign import brief, refuse_irregular

__all__ = ["as_tensor", "read_npz", "read_pickle"]


class _Type:
    """Stands for the type of a NumPy number: its name and the order of its bytes."""

    def __init__(self, *arguments: object):
        self.name, self.order = arguments[0] if arguments and isinstance(arguments[0], str) else "", "="

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = str(state[1])


class _Nothing:
    """Stands for a number of an unknown type."""


def _number(*arguments: object) -> bool | int | float | _Nothing:
    """Return a NumPy number as a plain one, from its type and its bytes."""
    match arguments:
        case (_Type() as kind, bytes() as content):
            known = re.fullmatch(r"b1|[iu][1248]|f[248]", kind.name)
            if known and len(content) == int(kind.name[1:]):
                return np.frombuffer(content, kind.order + kind.name)[0].item()
    return _Nothing()


def read_pickle(path: Path) -> Any:
    """Return the tensors, lists, dicts and numbers of a file of torch.save, on the CPU.

    Args:
        path: of the file, in torch's zip format or the older one.

    Returns:
        the content; NumPy numbers as plain ones.

    Raises:
        InputError: there is no such file, it is damaged, contains other names, or unpacks to more bytes than it has.
    """
    refuse_irregular(path)
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch writes without compression
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > size:
                raise InputError(f"{path} has {size:,} bytes that unpack to {unpacked:,}: torch.save does not do that")
        check_pickles(path)
        ours = [(_Type, DTYPE), *((_number, name) for name in SCALARS)]
        with warnings.catch_warnings(), safe_globals(ours):
            warnings.simplefilter("ignore")  # of old storages
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # torch.load raises anything from EOFError to UnpicklingError
        text = re.sub(r"\x1b\[\d+m", "", str(error))
        named = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"call (\S+)", text)
        if named and "nsupported" in text:
            raise refusal(path, named[1]) from None
        line = brief(text.split("WeightsUnpickler error:")[-1])
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
    refuse_irregular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if not all(entry.filename.endswith(".npy") for entry in entries):
                raise InputError(f"{path} is not a whole .npz file (it has {brief(entries[0].filename)}, ...)")
            if sum(entry.file_size for entry in entries) > LIMIT:
                raise InputError(f"{path} unpacks to more than {LIMIT / 2**30:g} GiB")
            for entry in entries:
                with archive.open(entry) as file:
                    _check_header(path, entry, file)
        with warnings.catch_warnings(), np.load(path, allow_pickle=False) as arrays:
            warnings.simplefilter("ignore")  # of headers as Python 2 wrote them
            found = {name: arrays[name] for name in arrays.files}
            if any(map(_has_no_signs, found.values())):
                raise ValueError("a text has signs that do not exist")
            return found
    except InputError:
        raise
    except Exception as error:  # numpy and zipfile raise anything from BadZipFile to zlib.error
        line = brief(f"{type(error).__name__}: {error}")
        raise InputError(f"{path} is not a whole .npz file ({line})") from None


def _has_no_signs(array: np.ndarray) -> bool:
    """Return whether an array of text has code points that do not exist, on which Python raises a SystemError."""
    if array.dtype.kind != "U":
        return False
    numbers = np.frombuffer(array.tobytes(), np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
    return bool((numbers > sys.maxunicode).any())


def _check_header(path: Path, entry: zipfile.ZipInfo, file: IO[bytes]) -> None:
    """Refuse an array of Python objects, or one whose header and bytes differ in size."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    name = brief(entry.filename.removesuffix(".npy"), 60)
    if dtype.hasobject:
        line = f"array {name} holds pickled Python objects, which are never unpickled; nothing was run"
        raise InputError(f"{path} is refused: {line}. If you trust it, re-save it as plain numbers")
    stated, actual = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
    if stated != actual:
        raise InputError(f"{path} is damaged: array {name} says it has {stated:,} bytes, but has {actual:,}")


def as_tensor(value: Any, what: str) -> Tensor:
    """Return an array or tensor of a file as a plain tensor: float32 or int64, finite, with memory of its own.

    Args:
        value: an entry of the file.
        what: where in the file the entry is, for the error.

    Raises:
        InputError: it is no array, has more elements than its file, takes more than 8 GiB, or has values not finite.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        value = torch.from_numpy(np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="))))
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_complex():
        raise InputError(f"{what} is no plain tensor but {type(value).__name__}; expected numbers")
    value = value.detach()
    if value.device.type != "cpu":  # torch leaves some where there is no such device
        raise InputError(f"{what} is on {value.device}, without its numbers")
    held, needed = value.untyped_storage().nbytes(), value.numel() * value.element_size()
    if needed > held or 4 * value.numel() > LIMIT:
        raise InputError(f"{what} is {tuple(value.shape)}, {needed:,} bytes; the file holds {held:,}, and 8 GiB is all")
    value = value.float() if value.is_floating_point() else value.long()
    if not value.isfinite().all():
        raise InputError(f"{what} has values that are not finite: that distillation diverged")
    return value.clone(memory_format=torch.contiguous_format)
