"""Students are trained on a distilled set and evaluated: results.jsonl has one row per student and column, and

students/K.safetensors            weights of student K (of the network behind the normalisation)
students/K-correct.safetensors    for `clean` and each column a bool per test image: classified right?
students/K-distances.safetensors  for minimum-norm attacks the distance of each test image's nearest adversarial image
students/surrogate-*.safetensors  networks that transfer attacks are made on

A network that the method trained on the real data, where it has one (`distill.training.protocol`), is evaluated in the
same way: students/teacher-*, and its rows are in teacher.jsonl.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from torch import nn

from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.evaluation.advised import run_advised_attacks
from distill.evaluation.classes import check, in_order_of
from distill.evaluation.column_kinds import (
    Student,
    TransferColumn,
    WorstColumn,
    enforce_nesting,
    evaluate_clean,
    size_of_ball,
)
from distill.evaluation.results import all_columns, row_of
from distill.evaluation.row_files import FILE, write_rows
from distill.evaluation.rows import Row, RunDescription, StudentDescription
from distill.evaluation.student_results import StudentResults
from distill.evaluation.trained import Trained
from distill.evaluation.verdicts import verdicts
from distill.experiment import Evaluation
from distill.runs.ranks import is_main_process
from distill.runs.run import Run
from distill.runs.version import project_version
from distill.training.protocol import Protocol
from distill.training.students import Training

__all__ = ["evaluate"]


def evaluate(
    distilled: DistilledSet,
    real: ImageSet,
    test: ImageSet,
    evaluation: Evaluation,
    backbone: str,
    run: Run,
    description: RunDescription,
    own: Protocol | None = None,
) -> list[Row]:
    """Train and attack the students, continuing where the run's folder ends.

    Args:
        distilled: the set to train on.
        real: the real training images, for the surrogate of `transfer`.
        test: images to evaluate on, on the device to work on.
        evaluation: students, columns, training.
        backbone: the students' network.
        run: folder, generators, progress.
        description: what all rows of the run share.
        own: the method's own way of training students; None for the standard one.

    Columns that the run has from an earlier evaluation stay beside the new ones.

    Returns:
        the rows of results.jsonl.

    Raises:
        InputError: the set is not one of this data set, or a column is unknown.
    """
    distilled, test = distilled.to(test.images.device), test.subset(evaluation.test_images)
    shared = StudentDescription(
        **vars(description),
        test=test.digest[:16],
        chance=100 * int(test.labels.bincount().max()) / len(test),
        protocol=evaluation.protocol,
        labels="hard" if distilled.labels.ndim == 1 else "soft",
        version=project_version(),
    )
    if line := check(distilled, test):
        run.notify(line)
    real, test = in_order_of(distilled, real), in_order_of(distilled, test)
    columns = all_columns(run.folder, evaluation, *test.image_shape[:2])
    worst = [column for column in columns if isinstance(column, WorstColumn)]
    attacked = sorted((column for column in columns if column not in worst), key=size_of_ball)
    settings = {column.name: column.how for column in attacked}
    if own is not None and (unused := _changed(evaluation.student)):
        run.notify(f"--protocol own trains students as the method's authors do: {', '.join(unused)} has no effect")
    trained = Trained(distilled, real, evaluation, backbone, run, own)
    teacher = None if own is None else own.teacher
    networks = evaluation.students + (teacher is not None)
    with run.progress("students and attacks", networks * (1 + len(attacked)) + evaluation.students, unit="task") as bar:

        def rows_of(number: int | None, model: nn.Module, epoch_seconds: float) -> list[Row]:
            transfers = (column for column in attacked if isinstance(column, TransferColumn))
            surrogates = {column.surrogate: trained.surrogate(column.surrogate) for column in transfers}
            if not is_main_process():  # other processes only train
                return []
            name = "teacher" if number is None else number
            results = StudentResults(run, name, settings, len(test))
            evaluate_clean(results, model, test)
            bar.update()
            student = Student(model, test, results, run, columns, surrogates)
            for column in attacked:
                bar.set_postfix_str(f"{name if number is None else f'student {name}'}, {column.name}", refresh=True)
                column.evaluate(student)
                bar.update()
            enforce_nesting(results, columns)
            for column in worst:
                column.evaluate(student)
            found = verdicts(results.bools, columns, model, test, run.generator("verdict", name))
            advised = run_advised_attacks(found, evaluation, student)
            rows, description_of_student = [], replace(shared, student=number)
            for column in (None, *columns):
                title = column.name if column else "clean"
                verdict, other = found.get(title, "ok"), advised.get(title)
                rows.append(row_of(column, columns, results, verdict, other, epoch_seconds, description_of_student))
            return rows

        rows: list[Row] = []
        for number, model, epoch_seconds in trained.students():
            bar.update()
            rows += rows_of(number, model, epoch_seconds)
        if teacher is not None:
            _write(run.folder / "teacher.jsonl", rows_of(None, teacher, 0.0))
    _write(run.folder / FILE, rows)
    return rows


def _changed(training: Training) -> list[str]:
    """Return the flags of the standard protocol's training that are not at their defaults.

    >>> _changed(Training(epochs=20, loss="trades:beta=6"))
    ['--student.epochs', '--student.loss']
    """
    standard = Training()
    names = (each.name for each in fields(training) if getattr(training, each.name) != getattr(standard, each.name))
    return [f"--student.{name.replace('_', '-')}" for name in names]


def _write(path: Path, rows: Sequence[Row]) -> None:
    if is_main_process():
        write_rows(path, rows)
