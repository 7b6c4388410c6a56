"""`bash run.sh relabel PATH --teacher pgd_at@4/255`: a new set with the images of another and labels of teachers."""

import re
import sys
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Annotated

import tyro

from baselines.robust_labels.labels import EPOCHS, RobustLabels, check_teachers, labels_recipe
from baselines.robust_labels.views import with_views
from distill.app.flags import HELP, find_device, parse, peek
from distill.app.processes import work_together
from distill.app.published import imported
from distill.app.registry import check_packages
from distill.app.start import RunOptions, identity_of, real_data_at
from distill.data import check_dataset, facts_of
from distill.distilled import DistilledSet, digest_of
from distill.errors import InputError
from distill.evaluation.classes import check, in_order_of
from distill.published.reading import Read, Reading, is_ours
from distill.runs.description import describe
from distill.runs.foreign import reachable
from distill.runs.locks import locked
from distill.runs.own_files import json_hash
from distill.runs.run import Run
from distill.runs.threads import one_thread
from distill.runs.version import project_version
from robust.ranges import Whole, check_ranges
from sre2l.rded_recipes import VALIDATE, students
from sre2l.recipes import batch_size

__all__ = ["RelabelCommand", "run_relabel"]

PROGRAM = "bash run.sh relabel PATH"
FILE = "distilled.safetensors"


@dataclass(frozen=True)
class RelabelCommand:
    """Give the images of a distilled set the labels of teachers, as a new set. On a CPU teachers have 10 epochs.

    Raises:
        ValueError: a field is out of its range.
    """

    labels: Annotated[RobustLabels, tyro.conf.arg(name="")]
    """teachers"""
    dataset: str = ""
    """real data set of a published set; a set of ours names its own"""
    seed: Whole = 0
    """root of the randomness of the teachers' training"""
    out: Path | None = None
    """folder of the new set; None: relabelled/TEACHER beside the old one"""
    packages: str = ""
    """other packages that may be imported if the set names one of their objects, separated by commas"""
    place: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)
    """folders of data and runs"""
    reading: Annotated[Reading, tyro.conf.arg(name="")] = field(default_factory=Reading)
    """how a published set is read"""

    def __post_init__(self) -> None:
        check_ranges(self)


def run_relabel(flags: list[str], read: Read) -> int:
    """Write a set with the labels of teachers, training the teachers where they are missing.

    Args:
        flags: the command-line words after `relabel`.
        read: reader of published sets.

    Returns:
        the exit code.

    Raises:
        InputError: the path is missing or no distilled set, a teacher is impossible, or the folder of the new set holds
            another one.
    """
    helping = flags[:1] and flags[0] in HELP
    if not flags or (flags[0].startswith("-") and not helping):
        raise InputError("relabel takes a path first: bash run.sh relabel PATH --teacher pgd_at@4/255")
    if helping:
        parse(RelabelCommand, RelabelCommand(RobustLabels()), flags, PROGRAM)  # prints the help and exits
        return 0
    path, dataset = reachable(Path(flags[0])), peek(flags[1:], "--dataset")["--dataset"]
    device = find_device(peek(flags[1:], "--device")["--device"] or "auto")
    epochs = EPOCHS["quick" if device.type == "cpu" else "paper"]
    default = RelabelCommand(RobustLabels(teacher_epochs=epochs), dataset or "")
    command = parse(RelabelCommand, default, flags[1:], PROGRAM)
    if not is_ours(path, command.reading):
        path = imported(path, command.reading, dataset, command.place, read)
    old = DistilledSet.load(path)
    dataset = command.dataset or old.dataset
    check_packages(path, [dataset, old.backbone], [*flags, *command.packages.split(",")])
    check_dataset(dataset)
    return _relabel(path, old, dataset, command, ["relabel", *flags])


def _relabel(path: Path, old: DistilledSet, dataset: str, command: RelabelCommand, words: list[str]) -> int:
    """Write the new set."""
    options, device = command.place, find_device(command.place.device)
    if options.track != "none":
        raise InputError(f"--track {options.track}: relabel makes a set without results; give --track to evaluate")
    facts = facts_of(dataset, options.data_dir, old.image_shape[1])
    labels = replace(command.labels, teacher_flip=command.labels.teacher_flip and facts.flips)
    (train, test), _ = real_data_at(dataset, options, old.image_shape[1])
    if labels.teacher_batch_size == RobustLabels().teacher_batch_size:  # not given: small sets have smaller batches
        labels = replace(labels, teacher_batch_size=labels_recipe("paper", facts).teacher_batch_size)
    check(old, test)
    train = in_order_of(old, train)
    check_teachers(train.to(device), old.backbone, labels)
    one_thread(device)
    source = path / FILE if path.is_dir() else path
    views = students(facts, ceil(old.ipc))
    views = replace(views, batch_size=batch_size(views.batch_size, len(old.images)))
    settings = {"relabel": describe(labels), "views": describe(views), "set": digest_of(source), "of": dataset}
    settings |= {"seed": command.seed}
    name = f"{re.sub(r'[^a-zA-Z0-9_.=-]+', '-', labels.written)[:60]}-{json_hash(settings)[:8]}"
    folder = command.out or source.parent / "relabelled" / name
    run = Run(
        folder,
        settings,
        data=identity_of(train, test),
        seed=command.seed,
        device=device,
        checkpoint_seconds=options.checkpoint_seconds,
        stages=options.stages or options.runs / "stages",
        workers=options.workers,
    )

    def work() -> int:
        if (folder / FILE).exists():
            if DistilledSet.load(folder / FILE).run != run.fingerprint():
                raise InputError(f"{folder} has another set; give another --out, or remove that folder")
            print(f"labelled already in {folder}", file=sys.stderr)
        else:
            with locked(run.begin().folder):
                made = with_views(old.to(device), train.to(device), labels, views, VALIDATE, run)
                made = replace(made, method=f"{old.method or source.stem}_relabelled", version=project_version())
                made = replace(made, config=run.config_hash(), run=run.fingerprint())
                made.save(folder / FILE)
                run.finish()
        print(f"evaluate it: bash run.sh evaluate {folder}", file=sys.stderr)
        print(folder)
        return 0

    return work_together(1, device, words, work)
