"""Files of others, read without running anything of theirs: torch's .pt and .pth, numpy's .npz.

A pickle is a program. torch's restricted reader (weights_only) takes tensors, lists, dicts and numbers, but calls
bytearray, _codecs.encode and others too, with which a small file takes all memory. So before it runs, the program is
followed here without being run: it may call what is in CALLED and name what is in NAMED, and nothing else. Published
sets hold numpy's numbers too (accuracies of DC's code, rectangles of FKD's): in place of numpy's two constructors stand
two of ours that take a plain number from its bytes, so that not even those run. What a file says of its sizes is
compared with its bytes before memory is taken for it.
"""

import io
import math
import pickletools
import re
import sys
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.serialization import safe_globals

from distill.data.image_files import LIMIT
from distill.errors import InputError
from distill.runs.foreign import brief, refuse_irregular

__all__ = ["as_tensor", "read_npz", "read_pickle"]

FOR_TRUST = "re-save what you trust as tensors, or as .npz"


class _Type:
    """What a file has the type of a number of numpy's for: its name and the order of its bytes."""

    def __init__(self, *given: object):
        self.name, self.order = given[0] if given and isinstance(given[0], str) else "", "="

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


_SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
"""the names under which numpy 1 and 2 pickle a number, of the type DTYPE"""

ENCODE, ORDERED, DTYPE = "_codecs.encode", "collections.OrderedDict", "numpy.dtype"
CALLED = {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", ORDERED, ENCODE, DTYPE, *_SCALAR}
"""what a file may call: ORDERED without anything in it, ENCODE for the bytes of a number of numpy's (latin1)"""
_KINDS = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
NAMED = {f"torch.{kind}Storage" for kind in (*_KINDS, "ComplexDouble", "ComplexFloat")}
NAMED |= {f"torch.{name}" for name in (*_DTYPES, "complex64", "complex128")}
"""what it may name besides, and not call"""
_PUSHED = {"NONE", "NEWFALSE", "NEWTRUE", "BININT", "BININT1", "BININT2", "BINFLOAT", "SHORT_BINSTRING", "LONG1"}
"""operations that put a plain value on the stack"""
_PICKLES = 5
"""in the older format: a magic number, a version, the system, what is saved, the keys of its tensors"""


class _Name(str):
    """What a file has named, on the stack of `_follow`."""


class _Made(str):
    """What a call gave, by the name that was called; a dict."""


def read_pickle(path: Path) -> Any:
    """Return the tensors, lists, dicts and numbers of a file of torch.save, on the CPU.

    Args:
        path: of the file, in torch's zip format or the older one.

    Returns:
        what it holds; numbers of numpy as plain ones.

    Raises:
        InputError: there is no such file, it is damaged, names anything else, or unpacks to more than it has bytes.
    """
    refuse_irregular(path)
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch writes without compression
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > size:
                raise InputError(f"{path} has {size:,} bytes that unpack to {unpacked:,}: torch.save does not do that")
        _check(path)
        ours = [(_Type, DTYPE), *((_number, name) for name in _SCALAR)]
        with warnings.catch_warnings(), safe_globals(ours):
            warnings.simplefilter("ignore")  # of old storages
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # torch.load raises anything from EOFError to UnpicklingError
        text = re.sub(r"\x1b\[\d+m", "", str(error))
        named = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"call (\S+)", text)
        if named and "nsupported" in text:
            raise _refusal(path, named[1]) from None
        line = brief(text.split("WeightsUnpickler error:")[-1])
        raise InputError(f"{path} is not a whole file of torch.save ({type(error).__name__}: {line})") from None


def _refusal(path: Path, name: str) -> InputError:
    line = f"it would run or build {brief(name)}, and a set is tensors, lists and numbers; nothing was run"
    return InputError(f"{path} is refused: {line}. If you trust it, {FOR_TRUST}")


