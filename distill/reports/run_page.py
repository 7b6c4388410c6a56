"""The page of one run: its table, its images, what an attack changes, and how to repeat it."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from distill.distilled import DistilledSet
from distill.evaluation.row_files import FILE, find_rows
from distill.evaluation.rows import Row
from distill.evaluation.shown import Shown, read_shown
from distill.phrases import counted
from distill.reports.class_names import readable
from distill.reports.outcome import bools_of
from distill.reports.page import Chart, Code, Facts, Page, Part, Picture, Pictures, Section
from distill.reports.pictures import file_address
from distill.reports.run_images import attacked_images, by_class, images_of_classes
from distill.reports.run_results import of_teacher, results, sentences
from distill.reports.sets import set_of_run
from distill.reports.settings import flattened
from distill.reports.svg import Mark, line_chart
from distill.runs.foreign import read_text
from distill.runs.memory import peak_memory
from distill.runs.own_files import read_record
from distill.runs.progress import human
from distill.runs.scalars import METRICS, read_scalars

__all__ = ["command_of", "run_page"]

POINTS = 400
"""points of a training curve, at most"""
CURVES = 3
"""training curves, at most"""
PLACES = ("--data-dir", "--runs", "--stages", "--device", "--checkpoint-seconds", "--processes", "--workers")
"""flags on which no result depends; the command of a page has none of them but a placeholder for the data"""


def run_page(folder: Path) -> Page:
    """Return the page of a finished run.

    Args:
        folder: of the run.

    Raises:
        InputError: the run is not finished, or a file of it is damaged.
    """
    rows, record = find_rows([folder]), read_record(folder) or {}
    first, bools = rows[0], bools_of(folder, rows)
    distilled, shown = set_of_run(folder, first.set), read_shown(folder)
    classes = _names_of_classes(record, distilled, shown)
    steps = read_scalars(folder / METRICS)
    students = 1 + max(row.student or 0 for row in rows)
    when = datetime.fromtimestamp((folder / FILE).stat().st_mtime, UTC)
    facts = [f"seed {first.seed}", f"recipe {first.recipe}", counted(students, f"student {first.backbone}")]
    facts += [f"{first.images:,} test images", f"{when:%Y-%m-%d}"]
    examples = None if shown is None else shown.examples
    return Page(
        f"{first.method} on {first.dataset}, {counted(first.ipc, 'image')} per class",
        ", ".join(facts),
        [
            Section("Results", results(rows, bools)),
            Section("Distilled images", [images_of_classes(distilled)] if distilled else []),
            Section("What an attack changes", [] if examples is None else attacked_images(examples, classes)),
            Section("Classes", [] if shown is None else by_class(shown, bools, classes)),
            Section("Distillation", list(_curves(steps))),
            Section("Curvature", list(_curvature(folder / "curvature"))),
            Section("How to repeat this run", _provenance(folder, rows, record, steps)),
        ],
        summary=[*sentences(rows, bools), *of_teacher(folder, bools)],
    )


def _names_of_classes(record: Mapping[str, Any], distilled: DistilledSet | None, shown: Shown | None) -> Sequence[str]:
    """Return the names of the classes: of the set, else of the record, else their numbers."""
    if distilled is not None:
        return readable(distilled.classes)
    names = (record.get("data") or {}).get("classes")
    if isinstance(names, list):
        return readable(names)
    count = 0 if shown is None else 1 + int(torch.cat([shown.answers.flatten(), shown.labels]).max())
    return [str(number) for number in range(count)]


def _curves(steps: Sequence[Mapping[str, float]]) -> Iterator[Part]:
    """Yield a chart for each of the first scalars of the distillation."""
    names = [name for name in dict.fromkeys(name for step in steps for name in step) if name not in ("step", "seconds")]
    for name in sorted(names, key=lambda name: name != "loss")[:CURVES]:
        points = [(step["step"], step[name]) for step in steps if name in step]
        points = points[:: -(-len(points) // POINTS)]
        if len({x for x, _ in points}) > 1:
            marks = [Mark(float(x), float(y)) for x, y in points]
            chart = line_chart({name: marks}, title=f"{name} by iteration", across="iteration", up=name, marked=False)
            yield Chart(chart, f"{name} by iteration of the distillation.")


CURVATURE = {
    "bound.png": "The terms of bound (2) of the paper over the radius rho, with both adversarial losses.",
    "lambda_1.png": "Largest eigenvalue of the input Hessian on test images.",
    "cosine.png": "Alignment of the gradient with the first eigenvector on test images.",
    "loss.png": "The loss around a test image.",
    "predictions.png": "What the largest eigenvalue says of robustness, over runs.",
}
"""figures of `bash run.sh curvature` -> captions"""


def _curvature(folder: Path) -> Iterator[Part]:
    for name, caption in CURVATURE.items():
        if (folder / name).exists():
            yield Pictures([Picture(file_address(folder / name), caption)], caption, wide=True)
    if (folder / "curvature.txt").exists():
        yield Code(read_text(folder / "curvature.txt"))


def _provenance(
    folder: Path, rows: Sequence[Row], record: Mapping[str, Any], steps: Sequence[Mapping[str, float]]
) -> list[Part]:
    first, made_by = rows[0], record.get("made_by") or {}
    data, versions = record.get("data") or {}, made_by.get("versions") or {}
    facts = {
        "data": "; ".join(f"{name} {data[name]}" for name in ("train", "test") if name in data),
        "set": f"hash {first.set}",
        "labels": first.regime or "hard",
        "students": f"protocol {first.protocol or 'standard'}, loss {first.loss}, "
        f"{human(first.epoch_seconds)} per epoch",
        "commit": made_by.get("commit") or "unknown",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "device": made_by.get("device") or "unknown",
        "config": first.config,
        "time": _times(steps, rows),
        "memory": _memory(folder),
    }
    settings = {name: str(value) for name, value in flattened(record.get("experiment") or {})}
    parts: list[Part] = [Code(command)] if (command := command_of(made_by.get("command"))) else []
    known = {name: text for name, text in facts.items() if text}
    return [*parts, Facts(known), Facts(settings, title="All settings")] if settings else [*parts, Facts(known)]


def _times(steps: Sequence[Mapping[str, float]], rows: Sequence[Row]) -> str:
    """Return how long the parts of the run took, over all processes that worked on it."""
    distillation = sum(step["seconds"] for step in steps if "seconds" in step)
    parts = {"distillation": distillation, "attacks": sum(row.seconds for row in rows)}
    return ", ".join(f"{name} {human(seconds)}" for name, seconds in parts.items() if seconds)


def _memory(folder: Path) -> str:
    found = {"process": "", "device": " on the device"}
    peaks = peak_memory(folder)
    return ", ".join(f"{peaks[name] / 2**30:.2g} GiB{where}" for name, where in found.items() if peaks.get(name))


def command_of(words: Any) -> str:
    """Return the command of a run without what belongs to the machine.

    Args:
        words: the command line as experiment.json has it.

    Returns:
        the command; "" where another program made the run.
    """
    if not isinstance(words, list) or len(words) < 2 or Path(str(words[0])).name != "__main__.py":
        return ""
    found, rest = [], [str(word) for word in words[1:]]
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        if name not in PLACES:
            found.append(word)
            continue
        if not equals and rest:
            rest.pop(0)
        if name == "--data-dir":
            found += ["--data-dir", "DIR"]
    return f"bash run.sh {shlex.join(found)}"
