"""The figure of a table: curves over the radius, points without radii, names that tell lines apart."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from distill.app.main import main
from distill.errors import InputError
from distill.evaluation.rows import Row
from distill.reports.table_figure import draw_table
from robust import Threat
from tests.rows import row


def texts(path: Path) -> list[str]:
    """Return the words of a figure's SVG."""
    return [found.text or "" for found in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def under(first: Row, radii: dict[float, float]) -> list[Row]:
    return [
        replace(first, attack=f"pgd@{round(255 * eps)}/255", threat=Threat("linf", eps), accuracy=accuracy)
        for eps, accuracy in radii.items()
    ]


def test_several_radii_are_a_curve(tmp_path: Path) -> None:
    rows = []
    for method in ("dc", "guard_dc"):
        clean = row(method=method, attack="clean", threat="", accuracy=40.0)
        rows += [clean, *under(clean, {2 / 255: 20.0, 4 / 255: 10.0, 8 / 255: 1.0})]
    draw_table(tmp_path / "a.png", rows)
    words = texts(tmp_path / "a.svg")
    assert {"dc", "guard_dc", "pgd", "2/255", "8/255", "accuracy (%)", "radius ε of linf, pixels in [0, 1]"} <= {*words}
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1200, 880)  # inches x 200 dpi


def test_one_radius_is_a_line_of_points(tmp_path: Path) -> None:
    first = row(method="dc", attack="clean", threat="", accuracy=40.0)
    rows = [first, *under(first, {2 / 255: 20.0})]
    other = [replace(each, config="beef0000", accuracy=each.accuracy / 2) for each in rows]
    ten = [replace(each, method="mtt", ipc=10) for each in rows]
    draw_table(tmp_path / "a.png", [*rows, *other, *ten])
    words = texts(tmp_path / "a.svg")
    assert {f"dc {first.config}", "dc beef0000", "mtt", "clean", "pgd@2/255"} <= {*words}


def test_two_data_sets_are_refused(tmp_path: Path) -> None:
    rows = [row(dataset=name, attack="clean", threat="") for name in ("mnist", "cifar10")]
    with pytest.raises(InputError, match="these runs are of mnist, cifar10"):
        draw_table(tmp_path / "a.png", rows)
    assert not [*tmp_path.iterdir()]


def test_the_ending_is_checked_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", str(tmp_path), "--plot", "figure.jpg"]) == 2
    assert "figure.jpg; it takes a file that ends in .png or .svg" in capsys.readouterr().err
