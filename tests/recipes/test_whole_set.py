"""`export --to set`: a set with the labels of its views and its teacher, in a folder that is moved and read again."""

import json
import shutil
from pathlib import Path

import pytest

from distill.app.export import export
from distill.app.main import main
from distill.distilled import DistilledSet
from distill.errors import InputError

JUDGE = ["--students", "2", "--attacks", "linf", "--protocol", "own"]


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of random images with a label for every view."""
    runs = tmp_path_factory.mktemp("runs")
    words = ["random_plain_views", "folder", "--recipe", "smoke", "--ipc", "2", "--attacks", "linf"]
    assert run(*words, "--data-dir", data, "--runs", runs) == 0
    return next((runs / "random_plain_views").rglob("distilled.safetensors")).parent


def results(folder: Path) -> list[tuple[str, float]]:
    (path,) = folder.rglob("results.jsonl")
    return [(row["attack"], row["accuracy"]) for row in map(json.loads, path.read_text().splitlines())]


def test_a_moved_set_gives_the_results_of_its_run(
    made: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", made, "--to", "set", "--out", tmp_path / "set") == 0
    assert "its labels, its teacher" in capsys.readouterr().err
    shutil.move(tmp_path / "set", tmp_path / "moved")
    labels = sorted(path.relative_to(tmp_path / "moved" / "stages").parts for path in tmp_path.rglob("epoch-*"))
    assert len(labels) == 3  # of the recipe
    for name, place in (("here", made), ("there", tmp_path / "moved")):
        assert run("evaluate", place, *JUDGE, "--data-dir", data, "--runs", tmp_path / name) == 0
        assert "\nteacher: clean" in capsys.readouterr().out
    assert results(tmp_path / "there") == results(tmp_path / "here")


def test_a_set_for_the_hub_is_whole_too(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    assert run("export", made, "--to", "hub", "--out", tmp_path / "hub") == 0
    training = DistilledSet.load(tmp_path / "hub" / "distilled.safetensors").training
    assert (tmp_path / "hub" / str(training.labels) / "labels.json").is_file()
    assert (tmp_path / "hub" / str(training.teacher)).is_file()


def test_a_part_that_is_missing_is_named(made: Path, tmp_path: Path) -> None:
    other = tmp_path / "runs" / "run"  # without the stages beside it
    other.mkdir(parents=True)
    shutil.copy(made / "distilled.safetensors", other)
    with pytest.raises(InputError, match=r"stages/relabel-\w+, the set's labels, is missing: .* --to npz"):
        export(DistilledSet.load(other), other, "set", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_npz_says_that_it_has_no_views(
    made: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", made, "--to", "npz", "--out", tmp_path / "npz") == 0
    assert "the labels of its views are left out, --to set has them" in capsys.readouterr().err
    place = ["--dataset", "folder", "--data-dir", data, "--runs", tmp_path / "runs"]
    assert run("evaluate", tmp_path / "npz", *JUDGE, *place) == 2
    assert "take --protocol standard" in capsys.readouterr().err
