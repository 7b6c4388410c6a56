"""What is known of one student: for each column a bool per test image, in two files of the run, and unfinished parts.

students/K-correct.safetensors    for `clean` and each column which images are classified right
students/K-distances.safetensors  for minimum-norm attacks the distance of each image's nearest adversarial image
students/K-part-P.safetensors     both, of PART images, until all parts of a column are there
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from distill.errors import InputError
from distill.runs.run import Run

__all__ = ["PART", "PartResults", "StudentResults", "number_of_parts"]

PART = 250
"""test images that are evaluated together, by one process; results are saved after each column of a part"""
Kind = Literal["correct", "distances"]
KINDS: tuple[Kind, ...] = ("correct", "distances")


def number_of_parts(images: int) -> int:
    """Return the number of parts of a test set.

    >>> [number_of_parts(images) for images in (1, 250, 251)]
    [1, 1, 2]
    """
    return -(-images // PART)


class StudentResults:
    """The results of one student for all test images, read from the folder of its run.

    Args:
        run: the run.
        student: its number, or "teacher".
        settings: by column, the settings of its attack; saved results of other settings are dropped.
        images: size of the test set.

    Raises:
        InputError: a file is damaged, or of another run or test set.
    """

    def __init__(self, run: Run, student: int | str, settings: Mapping[str, str], images: int):
        self.run, self.student, self.images = run, student, images
        self._files: dict[Kind, str] = {kind: f"students/{student}-{kind}.safetensors" for kind in KINDS}
        read: dict[Kind, Any] = {kind: run.read_tensors(file) or ({}, {}) for kind, file in self._files.items()}
        self._tensors: dict[Kind, dict[str, Tensor]] = {kind: _whole(tensors) for kind, (tensors, _) in read.items()}
        for kind, tensors in self._tensors.items():
            if any(each.shape[-1:] != (images,) for each in tensors.values()):
                file = run.folder / self._files[kind]
                raise InputError(f"{file} is not of {images} test images; delete it to have it made anew")
        self.seconds: dict[str, float] = _facts(read["correct"][1], "seconds")
        """by column, seconds that its attack took"""
        self.settings = dict(settings)
        """by column, the settings of its attack"""
        for name, earlier in _facts(read["correct"][1], "settings").items():
            if self.settings.setdefault(name, earlier) != earlier:
                _drop(name, *self._tensors.values(), self.seconds)

    @property
    def bools(self) -> dict[str, Tensor]:
        """By column, which images are classified right: (images,), corruptions (kinds x severities, images)."""
        return dict(self._tensors["correct"])

    def of_part(self, kind: Kind, which: slice) -> dict[str, Tensor]:
        """Return the complete columns of a part of the images, by name."""
        return {name: tensor[..., which] for name, tensor in self._tensors[kind].items()}

    def median_distance(self, base: str) -> float | None:
        """Return the median distance of a minimum-norm attack over the images classified right; None of other attacks.

        Args:
            base: name of the column without its threat.
        """
        right = self._tensors["correct"]["clean"]
        if base not in self._tensors["distances"] or not right.any():
            return None
        return self._tensors["distances"][base][right].median().item()

    def parts(self) -> "list[PartResults]":
        """Return the results of all parts."""
        return [PartResults(self, number) for number in range(number_of_parts(self.images))]

    def join(self) -> None:
        """Save the columns of which all parts are there as complete ones, and remove those parts."""
        parts = self.parts()
        joined: dict[Kind, set[str]] = {}
        for kind in KINDS:
            joined[kind] = set.intersection(*(set(part.own[kind]) for part in parts))
        if not any(joined.values()):
            return
        for kind, names in joined.items():
            for name in names:
                self._tensors[kind][name] = torch.cat([part.own[kind][name] for part in parts], -1)
        for name in {name for part in parts for name in part.seconds}:
            self.seconds[name] = self.seconds.get(name, 0.0) + sum(part.seconds.get(name, 0.0) for part in parts)
        self.save()
        for part in parts:
            part.forget(joined)

    def put(self, name: str, bools: Tensor) -> None:
        """Set a column that follows from others, (images,); `save` saves it."""
        self._tensors["correct"][name] = bools

    def save(self) -> None:
        """Write both files."""
        facts = {"seconds": self.seconds, "settings": self.settings}
        for kind, tensors in self._tensors.items():
            if tensors:
                self.run.write_tensors(self._files[kind], tensors, facts if kind == "correct" else None)


class PartResults:
    """The results of one student for a part of the test images.

    Args:
        whole: the results of the student.
        number: of the part, from 0.

    Raises:
        InputError: the file of the part is damaged, or of another run.
    """

    def __init__(self, whole: StudentResults, number: int):
        self.whole, self.number = whole, number
        self.which = slice(number * PART, min(whole.images, (number + 1) * PART))
        """the images"""
        self._file = f"students/{whole.student}-part-{number}.safetensors"
        tensors, facts = whole.run.read_tensors(self._file) or ({}, {})
        length = self.which.stop - self.which.start
        self.own: dict[Kind, dict[str, Tensor]] = {kind: {} for kind in KINDS}
        """what this part has and the complete columns have not, by name"""
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            if kind in KINDS and tensor.shape[-1:] == (length,):
                self.own[kind][name] = tensor
        self.seconds: dict[str, float] = _facts(facts, "seconds")
        """by column, seconds that its attack took"""
        for name, earlier in _facts(facts, "settings").items():
            if whole.settings.get(name, earlier) != earlier:
                _drop(name, *self.own.values(), self.seconds)

    @property
    def bools(self) -> dict[str, Tensor]:
        """By column, which images of the part are classified right, as far as that is known."""
        return self.whole.of_part("correct", self.which) | self.own["correct"]

    def fill(self, name: str, evaluate: Callable[[], Tensor], kind: Kind = "correct") -> Tensor:
        """Return the results of a column; if they are not known yet, evaluate and save them.

        Args:
            name: of the column.
            evaluate: returns the results (..., images of the part).
            kind: bools or distances.
        """
        known = self.whole.of_part(kind, self.which) | self.own[kind]
        if name not in known:
            start = time.perf_counter()
            known[name] = self.own[kind][name] = evaluate().cpu()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self._save()
        return known[name]

    def forget(self, joined: Mapping[Kind, set[str]]) -> None:
        """Remove columns that are complete now from the file of the part, and the file if it has no others."""
        for kind, names in joined.items():
            for name in names:
                _drop(name, self.own[kind], self.seconds)
        if any(self.own.values()):
            self._save()
        else:
            (self.whole.run.folder / self._file).unlink(missing_ok=True)

    def _save(self) -> None:
        tensors = {f"{kind}/{name}": tensor for kind, own in self.own.items() for name, tensor in own.items()}
        self.whole.run.write_tensors(self._file, tensors, {"seconds": self.seconds, "settings": self.whole.settings})


def _drop(name: str, *tables: dict[str, Any]) -> None:
    """Remove a column from tables; distances do not depend on the threat, so their names have none."""
    for table in tables:
        for key in {name, name.partition("@")[0]} & table.keys():
            del table[key]


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the complete columns: files of earlier versions also have parts, of other sizes."""
    return {name: tensor for name, tensor in tensors.items() if "~" not in name}


def _facts(facts: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a dict among the facts of a file; earlier versions have it as JSON."""
    found = facts.get(name, {})
    return dict(json.loads(found) if isinstance(found, str) else found)
