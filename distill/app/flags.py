"""Convert command-line words into values; an error in them becomes one line."""

import argparse
import io
import re
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro
from tyro.constructors import ConstructorRegistry

from distill.app.loss_flags import refuse_fields_as_flags
from distill.app.short_help import MANY, short_help
from distill.errors import InputError, one_line
from distill.methods.flags import flags_of_command
from distill.runs.ranks import launched, local_rank
from robust import Loss
from robust.losses import written

__all__ = ["HELP", "find_device", "flags_of", "parse", "peek", "picture_named", "whole_number"]

T = TypeVar("T")
HELP = ("-h", "--help", "--help-all")
"""words that ask for help"""
SLIPS = {
    "lambda": "--real-loss guard:weight=VALUE",
    "weight": "--real-loss guard:weight=VALUE",
    "h": "--real-loss guard:h=VALUE",
    "dataset": "the data set as the second word: bash run.sh METHOD DATASET",
    "method": "the method as the first word: bash run.sh METHOD DATASET",
    "model": "--backbone",
    "net": "--backbone",
    "arch": "--backbone",
    "gpu": "--device cuda:N",
    "epsilon": "--eps",
    "attack": "--attacks",
    "data-path": "--data-dir",
    "save-path": "--runs",
    "iteration": "--iterations",
    "num-eval": "--students",
    "num-exp": "one run for each --seed",
    "wandb": "--track wandb",
    "epoch-eval-train": "--student.epochs",
    "dsa-strategy": "--augment",
    "dis-metric": "--distance",
    "images-per-class": "--ipc",
}
"""flags that people write out of habit, those of DC's code among them -> what they are called here"""


def peek(flags: list[str], *names: str) -> dict[str, str | None]:
    """Return the raw values of flags on which the defaults of other flags depend; None for absent flags."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(name, nargs="?")
    found, _ = parser.parse_known_args(flags)
    return {name: getattr(found, name.strip("-").replace("-", "_")) for name in names}


def whole_number(flag: str, text: str, least: int) -> int:
    """Return a flag's value as an integer.

    Raises:
        InputError: the value is not a whole number, or is below `least`.
    """
    if not re.fullmatch(r"-?\d{1,9}", text) or int(text) < least:
        raise InputError(f"{flag} is {one_line(text, 40)}; it takes a whole number >= {least}")
    return int(text)


def picture_named(path: Path | None) -> Path | None:
    """Return the PNG that --plot names by itself or by its SVG; None without the flag.

    Raises:
        InputError: the file has another ending.

    >>> picture_named(Path("a/eps.svg")).as_posix()
    'a/eps.png'
    """
    if path is not None and path.suffix not in (".png", ".svg"):
        raise InputError(f"--plot is {path}; it takes a file that ends in .png or .svg")
    return path and path.with_suffix(".png")


def find_device(name: str) -> torch.device:
    """Return the device with this name.

    Raises:
        InputError: the device does not work on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and launched():
        name = f"cuda:{local_rank()}"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device '{name}' does not work here ({str(error).splitlines()[0]}); use cpu or auto"
        ) from None
    return torch.device(name)


def flags_of(settings: Any, prefix: str = "--") -> list[str]:
    """Return flags equivalent to a dataclass whose fields are numbers, texts, None, losses, or such dataclasses.

    >>> from distill.training.students import Training
    >>> flags_of(Training(epochs=20), "--student.")[:4]
    ['--student.epochs', '20', '--student.lr', '0.01']
    """
    words: list[str] = []
    for field in fields(settings):
        name, value = f"{prefix}{field.name.replace('_', '-')}", getattr(settings, field.name)
        if isinstance(value, Loss):
            words += [name, written(value, "inputs")]
        elif is_dataclass(value):
            words += flags_of(value, f"{name}.")
        elif value != "":
            words += [name, str(value)]
    return words


