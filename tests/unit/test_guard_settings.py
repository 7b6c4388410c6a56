"""The settings of GUARD's loss as a table and a figure: from the files of `frontier` and the times of its runs."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.golden import guard_settings
from tests.golden.guard_settings import draw_settings, lines_of, settings_table

FIELDS = "kind,method,setting,flags,attack,clean,clean_low,clean_high,robust,low,high,sets,students,images,verdict"
GUARD = "guard:weight=30,h=3"


def write_frontier(folder: Path, flags: str, clean: float, robust: float) -> None:
    folder.mkdir(parents=True)
    with open(folder / "frontier.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS.split(","))
        for attack, accuracy in (("linf", robust + 1), (guard_settings.ATTACK, robust)):
            numbers = (clean, clean - 2, clean + 2, accuracy, accuracy - 1.5, accuracy + 1.5)
            writer.writerow(["point", "dc", "s", flags, attack, *numbers, 3, 15, 1000, "ok"])
            writer.writerow(["equal_clean", "dc", "", "", attack, *numbers, 3, 15, 1000, "ok"])


def write_run(folder: Path, words: list[str], times: list[float]) -> None:
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(json.dumps({"made_by": {"command": ["main", "dc", *words]}}))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, "seconds": time}) + "\n" for step, time in enumerate(times))
    )


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of dc and of GUARD with weight 30, the latter found three times: first in a stored table."""
    write_frontier(tmp_path / "out-1", "", 29.8, 11.7)
    for name in ("out-2", "out-3"):
        write_frontier(tmp_path / name, f"--real-loss {GUARD}", 20.0, 14.0)
    write_frontier(tmp_path / "stored", f"--real-loss {GUARD}", 19.0, 13.0)
    write_run(tmp_path / "frontier" / "a", [], [2.0, 3.0, 2.0])
    write_run(tmp_path / "frontier" / "b", ["--real-loss", GUARD], [5.0, 5.0, 90.0])
    lines = lines_of([tmp_path / "stored" / "frontier.csv", tmp_path])
    path = tmp_path / "results.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    monkeypatch.setattr(guard_settings, "STORED", path)


def test_a_line_for_each_loss(stored: None) -> None:
    assert settings_table().splitlines()[2:] == [
        "| `dc`, cross-entropy | 29.8 (27.8 to 31.8) | 12.7 (11.2 to 14.2) | 11.7 (10.2 to 13.2) | 1.0 | 3, 15 |",
        "| λ 30, h 3 | 20.0 (18.0 to 22.0) | 15.0 (13.5 to 16.5) | 14.0 (12.5 to 15.5) | 2.5 | 3, 15 |",
    ]


def test_the_figure_is_drawn_from_what_is_there(stored: None, tmp_path: Path) -> None:
    draw_settings(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.size == (1520, 960)
    text = (tmp_path / "figure.svg").read_text()
    assert "λ 30" in text
    assert "λ 3<" not in text
    assert "GUARD, h 3" in text
    assert "at_dc" not in text
