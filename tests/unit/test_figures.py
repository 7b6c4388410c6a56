import subprocess
import sys
from functools import partial

import pytest
import torch
from PIL import Image

from distill.errors import InputError
from distill.reports import figures
from distill.reports.figures import curve, surface
from distill.reports.style import DPI

STEPS = torch.linspace(-1, 1, 9)
LOSSES = STEPS[:, None].exp() + STEPS[:5].square()
LINES = {"DC": [(0.1, 5.0, 1.5), (0.0, 45.0, 0.5)], "one student": [(0.0, 40.0, None)]}

histogram = partial(figures.histogram, axis="λ1 (nats per pixel²)")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def spread(n=200):
    return (2 * torch.randn(n, generator=rng())).exp()


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Figures as matplotlib has them before they are saved."""
    kept = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: kept.append(figure))

    def draw(function, *args, **options):
        function(tmp_path / "figure.png", *args, **options)
        kept[-1].draw_without_rendering()
        return kept[-1].axes

    return draw


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def heights(axes):
    """The outline of each label: (edge, height) of its corners."""
    return [torch.tensor(patch.get_xy()) for patch in axes.patches if not patch.get_fill()]


# Files


@pytest.mark.parametrize(
    ("draw", "inches"),
    [
        (lambda path: histogram(path, {"a": spread(), "b": torch.zeros(3)}), (7, 4.2)),
        (lambda path: histogram(path, {"one": torch.ones(1)}), (7, 4.2)),
        (lambda path: surface(path, LOSSES, STEPS, STEPS[:5]), (10, 4.5)),
        (lambda path: curve(path, LINES), (6, 4.2)),
    ],
    ids=["histogram", "one value", "surface", "curve"],
)
@pytest.mark.long
def test_a_png_of_the_stated_size_and_an_svg_are_alone_in_their_new_folder(draw, inches, tmp_path):
    path = tmp_path / "new" / "figure.png"
    draw(path)
    assert sorted(found.name for found in path.parent.iterdir()) == ["figure.png", "figure.svg"]
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == (round(inches[0] * DPI), round(inches[1] * DPI))
        assert len(image.convert("RGB").getcolors(1 << 20)) > 5  # not one colour
    first = path.read_bytes()
    draw(path)
    assert path.read_bytes() == first


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        curve(tmp_path / "file" / "figure.png", LINES)


@pytest.mark.long
def test_matplotlib_is_loaded_when_drawing_and_pyplot_never(tmp_path):
    script = (
        "import sys; from pathlib import Path; from distill.reports.figures import curve;"
        "before = 'matplotlib' in sys.modules;"
        "curve(Path(sys.argv[1]), {'a': [(0.0, 1.0, None)]});"
        "print(before, 'matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "figure.png")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True", "False"]


# Histogram


def test_values_over_decades_have_a_logarithmic_axis_and_who_is_left_out_is_counted(drawn):
    weak = torch.cat([spread() / 10, torch.zeros(40), torch.tensor([-1e-9])])
    (axes,) = drawn(histogram, {"DC": spread(), "GUARD": weak})
    assert axes.get_xscale() == "log"
    assert legend(axes) == [
        f"DC (n = 200, median {spread().median():.3g})",
        f"GUARD (n = 241, median {weak.median():.3g}, 41 not above 0 not shown)",
    ]
    assert "nats" in axes.get_xlabel()
    assert "%" in axes.get_ylabel()


@pytest.mark.parametrize(
    "values",
    [torch.randn(100, generator=rng()), 1 + torch.rand(100, generator=rng()), torch.tensor([5.0]), torch.zeros(4)],
    ids=["both signs", "one decade", "one value", "zeros"],
)
def test_other_values_have_a_linear_axis_on_which_all_are_shown(drawn, values):
    (axes,) = drawn(histogram, {"a": values})
    assert axes.get_xscale() == "linear"
    assert "not shown" not in legend(axes)[0]
    left, right = axes.get_xlim()
    assert left <= values.min()
    assert right >= values.max()


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_bars_are_shares_of_all_examples_of_their_label(drawn, scale):
    values = {
        "linear": [torch.arange(10.0), torch.arange(4.0)],
        "log": [spread(), torch.cat([spread(3), torch.zeros(1)])],
    }
    (axes,) = drawn(histogram, dict(zip("ab", values[scale], strict=True)), bins=7)
    assert axes.get_xscale() == scale
    for corners, expected in zip(heights(axes), (100.0, 100.0 if scale == "linear" else 75.0), strict=True):
        bars = corners[1:-1:2, 1]  # a step has two corners a bar
        assert len(bars) == 7
        assert bars.sum().item() == pytest.approx(expected)


def test_medians_stop_below_the_legend(drawn):
    (axes,) = drawn(histogram, {"a": spread(), "b": 5 * spread()})
    box = axes.get_legend().get_window_extent()
    for line, v in zip(axes.lines, (spread(), 5 * spread()), strict=True):
        assert line.get_xdata()[0] == pytest.approx(v.median().item())
        assert line.get_window_extent().y1 < box.y0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "no values"),
        ({"a": torch.ones(2), "b": torch.ones(0)}, "no values"),
        ({"a": torch.tensor([1.0, float("nan"), float("inf")])}, "2 of 3 values of 'a' are not finite"),
    ],
)
def test_values_that_cannot_be_drawn_are_refused(values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        histogram(tmp_path / "figure.png", values)
    assert not list(tmp_path.iterdir())


# Surface


def test_the_rows_of_a_surface_are_steps_along_the_gradient(drawn):
    three, flat, bar = drawn(surface, LOSSES, 3 * STEPS, STEPS[:5])
    assert (three.get_xlabel(), three.get_ylabel()) == ("gradient", "random")
    assert "along the gradient" in flat.get_xlabel()
    assert "random" in flat.get_ylabel()
    assert flat.get_xlim() == (-3, 3)
    assert flat.get_ylim() == (-1, 0)
    assert "nats" in bar.get_ylabel()
    assert three.xy_dataLim.x0 <= -3 < 3 <= three.xy_dataLim.x1
    assert three.zz_dataLim.x0 == pytest.approx(LOSSES.min().item())
    assert three.zz_dataLim.x1 == pytest.approx(LOSSES.max().item())


@pytest.mark.parametrize("shape", [(5, 9), (9,), (9, 6)])
def test_a_surface_that_does_not_fit_its_steps_is_refused(shape, tmp_path):
    with pytest.raises(ValueError, match="steps 9 by 5; they must fit"):
        surface(tmp_path / "figure.png", torch.zeros(shape), STEPS, STEPS[:5])
    with pytest.raises(ValueError, match=">= 2"):
        surface(tmp_path / "figure.png", torch.zeros(9, 1), STEPS, STEPS[:1])


# Curve


def test_lines_go_through_their_points_in_order_of_eps_with_bars_of_one_deviation(drawn):
    (axes,) = drawn(curve, LINES, radius="radius ε (linf)")
    assert legend(axes) == ["DC", "one student"]
    assert axes.get_xlabel() == "radius ε (linf)"
    assert axes.get_ylim() == (0, 100)
    line, caps, (bars,) = axes.containers[0]
    assert line.get_xydata().tolist() == [[0.0, 45.0], [0.1, 5.0]]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[44.5, 45.5], [3.5, 6.5]]
    assert caps
    assert not axes.containers[1].has_yerr  # a single student has no deviation


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({}, "no points"),
        ({"a": []}, "no points"),
        ({"a": [(0.0, 101.0, 1.0)]}, r"accuracies of 'a' are \(101.0,\); they must be percent"),
    ],
)
def test_points_that_cannot_be_drawn_are_refused(points, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        curve(tmp_path / "figure.png", points)
    assert not list(tmp_path.iterdir())
