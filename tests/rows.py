"""Rows of results for tests."""

from typing import Any

from distill.evaluation.rows import Row, parse_threat

DEFAULTS: dict[str, Any] = {
    "method": "dc",
    "dataset": "toy",
    "ipc": 1,
    "seed": 0,
    "backbone": "convnet",
    "loss": "cross_entropy",
    "recipe": "quick",
    "config": "12ab",
    "set": "set",
    "test": "images",
    "student": 0,
    "attack": "clean",
    "threat": "",
    "how": "",
    "accuracy": 50.0,
    "low": None,
    "high": None,
    "images": 60,
    "median_distance": None,
    "seconds": 1.0,
    "epoch_seconds": 0.1,
    "verdict": "ok",
    "advised": "",
    "advised_accuracy": None,
}
"""a line of results.jsonl, as versions before `chance`, `protocol` and `labels` wrote it"""


def row(**fields: Any) -> Row:
    """Return a row; a threat is given as rows have it, "linf:8/255"."""
    line = DEFAULTS | fields
    return Row(**line | {"threat": parse_threat(line["threat"])})
