"""Students trained on a distilled set, and judged: results.jsonl has one row per student and column, and

students/K.safetensors            weights of student K (of the network behind the normalisation)
students/K-correct.safetensors    for `clean` and each column a bool per test image: classified right?
students/K-distances.safetensors  for minimum-norm attacks how far each test image's adversarial is
students/surrogate-*.safetensors  networks that transfer attacks are made on

The network that a method trained on the real data, where it has one (`distill.protocol`), is judged in the same way:
students/teacher-*, and its rows are in teacher.jsonl.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.experiment import Evaluation
from distill.files import write_text
from distill.judging.columns import Column, columns
from distill.judging.judge import Sheet, descend, judge, judge_clean, members_of
from distill.judging.trained import Trained
from distill.judging.verdicts import verdicts
from distill.protocol import Protocol
from distill.ranks import first
from distill.reports.intervals import wilson
from distill.run import Run
from distill.students import Training

__all__ = ["check", "evaluate", "in_order_of", "missing"]


def check(distilled: DistilledSet, test: ImageSet) -> str:
    """Refuse a distilled set that is not one of this data set.

    Returns:
        what a reader of the results must know of the classes; "" where the names say which is which.

    Raises:
        InputError: shapes, or the names of the classes, differ.
    """
    if tuple(distilled.images.shape[1:]) != test.image_shape:
        ours, theirs = tuple(distilled.images.shape[1:]), test.image_shape
        raise InputError(f"the distilled images are {ours}, those of {test.name} {theirs}; give the same --image-size")
    if len(distilled.classes) != test.num_classes:
        raise InputError(
            f"the distilled set has {len(distilled.classes)} classes, {test.name} {test.num_classes}; give --dataset"
        )
    ours, theirs = distilled.classes, test.classes
    if ours == theirs or (sorted(ours) == sorted(theirs) and len({*ours}) == len(ours)):
        return ""
    if _numbers(ours) or _numbers(theirs):
        named, numbered = ("the distilled set", test.name) if _numbers(theirs) else (test.name, "the distilled set")
        return f"classes of {numbered} are numbers: number 0 is taken for the first class of {named}, and so on"
    odd = [", ".join(sorted(set(a) - set(b))[:5]) for a, b in ((ours, theirs), (theirs, ours))]
    raise InputError(
        f"the distilled set has the classes {odd[0] or 'of one name'}, {test.name} has {odd[1] or 'not'}; "
        "a set is evaluated on the classes that it was made of: give its --dataset or --data-dir"
    )


def _numbers(classes: tuple[str, ...]) -> bool:
    """Return whether the names are the numbers of the classes, 0 to K - 1, and say nothing."""
    return list(classes) == [str(number) for number in range(len(classes))]


def in_order_of(distilled: DistilledSet, real: ImageSet) -> ImageSet:
    """Return real images with their labels in the distilled set's order of the classes.

    Args:
        distilled: the set.
        real: images that passed `check`.
    """
    other_order = real.classes != distilled.classes and sorted(real.classes) == sorted(distilled.classes)
    return real.ordered_as(distilled.classes) if other_order else real


def missing(folder: Path, evaluation: Evaluation, channels: int, size: int) -> list[str] | None:
    """Return the columns that a run does not have yet, by name; None where it has no results at all.

    Args:
        folder: of the run.
        evaluation: what is requested.
        channels: of the images.
        size: height and width in pixels.
    """
    if not (folder / "table.csv").exists():
        return None
    there = {(row.get("attack"), row.get("how")) for row in _rows_of(folder)}
    worst = {name for name, _ in there if isinstance(name, str) and name.startswith("worst@")}
    found = columns(evaluation, channels, size)
    absent = [c.name for c in found if (c.name, c.how) not in there and c.name not in worst]
    return absent if there else None


def _rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of results.jsonl; none where it is not there or damaged, and is to be made anew."""
    try:
        rows = [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError):
        return []
    return rows if all(isinstance(row, dict) for row in rows) else []


def _with_earlier(folder: Path, evaluation: Evaluation, channels: int, size: int) -> list[Column]:
    """Return the columns that the run has, then the requested ones."""
    earlier = [
        name for name in dict.fromkeys(row.get("attack") for row in _rows_of(folder)) if name not in ("clean", None)
    ]
    requested = columns(evaluation, channels, size)
    names = list(dict.fromkeys([*map(str, earlier), *(column.name for column in requested)]))
    try:
        return columns(replace(evaluation, attacks=",".join(names), eps=""), channels, size)
    except InputError:  # of an earlier version, or damaged
        return requested


