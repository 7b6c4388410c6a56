"""Figures as files: distributions as histograms, the loss around an image, accuracy against the attack's radius.

Lengths are in pixels of [0, 1] unless a label says otherwise.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.reports.style import COLOURS, MARKERS, empty_figure, plain, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["curve", "draw_lines", "histogram", "surface"]

SPREAD = 30
"""ratio of the 95th to the 5th percentile of the positive values from which a histogram has a logarithmic axis"""


def histogram(path: Path, values: Mapping[str, Tensor], *, axis: str, bins: int = 40) -> None:
    """Draw the distribution of a quantity over examples, one outline a label over common bins, medians dashed.

    The axis is logarithmic where the values spread over decades and almost all are positive; the legend counts the
    others. Else the axis is linear.

    Args:
        path: the PNG, 7 x 4.2 inches.
        values: label -> the quantity of each example (N,), such as eigenvalues.
        axis: name of the quantity, with its unit.
        bins: of the axis.

    Raises:
        ValueError: nothing to draw, or a value that is not finite.
    """
    groups = {label: v.detach().double().flatten().cpu() for label, v in values.items()}
    if not groups or not all(len(v) for v in groups.values()):
        raise ValueError("no values to draw; give each label at least one")
    for label, v in groups.items():
        if not v.isfinite().all():
            raise ValueError(f"{int((~v.isfinite()).sum())} of {len(v)} values of {label!r} are not finite")
    edges, logarithmic = _edges(torch.cat(list(groups.values())), bins)
    figure = empty_figure(7, 4.2)
    axes = figure.add_subplot()
    room = 1 + 0.09 * len(groups)  # for the legend, above the bars
    for i, (label, v) in enumerate(groups.items()):
        shown = v[v > 0] if logarithmic else v
        left = "" if len(shown) == len(v) else f", {len(v) - len(shown)} not above 0 not shown"
        share, colour = torch.full_like(shown, 100 / len(v)), COLOURS[i % len(COLOURS)]
        options = {"bins": edges.tolist(), "weights": share.tolist(), "color": colour}
        name = f"{label} (n = {len(v)}, median {v.median():.3g}{left})"
        axes.hist(shown.tolist(), histtype="stepfilled", alpha=0.2, **options)
        axes.hist(shown.tolist(), histtype="step", linewidth=1.5, label=name, **options)
        if v.median() > 0 or not logarithmic:
            axes.axvline(v.median().item(), ymax=1 / room, color=colour, linestyle="--", linewidth=1)
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xlabel(axis)
    axes.set_ylabel("share of the examples (%)")
    axes.set_ylim(0, axes.get_ylim()[1] * room)
    plain(axes)
    axes.legend(loc="upper left", frameon=False, fontsize="small")
    save_figure(figure, path)


def surface(path: Path, losses: Tensor, gradient_steps: Tensor, random_steps: Tensor) -> None:
    """Draw the loss around an image: the surface in perspective, and its contour lines.

    Args:
        path: the PNG, 10 x 4.5 inches.
        losses: (A, B) in nats, as of `robust.spectrum.loss_surface`.
        gradient_steps: (A,), the steps along the unit gradient, pixels.
        random_steps: (B,), the steps along the random direction, pixels.

    Raises:
        ValueError: shapes that do not fit together, or fewer than 2 steps.
    """
    if losses.shape != (len(gradient_steps), len(random_steps)) or min(losses.shape) < 2:
        raise ValueError(
            f"losses are {tuple(losses.shape)}, steps {len(gradient_steps)} by {len(random_steps)}; they must fit, >= 2"
        )
    heights = losses.detach().double().cpu().numpy()
    down, across = gradient_steps.double().cpu().numpy(), random_steps.double().cpu().numpy()
    grid_down, grid_across = (
        grid.numpy() for grid in torch.meshgrid(*map(torch.tensor, (down, across)), indexing="ij")
    )
    along, beside = "along the gradient (pixels, L2)", "along a random direction (pixels, L2)"
    figure = empty_figure(10, 4.5)
    left, right = figure.add_subplot(1, 2, 1, projection="3d"), figure.add_subplot(1, 2, 2)
    left.plot_surface(
        grid_down, grid_across, heights, cmap="viridis", rcount=60, ccount=60, linewidth=0, rasterized=True
    )
    left.set(xlabel="gradient", ylabel="random", zlabel="loss (nats)")
    left.locator_params(nbins=4)
    left.set_box_aspect(None, zoom=0.75)  # pyright: ignore[reportArgumentType]  # larger, its labels reach into the other half
    filled = right.contourf(down, across, heights.T, levels=20, cmap="viridis")
    right.contour(down, across, heights.T, levels=20, colors="white", linewidths=0.4)
    right.plot(0, 0, marker="+", color="white", markersize=10)
    right.set(xlabel=along, ylabel=beside)
    right.set_aspect("equal")
    figure.colorbar(filled, ax=right, label="loss (nats)")
    save_figure(figure, path)


def curve(
    path: Path,
    points: Mapping[str, Sequence[tuple[float, float, float | None]]],
    *,
    radius: str = "radius ε of the attack, pixels in [0, 1]",
) -> None:
    """Draw accuracy against the attack's radius, one line a label with a bar of one standard deviation either way.

    Args:
        path: the PNG, 6 x 4.2 inches.
        points: label -> (eps, accuracy in percent, its standard deviation or None), in any order of eps.
        radius: the label of the axis of eps, to name its norm or another unit.

    Raises:
        ValueError: nothing to draw, or an accuracy outside [0, 100].
    """
    if not points or not all(points.values()):
        raise ValueError("no points to draw; give each label at least one")
    for label, line in points.items():
        accuracies = tuple(accuracy for _, accuracy, _ in line)
        if not all(0 <= accuracy <= 100 for accuracy in accuracies):
            raise ValueError(f"accuracies of {label!r} are {accuracies}; they must be percent, in [0, 100]")
    figure = empty_figure(6, 4.2)
    axes = figure.add_subplot()
    draw_lines(axes, points)
    axes.set_xlabel(radius)
    axes.set_ylim(0, 100)
    axes.legend(frameon=False)
    save_figure(figure, path)


def draw_lines(axes: "Axes", points: Mapping[str, Sequence[tuple[float, float, float | None]]]) -> None:
    """Draw accuracy against the radius into axes, as `curve` does; radii in 255ths are written so.

    Args:
        axes: without a legend, and without a label of the radius.
        points: label -> (eps, accuracy in percent, its standard deviation or None), in any order of eps.
    """
    for number, (label, line) in enumerate(points.items()):
        eps, accuracy, std = zip(*sorted(line, key=lambda point: point[0]), strict=True)
        bars = None if all(s is None for s in std) else [s or 0.0 for s in std]
        look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 5}
        axes.errorbar(eps, accuracy, yerr=bars, label=label, capsize=3, linewidth=1.5, **look)
    radii = sorted({eps for line in points.values() for eps, _, _ in line})
    if all(abs(255 * eps - round(255 * eps)) < 1e-6 for eps in radii):
        axes.set_xticks(radii, [f"{round(255 * eps)}/255" if eps else "0" for eps in radii])
    axes.set_ylabel("accuracy (%)")
    axes.set_xlim(left=min(0.0, *axes.get_xlim()))
    axes.set_ylim(bottom=0)
    plain(axes)


def _edges(values: Tensor, bins: int) -> tuple[Tensor, bool]:
    """Return the edges of the bins (bins + 1,) and whether their axis is logarithmic."""
    low, high = values.min(), values.max()
    positive = values[values > 0]
    few = low > -1e-3 * high and len(positive) >= 0.5 * len(values)
    if few and len(positive) and positive.quantile(0.95) > SPREAD * positive.quantile(0.05):
        ends = torch.stack([positive.min(), positive.max()]).log10()
        return torch.logspace(ends[0].item() - 1e-9, ends[1].item() + 1e-9, bins + 1, dtype=torch.float64), True
    room = 0.0 if high > low else 0.5 * high.abs().item() or 0.5
    return torch.linspace(low.item() - room, high.item() + room, bins + 1, dtype=torch.float64), False
