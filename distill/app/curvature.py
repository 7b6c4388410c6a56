"""`bash run.sh curvature RUN ...`: curvature of the students' loss in the input, and the paper's bounds."""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn

from distill.app.flags import HELP, find_device, parse
from distill.app.registry import check_packages
from distill.app.start import RunOptions, identity_of, real_data
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.evaluation.row_files import find_rows
from distill.evaluation.trained import students_of
from distill.reports.figures import curve, histogram, surface
from distill.reports.settings import distinct_labels
from distill.reports.theory import MeasuredSide, MeasuredStudent, to_csv, to_text
from distill.reports.theory_figures import draw_predictions, draw_terms
from distill.runs.description import difference
from distill.runs.files import write_text
from distill.runs.own_files import read_record
from distill.runs.progress import progress
from distill.runs.threads import one_thread
from distill.training.features import embedding
from robust import PGD, Threat, robust_accuracy, threat_named, withstands
from robust.ranges import Count, Positive, Range, check_ranges
from robust.theory.bounds import BoundTerms, bound_terms, transfer_terms
from robust.theory.convexity import midpoint_gaps
from robust.theory.landscape import loss_surface
from robust.theory.quadratic import quadratic_model
from robust.theory.spectrum import finite_difference_curvature
from robust.threat import family_of

__all__ = ["run_curvature"]

HISTOGRAMS = {
    "lambda_1": "λ1, largest eigenvalue of the input Hessian of the loss (nats per pixel²)",
    "cosine": "|cos| of the gradient and v1, the eigenvector of λ1",
}
"""property of the quadratic models of test images -> label of its axis"""
RADII = (0.25, 0.5, 1.0, 1.5, 2.0)
"""of the figure of the terms, relative to rho"""


@dataclass(frozen=True)
class CurvatureCommand:
    """Measure the curvature of the loss of a finished run's students (section 5 of the GUARD paper)."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """folders of runs of a method; several runs share the figures, which are saved in the first folder"""
    images: Count = 200
    """largest number of images of each kind (test, training, distilled), balanced over classes"""
    students: Count = 3
    """largest number of students"""
    rho: Annotated[float, Range(above=0, most=1e4)] | None = None
    """L2 radius of the bounds, pixels in [0, 1]; the default is the paper's l2 threat"""
    h: Positive = 0.75
    """L2 step of the finite difference, pixels in [0, 1]; 0.75 is 3 in CIFAR-10's normalised units"""
    eps: str = ""
    """linf radii of the accuracy curve; default 0,1/255,2/255,4/255,8/255 (grey images: 0,0.05,0.1,0.2,0.3)"""
    data_dir: Path = RunOptions.data_dir
    """folder of the real data sets"""
    packages: str = ""
    """other packages that may be imported if a run names one of their objects, separated by commas"""
    damaged: Literal["refuse", "skip"] = "refuse"
    """unreadable image files: refuse ends with an error at the first; skip checks all files first and omits these"""
    device: str = "auto"
    """cpu, cuda, cuda:1 or mps; auto uses a GPU if there is one"""

    def __post_init__(self) -> None:
        check_ranges(self)


