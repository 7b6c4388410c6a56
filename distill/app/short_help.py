"""`--help` of a command with many flags: those that most runs set, a line each; `--help-all` describes every flag."""

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from functools import cache
from itertools import chain
from typing import Any

from distill.methods.flags import Flag, flags_of_command
from robust import Loss
from robust.losses import written

__all__ = ["MANY", "short_help"]

MANY = 24
"""a command with more flags has a short help"""
SECTIONS = {
    "The distilled set": (
        *("dataset", "source", "space", "recipe", "ipc", "image-size", "seed", "split"),
        *("factor", "out"),
    ),
    "How it is distilled": (
        *("real-loss", "expert-loss", "squeeze.loss", "teacher"),
        *("backbone", "squeeze.epochs", "select.factor", "recover.iterations"),
        *("iterations", "init", "augment", "lr-img"),
    ),
    "Students and attacks": (
        *("students", "student.epochs", "protocol"),
        *("attacks", "threat", "eps", "test-images", "backbones", "packages"),
    ),
    "Files and devices": ("data-dir", "runs", "device", "processes"),
}
"""heading -> names of the flags that most runs set, in the order of the help; a command shows those that it has"""
NARROW, WIDE = 60, 100
"""fewest and most columns of the help"""


def short_help(command: Any, program: str, description: str) -> str:
    """Return the help of a command: usage, the flags that most runs set, and the names of all others.

    Args:
        command: a dataclass with its defaults.
        program: name of the program, "bash run.sh NAME".
        description: what the command does.
    """
    width = min(WIDE, max(NARROW, shutil.get_terminal_size().columns))
    flags = {flag.name.removeprefix("--"): flag for flag in flags_of_command(command)}
    parts = [f"usage: {program} [--flags]", _wrapped(description, width)]
    for heading, names in SECTIONS.items():
        lines = chain.from_iterable(_lines(flags[name], width) for name in names if name in flags)
        text = "\n".join(lines)
        parts += [f"{heading}\n{text}"] if text else []
    shown = set(chain.from_iterable(SECTIONS.values()))
    rest = ", ".join(_grouped(name for name in flags if name not in shown))
    return "\n\n".join((*parts, _wrapped(f"More flags, described by {program} --help-all: {rest}", width))) + "\n"


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False)


def _lines(flag: Flag, width: int) -> Iterator[str]:
    """Yield the lines of one flag: name, the first sentence of its docstring, and its default in brackets."""
    value = written(flag.value, "inputs") if isinstance(flag.value, Loss) else flag.value
    text = f"{_first_sentence(_docstring(flag))} [{'none' if value in ('', None) else value}]"
    body = textwrap.wrap(text, width - 24, break_on_hyphens=False, break_long_words=False)
    name = f"  {flag.name}"
    if len(name) > 22:
        yield name
        name = ""
    yield f"{name:24s}{body[0]}"
    yield from (f"{'':24s}{line}" for line in body[1:])


def _docstring(flag: Flag) -> str:
    """Return the docstring of a flag's field, which the field's class or a base of it has."""
    texts = map(_docstrings, filter(is_dataclass, flag.owner.__mro__))
    return next((found[flag.field] for found in texts if flag.field in found), "")


@cache
def _docstrings(kind: type) -> dict[str, str]:
    """Return the docstrings of the fields that a dataclass itself has, by name."""
    import docstring_parser  # here, because only a help needs it

    return {each.arg_name: each.description or "" for each in docstring_parser.parse_from_object(kind).params}


def _first_sentence(text: str) -> str:
    """Return the text up to its first full stop or semicolon.

    >>> _first_sentence("side in pixels; None for the size of the data set")
    'side in pixels'
    >>> _first_sentence("a DSA strategy, or kornia:... (see augment.py)")
    'a DSA strategy, or kornia:... (see augment.py)'
    """
    return re.split(r"; |(?<!\.)\. ", " ".join(text.split()))[0].removesuffix(".")


def _grouped(names: Iterable[str]) -> list[str]:
    """Return flags as the help lists them: a group of flags, as of --student.lr, stands once.

    >>> _grouped(["chunk", "student.lr", "student.momentum"])
    ['--chunk', '--student.*']
    """
    return list(dict.fromkeys(f"--{name.partition('.')[0]}.*" if "." in name else f"--{name}" for name in names))
