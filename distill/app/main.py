"""The command line: finds the command, runs it, and turns every error into one line and an exit code."""

import importlib
import pkgutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated

import torch
import tyro

from distill.app.benchmark import run_benchmark
from distill.app.compare import run_compare
from distill.app.curvature import run_curvature
from distill.app.estimate import estimate, human
from distill.app.evaluate import digest_of, run_evaluate
from distill.app.export import EXPORTS, run_export
from distill.app.flags import find_device, parse, peek, whole_number
from distill.app.start import RunOptions, check_before_running, identity_of, real_data, spare_threads
from distill.app.table import run_table
from distill.data import DATASETS, ImageSet
from distill.distilled import DistilledSet
from distill.errors import InputError, one_line, unknown
from distill.evaluation.columns import SPECIAL
from distill.evaluation.evaluate import evaluate
from distill.evaluation.results import missing
from distill.experiment import Experiment, Recipe
from distill.models import BACKBONES
from distill.published.reading import Reading
from distill.reports.outcome import finish, show
from distill.reports.tables import FORMATS, save_grid
from distill.runs.launch import INTERRUPTED
from distill.runs.ranks import (
    barrier,
    become_launcher,
    check_processes,
    claim_error_report,
    failed_elsewhere,
    is_main_process,
    launched,
    process_group,
    reports_to_user,
    requested_processes,
    world_size,
)
from distill.runs.run import Run, locked
from distill.training.augment import STRATEGIES
from distill.training.method_training import MethodTraining
from distill.training.protocol import selected_protocol
from robust import ATTACKS, LOSSES, THREATS

PACKAGES = ("distill.methods", "sre2l", "baselines")
"""Where methods live; their folders are the registry."""

USAGE = """\
Robust dataset distillation: make a few images per class on which networks train well and withstand attacks.

  bash run.sh METHOD DATASET [--flags]  distil, train students on the result, attack them, print and save the table
  bash run.sh guard_dc digits           a first run: real data that needs no download, minutes on a laptop
  bash run.sh evaluate PATH [--flags]   students and attacks for a distilled set: its file, the folder of its run, or
                                        what other code published (with --dataset; docs/published.md)
  bash run.sh export PATH --to FORMAT   a distilled set for other code: {exports}
  bash run.sh benchmark [--flags]       the paper's tables: what of them is missing is run, beside the paper's numbers
  bash run.sh compare A... --against B...   two sides of runs (seeds) on the same test images: differences, p-values
  bash run.sh curvature RUN             how curved the loss of its students is, the paper's bound, and plots of it
  bash run.sh table [RUNS ...]          all finished runs as one table: --format {formats}
  bash run.sh list                      methods, data sets, backbones, attacks, losses, recipes
  bash run.sh test                      the test suite
  bash run.sh bench [NAME ...]          how fast it is, as ratios against the textbook form

  METHOD   {methods}
  DATASET  {datasets}

`bash run.sh METHOD DATASET --help` shows every flag with its default. The same command again continues an interrupted
run, and prints the table of a finished one. Exit codes: 0 done, 1 a fault of ours, 2 bad input or
missing data, 130 interrupted.
"""


@dataclass(frozen=True)
class MethodCommand:
    """Everything that `bash run.sh METHOD DATASET` takes."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    place: Annotated[RunOptions, tyro.conf.arg(name="")]


def main(arguments: list[str]) -> int:
    """Run one command line; return the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _silent_threads():
        return _main(arguments)


