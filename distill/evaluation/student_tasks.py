"""The tasks of an evaluation, which all processes of a run take, and the rows that follow from their results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import count
from typing import Any

from torch import nn

from distill.data import ImageSet
from distill.evaluation.advised import advised_columns
from distill.evaluation.column_kinds import (
    Column,
    MeasuredColumn,
    Student,
    Surrogate,
    TransferColumn,
    WorstColumn,
    enforce_nesting,
    evaluate_clean,
    size_of_ball,
)
from distill.evaluation.results import row_of
from distill.evaluation.rows import Row, StudentDescription
from distill.evaluation.student_results import PartResults, StudentResults, number_of_parts
from distill.evaluation.trained import Trained
from distill.evaluation.verdicts import doubts_of, verdicts
from distill.runs.tasks import Task

__all__ = ["StudentTasks"]

TRAINING = 10
"""units of the progress bar that the training of a student has; a column of a part of the images has one"""


class StudentTasks:
    """The networks of an evaluation under the columns of its table.

    Args:
        trained: the students.
        test: images to evaluate on.
        columns: of the table.
        teacher: a further network, pixels in [0, 1] to logits; None for none.
    """

    def __init__(self, trained: Trained, test: ImageSet, columns: Sequence[Column], teacher: nn.Module | None):
        self.trained, self.test, self.columns, self.teacher, self.run = trained, test, columns, teacher, trained.run
        measured = (column for column in columns if isinstance(column, MeasuredColumn))
        self.measured = sorted(measured, key=size_of_ball)
        self.surrogates: set[Surrogate] = {column.surrogate for column in _transfers(self.measured)}
        self.network = lru_cache(2)(self._network)  # tasks of one student follow each other
        self.move: Callable[[int], object] = lambda units: None
        """moves the progress bar by some units, within a task"""

    def tasks(self) -> list[Task]:
        """Return all tasks; the result of "verdicts of NAME" is the verdict of each column."""
        trained, units = self.trained, 1 + len(self.measured)
        tasks = [
            Task(f"surrogate {name}", partial(self._train_surrogate, name), title=f"surrogate {name}")
            for name in sorted(self.surrogates)
        ]
        before = tuple(task.name for task in tasks)
        training = {number: group for group in trained.groups() for number in group}
        for group in dict.fromkeys(training.values()):
            title = f"student {group[0]}" if len(group) == 1 else f"students {group[0]} to {group[-1]}"
            units_of_group = TRAINING * len(group)
            tasks.append(Task(f"train {group}", partial(self._train, group), units=units_of_group, title=title))
        names = [*training, *(["teacher"] if self.teacher is not None else [])]
        own = {name: (f"train {training[name]}",) if name in training else () for name in names}
        for name in names:  # before the parts: long tasks come first, so that no process waits long at the end
            tasks.append(Task(f"doubts of {name}", partial(self._doubt, name), own[name], 0))
        parts = range(number_of_parts(len(self.test)))
        for name in names:
            title = str(name) if name == "teacher" else f"student {name}"
            evaluated = tuple(f"{name}, part {part}" for part in parts)
            for part, task in zip(parts, evaluated, strict=True):
                work = partial(self._evaluate_part, name, part)
                tasks.append(
                    Task(task, work, (*before, *own[name]), units, f"{title}, part {part + 1} of {len(parts)}")
                )
            tasks.append(Task(f"verdicts of {name}", partial(self._judge, name), (f"doubts of {name}", *evaluated), 0))
            for part in parts:
                work = partial(self._evaluate_advised, name, part)
                tasks.append(Task(f"advised for {name}, part {part}", work, (f"verdicts of {name}",), 0))
        return tasks

    def rows(self, name: int | str, done: Mapping[str, Any], shared: StudentDescription) -> list[Row]:
        """Return the rows of a network; `done` has the results of all tasks."""
        results = self._results(name)
        results.join()
        found = done[f"verdicts of {name}"]
        other = {column: (c.name, results.bools[column] & results.bools[c.name]) for column, c in self._advised(found)}
        seconds = 0.0 if isinstance(name, str) else self.trained.student(name)[1]
        described = replace(shared, student=None if isinstance(name, str) else name)
        return [
            row_of(column, self.columns, results, found.get(title, "ok"), other.get(title), seconds, described)
            for title, column in [("clean", None), *((column.name, column) for column in self.columns)]
        ]

    def _network(self, name: int | str) -> nn.Module:
        if isinstance(name, int):
            return self.trained.student(name)[0]
        assert self.teacher is not None
        return self.teacher

    def _results(self, name: int | str) -> StudentResults:
        settings = {column.name: column.how for column in self.measured}
        return StudentResults(self.run, name, settings, len(self.test))

    def _advised(self, found: Mapping[str, str]) -> list[tuple[str, MeasuredColumn]]:
        """Return the columns in doubt by name, with the columns of the attacks that the verdicts advise."""
        channels, size = self.test.image_shape[:2]
        return list(advised_columns(found, self.columns, self.trained.evaluation, channels, size).items())

    # --- the work of a task: it takes the results of the tasks that it needs -----------------------------------------

    def _train(self, group: range, _: Mapping[str, Any]) -> None:
        epochs, done = self.trained.evaluation.student.epochs + 1, count(1)

        def each_epoch() -> None:
            number = next(done)
            self.move(TRAINING * number // epochs - TRAINING * (number - 1) // epochs)

        self.trained.train(group, each_epoch)

    def _train_surrogate(self, name: Surrogate, _: Mapping[str, Any]) -> None:
        self.trained.surrogate(name)

    def _evaluate_part(
        self, name: int | str, part: int, _: Mapping[str, Any], columns: Sequence[MeasuredColumn] | None = None
    ) -> None:
        results = PartResults(self._results(name), part)  # the files of other parts are not read
        columns = self.measured if columns is None else columns
        surrogates = {column.surrogate: self.trained.surrogate(column.surrogate) for column in _transfers(columns)}
        images, labels = self.test.images[results.which], self.test.labels[results.which]
        student = Student(self.network(name), images, labels, results, self.run, self.columns, surrogates)
        evaluate_clean(student)
        for column in columns:
            column.evaluate(student)

    def _doubt(self, name: int | str, _: Mapping[str, Any]) -> list[str]:
        generator = self.run.generator("verdict", name)
        return list(doubts_of(self.network(name), self.columns, self.test, generator))

    def _judge(self, name: int | str, needed: Mapping[str, Any]) -> dict[str, str]:
        results = self._results(name)
        results.join()
        enforce_nesting(results, self.columns)
        for column in self.columns:
            if isinstance(column, WorstColumn):
                column.put(results, self.columns)
        results.save()
        return verdicts(results.bools, self.columns, self.network(name), self.test, needed[f"doubts of {name}"])

    def _evaluate_advised(self, name: int | str, part: int, needed: Mapping[str, Any]) -> None:
        advised = {column.name: column for _, column in self._advised(needed[f"verdicts of {name}"])}
        if advised:
            self._evaluate_part(name, part, {}, list(advised.values()))


def _transfers(columns: Sequence[Column]) -> list[TransferColumn]:
    return [column for column in columns if isinstance(column, TransferColumn)]