def parse(
    kind: type[T],
    default: T,
    flags: list[str],
    program: str,
    rules: ConstructorRegistry | None = None,
    description: str | None = None,
) -> T:
    """Return a default command with the flags applied.

    Args:
        kind: the class of the command.
        default: the command without flags.
        flags: the command-line words.
        program: name of the program in messages, "bash run.sh NAME".
        rules: how tyro reads fields of types that it does not know.
        description: first lines of --help; None for the docstring of `kind`.

    Raises:
        InputError: a flag is wrong; the message of tyro, as one line.
        SystemExit: after --help or --help-all.
    """
    refuse_fields_as_flags(flags)
    message, config = io.StringIO(), (tyro.conf.AvoidSubcommands,)
    how = {"default": default, "config": config, "registry": rules, "prog": program, "description": description}
    if "--help-all" in flags:
        flags = ["--help"]
    elif ("--help" in flags or "-h" in flags) and len([*flags_of_command(default)]) > MANY:
        print(short_help(default, program, description or (kind.__doc__ or "").split("\n")[0]), end="")
        raise SystemExit(0)
    try:
        with redirect_stderr(message):
            return tyro.cli(kind, args=flags, **how)
    except ValueError as error:  # a field refuses its value
        raise InputError(_shortened(str(error))) from None
    except OverflowError:
        raise InputError(f"a number is too large. See {program} --help") from None
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        text = message.getvalue().split("For full helptext")[0]  # a title, then the text in a frame
        lines = [line.strip("│ ") for line in text.splitlines()[1:] if line.strip("│─- ")]
        message_of_tyro = _shortened(" ".join(" ".join(lines).split()))
        raise InputError(f"{_with_names_here(message_of_tyro)}; see {program} --help") from None


def _with_names_here(message: str) -> str:
    """Return a message about an unknown flag with what the flag is called here, where SLIPS has it.

    >>> _with_names_here("Unrecognized options: --lambda, 3; did you mean --damaged")
    'Unrecognized options: --lambda, 3; write --real-loss guard:weight=VALUE'
    """
    found = re.match(r"(Unrecognized options: --([\w-]+)[^;]*)", message)
    name = found[2].replace("_", "-").lower() if found else ""
    return f"{found[1]}; write {SLIPS[name]}" if found and name in SLIPS else message


def _shortened(text: str) -> str:
    """Return tyro's message about wrong flags without field paths and without the help of proposed flags.

    >>> _shortened("Unrecognized options: --lr Perhaps you meant: --lr-img FLOAT of images --lr-net FLOAT of nets")
    'Unrecognized options: --lr; did you mean --lr-img, --lr-net'
    >>> _shortened("Error parsing experiment.evaluation.student: batch_size is 0; it must be >= 1")
    '--student.batch-size is 0; it must be >= 1'
    >>> _shortened("Error parsing judgement.evaluation.student: epochs is 0; it must be >= 1")
    '--student.epochs is 0; it must be >= 1'
    >>> _shortened("Error parsing ----real-loss: unknown loss 'gaurd' Argument helptext: --real-loss NAME ...")
    "--real-loss: unknown loss 'gaurd'"
    """
    parts = re.match(r"(?:Error parsing ([\w.-]+): )?(.*)", text, re.DOTALL)
    assert parts is not None  # the pattern matches every text
    group, text = parts.groups()
    if group and group.startswith("--"):  # a value that the flag's type refuses
        return f"--{group.strip('-')}: {text.partition(' Argument helptext: ')[0]}"
    group = re.sub(r"^(experiment|judgement)(\.evaluation|\.config)?\.?|^[A-Z]\w*", "", group or "")
    field = re.match(r"([a-z][a-z0-9_]*) is ", text)
    if field:
        flag = ".".join(filter(None, (group, field[1]))).replace("_", "-")
        text = f"--{flag} is {text[field.end() :]}"
    elif group:
        text = f"--{group}: {text}"
    text, proposed, options = text.rstrip(".").partition(" Perhaps you meant: ")
    if not proposed:
        return text
    names = dict.fromkeys(re.findall(r"(?:^| )(--[a-z.-]+) [A-Z{]", options))
    return f"{text}; did you mean {', '.join(list(names)[:5])}" if names else text
