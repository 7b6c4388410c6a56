"""The contract of a method, held by every method that is found: a new method's test is this one."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.app.estimate import estimate
from distill.app.main import main
from distill.app.registry import find_methods
from distill.data import facts_named
from distill.distilled import DistilledSet
from distill.runs.run import Run
from tests.toy import write_toy

ROOT = Path(__file__).parents[2]
METHODS = find_methods()
IPC = "2"
TOY = replace(facts_named("folder"), classes=2, size=8, examples=40)
"""what is known of the toy set"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", params=METHODS)
def finished(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of a method, with its finished run."""
    runs = tmp_path_factory.mktemp(request.param)
    assert main(words(request.param, data, runs)) == 0
    return runs


def words(method: str, data: Path, runs: Path) -> list[str]:
    places = ["--data-dir", str(data), "--runs", str(runs), "--checkpoint-seconds", "0"]
    return [method, "folder", "--ipc", IPC, "--recipe", "smoke", *places]


def run_of(runs: Path) -> Path:
    return next(path.parent for path in runs.rglob("distilled.safetensors") if "stages" not in path.parts)


def images(runs: Path) -> dict[str, torch.Tensor]:
    distilled = DistilledSet.load(run_of(runs))
    return {"images": distilled.images[:], "labels": distilled.labels}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    method = METHODS[name]
    assert method.name == name
    assert 10 <= len(method.summary) <= 100
    assert method.paper
    assert (ROOT / "docs/methods" / f"{method.page}.md").is_file()
    with pytest.raises(SystemExit):
        main([name, "digits", "--help"])
    assert f"{name}: {method.summary[:30]}" in capsys.readouterr().out


def test_a_run_ends_with_a_set_and_a_table(finished: Path) -> None:
    run = run_of(finished)
    method = METHODS[run.relative_to(finished).parts[0]]
    found = images(finished)
    assert found["images"].isfinite().all()
    assert found["images"].shape[1:] == (3, 8, 8)
    assert len(found["images"]) == (40 if method.whole_class else 2 * int(IPC))
    if not method.whole_class:  # whose images keep the order of the training set; all others sort them by class
        assert DistilledSet.load(run).image_classes.tolist() == [0] * int(IPC) + [1] * int(IPC)
    rows = list(csv.DictReader((run / "table.csv").read_text().splitlines()))
    assert [row["attack"] for row in rows] == ["clean", "linf"]
    assert all(row["method"] == method.name for row in rows)


def test_a_killed_run_ends_with_the_same_bits(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every checkpoint but the last is once the last thing that a process did."""
    name = run_of(finished).relative_to(finished).parts[0]
    save, saves = Run.save, []

    def save_and_die(self: Run, *arguments: object) -> None:
        save(self, *arguments)
        saves.append(arguments)
        if len(saves) in (1, 3, 6):
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", save_and_die)
    codes = [main(words(name, data, tmp_path))]
    while codes[-1] == 130 and len(codes) < 5:
        codes.append(main(words(name, data, tmp_path)))
    assert codes[-1] == 0
    assert set(codes[:-1]) <= {130}
    if METHODS[name].work(METHODS[name].recipes["smoke"](TOY, 2).config, 2, 2, 40):
        assert len(codes) > 1, "the run of a method that takes steps has no checkpoint"
    before, after = images(finished), images(tmp_path)
    assert torch.equal(after["images"], before["images"])
    assert torch.equal(after["labels"], before["labels"])
    table = "table.csv"
    assert (run_of(tmp_path) / table).read_text() == (run_of(finished) / table).read_text()


def test_a_set_is_evaluated_by_both_protocols(finished: Path, data: Path, tmp_path: Path) -> None:
    run = run_of(finished)
    method = METHODS[run.relative_to(finished).parts[0]]
    evaluate = ["evaluate", str(run), "--students", "1", "--attacks", "linf"]
    evaluate += ["--data-dir", str(data), "--runs", str(tmp_path)]
    assert main([*evaluate, "--student.epochs", "2"]) == 0
    shutil.rmtree(tmp_path)
    assert main([*evaluate, "--protocol", "own"]) == (0 if method.protocol else 2)


@pytest.mark.parametrize("name", METHODS)
def test_an_estimate_counts_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step can be taken on random images, and a longer recipe takes longer."""
    method, taken = METHODS[name], []

    def timed(step, network, shape) -> float:
        step(network, shape)
        taken.append(step)
        return 1.0

    monkeypatch.setattr("distill.app.estimate._seconds", timed)
    sizes = {"shape": (3, 8, 8), "num_classes": 2, "examples": 40, "tests": 40}
    smoke, quick = (method.recipes[recipe](TOY, 2) for recipe in ("smoke", "quick"))
    short = estimate(smoke, method.work, 2, **sizes, student_work=method.student_work)
    assert len(taken) >= 2  # of students and of attacks at least
    counts = [count for count, _ in method.work(smoke.config, 2, 2, 40)]
    assert all(count >= 0 for count in counts)
    assert not counts or sum(counts) > 0
    monkeypatch.setattr("distill.app.estimate._seconds", lambda *_: 1.0)
    assert estimate(quick, method.work, 2, **sizes, student_work=method.student_work) > short
