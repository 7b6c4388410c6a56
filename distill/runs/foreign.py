"""Files of other people: only regular files are opened, any JSON is read or refused, and texts from a file or a library
are shortened to one printable line for our messages.
"""

import json
import math
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

from distill.errors import InputError, one_line

__all__ = ["LARGEST", "brief", "open_regular", "parse_json", "reachable", "read_json", "read_text", "refuse_irregular"]

LARGEST = 16 * 2**30
"""largest file of a set, in bytes: twice the memory that images may take"""
MOST_TEXT = 64 * 2**20
"""largest file of JSON, in bytes"""
DIGITS = 19
"""most digits of a whole number in JSON: as many as 2^63 has"""
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_regular(path: Path | str | bytes) -> BufferedReader:
    """Open a regular file, or a link to one, for reading, and never wait for a pipe or a device.

    Returns:
        the file, at its beginning; the caller closes it.

    Raises:
        OSError: the file cannot be read, or is a pipe, a socket, a device or a folder (named in strerror).
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    kind = stat.S_IFMT(os.fstat(file.fileno()).st_mode)
    if kind != stat.S_IFREG:
        file.close()
        raise OSError(0, f"it is {_KINDS.get(kind, 'no file')}, not a regular file")
    return file


def reachable(path: Path) -> Path:
    """Return a path that the system can look up, whether or not it exists.

    Raises:
        InputError: the path is too long, has a zero byte, or is in a folder that may not be read.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        raise InputError(f"{brief(path)} cannot be read ({getattr(error, 'strerror', None) or brief(error)})") from None
    return path


def refuse_irregular(path: Path) -> None:
    """Refuse a path that no library should open: no file, no regular file, or a file of more than LARGEST bytes.

    Raises:
        InputError: the path is such a one.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', None) or brief(error)})") from None
    if size > LARGEST:
        raise InputError(f"{path} has {size:,} bytes, more than the {LARGEST / 2**30:g} GiB that a set's file may have")


def read_text(path: Path) -> str:
    """Return the content of a text file; bytes that are no UTF-8 become the replacement character.

    Raises:
        OSError: the file cannot be read, or is no regular file.
    """
    with open_regular(path) as file:
        return file.read().decode(errors="replace")


def read_json(path: Path) -> Any:
    """Return the content of a file of JSON.

    Raises:
        OSError: the file cannot be read, or is no regular file.
        ValueError: `parse_json` refuses the text, or it has more than MOST_TEXT bytes.
    """
    with open_regular(path) as file:
        text = file.read(MOST_TEXT + 1)
    if len(text) > MOST_TEXT:
        raise ValueError(f"it has more than {MOST_TEXT / 2**20:g} MiB")
    return parse_json(text)


def parse_json(text: str | bytes) -> Any:
    """Return the content of a JSON text of other people.

    Raises:
        ValueError: the text is no JSON, is nested too deep, or has a number that is not finite, that no float can hold,
            or a whole number of more than 64 bits.
    """

    def whole(digits: str) -> int:
        if len(digits.removeprefix("-")) > DIGITS:  # before int(), which takes long for very many digits
            raise ValueError(f"it has a number of {len(digits)} digits")
        if not -(2**63) <= (value := int(digits)) < 2**63:
            raise ValueError("it has a whole number of more than 64 bits")
        return value

    def number(digits: str) -> float:
        if not math.isfinite(value := float(digits)):
            raise ValueError("it has a number that is not finite")
        return value

    def constant(name: str) -> NoReturn:
        raise ValueError(f"it has {name} in place of a number")

    try:
        return json.loads(text, parse_int=whole, parse_float=number, parse_constant=constant)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def brief(text: object, most: int = 100) -> str:
    """Return a text of other people, or an error's message, as one line of at most `most` printable characters."""
    return one_line(text, most)