def _main(arguments: list[str]) -> int:
    try:
        _refuse_unreadable(arguments)
        return command(arguments)
    except InputError as error:
        if claim_error_report():
            print(one_line(f"run.sh: {error}"), file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a table went away
        sys.stdout = None
        return 0
    except OSError as error:  # of a file or a folder, as a rule: what it is, and why it is of no use
        place = f"cannot use {error.filename}: " if error.filename else ""
        print(one_line(f"run.sh: {place}{error.strerror or error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if failed_elsewhere():
            return 2
        if reports_to_user():
            print(INTERRUPTED, file=sys.stderr)
        return 130
    except Exception as error:
        if failed_elsewhere():  # another process ended in the middle of what they share
            return 2
        if not _is_out_of_memory(error):
            raise
        advice = "take a smaller batch, network or image size"
        print(one_line(f"run.sh: out of memory ({one_line(error, 120)}); {advice}"), file=sys.stderr)
        return 2


@contextmanager
def _silent_threads() -> Iterator[None]:
    """Print no traceback of a thread that cannot write: TensorBoard's raises the same error where it is used next."""
    before = threading.excepthook
    threading.excepthook = lambda given: None if isinstance(given.exc_value, OSError) else before(given)
    try:
        yield
    finally:
        threading.excepthook = before


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out: torch has an error of its own for GPUs alone."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _refuse_unreadable(arguments: list[str]) -> None:
    """Refuse what no file or flag can have in its name, and a place that has gone."""
    for text in arguments:
        if "\0" in text or text != text.encode(errors="replace").decode():
            raise InputError(f"{text!r} is no valid text: it has a NUL or bytes that are no UTF-8")
    try:
        Path.cwd()
    except OSError:
        raise InputError("the current folder was deleted; change to another") from None


def command(arguments: list[str]) -> int:
    """Find the command and run it; return the exit code.

    Returns:
        0 where it was done.

    Raises:
        InputError: an unknown one.
    """
    methods = find_methods()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        names = {"methods": methods, "datasets": DATASETS, "formats": FORMATS, "exports": EXPORTS}
        print(USAGE.format(**{kind: ", ".join(known) for kind, known in names.items()}), end="")
        return 0
    word, rest = arguments[0], arguments[1:]
    protocols = {name: module.protocol for name, module in methods.items() if hasattr(module, "protocol")}
    others = {
        "evaluate": partial(run_evaluate, protocols=protocols, read=read_published),
        "export": run_export,
        "benchmark": partial(
            run_benchmark,
            methods=methods,
            default=[name for name, module in methods.items() if not module.__name__.startswith("sre2l.")],
            resolve_flags=lambda method, dataset, flags: resolve_flags(method, dataset, methods[method], flags),
        ),
        "compare": run_compare,
        "curvature": run_curvature,
        "table": run_table,
        "list": run_list,
    }
    if word in others:
        return others[word](rest)
    if word not in methods:
        raise unknown("method", word, [*methods, *others, "test", "bench"])
    if not rest or rest[0] in ("-h", "--help"):
        print(f"usage: bash run.sh {word} DATASET [--flags]; DATASET is one of {', '.join(DATASETS)}")
        return 0 if rest else 2
    if rest[0] not in DATASETS:
        raise unknown("data set", rest[0], DATASETS)
    return run_method(word, rest[0], methods[word], rest[1:])


def find_methods() -> dict[str, ModuleType]:
    """Return the methods found in PACKAGES, by name."""
    found = {}
    for package in map(importlib.import_module, PACKAGES):
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(info.name)
            found |= dict.fromkeys(getattr(module, "RECIPES", {}), module)
    return found


# --- bash run.sh METHOD DATASET ------------------------------------------------------------------------------------


def resolve_flags(method: str, dataset: str, module: ModuleType, flags: list[str]) -> tuple[Experiment, RunOptions]:
    """Return what the flags ask for, on top of the recipe.

    Raises:
        InputError: a flag is unknown, or a value out of range.
    """
    early = peek(flags, "--ipc", "--recipe", "--device")
    recipes = module.RECIPES[method]
    device = find_device(early["--device"] or "auto")
    name = early["--recipe"] or ("quick" if device.type == "cpu" else "paper")
    if name not in recipes:
        raise unknown("recipe", name, recipes)
    ipc = whole_number("--ipc", early["--ipc"] or "1", least=1)
    recipe = recipes[name](dataset, ipc)
    experiment = Experiment(method, dataset, recipe.config, recipe.evaluation, name, ipc)
    default = MethodCommand(experiment, RunOptions())
    command = parse(MethodCommand, default, flags, f"bash run.sh {method} {dataset}")
    return command.experiment, command.place


def run_method(method: str, dataset: str, module: ModuleType, flags: list[str]) -> int:
    """Distil, judge, report."""
    experiment, place = resolve_flags(method, dataset, module, flags)
    device = find_device(place.device)
    own = selected_protocol(experiment.evaluation.protocol, method, getattr(module, "protocol", None))
    processes = world_size() if launched() else requested_processes()
    if (processes > 1 or launched()) and not hasattr(module, "PARALLEL"):
        raise InputError(f"{method} runs in one process; NPROC and torchrun are for methods of sre2l")
    if not launched():
        check_processes(processes, device)
    with process_group(device):
        where = (dataset, place.data_dir, experiment.image_size, experiment.split, place.damaged)
        train, test = real_data(*where)
        data = experiment.data_name(place.data_dir)
        options = {"device": device, "checkpoint_seconds": place.checkpoint_seconds, "workers": place.workers}
        options |= {"stages": place.runs / "stages", "data": identity_of(train, test)}
        run = Run(place.runs / experiment.folder(place.data_dir), experiment, seed=experiment.seed, **options)
        channels, size, _ = test.image_shape
        labels = {"method": method, "dataset": data, "ipc": experiment.ipc, "seed": experiment.seed}
        labels |= {"backbone": experiment.config.backbone, "loss": experiment.evaluation.how}
        labels |= {"recipe": experiment.recipe, "config": run.config_hash()}
        absent = missing(run.folder, experiment.evaluation, channels, size, labels)
        if absent == []:
            print(f"finished already in {run.folder}", file=sys.stderr)
            return show(run.folder)
        train, test = train.to(device), test.to(device)
        spare_threads(train, device)
        smallest = int(train.labels.bincount(minlength=train.num_classes).min())
        if experiment.ipc > smallest and not hasattr(module, "ANY_IPC"):
            raise InputError(f"ipc is {experiment.ipc}; the smallest class of {train.name} has {smallest} images")
        backbone = experiment.config.backbone
        check_before_running(backbone, experiment.evaluation, train)
        path = run.folder / "distilled.safetensors"
        distils = not path.exists() or (hasattr(module, "lacks") and module.lacks(path))
        if distils and hasattr(module, "check"):
            module.check(train, experiment.ipc, experiment.config, processes)
        if absent:
            run.notify(f"{run.folder} has its students: they are evaluated under {', '.join(absent)} too")
        else:
            quick = peek(flags, "--recipe")["--recipe"] is None
            announce(quick, experiment, data, module, train, len(test), device)
        if processes > 1 and not launched():  # all that can be refused was
            become_launcher(processes, [method, dataset, *flags])

        with locked(run.begin(attacks=experiment.evaluation.attacks).folder):
            if distils:
                distilled = module.distill(train, experiment.ipc, experiment.config, run)
                if is_main_process():
                    made = {"config": run.config_hash(evaluation=None), "run": run.fingerprint(evaluation=None)}
                    replace(distilled, method=method, **made).save(path)
            barrier()
            distilled = DistilledSet.load(path).to(device)
            if distilled.run not in ("", run.fingerprint(evaluation=None)):
                raise InputError(f"{path} belongs to another run; move it away, and the same command makes this run's")
            run.finish()
            if is_main_process():
                save_grid(distilled, run.folder / "grid.png")
            labels["set"] = digest_of(path)[:16]
            protocol = own and own(distilled, run.folder, run)
            rows = evaluate(distilled, train, test, experiment.evaluation, backbone, run, labels, protocol)
            return finish(rows, run.folder) if is_main_process() else 0


def announce(
    chosen_here: bool,
    experiment: Experiment,
    data: str,
    module: ModuleType,
    train: ImageSet,
    tests: int,
    device: torch.device,
) -> None:
    """Say which recipe runs, and on a CPU how long it and the other will take."""
    if not reports_to_user():
        return
    text = f"{experiment.method} on {data}, ipc {experiment.ipc}, recipe {experiment.recipe}"
    if device.type != "cpu":
        print(f"{text}, on {device}", file=sys.stderr)
        return

    def hours(recipe: Recipe) -> str:
        sizes = (train.image_shape, train.num_classes, len(train), tests)
        own = getattr(module, "student_work", None)
        ipc = round(len(train) / train.num_classes) if hasattr(module, "WHOLE") else experiment.ipc
        return human(estimate(recipe, module.work, ipc, *sizes, own))

    this = hours(Recipe(experiment.config, experiment.evaluation))
    if chosen_here:
        text = f"No GPU here: {text} (about {this})"
        with suppress(InputError):  # its network does not take images of this size
            paper = hours(module.RECIPES[experiment.method]["paper"](experiment.dataset, experiment.ipc))
            text = f"{text}; --recipe paper would take about {paper}"
    else:
        text = f"{text}: about {this} on this CPU"
    print(text, file=sys.stderr)


def read_published(
    path: Path, reading: Reading, real: Callable[[int], ImageSet], folder: Path, notify: Callable[[str], None]
) -> DistilledSet:
    """Read a published set (`distill.published.reading.Read`), and its teacher's labels where `--fkd` names them."""
    from distill.published.read import read  # slow to import, and needed by few commands

    distilled = read(path, reading, real, folder, notify)
    if reading.fkd is None:
        return distilled
    from distill.published.fkd import with_labels
    from sre2l.precision import Compute
    from sre2l.validate import Validate

    settings = MethodTraining(validate=dict(vars(Validate())), compute=dict(vars(Compute())))
    return with_labels(distilled, Path(reading.fkd), folder, notify, settings)


# --- the other commands ----------------------------------------------------------------------------------------------


def run_list(flags: list[str]) -> int:
    """Print every name that a flag takes.

    Returns:
        the exit code.

    Raises:
        InputError: it takes no words.
    """
    if flags and flags[0] not in ("-h", "--help"):
        raise InputError(f"list takes no words, but got {' '.join(flags)}")
    from distill.published.formats import SOURCES  # slow to import, and needed by few commands

    methods = find_methods()
    lines = {
        "methods": ", ".join(methods),
        "recipes": _recipes(methods),
        "data sets": ", ".join(DATASETS),
        "backbones": f"{', '.join(BACKBONES)}, any timm model; options after a colon: convnet:width=64,norm=batch",
        "losses": f"of students (--student.loss): {', '.join(LOSSES)}; "
        "fields after a colon, a threat behind @: trades:beta=3@2/255",
        "augmentations": f"a DSA strategy of {', '.join(STRATEGIES)} joined by _, one of DC's as in "
        "dc:crop_scale_rotate, or kornia:Name(...)+Name(...)",
        "attacks": "linf_star, linf, l2 (the paper's: PGD of 10 steps), "
        f"{', '.join((*ATTACKS, *SPECIAL))}; fields after a colon, a threat behind @: pgd:steps=50,restarts=5@8/255",
        "published": f"sets of other code that evaluate reads (--source): {', '.join(SOURCES)}",
        "exports": f"{', '.join(EXPORTS)}: formats that export writes",
        "threats": "pixels in [0, 1]; by name, or written: 8/255, l2:0.5",
    }
    for kind, names in lines.items():
        print(f"{kind:14s}{names}")
    for group, threats in THREATS.items():
        sizes = ", ".join(f"{name} {threat.norm} {threat.eps:.4g}" for name, threat in threats.items())
        print(f"{'':14s}  {group:9s}{sizes}")
    return 0


def _recipes(methods: dict[str, ModuleType]) -> str:
    """Return the names of all recipes; one that not every method has is followed by the methods that have it."""
    owners: dict[str, list[str]] = {}
    for method, module in methods.items():
        for name in module.RECIPES[method]:
            owners.setdefault(name, []).append(method)
    return ", ".join(
        name if len(having) == len(methods) else f"{name} ({', '.join(having)})" for name, having in owners.items()
    )
