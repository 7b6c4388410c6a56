"""The page of one run: its table, its images, what an attack changes, and how to repeat it."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from distill.distilled import DistilledSet
from distill.evaluation.intervals import accuracy_interval
from distill.evaluation.row_files import FILE, find_rows, read_rows
from distill.evaluation.rows import ColumnKey, Row
from distill.evaluation.shown import Examples, Shown, read_shown
from distill.reports.class_names import readable
from distill.reports.outcome import bools_of, verdict_of
from distill.reports.page import Chart, Code, Facts, Page, Part, Picture, Pictures, Section, Table
from distill.reports.pictures import difference, file_address, row_of_images
from distill.reports.sets import set_of_run
from distill.reports.settings import flattened
from distill.reports.summary import headings
from distill.reports.svg import Mark, interval_bar, line_chart
from distill.reports.tables import milliseconds
from distill.runs.foreign import read_text
from distill.runs.memory import peak_memory
from distill.runs.own_files import read_record
from distill.runs.progress import human
from distill.runs.scalars import METRICS, read_scalars
from robust import Threat

__all__ = ["accuracy_cell", "command_of", "images_of_classes", "run_page"]

CLASSES, IMAGES = 20, 10
"""classes, and images of a class, of a set whose images are shown, at most"""
MATRIX = 20
"""classes up to which a confusion matrix is shown; else the most frequent confusions"""
POINTS = 400
"""points of a training curve, at most"""
CURVES = 3
"""training curves, at most"""
PAPERS = ("linf_star", "linf")
"""columns that are one attack (PGD with ten steps of eps / 4) at two radii"""
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
    facts = [f"seed {first.seed}", f"recipe {first.recipe}", _count(students, f"student {first.backbone}")]
    facts += [f"{first.images:,} test images", f"{when:%Y-%m-%d}"]
    examples = None if shown is None else shown.examples
    return Page(
        f"{first.method} on {first.dataset}, {_count(first.ipc, 'image')} per class",
        ", ".join(facts),
        [
            Section("Results", _results(rows, bools)),
            Section("Distilled images", [images_of_classes(distilled)] if distilled else []),
            Section("What an attack changes", [] if examples is None else _attacked(examples, classes)),
            Section("Classes", [] if shown is None else _classes(shown, bools, classes)),
            Section("Distillation", list(_curves(steps))),
            Section("Curvature", list(_curvature(folder / "curvature"))),
            Section("How to repeat this run", _provenance(folder, rows, record, steps)),
        ],
        summary=[*_sentences(rows, bools), *_of_teacher(folder, bools)],
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


def _count(number: int, noun: str) -> str:
    first, _, rest = noun.partition(" ")
    return f"{number:,} {first}{'s' * (number != 1)}{' ' * bool(rest)}{rest}"


# --- the table ----------------------------------------------------------------------------------------------------


def _sentences(rows: Sequence[Row], bools: Mapping[ColumnKey, Tensor]) -> list[str]:
    names = headings(bools)
    attacked = [column for column in bools if isinstance(column.threat, Threat) and bools[column].ndim == 2]
    clean = next(column for column in bools if column.attack == "clean")
    found = [f"The accuracy without an attack is {_with_interval(bools[clean])}."]
    if attacked:
        worst = min(attacked, key=lambda column: bools[column].double().mean().item())
        found.append(f"Under {names[worst]}, the strongest attack in the table, it is {_with_interval(bools[worst])}.")
    doubts = [names[column] for column in bools if _verdict(rows, column) != "ok"]
    if doubts:
        found.append(f"A check doubts the accuracy under {', '.join(doubts)}: see the verdicts.")
    return found


def _of_teacher(folder: Path, bools: Mapping[ColumnKey, Tensor]) -> list[str]:
    """Return what bounds the students of a teacher's labels: the accuracies of the teacher."""
    path = folder / "teacher.jsonl"
    if not path.exists():
        return []
    names = headings(bools)
    found = [(row, names.get(row.column, row.attack)) for row in read_rows(path)]
    words = [
        f"{row.accuracy:.1f} % {'without an attack' if name == 'clean' else f'under {name}'}" for row, name in found
    ]
    return [f"Their teacher has {', '.join(words)}."]