def run_curvature(flags: list[str]) -> int:
    """Print the measurements of each run, and draw the figures.

    Returns:
        the exit code.

    Raises:
        InputError: a folder is not a run of a method, or a value is out of range.
    """
    helping = {*HELP} & {*flags}
    if (not flags or flags[0].startswith("-")) and not helping:
        raise InputError("curvature takes the folder of a run: bash run.sh curvature RUN")
    command = parse(CurvatureCommand, CurvatureCommand(()), flags, "bash run.sh curvature")
    for path in command.runs:
        if not (path / "results.jsonl").exists():
            raise InputError(f"{path} is not the folder of a finished run: it has no results.jsonl")
    _radii(command.eps)
    device = find_device(command.device)
    runs = [_Run(path, command, device) for path in dict.fromkeys(command.runs)]
    labels = distinct_labels([run.experiment for run in runs])
    measured: dict[str, list[MeasuredStudent]] = {}
    stacks: dict[str, Mapping[str, Sequence[BoundTerms]]] = {}
    curves = {}
    total = sum(3 * len(run.models) + 2 for run in runs)
    with warnings.catch_warnings(record=True) as caught, progress("curvature", total, 0, "task") as bar:
        warnings.simplefilter("always")
        for label, run in zip(labels, runs, strict=True):
            measured[label] = [_measure(run, model, command, bar.update) for model in run.models]
            stacks[label] = _over_radii(run, measured[label][0])
            bar.update()
            curves[label] = _curve(run, command.eps)
            bar.update()
    for line in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"run.sh: {line}", file=sys.stderr)  # eigenvalues that have not converged
    settings = {"rho": f"{runs[0].rho:g}", "h": f"{command.h:g}", "threat": f"linf {runs[0].linf.written}"}
    folder = command.runs[0] / "curvature"
    for name, axis in HISTOGRAMS.items():
        found = {label: torch.cat([getattr(one.test, name) for one in of]) for label, of in measured.items()}
        histogram(folder / f"{name}.png", found, axis=axis)
    draw_terms(folder / "bound.png", stacks)
    curve(folder / "accuracy.png", curves, radius="radius ε of PGD-10 (linf), pixels in [0, 1]")
    _draw_surface(runs[0], folder / "loss.png")
    if len(runs) > 1:
        draw_predictions(folder / "predictions.png", measured, settings["threat"])
    text = to_text(measured, settings)
    write_text(folder / "curvature.txt", text)
    write_text(folder / "curvature.csv", to_csv(measured, settings))
    print(text, end="")
    print(f"saved in {folder}: {', '.join(sorted(path.name for path in folder.glob('[!.]*')))}")
    return 0


class _Run:
    """A finished run, read from its folder: students, some images of each kind."""

    def __init__(self, path: Path, command: CurvatureCommand, device: torch.device):
        rows = find_rows([path])
        content = read_record(path) or {}
        self.experiment: dict[str, Any] = content.get("experiment") or {}
        if not (path / "distilled.safetensors").exists() or not {"dataset", "image_size", "split"} <= {
            *self.experiment
        }:
            raise InputError(f"{path} has no distilled set; give the folder of a method's run")
        check_packages(path, [self.experiment["dataset"], rows[0].backbone], command.packages.split(","))
        distilled = DistilledSet.load(path).to(device)
        settings = (self.experiment["image_size"], self.experiment["split"], command.damaged)
        blur = self.experiment.get("blur", 0.0)
        train, test = real_data(self.experiment["dataset"], command.data_dir, *settings, blur)
        found = identity_of(train, test)
        if content.get("data") != found:
            other = difference(content.get("data"), found)
            raise InputError(
                f"{path} used other data than {command.data_dir} has ({other}): give the --data-dir of the run"
            )
        one_thread(device)
        some, real = (images.subset(command.images).to(device) for images in (test, train))
        self.images, self.labels = some.images[:], some.labels  # small subsets, read into memory
        self.real_images, self.real_labels = real.images[:], real.labels
        labels = distilled.image_classes
        count = min(len(labels), command.images)  # of a set whose order is that of its classes
        which = torch.linspace(0, len(labels) - 1, count, device=device).round().long()
        which = which[torch.isin(labels[which], self.real_labels)]
        if not len(which):
            raise InputError(f"none of the {command.images} training images has a class of the set; give more --images")
        # attacks need pixels; distilled images may leave [0, 1]
        self.distilled_images, self.distilled_labels = distilled.images[which].clamp(0, 1), labels[which]
        row = rows[0]
        count = min(command.students, 1 + max(each.student or 0 for each in rows))
        self.models: list[nn.Module] = students_of(path, distilled, row.backbone, count, own=row.loss == "own")
        channels, size, _ = test.image_shape
        family = family_of(channels, size)
        self.rho = command.rho if command.rho is not None else threat_named("l2", family).eps
        self.linf = threat_named("linf", family)


