"""What reports show of a run's students: their answers to all test images, and a few adversarial images.

students/shown.safetensors holds
    labels         (N,) int64, classes of the test images
    answers        (students, N) int64, classes that each student takes the images for, without an attack
    images         (E, C, H, W) float16, test images that the first student classifies right, each of another class
    attacked       (E, C, H, W) float16, their adversarial images
    probabilities  (2, E, K) float32, of the first student for the images, and for the adversarial images
and in its metadata the name of the attack. The last three are missing where no column is a PGD attack.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distill.data import ImageSet
from distill.evaluation.column_kinds import AttackColumn, Column
from distill.evaluation.trained import Trained
from distill.runs.own_files import fingerprint_of_folder, read_run_file
from robust import PGD

__all__ = ["Examples", "Shown", "read_shown", "save_shown"]

FILE = "students/shown.safetensors"
MOST = 8
"""adversarial images, at most"""
AT_ONCE = 250
"""test images of a pass"""


@dataclass(frozen=True)
class Examples:
    """A few test images, their adversarial images, and what the first student says of both."""

    attack: str
    """name of the column"""
    labels: Tensor
    """(E,) classes"""
    images: Tensor
    """(E, C, H, W) float16, pixels in [0, 1]"""
    attacked: Tensor
    """the same, under the attack"""
    probabilities: Tensor
    """(2, E, K): of the images, and of the adversarial images"""


@dataclass(frozen=True)
class Shown:
    """The file."""

    labels: Tensor
    """(N,) classes of the test images"""
    answers: Tensor
    """(students, N) classes that each student takes them for"""
    examples: Examples | None
    """None where no column is a PGD attack, or the student classifies no image right"""


def save_shown(trained: Trained, test: ImageSet, columns: Sequence[Column]) -> None:
    """Write the file of a run whose students are trained.

    Args:
        trained: the students.
        test: images that they are evaluated on.
        columns: of the table.
    """
    networks = [trained.student(number)[0] for number in range(trained.evaluation.students)]
    labels, parts = test.labels, [slice(first, first + AT_ONCE) for first in range(0, len(test), AT_ONCE)]
    with torch.no_grad():
        found = [
            torch.stack([network(x).argmax(1) for network in networks]) for x in map(test.images.__getitem__, parts)
        ]
    answers = torch.cat(found, 1)
    tensors, facts = {"labels": labels, "answers": answers}, {"attack": ""}
    column, which = _chosen(columns), _one_of_each_class((answers[0] == labels).nonzero()[:, 0], labels)
    if column is not None and len(which):
        images = test.images[which]
        attacked = column.attack(networks[0], images, labels[which], generator=trained.run.generator("shown"))
        with torch.no_grad():
            probabilities = torch.stack([networks[0](x).softmax(1) for x in (images, attacked)])
        facts = {"attack": column.name}
        tensors |= {
            "which": which,
            "images": images.half(),
            "attacked": attacked.half(),
            "probabilities": probabilities,
        }
    trained.run.write_tensors(FILE, {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, facts)


def _chosen(columns: Sequence[Column]) -> AttackColumn | None:
    """Return the column whose adversarial images are shown: the paper's `linf`, else the first PGD in a ball."""
    found = [c for c in columns if type(c) is AttackColumn and isinstance(c.attack, PGD) and c.threat and c.threat.eps]
    return next((column for column in found if column.name == "linf"), next(iter(found), None))


def _one_of_each_class(candidates: Tensor, labels: Tensor) -> Tensor:
    """Return the first candidate of each class, in the order of classes, at most MOST."""
    classes = labels[candidates]
    return candidates[[int((classes == c).nonzero()[0]) for c in classes.unique()[:MOST]]]


def read_shown(folder: Path) -> Shown | None:
    """Return the content of a run's file; None for a run of an earlier version, which has none.

    Raises:
        InputError: the file is damaged, or of another run.
    """
    path = folder / FILE
    if not path.exists():
        return None
    tensors, facts = read_run_file(path, fingerprint_of_folder(folder))
    examples = None
    if "which" in tensors:
        of_examples = (tensors[name] for name in ("images", "attacked", "probabilities"))
        examples = Examples(str(facts.get("attack")), tensors["labels"][tensors["which"]], *of_examples)
    return Shown(tensors["labels"], tensors["answers"], examples)
