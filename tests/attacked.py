"""A student under columns, evaluated part by part as a run does it, and the verdicts on it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from distill.data import ImageSet
from distill.evaluation.column_kinds import (
    Column,
    MeasuredColumn,
    Student,
    WorstColumn,
    enforce_nesting,
    evaluate_clean,
    size_of_ball,
)
from distill.evaluation.student_results import StudentResults
from distill.evaluation.verdicts import doubts_of, verdicts
from distill.runs.run import Run


def attacked(model: nn.Module, test: ImageSet, run: Run, columns: Sequence[Column], other: nn.Module) -> StudentResults:
    """Return the results of a student; `other` is the network that transfer attacks are made on."""
    results = StudentResults(run, 0, {column.name: column.how for column in columns}, len(test))
    measured = [column for column in columns if isinstance(column, MeasuredColumn)]
    surrogates = {"transfer": other, "transfer_student": other}
    for part in results.parts():
        images, labels = test.images[part.which], test.labels[part.which]
        student = Student(model, images, labels, part, run, columns, surrogates)
        evaluate_clean(student)
        for column in sorted(measured, key=size_of_ball):
            column.evaluate(student)
    results.join()
    enforce_nesting(results, columns)
    for column in columns:
        if isinstance(column, WorstColumn):
            column.put(results, columns)
    return results


def judged(
    bools: Mapping[str, Tensor], columns: Sequence[Column], model: nn.Module, test: ImageSet, generator: torch.Generator
) -> dict[str, str]:
    """Return the verdicts on a student."""
    return verdicts(bools, columns, model, test, doubts_of(model, columns, test, generator))
