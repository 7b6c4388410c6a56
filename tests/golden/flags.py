"""The list of all flags, which tests/golden/flags.txt stores: `python -m tests.golden.flags > tests/golden/flags.txt`.

A block for each command and each method (on CIFAR-10, recipe `paper`, one image per class), a line for each flag: name,
type, default. Flags that all methods share, with one default, stand once, in the block `METHOD DATASET`.
"""

import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from baselines.robust_labels.labels import RobustLabels
from distill.app.benchmark import BenchmarkCommand
from distill.app.compare import CompareCommand
from distill.app.curvature import CurvatureCommand
from distill.app.distil import MethodCommand
from distill.app.evaluate import EvaluateCommand, Judgement
from distill.app.export import ExportCommand
from distill.app.frontier_cells import FrontierCommand
from distill.app.registry import find_methods
from distill.app.relabel import RelabelCommand
from distill.app.report import ReportCommand
from distill.app.rerun import RerunCommand
from distill.app.start import RunOptions
from distill.app.table import TableCommand
from distill.data import FACTS
from distill.experiment import Evaluation, Experiment
from robust import Loss
from robust.losses.named import METAVAR, written

__all__ = ["COMMANDS", "flags_of_command", "method_command", "text"]

COMMANDS = {
    "evaluate PATH": EvaluateCommand(Judgement("", "cifar10", "convnet", Evaluation(50), "paper"), RunOptions()),
    "export": ExportCommand(tyro.MISSING, tyro.MISSING),
    "benchmark": BenchmarkCommand(),
    "frontier": FrontierCommand(tyro.MISSING),
    "compare": CompareCommand(),
    "curvature": CurvatureCommand(tyro.MISSING),
    "report": ReportCommand(),
    "table": TableCommand(),
    "relabel PATH": RelabelCommand(RobustLabels()),
    "rerun": RerunCommand(tyro.MISSING),
}
"""the defaults of every command that has flags"""
OF_MACHINE = {"data_dir": "DATA_DIR or data", "workers": "the number of cores, at most 8"}
"""defaults that another machine or another environment has otherwise"""
SHARED = "METHOD DATASET"


def method_command(name: str) -> MethodCommand:
    """Return the defaults of a method on CIFAR-10, recipe `paper`, one image per class."""
    recipe = find_methods()[name].recipes["paper"](FACTS["cifar10"], 1)
    return MethodCommand(Experiment(name, "cifar10", recipe.config, recipe.evaluation), RunOptions())


def flags_of_command(command: Any, prefix: str = "--") -> Iterator[tuple[str, str, str]]:
    """Yield name, type and default of each flag of a command, nested dataclasses included.

    Args:
        command: a dataclass with its defaults.
        prefix: of the flags' names.
    """
    hints = get_type_hints(type(command), include_extras=True)
    for field in fields(command):
        hint, value = hints[field.name], getattr(command, field.name)
        marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        if tyro.conf.Suppress in marks:
            continue
        nameless = any(getattr(mark, "name", None) == "" for mark in marks)
        name = f"{prefix}{field.name.replace('_', '-')}"
        if isinstance(value, Loss):
            yield name, METAVAR, repr(written(value, "inputs"))
        elif is_dataclass(value):
            yield from flags_of_command(value, prefix if nameless else f"{name}.")
        else:
            shown = OF_MACHINE.get(field.name, "required" if value is tyro.MISSING else repr(_plain(value)))
            yield field.name.upper() if tyro.conf.Positional in marks else name, _type(hint), shown


def _plain(value: Any) -> Any:
    """Return a value whose repr is the same on every system."""
    if isinstance(value, Path):
        return value.as_posix()
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def _type(hint: Any) -> str:
    """Return a type as the list writes it: int, float|None, {noise,real}, tuple[Path, ...]."""
    origin, parameters = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _type(parameters[0])
    if origin in (Union, types.UnionType):
        return "|".join(map(_type, parameters))
    if origin is Literal:
        return f"{{{','.join(map(str, parameters))}}}"
    if origin is tuple:
        return f"tuple[{', '.join(map(_type, parameters))}]"
    if hint is Ellipsis:
        return "..."
    return "None" if hint is types.NoneType else getattr(hint, "__name__", str(hint))


def text() -> str:
    """Return the whole list."""
    blocks = {name: list(flags_of_command(command)) for name, command in COMMANDS.items()}
    methods = {name: list(flags_of_command(method_command(name))) for name in find_methods()}
    first, *others = methods.values()
    shared = [flag for flag in first if all(flag in other for other in others)]
    blocks[SHARED] = shared
    for name, flags in methods.items():
        blocks[f"{name} cifar10 --recipe paper"] = [flag for flag in flags if flag not in shared]
    return "\n".join("\n    ".join([name, *map("  ".join, flags)]) + "\n" for name, flags in blocks.items())


if __name__ == "__main__":
    print(text(), end="")
