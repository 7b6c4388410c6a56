"""What is known of one student: for each column a bool per test image, saved part by part in two files of the run."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from distill.errors import InputError
from distill.runs.run import Run

__all__ = ["PART", "StudentResults"]

PART = 500
"""test images after which the results so far are saved"""


class StudentResults:
    """The results of one student, read from and written to the folder of its run.

    Args:
        run: the run.
        student: its number, or "teacher".
        settings: by column, the settings of its attack; saved results of other settings are dropped.
        images: size of the test set.

    Raises:
        InputError: a file is damaged, or of another run or test set.
    """

    def __init__(self, run: Run, student: int | str, settings: Mapping[str, str], images: int):
        self.student, self._run, self._settings = student, run, dict(settings)
        self._files = {kind: f"students/{student}-{kind}.safetensors" for kind in ("correct", "distances")}
        read = {kind: run.read_tensors(file) or ({}, {}) for kind, file in self._files.items()}
        self._tensors = {kind: tensors for kind, (tensors, _) in read.items()}
        for kind, tensors in self._tensors.items():
            if any("~" not in name and each.shape[-1:] != (images,) for name, each in tensors.items()):
                file = run.folder / self._files[kind]
                raise InputError(f"{file} is not of {images} test images; delete it to have it made anew")
        self.seconds: dict[str, float] = _facts(read["correct"][1], "seconds")
        """by column, seconds that its attack took"""
        earlier: dict[str, str] = _facts(read["correct"][1], "settings")
        for name, settings_there in earlier.items():
            if self._settings.setdefault(name, settings_there) != settings_there:
                self._drop(name)

    @property
    def bools(self) -> dict[str, Tensor]:
        """By column, which images are classified right: (images,), corruptions (kinds x severities, images)."""
        return {name: bools for name, bools in self._tensors["correct"].items() if "~" not in name}

    def median_distance(self, base: str) -> float | None:
        """Return the median distance of a minimum-norm attack over the images classified right; None of other attacks.

        Args:
            base: name of the column without its threat.
        """
        right = self._tensors["correct"]["clean"]
        if base not in self._tensors["distances"] or not right.any():
            return None
        return self._tensors["distances"][base][right].median().item()

    def fill(
        self, name: str, images: int, evaluate_part: Callable[[slice, int], Tensor], kind: str = "correct"
    ) -> Tensor:
        """Return the results of a column; parts of it that are not saved yet are evaluated and saved.

        Args:
            name: of the column.
            images: size of the test set.
            evaluate_part: (which images, number of the part) -> results (..., images of the part).
            kind: which file, "correct" or "distances".
        """
        known = self._tensors[kind]
        if name in known:
            return known[name]
        keys = [f"{name}~{number}" for number in range(-(-images // PART))]
        for number, key in enumerate(keys):
            if key not in known:
                start = time.perf_counter()
                known[key] = evaluate_part(slice(number * PART, min(images, (number + 1) * PART)), number).cpu()
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
                if number < len(keys) - 1:
                    self._save(kind)
        known[name] = torch.cat([known.pop(key) for key in keys], -1)
        self._save(kind)
        return known[name]

    def put(self, name: str, bools: Tensor) -> None:
        """Save a column that follows from others, (images,)."""
        known = self._tensors["correct"]
        if name not in known or not torch.equal(known[name], bools):
            known[name] = bools
            self._save("correct")

    def _drop(self, name: str) -> None:
        for tensors in self._tensors.values():
            for key in [key for key in tensors if key.partition("~")[0] in (name, name.partition("@")[0])]:
                del tensors[key]  # distances do not depend on the threat, so their name has none
        self.seconds.pop(name, None)

    def _save(self, kind: str) -> None:
        facts = {"seconds": self.seconds, "settings": self._settings} if kind == "correct" else None
        self._run.write_tensors(self._files[kind], self._tensors[kind], facts)


def _facts(facts: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a dict among the facts of a file; earlier versions have it as JSON."""
    found = facts.get(name, {})
    return dict(json.loads(found) if isinstance(found, str) else found)
