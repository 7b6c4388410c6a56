"""Evaluation of a distilled set: students, columns, verdicts, rows, statistics."""
