"""Students are trained on a distilled set and evaluated: results.jsonl has one row per student and column, and

students/K.safetensors            weights of student K (of the network behind the normalisation)
students/K-*.safetensors          its results for each test image (`distill.evaluation.student_results`)
students/surrogate-*.safetensors  networks that transfer attacks are made on
students/shown.safetensors        what reports show: the students' answers, a few adversarial images

A network that the method trained on the real data, where it has one (`distill.training.protocol`), is evaluated in the
same way: students/teacher-*, and its rows are in teacher.jsonl.

The work is divided into tasks, which all processes of the run take: training a student; a student under all columns for
a part of the test images; the verdicts on a student; the attacks that these advise, part by part. No result depends on
the number of processes.
"""

from contextlib import nullcontext
from typing import Literal

from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.evaluation.classes import check, in_order_of
from distill.evaluation.results import all_columns
from distill.evaluation.row_files import FILE, write_rows
from distill.evaluation.rows import Row, RunDescription, StudentDescription
from distill.evaluation.shown import save_shown
from distill.evaluation.student_tasks import StudentTasks
from distill.evaluation.trained import Trained
from distill.experiment import Evaluation
from distill.runs.ranks import barrier, is_main_process
from distill.runs.run import Run
from distill.runs.tasks import do_all
from distill.runs.threads import by_itself
from distill.runs.version import project_version
from distill.training.protocol import Protocol

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
    *,
    averaged: bool = False,
) -> list[Row]:
    """Train and attack the students, continuing where the run's folder ends; every process of the run calls this.

    Args:
        distilled: the set to train on.
        real: the real training images, for the surrogate of `transfer`.
        test: images to evaluate on, on the device to work on.
        evaluation: students, columns, training.
        backbone: the students' network.
        run: folder, generators, progress.
        description: what all rows of the run share.
        own: the method's own way of training students; None for the standard one.
        averaged: whether all processes train one student together where `own` can do that (`Protocol.averages`), each
            with a part of each batch; else the main process trains such students, with all cores.

    Columns that the run has from an earlier evaluation stay beside the new ones.

    Returns:
        the rows of results.jsonl; in other processes than the main one none.

    Raises:
        InputError: the set is not one of this data set, or a column is unknown.
    """
    distilled, test = distilled.to(test.images.device), test.subset(evaluation.test_images)
    if line := check(distilled, test):
        run.notify(line)
    real, test = in_order_of(distilled, real), in_order_of(distilled, test)
    trained = Trained(distilled, real, evaluation, backbone, run, own)
    columns = all_columns(run.folder, evaluation, *test.image_shape[:2])
    if own is not None and own.averages and (averaged or is_main_process()):
        with nullcontext() if averaged else by_itself(test.image_shape[1], test.images.device):
            for group in trained.groups():
                trained.train(group)
    barrier()
    students = StudentTasks(trained, test, columns, None if own is None else own.teacher)
    tasks = students.tasks()
    with run.progress("students and attacks", sum(task.units for task in tasks), unit="part") as bar:
        students.move = bar.update
        done = do_all(tasks, bar)
    if not is_main_process():
        return []
    save_shown(trained, test, columns)
    shared = StudentDescription(
        **vars(description),
        test=test.digest[:16],
        chance=100 * int(test.labels.bincount().max()) / len(test),
        protocol=evaluation.protocol,
        labels=_labels(distilled, own),
        teacher=distilled.teacher,
        version=project_version(),
    )
    rows = [row for number in range(evaluation.students) for row in students.rows(number, done, shared)]
    if students.teacher is not None:
        write_rows(run.folder / "teacher.jsonl", students.rows("teacher", done, shared))
    write_rows(run.folder / FILE, rows)
    return rows


def _labels(distilled: DistilledSet, own: Protocol | None) -> Literal["hard", "soft", "teacher"]:
    """Return the kind of labels that students are trained on."""
    if distilled.teacher or (own is not None and own.labels_of_teacher):
        return "teacher"
    return "hard" if distilled.labels.ndim == 1 else "soft"
