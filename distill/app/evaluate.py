"""`bash run.sh evaluate PATH`: train students on an existing distilled set and attack them."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from distill.app.estimate import estimate_students
from distill.app.flags import HELP, find_device, parse, peek
from distill.app.processes import number_of_processes, work_together
from distill.app.published import imported
from distill.app.registry import check_packages
from distill.app.report import finish, show_and_send
from distill.app.start import (
    RunOptions,
    check_before_running,
    check_data,
    check_student_flags,
    identity_of,
    real_data_at,
)
from distill.data import DATASETS, check_dataset, label
from distill.distilled import DistilledSet, digest_of
from distill.errors import InputError
from distill.evaluation.classes import check
from distill.evaluation.evaluate import evaluate
from distill.evaluation.row_files import find_rows
from distill.evaluation.rows import RunDescription
from distill.experiment import Evaluation
from distill.phrases import counted
from distill.published.reading import Read, Reading, is_ours
from distill.reports.outcome import missing_columns
from distill.reports.tables import render
from distill.reports.tracking import check_tracker
from distill.runs.foreign import reachable
from distill.runs.locks import locked
from distill.runs.progress import human
from distill.runs.ranks import alone, is_main_process, reports_to_user
from distill.runs.run import Run
from distill.runs.threads import one_thread
from distill.training.protocol import ProtocolOf, selected_protocol
from robust.ranges import Whole, check_ranges
from sre2l.pipeline import protocol as of_stored_labels

PROGRAM = "bash run.sh evaluate PATH"
__all__ = ["Judgement", "folder_of", "run_evaluate", "run_judgements"]


@dataclass(frozen=True)
class Judgement:
    """The settings of a run of `bash run.sh evaluate PATH`. The name of this class is in experiment.json."""

    distilled: Annotated[str, tyro.conf.Suppress]
    """sha256 of the distilled set's file"""
    dataset: str
    """real data set to evaluate on"""
    backbone: str
    """network of the students"""
    evaluation: Annotated[Evaluation, tyro.conf.arg(name="")]
    """students and attacks"""
    recipe: Literal["paper", "quick", "smoke"]
    """numbers of students and of test images: paper 50 and all, quick and smoke 3 and 2,000"""
    seed: Whole = 0
    """seed of students and attacks"""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class EvaluateCommand:
    """Train students on a distilled set, ours or a published one, and attack them."""

    judgement: Annotated[Judgement, tyro.conf.arg(name="")]
    place: Annotated[RunOptions, tyro.conf.arg(name="")]
    packages: str = ""
    """other packages that may be imported if the set names one of their objects, separated by commas"""
    backbones: str = ""
    """several networks instead of --backbone, each with a row of the table: convnet,alexnet,vgg11,resnet18"""
    reading: Annotated[Reading, tyro.conf.arg(name="")] = field(default_factory=Reading)
    """how a published set is read"""


def run_evaluate(flags: list[str], protocols: Mapping[str, ProtocolOf], read: Read) -> int:
    """Train students on an existing distilled set and attack them.

    Args:
        flags: the command-line words after `evaluate`.
        protocols: method -> the authors' protocol for training students.
        read: reader of published sets.

    Returns:
        the exit code.

    Raises:
        InputError: the path is missing or is not a distilled set, the method has no authors' protocol, or a network or
            an attack is unknown.
    """
    helping = flags[:1] and flags[0] in HELP
    if not flags or (flags[0].startswith("-") and not helping):
        raise InputError(
            "evaluate takes a path first: distilled.safetensors, the folder of its run, or a published set"
        )
    if helping:
        default = EvaluateCommand(_default(flags, "", DATASETS[0], "convnet"), RunOptions())
        parse(EvaluateCommand, default, flags, PROGRAM)  # prints the help and exits
        return 0
    path = reachable(Path(flags[0]))
    path = _published(path, flags[1:], read) or path
    distilled = DistilledSet.load(path)
    file = path / "distilled.safetensors" if path.is_dir() else path
    digest = digest_of(file)
    default = EvaluateCommand(_default(flags, digest, distilled.dataset, distilled.backbone), RunOptions())
    command = parse(EvaluateCommand, default, flags[1:], PROGRAM)
    judgement = command.judgement
    check_student_flags(judgement.evaluation, default.judgement.evaluation)
    check_packages(path, [judgement.dataset, judgement.backbone], flags)
    check_dataset(judgement.dataset)
    judgements = [replace(judgement, backbone=each) for each in _several(command.backbones) or [judgement.backbone]]
    if distilled.training.labels and peek(flags, "--protocol")["--protocol"] is None and reports_to_user():
        print(
            "the set has a teacher's labels of views for students of --protocol own; these train on one label an image",
            file=sys.stderr,
        )
    return run_judgements(path, judgements, command.place, protocols, ["evaluate", *flags])


