"""How good a distilled set is: students, columns, verdicts, rows, statistics."""