def evaluate(
    distilled: DistilledSet,
    real: ImageSet,
    test: ImageSet,
    evaluation: Evaluation,
    backbone: str,
    run: Run,
    labels: Mapping[str, Any],
    own: Protocol | None = None,
) -> list[dict[str, Any]]:
    """Train and attack the students, continuing where the run's folder ends.

    Args:
        distilled: the set to train on.
        real: the real training images, for the surrogate of `transfer`.
        test: images to judge on, on the device to work on.
        evaluation: students, columns, training.
        backbone: the students' network.
        run: folder, generators, progress.
        labels: fields that every row of the results starts with.
        own: the method's own way of training students; None for the standard one.

    Columns that the run has from an earlier evaluation stay, and stand beside the new ones.

    Returns:
        the rows of results.jsonl: `labels` with the hash of the test images, student, attack, its threat and settings,
        accuracy and its Wilson interval from low to high (percent), images, seconds, median_distance (of a minimum-norm
        attack), verdict and epoch_seconds.

    Raises:
        InputError: the set is not one of this data set, or a column is unknown.
    """
    distilled, test = distilled.to(test.images.device), test.first(evaluation.test_images)
    labels = dict(labels) | {"test": test.digest[:16]}
    if line := check(distilled, test):
        run.say(line)
    real, test = in_order_of(distilled, real), in_order_of(distilled, test)
    asked = _with_earlier(run.folder, evaluation, *test.image_shape[:2])
    attacked = [column for column in asked if column.base != "worst"]
    attacked.sort(key=lambda column: column.threat.eps if column.threat else 0.0)
    settings = {column.name: column.how for column in attacked}
    if own is not None and (unused := _changed(evaluation.student)):
        run.say(f"--protocol own trains students as the method's authors do: {', '.join(unused)} has no effect")
    trained = Trained(distilled, real, evaluation, backbone, run, own)
    teacher = None if own is None else own.teacher
    judged = evaluation.students + (teacher is not None)
    with run.progress("students and attacks", judged * (1 + len(attacked)) + evaluation.students, unit="task") as bar:

        def rows_of(name: int | str, model: nn.Module, epoch_seconds: float) -> list[dict[str, Any]]:
            surrogates = {column.name: trained.surrogate(column.base.partition(":")[0]) for column in attacked}
            if not first():  # it trained with the others, which is all that they share
                return []
            sheet = Sheet(run.folder / "students", name, settings)
            judge_clean(sheet, model, test)
            bar.update()
            for column in attacked:
                bar.set_postfix_str(f"{name if name == 'teacher' else f'student {name}'}, {column.name}", refresh=True)
                judge(column, asked, sheet, model, test, surrogates[column.name], run)
                bar.update()
            descend(sheet, asked)
            said = verdicts(sheet.bools, asked, model, test, run.generator("verdict", name))
            return [
                _row(column, asked, sheet, said.get(column.name if column else "clean", "ok"), epoch_seconds)
                for column in (None, *asked)
            ]

        rows = []
        for student, model, epoch_seconds in trained.students():
            bar.update()
            rows += [dict(labels) | {"student": student} | row for row in rows_of(student, model, epoch_seconds)]
        if teacher is not None:
            _write(run.folder / "teacher.jsonl", [dict(labels) | row for row in rows_of("teacher", teacher, 0.0)])
    _write(run.folder / "results.jsonl", rows)
    return rows


def _changed(training: Training) -> list[str]:
    """Return the flags of the standard protocol's training that are not at their defaults.

    >>> _changed(Training(epochs=20, loss="trades:beta=6"))
    ['--student.epochs', '--student.loss']
    """
    standard = Training()
    names = (each.name for each in fields(training) if getattr(training, each.name) != getattr(standard, each.name))
    return [f"--student.{name.replace('_', '-')}" for name in names]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    if first():
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _row(
    column: Column | None, asked: list[Column], sheet: Sheet, verdict: str, epoch_seconds: float
) -> dict[str, Any]:
    """Return what is found in one column, None being clean accuracy."""
    name, base, how = (column.name, column.base, column.how) if column else ("clean", "clean", "")
    if column and base == "worst":
        how = f"of {', '.join(sorted(member.name for member in members_of(column, asked)))}"
    bools = sheet.bools[name]  # of corruptions a row for each kind and severity, hence without an interval
    share, images = bools.double().mean().item(), bools.shape[-1]
    low, high = wilson(int(bools.sum()), images) if bools.ndim == 1 else (None, None)
    return {
        "attack": name,
        "threat": f"{column.threat.norm}:{column.threat.written.rpartition(':')[2]}"
        if column and column.threat
        else "",
        "how": how,
        "accuracy": 100 * share,
        "low": low,
        "high": high,
        "images": images,
        "median_distance": sheet.median_distance(base),
        "seconds": sum(sheet.seconds.get(key, 0.0) for key in {name, base}),
        "epoch_seconds": epoch_seconds,
        "verdict": verdict,
        "advised": "",
        "advised_accuracy": None,
    }
