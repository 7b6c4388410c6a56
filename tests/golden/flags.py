"""The list of all flags, which tests/golden/flags.txt stores: `python -m tests.golden.flags > tests/golden/flags.txt`.

A block for each command and each method (on CIFAR-10, recipe `paper`, one image per class), a line for each flag: name,
type, default. Flags that all methods share, with one default, stand once, in the block `METHOD DATASET`.
"""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

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
from distill.methods.flags import flags_of_command
from robust import Loss
from robust.losses.named import METAVAR, written

__all__ = ["COMMANDS", "listed", "method_command", "text"]

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


def listed(command: Any) -> Iterator[tuple[str, str, str]]:
    """Yield name, type and default of each flag of a command, a dataclass with its defaults."""
    for flag in flags_of_command(command):
        if isinstance(flag.value, Loss):
            yield flag.name, METAVAR, repr(written(flag.value, "inputs"))
        else:
            default = "required" if flag.value is tyro.MISSING else repr(_plain(flag.value))
            yield flag.name, _type(flag.hint), OF_MACHINE.get(flag.field, default)


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
    blocks = {name: list(listed(command)) for name, command in COMMANDS.items()}
    methods = {name: list(listed(method_command(name))) for name in find_methods()}
    first, *others = methods.values()
    shared = [flag for flag in first if all(flag in other for other in others)]
    blocks[SHARED] = shared
    for name, flags in methods.items():
        blocks[f"{name} cifar10 --recipe paper"] = [flag for flag in flags if flag not in shared]
    return "\n".join("\n    ".join([name, *map("  ".join, flags)]) + "\n" for name, flags in blocks.items())


if __name__ == "__main__":
    print(text(), end="")
