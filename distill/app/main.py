"""The command line: finds and runs the command; reports an error as one line and an exit code."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from distill.app.benchmark import run_benchmark
from distill.app.compare import run_compare
from distill.app.curvature import run_curvature
from distill.app.distil import run_method
from distill.app.evaluate import run_evaluate
from distill.app.exit_codes import exit_code_of
from distill.app.export import run_export
from distill.app.flags import HELP
from distill.app.frontier import run_frontier
from distill.app.listing import run_list, usage_of
from distill.app.published import read_published
from distill.app.registry import find_methods, method_named, protocols_of
from distill.app.relabel import run_relabel
from distill.app.report import run_report
from distill.app.rerun import run_rerun
from distill.app.table import run_table
from distill.data import DATASETS, check_dataset
from distill.errors import InputError, unknown
from distill.published.writers import EXPORTS
from distill.reports.tables import FORMATS
from distill.runs.launch import hear_signals
from distill.runs.version import NAME, commit, project_version

OF_THE_SHELL = ("test", "bench")
"""commands that `run.sh` runs itself"""
USAGE = """\
Robust dataset distillation: replace a large image set by a few synthetic images per class, so that networks trained
on them are accurate and resist adversarial attacks.

  bash run.sh METHOD DATASET [--flags]     distil, train students on the result, attack them, print and save the table
  bash run.sh guard_dc digits              a first example: real images, no download, a few minutes on a laptop
  bash run.sh evaluate PATH [--flags]      train students on a distilled set and attack them
  bash run.sh relabel PATH [--flags]       give a distilled set the labels of a robust teacher: --teacher pgd_at@4/255
  bash run.sh rerun RUN                    repeat a run from its experiment.json, in another folder (reruns/)
  bash run.sh export PATH --to FORMAT      write a distilled set for other code: {exports}
  bash run.sh benchmark [--flags]          reproduce the paper's tables; runs only the missing cells
  bash run.sh frontier DATASET [--flags]   methods at several strengths: robust accuracy at equal clean accuracy, figure
  bash run.sh compare A... --against B...  compare two groups of runs on the same test images: differences, p-values
  bash run.sh curvature RUN                measure the curvature of the students' loss and the paper's bound; plots
  bash run.sh report [RUN ...]             one HTML file of a run, of several, or of a frontier; opens from a mail
  bash run.sh table [RUNS ...]             print all finished runs as one table: --format {formats}
  bash run.sh list                         list methods, data sets, backbones, attacks, losses, recipes
  bash run.sh test                         run the test suite
  bash run.sh bench [NAME ...]             measure speed, as ratios to the textbook implementation
  bash run.sh --version                    print the versions of this program and of torch, and the commit

  METHOD   {methods}
  DATASET  {datasets}
  PATH     a distilled set: its file, the folder of its run, or a published set (with --dataset; docs/published.md)
  RUN      the folder of a run

`bash run.sh METHOD DATASET --help` shows the usual flags with their defaults, --help-all every flag.
A command uses all cores, or all GPUs; --processes N sets the number, on which no result depends.
Repeat a command to resume an interrupted run or to print the table of a finished run.
Exit codes: 0 done, 1 internal error, 2 bad input or missing data, 130 interrupted.
"""


def main(arguments: list[str]) -> int:
    """Run one command line; return the exit code."""
    hear_signals()

    def work() -> int:
        _refuse_unreadable(arguments)
        return command(arguments)

    with _silent_threads():
        return exit_code_of(work)


@contextmanager
def _silent_threads() -> Iterator[None]:
    """Hide tracebacks of threads that cannot write: TensorBoard raises the same error again at the next call."""
    before = threading.excepthook
    threading.excepthook = lambda failure: None if isinstance(failure.exc_value, OSError) else before(failure)
    try:
        yield
    finally:
        threading.excepthook = before


def _refuse_unreadable(arguments: list[str]) -> None:
    """Refuse arguments that no file or flag can be named, and a deleted current folder."""
    for text in arguments:
        if "\0" in text or text != text.encode(errors="replace").decode():
            raise InputError(f"{text!r} is not valid text: it contains a NUL or bytes that are not UTF-8")
    try:
        Path.cwd()
    except OSError:
        raise InputError("the current folder was deleted; change to another") from None


def command(arguments: list[str]) -> int:
    """Find the command and run it; return the exit code.

    Returns:
        0 on success.

    Raises:
        InputError: the command is unknown.
    """
    methods = find_methods()
    if not arguments or arguments[0] in (*HELP, "help"):
        names = {"methods": methods, "datasets": DATASETS, "formats": FORMATS, "exports": EXPORTS}
        print(USAGE.format(**{kind: ", ".join(known) for kind, known in names.items()}), end="")
        return 0
    if arguments == ["--version"]:
        print(f"{NAME} {project_version()}, torch {torch.__version__}, commit {commit() or 'unknown'}")
        return 0
    word, rest = arguments[0], arguments[1:]
    others = {
        "evaluate": partial(run_evaluate, protocols=protocols_of(methods), read=read_published),
        "relabel": partial(run_relabel, read=read_published),
        "export": run_export,
        "benchmark": partial(run_benchmark, methods=methods),
        "frontier": partial(run_frontier, methods=methods),
        "compare": run_compare,
        "curvature": run_curvature,
        "report": run_report,
        "table": run_table,
        "rerun": partial(run_rerun, methods=methods),
        "list": partial(run_list, methods=methods),
    }
    if word in others:
        return others[word](rest)
    method = method_named(word, methods)
    if word in OF_THE_SHELL:
        raise InputError(f"{word} is a command of run.sh alone: bash run.sh {word}")
    if method is None:
        raise unknown("method", word, [*methods, *others, *OF_THE_SHELL])
    if not rest or rest[0] in HELP:
        print(usage_of(method), end="")
        return 0 if rest else 2
    check_dataset(rest[0])
    return run_method(method, rest[0], rest[1:])