def _with_interval(bools: Tensor) -> str:
    low, high = accuracy_interval([bools])
    return f"{100 * bools.double().mean().item():.1f} % (95 % interval {low:.1f} to {high:.1f})"


def _verdict(rows: Sequence[Row], column: ColumnKey) -> str:
    return verdict_of([row.verdict for row in rows if row.column == column])


def _results(rows: Sequence[Row], bools: Mapping[ColumnKey, Tensor]) -> list[Part]:
    lines = []
    for column, name in headings(bools).items():
        mine, found = [row for row in rows if row.column == column], bools[column]
        low, high = accuracy_interval([found]) if found.ndim == 2 else (None, None)
        accuracies = [row.accuracy for row in mine]
        spread = f"{torch.tensor(accuracies).std().item():.1f}" if len(accuracies) > 1 else ""
        interval = "" if low is None else f"{low:.1f} to {high:.1f}"
        bar = interval_bar(fmean(accuracies), low, high)
        verdict = verdict_cell(_verdict(rows, column))
        lines.append([name, f"{fmean(accuracies):.1f}", bar, interval, spread, _seconds(mine), verdict])
    header = ["attack", "accuracy (%)", "0 to 100 %", "95 % interval", "SD", "seconds", "verdict"]
    caption = (
        "Accuracy in percent of the test images, mean over students. The interval covers other students and other test "
        "images. SD: standard deviation over students. Verdict: whether a check for masked gradients doubts the number."
    )
    charts = [_against_eps(bools, norm) for norm in ("linf", "l2")]
    return [Table(header, lines, caption), *(chart for chart in charts if chart)]


def verdict_cell(verdict: str) -> str | Markup:
    """Return a verdict as a cell: a doubt is coloured."""
    return verdict if verdict == "ok" else Markup('<span class="doubt">{}</span>').format(verdict)


def accuracy_cell(mean: float, doubted: bool) -> str | Markup:
    """Return an accuracy as a cell, with a mark where a check doubts it."""
    return Markup('<span class="doubt">{} ?</span>').format(f"{mean:.1f}") if doubted else f"{mean:.1f}"


def _seconds(rows: Sequence[Row]) -> str:
    return f"{sum(row.seconds for row in rows):.1f}"


def _against_eps(bools: Mapping[ColumnKey, Tensor], norm: str) -> Chart | None:
    """Return accuracy against eps for the attacks of a norm; None where no attack has two radii."""
    clean = next(column for column in bools if column.attack == "clean")
    lines: dict[str, dict[float, Mark]] = {}
    names: dict[float, str] = {0.0: "0"}
    for column, found in bools.items():
        if not isinstance(column.threat, Threat) or column.threat.norm != norm or found.ndim != 2:
            continue
        attack = "PGD-10" if column.attack in PAPERS else column.attack.partition("@")[0]
        line = lines.setdefault(attack, {0.0: _mark(0.0, bools[clean])})
        line[column.threat.eps] = _mark(column.threat.eps, found)
        names[column.threat.eps] = column.threat.written.removeprefix("l2:")
    if max(map(len, lines.values()), default=0) < 3:
        return None
    figure = line_chart(
        {name: [line[eps] for eps in sorted(line)] for name, line in lines.items()},
        title=f"Accuracy against the radius of {norm} attacks",
        across=f"eps, {norm} radius of the attack (pixels in [0, 1])",
        up="accuracy (%)",
        x_names=names,
    )
    return Chart(figure, "Accuracy against the size of the attack, with 95 % intervals; 0 is clean accuracy.")


def _mark(eps: float, bools: Tensor) -> Mark:
    return Mark(eps, 100 * bools.double().mean().item(), *accuracy_interval([bools]))


# --- the images ---------------------------------------------------------------------------------------------------