def run_judgements(
    path: Path,
    judgements: Sequence[Judgement],
    options: RunOptions,
    protocols: Mapping[str, ProtocolOf],
    words: list[str],
    recorded: dict[str, Any] | None = None,
) -> int:
    """Evaluate a distilled set of this program; all settings are complete.

    Args:
        path: the file of the set, or the folder of the file.
        judgements: settings of the evaluations, which differ only in the students' network.
        options: folders of data and runs, and how data are read.
        protocols: method -> the authors' protocol for training students.
        words: the command line, with which further processes of the same run are started.
        recorded: required identity of the data (`identity_of`); None for any data.

    Returns:
        the exit code.

    Raises:
        InputError: bad input, missing data, or data that are not the recorded ones.
    """
    file = path / "distilled.safetensors" if path.is_dir() else path
    check_tracker(options.track)
    distilled, device, digest = DistilledSet.load(file), find_device(options.device), judgements[0].distilled
    name = distilled.method or path.stem
    processes, requested = number_of_processes(options, device)
    one_thread(device)
    own = protocols.get(distilled.method) or (of_stored_labels if distilled.training.labels else None)
    authors_protocol = selected_protocol(judgements[0].evaluation.protocol, name, own)
    (train, test), data = real_data_at(judgements[0].dataset, options, distilled.images.shape[-1])
    check(distilled, test)
    identity, shape = identity_of(train, test), test.image_shape[:2]
    check_data(recorded, identity)
    runs: list[Run] = []
    for each in judgements:
        other = "" if each.backbone == distilled.backbone else each.backbone
        folder = options.runs / folder_of(name, digest, label(each.dataset, options.data_dir), each.seed, other)
        runs.append(Run(folder, each, data=identity, seed=each.seed, device=device))
    descriptions = [
        RunDescription(
            method=name,
            dataset=data,
            ipc=round(distilled.stored_ipc),
            seed=each.seed,
            backbone=each.backbone,
            loss=each.evaluation.how,
            recipe=each.recipe,
            config=run.config_hash(distilled=distilled.config or digest),
            set=digest[:16],
        )
        for each, run in zip(judgements, runs, strict=True)
    ]
    absent = [
        missing_columns(run.folder, each.evaluation, *shape, description)
        for each, run, description in zip(judgements, runs, descriptions, strict=True)
    ]
    for each in judgements:
        check_before_running(each.backbone, each.evaluation, test)
    distilled, train, test = distilled.to(device), train.to(device), test.to(device)

    def work() -> int:
        for each, run, description, columns in zip(judgements, runs, descriptions, absent, strict=True):
            if columns == []:
                if is_main_process():
                    print(f"finished already in {run.folder}", file=sys.stderr)
                    show_and_send(run.folder, options.track)
                continue
            if columns:
                run.notify(f"{run.folder} has trained students: they are evaluated under {', '.join(columns)} too")
            protocol = authors_protocol and authors_protocol(distilled, file.parent, run)
            with locked(run.begin(**each.evaluation.columns, set=str(path.absolute())).folder):
                how = {"own": protocol, "averaged": requested and processes > 1}
                rows = evaluate(distilled, train, test, each.evaluation, each.backbone, run, description, **how)
                if is_main_process():
                    finish(rows, run.folder, options.track)
        if len(runs) > 1 and is_main_process():
            print(f"\n{render(find_rows([run.folder for run in runs]), 'text')}", end="")
        return 0

    missing = any(columns != [] for columns in absent)
    if authors_protocol is None and None in absent:
        new = [each for each, columns in zip(judgements, absent, strict=True) if columns is None]
        _announce(new, name, data, distilled, (len(train), len(test)), processes)
    return work_together(processes if missing else 1, device, words, work)


