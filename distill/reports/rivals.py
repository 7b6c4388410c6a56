"""Random real images under the same labels: what a set must beat before its images count for anything.

Three regimes of labels give accuracies that do not compare (DD-Ranking, arXiv 2505.13300): hard, soft, and those of a
teacher. The rival of a set with hard labels is `random`; that of a set with a teacher's labels is any method of random
images (random_robust_labels, ...) whose labels come from a teacher of the same text, which has the loss, the
temperature and the share of hard labels. How long the teacher was trained, and with which network, is not compared
beyond the recipe. Rows of earlier versions, whose regime is unknown, compare with each other.
"""

import re
import shlex
from collections.abc import Sequence

from distill.data import DATASETS
from distill.evaluation.rows import Row

__all__ = ["is_rival", "rival_key", "rival_notes"]

RANDOM = "random"
MEANING = (
    "IOR: robust accuracy minus that of as many random real images under the same labels: hard ones against `random`, "
    "those of a teacher against random images with labels of the same teacher"
)
DATA = re.compile(r"(?P<dataset>.+?)(-(?P<size>\d+)px)?(-blur(?P<blur>[\d.e-]+))?(?P<validation>-validation)?")
"""the name of data in tables, as `Experiment.data_name` writes it"""
LABELS = re.compile(r"(?P<teacher>\S+)( T=(?P<temperature>\S+))?( hard=(?P<hard>\S+))?")
"""`DistilledSet.teacher`: losses, and how their probabilities became labels where that is not the default"""
KIND = re.compile(r"_([a-z]+)_(labels|views)$")
"""end of the name of a method whose labels are those of a teacher: mtt_robust_labels, mtt_robust_views"""


def is_rival(row: Row) -> bool:
    """Return whether a row is of random real images, under whatever labels: of `random`, or `random_..._labels`."""
    return row.method == RANDOM or (row.method.startswith(f"{RANDOM}_") and row.labels == "teacher")


def rival_key(row: Row) -> tuple:
    """Return what a row and a row of random images share if they are compared."""
    students = row.backbone, row.loss, row.labels, row.teacher, row.recipe
    return row.dataset, row.ipc, *students, row.images, row.test, row.column


def rival_notes(rows: Sequence[Row]) -> list[str]:
    """Return what IOR means, and a line for each kind of students without a rival, with the command that makes it.

    Args:
        rows: of a table.
    """
    rivals = {rival_key(row)[:-3] for row in rows if is_rival(row)}
    lacking: dict[tuple, Row] = {}
    for row in rows:
        if not is_rival(row) and rival_key(row)[:-3] not in rivals:
            lacking.setdefault(rival_key(row)[:-3], row)
    return [MEANING, *map(_absent, lacking.values())]


def _absent(row: Row) -> str:
    """Return that a row has no rival, and the command that makes it where there is one."""
    labels = f", labels: {row.regime}" if row.regime else ""
    command = _command(row)
    made = f"`{command}`, under the same attacks, makes them" if command else "no command is known that makes them"
    return f"no IOR of {row.method} on {row.dataset}, ipc {row.ipc}{labels}: no such random images; {made}"


def _command(row: Row) -> str:
    """Return the command that makes the rival of a row; "" where no method has such labels.

    Its --data-dir, and the folder of a teacher's file, are not known here.
    """
    views = row.method.endswith("_views")
    if row.labels == "soft" or (row.loss == "own") != views:
        return ""
    method, flags = RANDOM, ["--ipc", str(row.ipc), "--recipe", row.recipe, "--backbone", row.backbone]
    if row.labels == "teacher":
        found = LABELS.fullmatch(row.teacher)
        if found is None:
            return ""
        kind = KIND.search(row.method)
        method = f"{RANDOM}_{kind[1] if kind else 'robust'}_{'views' if views else 'labels'}"
        for flag in ("teacher", "temperature", "hard"):
            flags += [f"--{flag}", found[flag]] if found[flag] else []
    data = DATA.fullmatch(row.dataset)
    if data is None:
        return ""
    dataset = "folder" if row.dataset.startswith("folder-") else data["dataset"]
    if dataset not in DATASETS:  # of another package: `package.module:name`
        dataset = ":".join(dataset.rsplit(".", 1))
    flags += ["--image-size", data["size"]] if data["size"] else []
    flags += ["--blur", data["blur"]] if data["blur"] else []
    flags += ["--split", "validation"] if data["validation"] else []
    flags += [] if row.loss in ("cross_entropy", "own") else ["--student.loss", row.loss]
    return shlex.join(["bash", "run.sh", method, dataset, *flags])
