"""`bash run.sh curvature RUN ...`: curvature of the students' loss in the input, and the paper's bounds."""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor, nn

from distill.app.flags import find_device, parse
from distill.app.registry import check_packages
from distill.app.start import RunOptions, identity_of, real_data
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.evaluation.row_files import find_rows
from distill.evaluation.trained import students_of
from distill.reports.figures import curve, histogram, surface
from distill.reports.tables import aligned
from distill.runs.description import difference
from distill.runs.files import write_text
from distill.runs.own_files import read_record
from distill.runs.progress import progress
from distill.runs.threads import one_thread
from distill.training.features import embedding
from robust import PGD, Threat, threat_named, withstands
from robust.ranges import Count, Positive, Range, check_ranges
from robust.theory.bounds import BoundTerms, bound_terms, transfer_terms
from robust.theory.landscape import loss_surface
from robust.theory.spectrum import finite_difference_curvature, gradient_cosine, top_eigenvalue
from robust.threat import family_of

__all__ = ["run_curvature"]


@dataclass(frozen=True)
class CurvatureCommand:
    """Measure the curvature of the loss of a finished run's students (section 5 of the GUARD paper)."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """folders of runs of a method; several runs share the figures, which are saved in the first folder"""
    images: Count = 200
    """number of test images, balanced over classes"""
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
    """cpu, cuda, cuda:1, mps, ...; auto uses a GPU if there is one"""

    def __post_init__(self) -> None:
        check_ranges(self)


def run_curvature(flags: list[str]) -> int:
    """Print a line of measurements for each run and draw the figures.

    Returns:
        the exit code.

    Raises:
        InputError: a folder is not a run of a method, or a value is out of range.
    """
    helping = {"-h", "--help"} & {*flags}
    if (not flags or flags[0].startswith("-")) and not helping:
        raise InputError("curvature takes the folder of a run: bash run.sh curvature RUN")
    command = parse(CurvatureCommand, CurvatureCommand(()), flags, "bash run.sh curvature")
    for path in command.runs:
        if not (path / "results.jsonl").exists():
            raise InputError(f"{path} is not the folder of a finished run: it has no results.jsonl")
    if command.images < 1 or command.students < 1 or not command.h > 0 or not (command.rho is None or command.rho > 0):
        raise InputError(
            f"images {command.images}, students {command.students}, h {command.h}, rho {command.rho}: all must be > 0"
        )
    _radii(command.eps)
    device = find_device(command.device)
    lines, eigenvalues, curves = [], {}, {}
    total = len(command.runs) * (3 * command.students + 1)
    with warnings.catch_warnings(record=True) as caught, progress("curvature", total, 0, "task") as bar:
        warnings.simplefilter("always")
        for path in command.runs:
            run = _Run(path, command, device)
            found = [_measure(run, model, command, bar.update) for model in run.models]
            lines.append([run.label, *_cells(found)])
            eigenvalues[run.label] = torch.cat([one.terms.lambda_1 for one in found])
            curves[run.label] = _curve(run, command.eps)
            bar.update()
    for line in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"run.sh: {line}", file=sys.stderr)  # eigenvalues that have not converged
    folder = command.runs[0] / "curvature"
    histogram(folder / "lambda_1.png", eigenvalues)
    curve(folder / "accuracy.png", curves, radius="radius ε of PGD-10 (linf), pixels in [0, 1]")
    first = _Run(command.runs[0], command, device)
    _draw_surface(first, folder / "loss.png")
    table = aligned([["", *HEADER], *lines])
    text = f"{table}{_legend(first, command)}\n"
    write_text(folder / "curvature.txt", text)
    print(text, end="")
    print(f"saved in {folder}: {', '.join(sorted(path.name for path in folder.glob('[!.]*')))}")
    return 0


class _Run:
    """A finished run, read from its folder: students, some test images, the distilled set."""

    def __init__(self, path: Path, command: CurvatureCommand, device: torch.device):
        rows = find_rows([path])
        content = read_record(path) or {}
        experiment = content.get("experiment") or {}
        if not (path / "distilled.safetensors").exists() or not {"dataset", "image_size", "split"} <= {*experiment}:
            raise InputError(f"{path} has no distilled set; give the folder of a method's run")
        check_packages(path, [experiment["dataset"], rows[0].backbone], command.packages.split(","))
        self.distilled = DistilledSet.load(path).to(device)
        settings = (experiment["image_size"], experiment["split"], command.damaged, experiment.get("blur", 0.0))
        train, test = real_data(experiment["dataset"], command.data_dir, *settings)
        found = identity_of(train, test)
        if content.get("data") != found:
            other = difference(content.get("data"), found)
            raise InputError(
                f"{path} used other data than {command.data_dir} has ({other}): give the --data-dir of the run"
            )
        test = test.subset(command.images).to(device)
        self.images, self.labels = test.images[:], test.labels  # a small subset, read into memory
        one_thread(device)
        row = rows[0]
        self.label = f"{row.method} {row.dataset} ipc {row.ipc} seed {row.seed}"
        count = min(command.students, 1 + max(each.student or 0 for each in rows))
        own = row.loss == "own"
        self.models: list[nn.Module] = students_of(path, self.distilled, row.backbone, count, own=own)
        channels, size, _ = test.image_shape
        self.rho = command.rho if command.rho is not None else threat_named("l2", family_of(channels, size)).eps


@dataclass(frozen=True)
class _Measures:
    """Measurements of one student: the last two over the distilled images, the others over the test images."""

    terms: BoundTerms
    cosine: Tensor
    finite: Tensor
    of_distilled: BoundTerms
    lipschitz: Tensor


HEADER = ("λ1", "distilled λ1", "|cos(grad, v1)|", "eq. 7", "loss", "rho|grad|", "rho²λ1/2", "bound (2)", "PGD loss")
HEADER += ("(2) holds", "distilled: (2) holds", "(3): L ≥")


def _measure(run: _Run, model: nn.Module, command: CurvatureCommand, done: Callable[[], object]) -> _Measures:
    x, y = run.images, run.labels
    labels = run.distilled.labels if run.distilled.labels.ndim == 1 else run.distilled.labels.argmax(1)
    distilled = run.distilled.images[:].clamp(0, 1)  # attacks need pixels; distilled images may leave [0, 1]
    generator = torch.Generator().manual_seed(0)
    terms = bound_terms(model, x, y, run.rho, generator=generator)
    done()
    of_distilled = bound_terms(model, distilled, labels, run.rho, generator=generator)
    done()
    _, vectors = top_eigenvalue(model, x, y, generator=generator)
    cosine, finite = gradient_cosine(model, x, y, vectors), finite_difference_curvature(model, x, y, h=command.h)
    done()
    lipschitz = torch.zeros(0)
    present = torch.isin(labels, y)
    if present.any():
        some = BoundTerms(
            run.rho,
            *(
                getattr(of_distilled, name)[present]
                for name in ("loss", "gradient", "curvature", "lambda_1", "adversarial_loss")
            ),
        )
        with torch.no_grad():
            features = [embedding(model, part) for part in (x, distilled[present])]
        transfer = transfer_terms(
            terms,
            some,
            real_targets=y,
            distilled_targets=labels[present],
            real_features=features[0],
            distilled_features=features[1],
        )
        lipschitz = transfer.least_lipschitz
    return _Measures(terms, cosine, finite, of_distilled, lipschitz)


def _cells(found: list[_Measures]) -> list[str]:
    """Return the means over images and students as texts, in the order of HEADER."""

    def mean(of: list[Tensor]) -> str:
        return f"{fmean(each.double().mean().item() for each in of):.3g}"

    terms, distilled = [one.terms for one in found], [one.of_distilled for one in found]
    return [
        mean([t.lambda_1 for t in terms]),
        mean([t.lambda_1 for t in distilled]),
        mean([one.cosine for one in found]),
        mean([one.finite for one in found]),
        mean([t.loss for t in terms]),
        mean([t.gradient for t in terms]),
        mean([t.curvature for t in terms]),
        mean([t.bound for t in terms]),
        mean([t.adversarial_loss for t in terms]),
        *(f"{100 * fmean(t.holds.double().mean().item() for t in of):.1f} %" for of in (terms, distilled)),
        f"{max(one.lipschitz.max().item() for one in found):.3g}",
    ]


def _legend(run: _Run, command: CurvatureCommand) -> str:
    return (
        f"means over {len(run.images)} test images and {len(run.models)} students; λ1: largest eigenvalue of the input "
        f"Hessian (nats per pixel²), v1 its vector; eq. 7: its finite difference at h = {command.h:g}; (2) bounds the "
        f"loss in an L2 ball of rho = {run.rho:g}, PGD loss: found there by 20 steps; (3), from the test images to the "
        "distilled images, holds for all of them if the loss has this Lipschitz constant in the last layer's features"
    )


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