def _announce(
    judgements: Sequence[Judgement],
    name: str,
    data: str,
    distilled: DistilledSet,
    sizes: tuple[int, int],
    processes: int,
) -> None:
    """Print what is evaluated, and on a CPU how long it takes.

    Args:
        judgements: the evaluations to be made, of the standard protocol.
        name: of the set.
        data: name of the real data.
        distilled: the set, on the device to work on.
        sizes: of the real training set and of the test set.
        processes: that train and attack students.
    """
    if not reports_to_user():
        return
    students, device = sum(each.evaluation.students for each in judgements), distilled.images.device
    text = f"evaluate {name} on {data}: {counted(students, 'student')}"
    if device.type != "cpu":
        print(f"{text}, on {device}", file=sys.stderr)
        return
    shape, classes = tuple(distilled.images.shape[1:]), len(distilled.classes)
    with alone():  # under torchrun only this process estimates
        seconds = sum(
            estimate_students(
                each.backbone,
                each.evaluation,
                len(distilled.labels),
                (shape[0], shape[1], shape[2]),
                classes,
                *sizes,
                evaluates=processes,
            )
            for each in judgements
        )
    print(f"{text}, about {human(seconds)} on this CPU", file=sys.stderr)


def _default(flags: list[str], digest: str, dataset: str, backbone: str) -> Judgement:
    """Return the settings of the recipe, to which the other flags are applied; the default on a CPU is quick."""
    early = peek(flags, "--recipe", "--device")
    device = find_device(early["--device"] or "auto")
    name = early["--recipe"] or ("quick" if device.type == "cpu" else "paper")
    if name in ("quick", "smoke"):
        return Judgement(digest, dataset, backbone, Evaluation(3, test_images=2000), name)
    return Judgement(digest, dataset, backbone, Evaluation(50), "paper")


def folder_of(name: str, digest: str, dataset: str, seed: int, other: str) -> Path:
    """Return the folder of an evaluation, relative to the folder of all runs.

    Args:
        name: name of the set's method, or of the set's file.
        digest: hash of the set (`digest_of`).
        dataset: name of the real data set, from `distill.data.label`.
        seed: seed of students and attacks.
        other: the students' network; "" for the network with which the set was distilled.
    """
    suffix = f"-{re.sub(r'[^a-zA-Z0-9_.=-]', '_', other)}" if other else ""
    return Path("evaluate", dataset, f"{name}-{digest[:12]}", f"seed{seed}{suffix}")


def _published(path: Path, flags: list[str], read: Read) -> Path | None:
    """Import a published set and return the new folder; None if the path is a set of this program."""
    if {*HELP} & {*flags} and is_ours(path, Reading()):
        return None
    dataset = peek(flags, "--dataset")["--dataset"]
    default = EvaluateCommand(Judgement("", dataset or "", "convnet", Evaluation(), "quick"), RunOptions())
    command = parse(EvaluateCommand, default, flags, PROGRAM)
    options, reading = command.place, command.reading
    return None if is_ours(path, reading) else imported(path, reading, dataset, options, read)


def _several(text: str) -> list[str]:
    """Return the backbones of a comma-separated list; options of a backbone may also contain commas.

    >>> _several("convnet:width=64,depth=2,alexnet,timm:resnet18:stem=stride1")
    ['convnet:width=64,depth=2', 'alexnet', 'timm:resnet18:stem=stride1']
    """
    names = re.split(r",(?!\w+=[^:,]*(?:,|$))", text)
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))
