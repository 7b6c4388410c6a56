"""Students trained on a distilled set, and judged: results.jsonl has one row per student and column, and

students/K.safetensors            weights of student K (of the network behind the normalisation)
students/K-correct.safetensors    for `clean` and each column a bool per test image: classified right?
students/K-distances.safetensors  for minimum-norm attacks how far each test image's adversarial is
students/surrogate-*.safetensors  networks that transfer attacks are made on

The network that a method trained on the real data, where it has one (`distill.training.protocol`), is judged in the
same way: students/teacher-*, and its rows are in teacher.jsonl.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.evaluation.classes import check, in_order_of
from distill.evaluation.columns import Column, columns
from distill.evaluation.judge import Sheet, descend, judge, judge_clean
from distill.evaluation.results import row_of, with_earlier
from distill.evaluation.trained import Trained
from distill.evaluation.verdicts import verdicts
from distill.experiment import Evaluation
from distill.runs.files import write_text
from distill.runs.ranks import is_main_process
from distill.runs.run import Run
from distill.training.protocol import Protocol
from distill.training.students import Training
from robust.evaluation.advice import advised

__all__ = ["evaluate"]


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
    distilled, test = distilled.to(test.images.device), test.subset(evaluation.test_images)
    chance = 100 * int(test.labels.bincount().max()) / len(test)
    labels = dict(labels) | {"test": test.digest[:16], "chance": chance}
    if line := check(distilled, test):
        run.notify(line)
    real, test = in_order_of(distilled, real), in_order_of(distilled, test)
    asked = with_earlier(run.folder, evaluation, *test.image_shape[:2])
    attacked = [column for column in asked if column.base != "worst"]
    attacked.sort(key=lambda column: column.threat.eps if column.threat else 0.0)
    settings = {column.name: column.how for column in attacked}
    if own is not None and (unused := _changed(evaluation.student)):
        run.notify(f"--protocol own trains students as the method's authors do: {', '.join(unused)} has no effect")
    trained = Trained(distilled, real, evaluation, backbone, run, own)
    teacher = None if own is None else own.teacher
    judged = evaluation.students + (teacher is not None)
    with run.progress("students and attacks", judged * (1 + len(attacked)) + evaluation.students, unit="task") as bar:

        def rows_of(name: int | str, model: nn.Module, epoch_seconds: float) -> list[dict[str, Any]]:
            surrogates = {column.name: trained.surrogate(column.base.partition(":")[0]) for column in attacked}
            if not is_main_process():  # it trained with the others, which is all that they share
                return []
            sheet = Sheet(run, name, settings, len(test))
            judge_clean(sheet, model, test)
            bar.update()
            for column in attacked:
                bar.set_postfix_str(f"{name if name == 'teacher' else f'student {name}'}, {column.name}", refresh=True)
                judge(column, asked, sheet, model, test, surrogates[column.name], run)
                bar.update()
            descend(sheet, asked)
            said = verdicts(sheet.bools, asked, model, test, run.generator("verdict", name))
            heeded = heed(said, evaluation, asked, sheet, model, test, run)
            rows = []
            for column in (None, *asked):
                title = column.name if column else "clean"
                rows.append(row_of(column, asked, sheet, said.get(title, "ok"), heeded.get(title), epoch_seconds))
            return rows

        rows = []
        for student, model, epoch_seconds in trained.students():
            bar.update()
            rows += [dict(labels) | {"student": student} | row for row in rows_of(student, model, epoch_seconds)]
        if teacher is not None:
            _write(run.folder / "teacher.jsonl", [dict(labels) | row for row in rows_of("teacher", teacher, 0.0)])
    _write(run.folder / "results.jsonl", rows)
    return rows


ADVICE = {"square": "square:queries=500", "autoattack:version=rand": "pgd_ce_margin:eot=20"}
"""cheaper forms of the attacks that a verdict advises, for the figure beside the one in doubt"""


def heed(
    said: Mapping[str, str],
    evaluation: Evaluation,
    asked: list[Column],
    sheet: Sheet,
    model: nn.Module,
    test: ImageSet,
    run: Run,
) -> dict[str, tuple[str, Tensor]]:
    """Run the attacks that verdicts advise.

    Args:
        said: by column, its verdict.
        evaluation: gives the threats' family.
        asked: all columns.
        sheet: the student's.
        model: the student, pixels to logits.
        test: the images.
        run: its generators.

    Returns:
        by column in doubt the name of the advised attack, and who withstands both, bools (images,).
    """
    found = {}
    for column in asked:
        spec = advised(said.get(column.name, "ok"))
        if spec is None or column.threat is None:
            continue
        spec = f"{ADVICE.get(spec, spec)}@{column.threat.written}"
        try:
            (other,) = columns(replace(evaluation, attacks=spec, eps=""), *test.image_shape[:2])
        except InputError:  # Square does not take every size of image in l2
            continue
        withstanding = judge(other, asked, sheet, model, test, None, run)
        found[column.name] = other.name, sheet.bools[column.name] & withstanding
    return found


def _changed(training: Training) -> list[str]:
    """Return the flags of the standard protocol's training that are not at their defaults.

    >>> _changed(Training(epochs=20, loss="trades:beta=6"))
    ['--student.epochs', '--student.loss']
    """
    standard = Training()
    names = (each.name for each in fields(training) if getattr(training, each.name) != getattr(standard, each.name))
    return [f"--student.{name.replace('_', '-')}" for name in names]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    if is_main_process():
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
