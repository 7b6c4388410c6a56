"""One student before the columns of the table: a bool per column and test image, saved part by part."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill.data import ImageSet
from distill.errors import InputError
from distill.evaluation.columns import Column
from distill.runs.run import Run
from robust import Threat, Transfer, certified, certify, correct, least_distances, withstands
from robust.evaluation.accuracy import radius
from robust.evaluation.corruptions import COMMON, SEVERITIES, corrupt
from robust.spec import split_spec

__all__ = ["PART", "Sheet", "descend", "judge", "judge_clean", "members_of"]

NO_ATTACK = ("corruptions", "certified")
"""kinds of columns that no attack on the student stands behind"""
PART = 500
"""test images after which what was found is saved"""


class Sheet:
    """What is known of one student, two files of its run's folder.

    Args:
        run: whose folder has them.
        student: its number, or "teacher".
        settings: by column, how its attack is set; what was found with other settings is forgotten.
        images: of the test set.

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
        """by column, of the images judged"""
        earlier: dict[str, str] = _facts(read["correct"][1], "settings")
        for name, how in earlier.items():
            if self._settings.setdefault(name, how) != how:
                self._forget(name)

    @property
    def bools(self) -> dict[str, Tensor]:
        """By column, who is classified right: (images,), corruptions (kinds x severities, images)."""
        return {name: bools for name, bools in self._tensors["correct"].items() if "~" not in name}

    def median_distance(self, base: str) -> float | None:
        """Return the median distance over the images classified right, of a minimum-norm attack; None of others."""
        right = self._tensors["correct"]["clean"]
        if base not in self._tensors["distances"] or not right.any():
            return None
        return self._tensors["distances"][base][right].median().item()

    def fill(self, name: str, images: int, part_of: Callable[[slice, int], Tensor], kind: str = "correct") -> Tensor:
        """Return a column, judging and saving the parts of it that are not there.

        Args:
            name: of the column.
            images: of the test set.
            part_of: (which images, number of the part) -> what is found (..., images of the part).
            kind: which file.
        """
        known = self._tensors[kind]
        if name in known:
            return known[name]
        keys = [f"{name}~{number}" for number in range(-(-images // PART))]
        for number, key in enumerate(keys):
            if key not in known:
                start = time.perf_counter()
                known[key] = part_of(slice(number * PART, min(images, (number + 1) * PART)), number).cpu()
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
                if number < len(keys) - 1:
                    self._save(kind)
        known[name] = torch.cat([known.pop(key) for key in keys], -1)
        self._save(kind)
        return known[name]

    def put(self, name: str, bools: Tensor) -> None:
        """Keep what follows from other columns, (images,)."""
        known = self._tensors["correct"]
        if name not in known or not torch.equal(known[name], bools):
            known[name] = bools
            self._save("correct")

    def _forget(self, name: str) -> None:
        for tensors in self._tensors.values():
            for key in [key for key in tensors if key.partition("~")[0] in (name, name.partition("@")[0])]:
                del tensors[key]  # distances are the same for every ball, and have its name without one
        self.seconds.pop(name, None)

    def _save(self, kind: str) -> None:
        facts = {"seconds": self.seconds, "settings": self._settings} if kind == "correct" else None
        self._run.write_tensors(self._files[kind], self._tensors[kind], facts)


def _facts(facts: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a dict among the facts of a file; earlier versions have it as JSON."""
    found = facts.get(name, {})
    return dict(json.loads(found) if isinstance(found, str) else found)


def descend(sheet: Sheet, asked: Sequence[Column]) -> None:
    """Count an image that falls to an attack as fallen to the same attack in every larger ball of that norm.

    Where the smaller ball was attacked first that holds already, since only the images that withstood are attacked in
    the larger one; a smaller ball may also be added later.

    Args:
        sheet: the student's.
        asked: all columns, evaluated.
    """
    by_size = sorted((c for c in asked if c.threat and c.kind not in NO_ATTACK), key=lambda c: c.threat.eps)
    for column in by_size:
        if column.base != "worst":
            smaller = [c for c in by_size if c.base == column.base and _contains(column.threat, c.threat)]
            sheet.put(column.name, torch.stack([sheet.bools[c.name] for c in smaller]).all(0))
    for column in by_size:
        if column.base == "worst":
            members = [sheet.bools["clean"], *(sheet.bools[c.name] for c in members_of(column, asked))]
            sheet.put(column.name, torch.stack(members).all(0))


def members_of(worst: Column, asked: Sequence[Column]) -> list[Column]:
    """Return the columns that `worst` joins: every attack at its threat or a smaller one of that norm.

    Certificates and corruptions are none: an abstention is no adversarial image.
    """
    attacks = (c for c in asked if c.kind not in NO_ATTACK and c.base != "worst")
    return [c for c in attacks if _contains(worst.threat, c.threat)]


def judge_clean(sheet: Sheet, model: nn.Module, test: ImageSet) -> Tensor:
    """Return who is classified right, (images,)."""
    return sheet.fill("clean", len(test), lambda who, _: correct(model, test.images[who], test.labels[who]))


def judge(
    column: Column,
    others: list[Column],
    sheet: Sheet,
    model: nn.Module,
    test: ImageSet,
    surrogate: nn.Module | None,
    run: Run,
) -> Tensor:
    """Return who is classified right in spite of a column's attack or damage.

    Only who still stands is attacked: who is classified right, and has not fallen to the same attack in a smaller ball.
    `certified` is the certified accuracy of the smoothed student (Cohen et al. 2019), which may exceed that of the
    student.

    Args:
        column: what is judged; not `worst`, which `descend` makes of the others.
        others: all columns; those already judged are used.
        sheet: the student's.
        model: the student, pixels to logits.
        test: the images.
        surrogate: of a transfer.
        run: its generators.

    Returns:
        bools (images,), for corruptions (kinds x severities, images).
    """
    x, y, n, name = test.images, test.labels, len(test), column.name
    known = sheet.bools

    def generator(part: int) -> torch.Generator:
        attack = split_spec(column.base)[0]  # its fields draw nothing: pgd and pgd:steps=10 are one attack
        return run.generator("attack", sheet.student, attack, *([part] if part else []))

    if column.kind == "corruptions":
        return sheet.fill(name, n, lambda who, part: _under_corruptions(model, x[who], y[who], generator(part)))
    if column.kind == "certified":
        how, eps = column.attack, column.threat.eps if column.threat else 0.0

        def certify_part(who: slice, part: int) -> Tensor:
            found = certify(
                model, x[who], sigma=how.sigma, n0=how.n0, n=how.n, alpha=how.alpha, generator=generator(part)
            )
            return certified(found, y[who], eps)  # of the smoothed model: the student itself may be wrong there

        return sheet.fill(name, n, certify_part)
    smaller = [c for c in others if c.name in known and c is not column and _contains(column.threat, c.threat)]
    before = [known["clean"], *(known[c.name] for c in smaller if c.base == column.base)]
    standing = torch.stack(before).all(0).to(x.device)
    if getattr(column.attack, "minimum_norm", False):

        def distances(who: slice, part: int) -> Tensor:
            options = {"standing": known["clean"][who].to(x.device), "generator": generator(part)}
            return least_distances(model, x[who], y[who], column.attack, **options)

        far = sheet.fill(column.base, n, distances, "distances")
        return sheet.fill(name, n, lambda who, _: far[who] > radius(column.attack))
    attack = column.attack if surrogate is None else Transfer(surrogate, column.attack)
    return sheet.fill(
        name,
        n,
        lambda who, part: withstands(model, x[who], y[who], attack, standing=standing[who], generator=generator(part)),
    )


def _contains(large: Threat | None, small: Threat | None) -> bool:
    return large is not None and small is not None and large.norm == small.norm and large.eps >= small.eps


def _under_corruptions(model: nn.Module, images: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
    damaged = (corrupt(images, kind, severity, generator) for kind in COMMON for severity in SEVERITIES)
    return torch.stack([correct(model, x, targets) for x in damaged])