def images_of_classes(distilled: DistilledSet, images: int = IMAGES) -> Pictures:
    """Return the images of a set, a row for each class."""
    classes, names = distilled.image_classes, readable(distilled.classes)
    present = classes.unique().tolist()
    rows = []
    for c in present[:CLASSES]:
        which, name = (classes == c).nonzero()[:images, 0], names[c]
        text = f"{len(which)} images of {name}"
        rows.append(Picture(row_of_images(distilled.images[which]), text, name, len(which)))
    caption = f"The distilled images, {distilled.images.shape[-1]} pixels wide, values cut to [0, 1]."
    if len(present) > CLASSES or (classes.bincount() > images).any():
        caption += f" The first {images} images of the first {min(CLASSES, len(present))} of {len(present)} classes."
    if distilled.labels.ndim == 2:
        row = "the class that it was made for" if distilled.made_for else "its largest probability"
        caption += f" Their labels are soft; each image is in the row of {row}."
    return Pictures(rows, caption)


def _attacked(examples: Examples, classes: Sequence[str]) -> list[Part]:
    magnified, factor = difference(examples.images, examples.attacked)
    rows = []
    for number, label in enumerate(examples.labels.tolist()):
        before, after = examples.probabilities[:, number]
        triple = torch.stack([part[number].float() for part in (examples.images, examples.attacked, magnified)])
        text = f"{_answer(before, classes)}, then {_answer(after, classes)}"
        rows.append(Picture(row_of_images(triple), f"{classes[label]}: {text}", text, 3))
    caption = (
        f"Test images that student 0 classifies correctly, the same under {examples.attack}, and the difference (grey: "
        f"none; {factor:.3g} times larger). Beside them what the student says of the two, with its probability."
    )
    return [Pictures(rows, caption)]


def _answer(probabilities: Tensor, classes: Sequence[str]) -> str:
    best = int(probabilities.argmax())
    return f"{classes[best]} {100 * probabilities[best].item():.0f} %"


# --- classes ------------------------------------------------------------------------------------------------------


def _classes(shown: Shown, bools: Mapping[ColumnKey, Tensor], classes: Sequence[str]) -> list[Part]:
    present = shown.labels.unique().tolist()
    counts = torch.zeros(len(classes), len(classes))
    for answers in shown.answers:
        counts.index_put_((shown.labels, answers), torch.ones(len(answers)), accumulate=True)
    shares = 100 * counts / counts.sum(1, keepdim=True).clamp_min(1)
    parts: list[Part] = []
    if len(classes) <= MATRIX:
        lines = [[classes[c], *(_heat(share) for share in shares[c].tolist())] for c in present]
        caption = "Confusion without an attack: of the test images of the row, the share (%) taken for the column."
        parts.append(Table(["", *classes], lines, caption))
    else:
        wrong = shares - shares.diag().diag()
        top = wrong.flatten().topk(15).indices.tolist()
        pairs = [divmod(place, len(classes)) for place in top]
        lines = [[classes[a], classes[b], f"{wrong[a, b].item():.0f}"] for a, b in pairs]
        parts.append(
            Table(["class", "taken for", "share (%)"], lines, "The most frequent confusions without an attack.")
        )
    columns = {column: name for column, name in headings(bools).items() if bools[column].ndim == 2}
    lines = [
        [classes[c], *(f"{100 * bools[column][:, shown.labels == c].double().mean().item():.1f}" for column in columns)]
        for c in present
    ]
    caption = "Accuracy (%) by class, mean over students."
    return [*parts, Table(["class", *columns.values()], lines, caption, title="Accuracy by class under each attack")]


def _heat(share: float) -> Markup:
    return Markup('<span class="heat" style="--v:{}%">{}</span>').format(
        f"{share:.0f}", f"{share:.0f}" if share >= 0.5 else ""
    )


# --- how it was made ----------------------------------------------------------------------------------------------


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
        f"{milliseconds(first.epoch_seconds)} ms per epoch",
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
