"""Files that others made: only regular ones are opened, JSON of any kind is read or refused, and what a library or a
file says is made fit for a line of ours.
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
"""bytes that a file of a set may have: twice what images may take in memory"""
MOST_TEXT = 64 * 2**20
"""bytes that a file of JSON may have"""
DIGITS = 19
"""of a whole number in JSON: as many as 2^63 has"""
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_regular(path: Path | str | bytes) -> BufferedReader:
    """Open a file to be read, or a link to one, without waiting: a pipe or a device would never end.

    Returns:
        the file, at its beginning; the caller closes it.

    Raises:
        OSError: it cannot be read, or is a pipe, a socket, a device or a folder, which its strerror says.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    kind = stat.S_IFMT(os.fstat(file.fileno()).st_mode)
    if kind != stat.S_IFREG:
        file.close()
        raise OSError(0, f"it is {_KINDS.get(kind, 'no file')}, not a regular file")
    return file


def reachable(path: Path) -> Path:
    """Return a path that the system can look up, whether or not something is there.

    Raises:
        InputError: it is too long, has a zero byte, or is in a folder that may not be read.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        raise InputError(f"{brief(path)} cannot be read ({getattr(error, 'strerror', None) or brief(error)})") from None
    return path


def refuse_irregular(path: Path) -> None:
    """Refuse what a library must not open: no file, no regular one, or one of more than LARGEST bytes.

    Raises:
        InputError: it is.
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
    """Return what a text file holds; what is no UTF-8 becomes a sign that stands for it.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    with open_regular(path) as file:
        return file.read().decode(errors="replace")


def read_json(path: Path) -> Any:
    """Return what a file of JSON holds.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: it is no JSON, as of `parse_json`, or has more than MOST_TEXT bytes.
    """
    with open_regular(path) as file:
        text = file.read(MOST_TEXT + 1)
    if len(text) > MOST_TEXT:
        raise ValueError(f"it has more than {MOST_TEXT / 2**20:g} MiB")
    return parse_json(text)


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text of others holds.

    Raises:
        ValueError: it is no JSON, is nested too deep, or has a number that is not finite or no float can hold.
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


def brief(said: object, most: int = 100) -> str:
    """Return a text of others, or an error's message, on one line of at most `most` signs that all can be printed."""
    return one_line(said, most)
