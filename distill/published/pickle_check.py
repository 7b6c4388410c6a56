"""Checks which functions a file of torch.save would call, without executing anything in it.

A pickle is a program. torch's restricted reader (weights_only) accepts tensors, lists, dicts and numbers, but also
calls bytearray, _codecs.encode and other functions, with which a small file can take all memory. Therefore the program
is followed here first, without executing it: it may call the functions in CALLED and contain the names in NAMED, and
nothing else.
"""

import io
import pickletools
from pathlib import Path
from typing import Any, BinaryIO

import torch

from distill.errors import InputError
from distill.runs.foreign import brief

__all__ = ["DTYPE", "SCALARS", "check_pickles", "refusal"]

FOR_TRUST = "re-save what you trust as tensors, or as .npz"
SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
"""names under which NumPy 1 and 2 pickle a number, of the type DTYPE"""
ENCODE, ORDERED, DTYPE = "_codecs.encode", "collections.OrderedDict", "numpy.dtype"
CALLED = {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", ORDERED, ENCODE, DTYPE, *SCALARS}
"""functions that a file may call: ORDERED without arguments, ENCODE for the bytes of a NumPy number (latin1)"""
_KINDS = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
NAMED = {f"torch.{kind}Storage" for kind in (*_KINDS, "ComplexDouble", "ComplexFloat")}
NAMED |= {f"torch.{name}" for name in (*_DTYPES, "complex64", "complex128")}
"""further names that a file may contain, and not call"""
_PUSHED = {"NONE", "NEWFALSE", "NEWTRUE", "BININT", "BININT1", "BININT2", "BINFLOAT", "SHORT_BINSTRING", "LONG1"}
"""operations that put a plain value on the stack"""
_PICKLES = 5
"""pickles in a file of the older format: magic number, version, system, content, keys of its tensors"""


class _Name(str):
    """A name in the file, on the stack of `_follow`."""


class _Made(str):
    """The result of a call, by the name of the function; or a dict."""


def refusal(path: Path, name: str) -> InputError:
    """Make the error for a file that contains a name which no set needs."""
    line = f"it would run or build {brief(name)}, and a set is tensors, lists and numbers; nothing was run"
    return InputError(f"{path} is refused: {line}. If you trust it, {FOR_TRUST}")


def check_pickles(path: Path) -> None:
    """Refuse a file whose pickles call or name anything that a set does not need; nothing in the file is executed.

    Raises:
        InputError: the file has such a name.
        Exception: of any kind, if it is no file of torch.save.
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
        size: bytes that all texts together may have which become bytes.
    """
    stacks: list[list[Any]] = [[]]  # one more from each mark on
    memo: dict[Any, Any] = {}
    for operation, value, _ in pickletools.genops(file):
        stack = stacks[-1]
        match operation.name:
            case "GLOBAL":
                name = str(value).replace(" ", ".", 1)
                if name not in CALLED | NAMED:
                    raise refusal(path, name)
                stack.append(_Name(name))
            case "REDUCE":
                arguments, called = stack.pop(), stack.pop()
                stack.append(_called(path, called, arguments))
                if called == ENCODE:
                    size -= len(arguments[0])
                    if size < 0:
                        raise refusal(path, f"{ENCODE} of more than the file has")
            case "BUILD":
                stack.pop()
                if stack[-1] not in (_Made(DTYPE), _Made(ORDERED)):  # of weights: torch takes it for attributes
                    raise refusal(path, f"{stack[-1]} with a state")
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
    """Mark a list as not empty; refuse keys of a dict whose hash or text could take forever."""
    if isinstance(target, list):
        target[:] = [None]
    elif any(_is_container(key) for key in items[::2]):
        raise ValueError("it has a dict with a key that is no text or number")


def _called(path: Path, called: Any, arguments: Any) -> _Made:
    """Return what stands for the result of a call, or refuse the call."""
    if not isinstance(called, _Name):
        raise ValueError("it calls something that is no name")
    match called, arguments:
        case str(name), (str(), "latin1") if name == ENCODE:
            pass
        case str(name), () | ([],) if name == ORDERED:  # ([],) is Python 2's
            pass
        case str(name), tuple() if name in CALLED - {ENCODE, ORDERED}:
            pass
        case _:
            raise refusal(path, called if called in NAMED else f"{called} with what torch.save does not give it")
    return _Made(called)
