"""`bash run.sh METHOD DATASET`: distil a data set, train students on the result, attack them, report."""

import re
import sys
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from distill.app.estimate import estimate
from distill.app.flags import find_device, parse, peek, whole_number
from distill.app.loss_flags import rules_of_losses
from distill.app.processes import number_of_processes, work_together
from distill.app.report import finish, show_and_send
from distill.app.start import RunOptions, check_before_running, check_data, check_student_flags, identity_of, real_data
from distill.data import Facts, ImageSet, facts_named, facts_of
from distill.distilled import DistilledSet, digest_of
from distill.errors import InputError, unknown
from distill.evaluation.evaluate import evaluate
from distill.evaluation.rows import RunDescription
from distill.experiment import Experiment, Recipe
from distill.methods.method import Method
from distill.reports.grid import save_grid
from distill.reports.outcome import missing_columns
from distill.reports.tracking import check_tracker
from distill.runs.locks import locked
from distill.runs.progress import human
from distill.runs.ranks import alone, barrier, is_main_process, reports_to_user, shows_progress
from distill.runs.run import Run
from distill.runs.threads import by_itself, one_thread
from distill.runs.version import project_version
from distill.training.protocol import selected_protocol

__all__ = ["MethodCommand", "resolve_flags", "run_experiment", "run_method"]