def _measure(run: _Run, model: nn.Module, command: CurvatureCommand, done: Callable[[], object]) -> MeasuredStudent:
    """Return the measurements of a student; `done` is called after each kind of images."""
    x, y = run.images, run.labels
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        clean = 100 * (model(x).argmax(1) == y).double().mean().item()
    robust = robust_accuracy(model, x, y, PGD(run.linf), generator=generator)
    on_test = quadratic_model(model, x, y, generator=generator)
    finite = finite_difference_curvature(model, x, y, h=command.h)
    done()
    real = _side(run, model, run.real_images, run.real_labels, generator)
    gaps = midpoint_gaps(model, run.real_images, run.real_labels, generator=generator)
    done()
    distilled = _side(run, model, run.distilled_images, run.distilled_labels, generator)
    with torch.no_grad():
        features = [embedding(model, side.images) for side in (real, distilled)]
    transfer = transfer_terms(
        real.terms,
        distilled.terms,
        real_targets=real.classes,
        distilled_targets=distilled.classes,
        real_features=features[0],
        distilled_features=features[1],
    )
    done()
    return MeasuredStudent(clean, robust, on_test, finite, real, distilled, transfer, gaps)


def _side(run: _Run, model: nn.Module, images: Tensor, classes: Tensor, generator: torch.Generator) -> MeasuredSide:
    around = quadratic_model(model, images, classes, generator=generator)
    terms = bound_terms(model, images, classes, run.rho, around=around, generator=generator)
    return MeasuredSide(images, classes, around, terms)


def _over_radii(run: _Run, student: MeasuredStudent) -> dict[str, list[BoundTerms]]:
    """Return the terms of both kinds of images at several radii, for the first student."""
    found = {}
    for name, side in (("training images", student.real), ("distilled images", student.distilled)):
        terms = [
            side.terms
            if factor == 1
            else bound_terms(run.models[0], side.images, side.classes, factor * run.rho, around=side.around)
            for factor in RADII
        ]
        found[name] = terms
    return found


def _radii(eps: str) -> list[float]:
    try:
        return sorted(threat_named(f"linf:{text}").eps for text in eps.split(",") if text)
    except ValueError as error:
        raise InputError(f"--eps: {error}") from None


def _curve(run: _Run, eps: str) -> list[tuple[float, float, float | None]]:
    """Return (eps, mean accuracy, standard deviation) under PGD-10.

    An image that is fooled at one eps counts as fooled at every larger eps.
    """
    eps = eps or ("0,0.05,0.1,0.2,0.3" if run.images.shape[1] == 1 else "0,1/255,2/255,4/255,8/255")
    points, standing = (
        [],
        [torch.ones(len(run.images), dtype=torch.bool, device=run.images.device)] * len(run.models),
    )
    for radius in _radii(eps):
        attack = PGD(Threat("linf", radius))
        generator = torch.Generator().manual_seed(0)
        standing = [
            withstands(model, run.images, run.labels, attack, standing=mask, generator=generator)
            for model, mask in zip(run.models, standing, strict=True)
        ]
        accuracies = torch.stack([100 * mask.double().mean() for mask in standing])
        points.append((radius, accuracies.mean().item(), accuracies.std().item() if len(accuracies) > 1 else None))
    return points


def _draw_surface(run: _Run, path: Path) -> None:
    """Draw the loss of the first student around its first correctly classified image, or else the first image."""
    x, y, model = run.images, run.labels, run.models[0]
    with torch.no_grad():
        right = (model(x).argmax(1) == y).nonzero().flatten().tolist()
    which = (right or [0])[0]
    losses, steps = loss_surface(
        model, x[which], y[which], extent=4 * run.rho, generator=torch.Generator().manual_seed(0)
    )
    surface(path, losses, steps, steps)
