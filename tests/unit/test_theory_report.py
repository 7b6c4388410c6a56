"""The table, the CSV and the figures of `curvature`, from measurements whose means are known."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.reports.settings import distinct_labels
from distill.reports.theory import GROUPS, MeasuredSide, MeasuredStudent, rank_correlation, to_csv, to_text
from distill.reports.theory_figures import draw_predictions, draw_terms
from robust.theory.bounds import BoundTerms, TransferTerms
from robust.theory.quadratic import QuadraticModel

SETTINGS = {"rho": "0.5", "h": "0.75", "threat": "linf 2/255"}


def side(losses: list[float], classes: list[int]) -> MeasuredSide:
    n, loss = len(losses), torch.tensor(losses)
    slopes = torch.tensor([[3.0, 4.0]]).double().expand(n, 2)
    around = QuadraticModel(loss, torch.tensor([[-1.0, 8.0]]).double().expand(n, 2), slopes)
    quadratic = around.maximum(0.5)
    terms = BoundTerms(0.5, loss, 0.5 * torch.full((n,), 5.0), torch.ones(n), around.lambda_1, quadratic, quadratic + 9)
    return MeasuredSide(torch.zeros(n, 1, 2, 2), torch.tensor(classes), around, terms)


def student(curvature: float = 2.0, robust: float = 10.0) -> MeasuredStudent:
    test = QuadraticModel(torch.ones(2), torch.tensor([[0.0, curvature]] * 2).double(), torch.ones(2, 2).double())
    of_two, three = torch.ones(2), torch.full((2,), 3.0)
    transfer = TransferTerms(of_two, of_two, of_two, 2 * of_two, three, of_two / 2, of_two)
    real, distilled = side([1.0, 3.0, 6.0], [0, 0, 1]), side([0.1, 0.2], [0, 1])
    return MeasuredStudent(20.0, robust, test, torch.ones(2), real, distilled, transfer, torch.tensor([1.0, -1.0]))


def rows(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in filter(None, text.partition("\nMeans over")[0].splitlines()):
        name, *cells = (part.strip() for part in line.rstrip().split("  ") if part.strip())
        found.setdefault(name, []).extend(cells)
    return found


def test_the_table_has_the_means_over_the_images_of_a_class_then_over_classes() -> None:
    found = rows(to_text({"dc": [student()]}, SETTINGS))
    assert found["accuracy under PGD-10 at linf 2/255 (%)"] == ["10"]
    assert found["E l"] == ["4", "0.15"]  # ((1 + 3) / 2 + 6) / 2, not 10 / 3; then the distilled images
    assert found["rho E |grad l|"] == ["2.5", "2.5"]
    assert found["right side: the sum"] == ["7.5", "3.65"]
    assert found["images with a PGD loss above their bound (%)"] == ["100", "100"]
    assert found["right side without L sigma"] == ["3"]
    assert found["right / left, without L sigma"] == ["6"]
    assert found["L sigma, at least"] == ["6"]
    assert found["pairs of images that refute convexity (%)"] == ["50"]


def test_runs_stand_side_by_side_in_lines_that_fit() -> None:
    many = {f"a method with a long name, weight {number}": [student()] for number in range(5)}
    text = to_text(many, SETTINGS)
    assert all(len(line) <= 100 for line in text.splitlines())
    assert sorted(rows(text)["E l"]) == ["0.15"] * 5 + ["4"] * 5


def test_the_csv_has_all_rows_of_each_student_and_the_terms_of_each_class() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv({"dc": [student(), student()]}, SETTINGS))))
    table = [line for line in lines if not line["class"]]
    assert len(table) == 2 * sum(len(group) for group in GROUPS.values())
    assert {line["student"] for line in lines} == {"0", "1"}
    of_class = {(line["images"], line["class"], line["term"]): line["value"] for line in lines if line["class"]}
    assert of_class["training images", "0", "loss"] == "2"
    assert of_class["training images", "1", "loss"] == "6"
    assert of_class["distilled images", "1", "lambda_1"] == "8"
    assert of_class["from training to distilled images", "0", "distance"] == "2"
    assert of_class["from training to distilled images", "1", "slope"] == "3"


@pytest.mark.parametrize("number", [2, 12])
def test_figures_are_drawn(number: int, tmp_path: Path) -> None:
    runs = {f"run {n}": [student(curvature=n, robust=n), student(curvature=n + 1, robust=n)] for n in range(number)}
    draw_predictions(tmp_path / "predictions.png", runs, "linf 2/255")
    one = student()
    radii = [replace(one.real.terms, rho=rho) for rho in (0.1, 0.2, 0.4)]
    draw_terms(tmp_path / "bound.png", {"dc": {"training images": radii}})
    assert (tmp_path / "predictions.png").stat().st_size > 1000
    assert (tmp_path / "bound.png").stat().st_size > 1000


def test_a_rank_correlation_needs_three_runs_that_differ() -> None:
    assert rank_correlation([1.0, 2.0], [1.0, 2.0]) is None
    assert rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert rank_correlation([1.0, 20.0, 3.0], [-1.0, 5.0, 0.0]) == pytest.approx(1)


def test_labels_have_what_tells_runs_of_a_method_apart() -> None:
    guard = {"method": "guard_dc", "seed": 0, "config": {"class": "Config", "real_loss": "guard:weight=3,h=3"}}
    other = guard | {"config": {"class": "Config", "real_loss": "guard:weight=10,h=3"}}
    assert distinct_labels([{"method": "dc", "seed": 7}, guard, other]) == [
        "dc",
        "guard_dc, real_loss guard:weight=3,h=3",
        "guard_dc, real_loss guard:weight=10,h=3",
    ]
