"""The tables and the figure of `frontier`, from simulated students."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from distill.evaluation.rows import Row
from distill.reports import frontier_figure
from distill.reports.frontier import (
    CurveResult,
    Frontier,
    PointResult,
    lines_at_equal_clean,
    to_csv,
    to_markdown,
    to_text,
)
from distill.reports.frontier_figure import draw_frontier

IMAGES = 400
ATTACKS = ("pgd@2/255", "apgd_t@2/255", "autoattack@2/255")
DOUBT = "suspicious: the gradient is zero"


def row(method: str, attack: str, seed: int, student: int, verdict: str) -> Row:
    fixed = {"dataset": "cifar10-16px", "ipc": 10, "backbone": "convnet", "loss": "cross_entropy", "recipe": "quick"}
    empty = {"low": None, "high": None, "median_distance": None, "advised": "", "advised_accuracy": None}
    empty |= {"config": "", "threat": None, "how": "", "version": "1.2"}
    numbers = {"accuracy": 0.0, "images": IMAGES, "seconds": 1.0, "epoch_seconds": 1.0}
    named = {"method": method, "attack": attack, "seed": seed, "student": student, "verdict": verdict}
    return Row(**fixed, **empty, **numbers, **named, set=f"{method}{seed}", test="x")


def point(
    method: str, setting: str, clean: int, robust: int, verdict: str = "ok", attacks: tuple[str, ...] = ATTACKS[:2]
) -> PointResult:
    """Students that are right on the first images: `clean` percent, give or take an image by seed and student."""

    def right(percent: int, seed: int) -> torch.Tensor:
        most = torch.tensor([[percent * IMAGES // 100 + seed + student] for student in range(2)])
        return torch.arange(IMAGES) < most

    names = {"clean": clean} | dict.fromkeys(attacks, robust)
    bools = {seed: {name: right(percent, seed) for name, percent in names.items()} for seed in range(3)}
    rows = [
        row(method, name, seed, student, verdict if name == ATTACKS[1] else "ok")
        for name in names
        for seed in range(3)
        for student in range(2)
    ]
    return PointResult(setting, f"--{setting}", tuple(rows), bools)


@pytest.fixture(scope="module")
def frontier() -> Frontier:
    def curve(name: str, *points: PointResult, control: bool = False) -> CurveResult:
        return CurveResult(name, points, control)

    dc = curve("dc", point("dc", "epochs 100", 40, 20), point("dc", "epochs 1000", 50, 15, attacks=ATTACKS))
    curves = (
        dc,
        curve("guard_dc", point("guard_dc", "weight=1", 55, 20), point("guard_dc", "weight=10", 45, 40, DOUBT)),
        curve("mtt_robust_labels", point("mtt_robust_labels", "steps=3@4/255", 60, 50, attacks=ATTACKS)),
        curve("random", point("random", "recipe", 30, 10)),
        curve("dc, weight decay x 10", point("dc", "recipe", 50, 15), control=True),
    )
    return Frontier("cifar10-16px", curves, replace(dc, points=dc.points[1:]), None, ATTACKS, ATTACKS[1])


def test_methods_are_read_at_the_clean_accuracy_of_the_reference(frontier: Frontier) -> None:
    lines = {line.curve.name: line for line in lines_at_equal_clean(frontier, ATTACKS[1])}
    assert list(lines) == ["guard_dc", "mtt_robust_labels", "random", "dc, weight decay x 10"]
    assert {name: line.reading for name, line in lines.items()} == {
        "guard_dc": "more robust **",
        "mtt_robust_labels": "more robust **",
        "random": "less accurate",
        "dc, weight decay x 10": "not shown",
    }
    guard = lines["guard_dc"]
    assert guard.comparison.robust == pytest.approx(30, abs=1.5)
    assert guard.doubts == (f"? guard_dc, weight=10, apgd_t@2/255: {DOUBT} (6 of 6 students)",)
    mtt = lines["mtt_robust_labels"]  # the smaller p of a family of two: neither random nor the control belongs to it
    assert (mtt.p_holm, guard.p_holm) == (2 * mtt.comparison.p_value, guard.comparison.p_value)
    assert lines["random"].p_holm is None
    assert [line.curve.name for line in lines_at_equal_clean(frontier, ATTACKS[2])] == ["mtt_robust_labels"]


def test_tables_have_doubts_and_what_is_compared(frontier: Frontier) -> None:
    lines = {name: lines_at_equal_clean(frontier, name) for name in ATTACKS}
    text = to_text(frontier, lines)
    assert max(map(len, text.splitlines())) <= 100
    assert "\napgd_t@2/255 at the clean accuracy of dc (epochs 1000); differences to that point\n" in text
    assert "\nautoattack@2/255 at the clean" in text
    assert "\npgd@2/255 at the clean" not in text  # it is in frontier.md
    assert f"? guard_dc, weight=10: {DOUBT} (6 of 6 students) in apgd_t@2/255" in text
    assert "Counted: 3 sets, 400 test images of cifar10-16px, version 1.2." in text
    (line,) = [line for line in text.splitlines() if line.startswith("mtt_robust_labels  60")]
    assert line.split()[1:3] == ["60.4", "(+10.0)"]
    markdown = to_markdown(frontier, lines)
    assert "\npgd@2/255 at the clean" in markdown
    assert "| guard_dc | 50.4 |" in markdown
    table = list(csv.DictReader(to_csv(frontier, lines).splitlines()))
    assert sum(line["kind"] == "point" for line in table) == 7 * 2 + 2
    assert sum(line["kind"] == "equal_clean" for line in table) == 4 + 4 + 1


def test_points_in_doubt_are_hollow(frontier: Frontier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(frontier_figure, "save_figure", lambda figure, _: drawn.append(figure))
    draw_frontier(frontier, tmp_path / "a.png")
    left, right = drawn[0].axes
    faces = [bars.lines[0].get_markerfacecolor() for bars in left.containers]
    assert len(faces) == 7
    assert faces.count("white") == 1
    assert len(right.containers) == 2  # of AutoAttack
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()][-1] == "50.4 % clean (dc)"
    colours = [bars.lines[0].get_color() for bars in left.containers]
    assert colours[-1] == frontier_figure.GREY  # the control