def _check(path: Path) -> None:
    """Refuse a file whose pickles call or name anything that is no part of a set; nothing of it is run.

    Raises:
        InputError: it does.
        Exception: of any kind, where it is no file of torch.save.
    """
    with open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04":  # torch tells the formats apart by this, and finds the pickle with its reader
            content = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
            _follow(path, io.BytesIO(content), len(content))
            return
        file.seek(0)
        for _ in range(_PICKLES):
            _follow(path, file, path.stat().st_size)


def _follow(path: Path, file: BinaryIO, size: int) -> None:
    """Follow a pickle on a stack of names, texts, tuples and lists, None for all other plain values; refuse the rest.

    Args:
        path: for the error.
        file: at the pickle's start, then at its end.
        size: what texts that become bytes may have together.
    """
    stacks: list[list[Any]] = [[]]  # one more from each mark on
    memo: dict[Any, Any] = {}
    for operation, value, _ in pickletools.genops(file):
        stack = stacks[-1]
        match operation.name:
            case "GLOBAL":
                name = str(value).replace(" ", ".", 1)
                if name not in CALLED | NAMED:
                    raise _refusal(path, name)
                stack.append(_Name(name))
            case "REDUCE":
                given, called = stack.pop(), stack.pop()
                stack.append(_called(path, called, given))
                if called == ENCODE:
                    size -= len(given[0])
                    if size < 0:
                        raise _refusal(path, f"{ENCODE} of more than the file has")
            case "BUILD":
                stack.pop()
                if stack[-1] not in (_Made(DTYPE), _Made(ORDERED)):  # of weights: torch takes it for attributes
                    raise _refusal(path, f"{stack[-1]} with a state")
            case "MARK":
                stacks.append([])
            case "TUPLE":
                stacks.pop()
                stacks[-1].append(tuple(stack))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(operation.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPENDS" | "SETITEMS":
                stacks.pop()
                _fill(stacks[-1][-1], stack)
            case "APPEND" | "SETITEM":
                count = len(operation.stack_before) - 1
                items = stack[-count:]
                del stack[-count:]
                _fill(stack[-1], items)
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "BINUNICODE":
                stack.append(value)
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append(_Made("a dict"))
            case "BINPERSID":  # a tensor's numbers, by a tuple of its kind, key, device and size
                if not isinstance(stack[-1], tuple) or any(_is_container(each) for each in stack[-1]):
                    raise ValueError("it has a storage without a plain key")
                stack[-1] = _Made("a storage")
            case "PROTO" | "STOP":
                pass
            case plain if plain in _PUSHED:
                stack.append(None)
            case other:
                raise ValueError(f"it has {other}, which torch.save does not write")


def _is_container(value: Any) -> bool:
    return isinstance(value, (tuple, list, _Made))


def _fill(target: Any, items: list[Any]) -> None:
    """Remember of a list that it is not empty; refuse keys of a dict whose hash or text could take for ever."""
    if isinstance(target, list):
        target[:] = [None]
    elif any(_is_container(key) for key in items[::2]):
        raise ValueError("it has a dict with a key that is no text or number")


def _called(path: Path, called: Any, given: Any) -> _Made:
    """Return what stands for the result of a call, or refuse the call."""
    if not isinstance(called, _Name):
        raise ValueError("it calls what is no name")
    match called, given:
        case str(name), (str(), "latin1") if name == ENCODE:
            pass
        case str(name), () | ([],) if name == ORDERED:  # ([],) is Python 2's
            pass
        case str(name), tuple() if name in CALLED - {ENCODE, ORDERED}:
            pass
        case _:
            raise _refusal(path, called if called in NAMED else f"{called} with what torch.save does not give it")
    return _Made(called)


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
    """Return whether an array of text has numbers that are of no sign: Python's texts of them end in a SystemError."""
    if array.dtype.kind != "U":
        return False
    numbers = np.frombuffer(array.tobytes(), np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
    return bool((numbers > sys.maxunicode).any())


def _check_header(path: Path, entry: zipfile.ZipInfo, file: IO[bytes]) -> None:
    """Refuse an array that is of objects, or whose header and bytes differ in size."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    name = brief(entry.filename.removesuffix(".npy"), 60)
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
