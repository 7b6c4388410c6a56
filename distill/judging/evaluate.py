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
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.experiment import Evaluation
from distill.files import write_text
from distill.judging.columns import columns
from distill.judging.judge import Sheet, judge, judge_clean
from distill.judging.trained import Trained
from distill.judging.verdicts import verdicts
from distill.protocol import Protocol
from distill.ranks import first
from distill.reports.intervals import wilson
from distill.run import Run
from distill.students import Training

__all__ = ["check", "evaluate"]


def check(distilled: DistilledSet, test: ImageSet) -> None:
    """Refuse a distilled set that is not one of this data set.

    Raises:
        InputError: shapes or classes differ.
    """
    if tuple(distilled.images.shape[1:]) != test.image_shape:
        ours, theirs = tuple(distilled.images.shape[1:]), test.image_shape
        raise InputError(f"the distilled images are {ours}, those of {test.name} {theirs}; give the same --image-size")
    if len(distilled.classes) != test.num_classes:
        raise InputError(
            f"the distilled set has {len(distilled.classes)} classes, {test.name} {test.num_classes}; give --dataset"
        )


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

    Returns:
        the rows of results.jsonl: `labels` with student, attack, accuracy and its Wilson interval from low to high
        (percent), images, seconds, median_distance (of a minimum-norm attack), verdict and epoch_seconds.
    """
    distilled, test = distilled.to(test.images.device), test.first(evaluation.test_images)
    check(distilled, test)
    asked = columns(evaluation, *test.image_shape[:2])
    ordered = sorted(asked, key=lambda column: (column.base == "worst", column.threat.eps if column.threat else 0.0))
    if own is not None and (unused := _changed(evaluation.student)):
        run.say(f"--protocol own trains students as the method's authors do: {', '.join(unused)} has no effect")
    trained = Trained(distilled, real, evaluation, backbone, run, own)
    teacher = None if own is None else own.teacher
    judged = evaluation.students + (teacher is not None)
    with run.progress("students and attacks", judged * (1 + len(asked)) + evaluation.students, unit="task") as bar:

        def rows_of(name: int | str, model: nn.Module, epoch_seconds: float) -> list[dict[str, Any]]:
            surrogates = {column.name: trained.surrogate(column.base.partition(":")[0]) for column in ordered}
            if not first():  # it trained with the others, which is all that they share
                return []
            sheet = Sheet(run.folder / "students", name)
            judge_clean(sheet, model, test)
            bar.update()
            for column in ordered:
                bar.set_postfix_str(f"{name if name == 'teacher' else f'student {name}'}, {column.name}", refresh=True)
                judge(column, asked, sheet, model, test, surrogates[column.name], run)
                bar.update()
            said = verdicts(sheet.bools, asked, model, test, run.generator("verdict", name))
            bases = {"clean": "clean", **{column.name: column.base for column in asked}}
            return [_row(column, base, sheet, said.get(column, "ok"), epoch_seconds) for column, base in bases.items()]

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


def _row(name: str, base: str, sheet: Sheet, verdict: str, epoch_seconds: float) -> dict[str, Any]:
    bools = sheet.bools[name]  # of corruptions a row for each kind and severity, hence without an interval
    share, images = bools.double().mean().item(), bools.shape[-1]
    low, high = wilson(int(bools.sum()), images) if bools.ndim == 1 else (None, None)
    return {
        "attack": name,
        "accuracy": 100 * share,
        "low": low,
        "high": high,
        "images": images,
        "median_distance": sheet.median_distance(base),
        "seconds": sum(sheet.seconds.get(key, 0.0) for key in {name, base}),
        "epoch_seconds": epoch_seconds,
        "verdict": verdict,
    }
