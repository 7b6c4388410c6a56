"""Figures of the theory in section 5 of the GUARD paper: the terms of the bound over rho, and what λ1 predicts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from distill.reports.style import COLOURS, MARKERS, empty_figure, plain, save_figure
from distill.reports.theory import MeasuredStudent, rank_correlation
from robust.theory.bounds import BoundTerms

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_predictions", "draw_terms"]

OF_TERMS = ("#56B4E9", "#E69F00", "#CC79A7")
"""colours of the terms, pale beside those of lines"""
Sides = Mapping[str, Sequence[BoundTerms]]
""""training images" or "distilled images" -> the terms at each radius, ascending"""


def draw_terms(path: Path, runs: Mapping[str, Sides]) -> None:
    """Draw the terms of bound (2) stacked over rho, with both adversarial losses, a row for each run.

    Args:
        path: the PNG.
        runs: label -> the terms of the run's sides; means over the images are drawn.
    """
    columns = max(len(sides) for sides in runs.values())
    figure = empty_figure(4.8 * columns, 0.7 + 2.9 * len(runs))
    rows = figure.subplots(len(runs), columns, squeeze=False)
    for axes_of_row, (label, sides) in zip(rows, runs.items(), strict=True):
        for axes, (images, terms) in zip(axes_of_row, sides.items(), strict=True):
            _stack(axes, terms)
            axes.set_title(f"{label}: {images}", fontsize="medium")
            plain(axes)
            axes.set_xlabel("rho, L2 radius (pixels)")
            axes.set_ylabel("loss (nats), mean")
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize="small")
    save_figure(figure, path)


def _stack(axes: "Axes", terms: Sequence[BoundTerms]) -> None:
    def mean(name: str) -> list[float]:
        return [getattr(each, name).double().mean().item() for each in terms]

    radii = [each.rho for each in terms]
    heights = [mean(name) for name in ("loss", "gradient", "curvature")]
    names = ["E l", "rho E |grad l|", "rho²/2 E λ1"]
    axes.stackplot(radii, heights, labels=names, colors=OF_TERMS, alpha=0.65)
    line = {"linewidth": 1.5, "markersize": 4}
    axes.plot(radii, mean("quadratic"), color="black", marker="o", label="E l~adv (quadratic)", **line)
    axes.plot(radii, mean("adversarial_loss"), color="#D55E00", marker="s", label="loss that PGD finds", **line)
    axes.set_xlim(radii[0], radii[-1])
    axes.set_ylim(bottom=0)


def draw_predictions(path: Path, runs: Mapping[str, Sequence[MeasuredStudent]], threat: str) -> None:
    """Draw what λ1 on test images says of robustness: of the accuracy under attack, and of its share in the clean one.

    Args:
        path: the PNG.
        runs: label -> its students; a point is the mean over them. Three or more have a rank correlation.
        threat: of the robust accuracy.
    """
    figure = empty_figure(11, 4.6)
    curvatures = {run: fmean(_curvature(student) for student in students) for run, students in runs.items()}
    panels: dict[str, dict[str, float]] = {
        f"accuracy under PGD-10 at {threat} (%)": {
            run: fmean(one.robust for one in students) for run, students in runs.items()
        },
        f"images that withstand PGD-10 at {threat}\n(% of those classified right)": {
            run: 100 * fmean(one.robust for one in students) / max(1e-9, fmean(one.clean for one in students))
            for run, students in runs.items()
        },
    }
    for axes, (name, values) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for number, run in enumerate(runs):
            marker = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]  # runs of one colour have another marker
            look = {"color": COLOURS[number % len(COLOURS)], "marker": marker, "markersize": 8}
            axes.plot(curvatures[run], values[run], linestyle="", label=run, **look)
        axes.set_xscale("log" if min(curvatures.values()) > 0 else "linear")
        axes.set_xlabel("λ1 on test images, mean (nats per pixel²)")
        axes.set_ylabel(name)
        axes.margins(0.1)
        plain(axes)
        found = rank_correlation(list(curvatures.values()), list(values.values()))
        axes.set_title("" if found is None else f"rank correlation {found:.2f} ({len(runs)} runs)", fontsize="medium")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize="small")
    save_figure(figure, path)


def _curvature(student: MeasuredStudent) -> float:
    return student.test.lambda_1.double().mean().item()