@dataclass(frozen=True)
class MethodCommand:
    """Everything that `bash run.sh METHOD DATASET` takes."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    place: Annotated[RunOptions, tyro.conf.arg(name="")]


def resolve_flags(method: Method, dataset: str, flags: list[str]) -> tuple[Experiment, RunOptions]:
    """Return the experiment and the run options: the flags applied to the recipe for the data set and image size.

    Raises:
        InputError: a flag is unknown, or a value out of range.
    """
    early = peek(flags, "--ipc", "--recipe", "--device", "--data-dir", "--image-size")
    recipes = method.recipes
    device = find_device(early["--device"] or "auto")
    name = early["--recipe"] or ("quick" if device.type == "cpu" else "paper")
    if name not in recipes:
        raise unknown("recipe", name, recipes)
    ipc = whole_number("--ipc", early["--ipc"] or "1", least=1)
    facts = facts_from(dataset, early["--data-dir"], early["--image-size"])
    recipe = recipes[name](facts, ipc)
    experiment = Experiment(method.name, dataset, recipe.config, recipe.evaluation, name, ipc)
    default = MethodCommand(experiment, RunOptions())
    program = f"bash run.sh {method.name} {dataset}"
    description = f"{method.name}: {method.summary} ({method.paper}; docs/methods/{method.page}.md)"
    command = parse(MethodCommand, default, flags, program, rules_of_losses(facts.threats), description)
    check_student_flags(command.experiment.evaluation, recipe.evaluation)
    return command.experiment, command.place


def facts_from(dataset: str, data_dir: str | None, image_size: str | None) -> Facts:
    """Return the facts of a data set, from the raw values of two flags.

    An invalid value counts as absent, and a missing folder as a typical data set. The error is raised later, when the
    flags are checked and the data are loaded; --help needs neither.
    """
    size = int(image_size) if image_size is not None and re.fullmatch(r"[1-9]\d{0,3}", image_size) else None
    try:
        return facts_of(dataset, RunOptions.data_dir if data_dir is None else Path(data_dir), size)
    except (InputError, OSError, ValueError, RuntimeError):  # RuntimeError: no home folder for ~
        return facts_named(dataset).resized(size)


def run_method(method: Method, dataset: str, flags: list[str]) -> int:
    """Distil, evaluate, report."""
    experiment, options = resolve_flags(method, dataset, flags)
    default_recipe = peek(flags, "--recipe")["--recipe"] is None
    return run_experiment(method, experiment, options, [method.name, dataset, *flags], default_recipe=default_recipe)


def run_experiment(
    method: Method,
    experiment: Experiment,
    options: RunOptions,
    words: list[str],
    *,
    default_recipe: bool = False,
    recorded: dict[str, Any] | None = None,
) -> int:
    """Distil, evaluate, report: one run whose settings are complete.

    Args:
        method: the experiment's method.
        experiment: everything on which the result depends.
        options: folders of data and runs, and how data are read.
        words: the command line, with which further processes of the same run are started.
        default_recipe: whether no flag names the recipe; then a message mentions the other recipe.
        recorded: required identity of the data (`identity_of`); None for any data.

    Returns:
        the exit code.

    Raises:
        InputError: bad input, missing data, or data that are not the recorded ones.
    """
    check_tracker(options.track)
    device, dataset = find_device(options.device), experiment.dataset
    authors_protocol = selected_protocol(experiment.evaluation.protocol, method.name, method.protocol)
    processes, requested = number_of_processes(options, device)
    one_thread(device)
    where = (dataset, options.data_dir, experiment.image_size, experiment.split, options.damaged)
    train, test = real_data(*where, experiment.blur)
    data, identity = experiment.data_name(options.data_dir), identity_of(train, test)
    check_data(recorded, identity)
    run_settings = {"device": device, "checkpoint_seconds": options.checkpoint_seconds, "workers": options.workers}
    run_settings |= {"stages": options.stages or options.runs / "stages", "data": identity}
    run = Run(options.runs / experiment.folder(options.data_dir), experiment, seed=experiment.seed, **run_settings)
    channels, size, _ = test.image_shape
    description = RunDescription(
        method=method.name,
        dataset=data,
        ipc=experiment.ipc,
        seed=experiment.seed,
        backbone=experiment.config.backbone,
        loss=experiment.evaluation.how,
        recipe=experiment.recipe,
        config=run.config_hash(),
    )
    absent = missing_columns(run.folder, experiment.evaluation, channels, size, description)
    if absent == []:
        if shows_progress():
            print(f"finished already in {run.folder}", file=sys.stderr)
            show_and_send(run.folder, options.track)
        return 0
    train, test = train.to(device), test.to(device)
    smallest = int(train.labels.bincount(minlength=train.num_classes).min())
    if experiment.ipc > smallest and not method.more_than_class:
        raise InputError(f"ipc is {experiment.ipc}; the smallest class of {train.name} has {smallest} images")
    backbone = experiment.config.backbone
    check_before_running(backbone, experiment.evaluation, train)
    path = run.folder / "distilled.safetensors"
    distils = not path.exists() or (method.incomplete is not None and method.incomplete(path))
    divided = method.processes == "divided" or (method.processes == "averaged" and requested and processes > 1)
    if distils and method.check is not None:
        method.check(train, experiment.ipc, experiment.config, processes if divided else 1)
    if absent:
        run.notify(f"{run.folder} has trained students: they are evaluated under {', '.join(absent)} too")
    else:
        how = {"divided": divided, "default_recipe": default_recipe}
        announce(method, experiment, options, train, len(test), processes, **how)

    def work() -> int:
        with locked(run.begin(**experiment.evaluation.columns).folder):
            if distils and (divided or is_main_process()):
                with nullcontext() if divided else by_itself(size, device):
                    distilled = method.distill(train, experiment.ipc, experiment.config, run)
                if is_main_process():
                    made = {"config": run.config_hash(evaluation=None), "run": run.fingerprint(evaluation=None)}
                    replace(distilled, method=method.name, version=project_version(), **made).save(path)
            barrier()
            distilled = DistilledSet.load(path).to(device)
            if distilled.run not in ("", run.fingerprint(evaluation=None)):
                raise InputError(f"{path} belongs to another run; move it away and repeat the command")
            run.finish()
            if is_main_process():
                save_grid(distilled, run.folder / "grid.png")
            described = replace(description, set=digest_of(path)[:16])
            protocol = authors_protocol and authors_protocol(distilled, run.folder, run)
            how = {"own": protocol, "averaged": requested and processes > 1}
            rows = evaluate(distilled, train, test, experiment.evaluation, backbone, run, described, **how)
            return finish(rows, run.folder, options.track) if is_main_process() else 0

    return work_together(processes, device, words, work)


def announce(
    method: Method,
    experiment: Experiment,
    options: RunOptions,
    train: ImageSet,
    tests: int,
    processes: int,
    *,
    divided: bool,
    default_recipe: bool,
) -> None:
    """Print the recipe and, on a CPU, the estimated time of this recipe and of the paper's.

    For a data set that no paper has, also print the facts from which the recipe is derived; for a method that distils
    in one process of several, also print why.
    """
    if not reports_to_user():
        return
    device, facts = find_device(options.device), facts_of(experiment.dataset, options.data_dir, experiment.image_size)
    text = f"{experiment.method} on {experiment.data_name(options.data_dir)}, ipc {experiment.ipc}, recipe "
    text += experiment.recipe + (f", {processes} processes" if processes > 1 else "")
    note = ""
    if facts.derived:
        numbers = f"{facts.classes} classes, {facts.channels}x{facts.size}x{facts.size}, {facts.examples:,} images"
        note = f"\nThe recipe is derived from the data ({numbers}): no paper has this data set"
    if processes > 1 and method.why_one:
        note += f"\n{method.name} distils in one process ({method.why_one}); all processes train and attack students"
    if device.type != "cpu":
        print(f"{text}, on {device}{note}", file=sys.stderr)
        return

    def hours(recipe: Recipe) -> str:
        sizes = (train.image_shape, train.num_classes, len(train), tests)
        ipc = round(len(train) / train.num_classes) if method.whole_class else experiment.ipc
        distils = min(processes, train.num_classes) if divided else 1
        how = nullcontext if divided else partial(by_itself, train.image_shape[1], device)
        own = {"student_work": method.student_work, "distils": distils, "evaluates": processes, "by_itself": how}
        with alone():  # under torchrun only this process estimates
            return human(estimate(recipe, method.work, ipc, *sizes, **own))

    this = hours(Recipe(experiment.config, experiment.evaluation))
    if default_recipe:
        text = f"No GPU here: {text} (about {this})"
        with suppress(InputError):  # the network of recipe `paper` may not accept images of this size
            paper = hours(method.recipes["paper"](facts, experiment.ipc))
            text = f"{text}; --recipe paper would take about {paper}"
    else:
        text = f"{text}: about {this} on this CPU"
    print(f"{text}{note}", file=sys.stderr)
