"""A run is repeated from its experiment.json alone: the same bits elsewhere, and refused where that cannot be."""

import json
from pathlib import Path
from shutil import copytree

import pytest
import torch

from distill.app.main import main
from distill.distilled import DistilledSet
from distill.runs.version import project_version

SMALL = "--iterations 2 --outer-loop 2 --students 2 --student.epochs 5 --attacks linf --threat l2:0.5 --test-images 100"
RUN = Path("runs", "guard_dc", "digits", "ipc2", "seed3")


def run(words: str) -> int:
    return main(words.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of guard_dc, and one of `evaluate` on its set."""
    place = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        settings = "--backbone convnet:width=8,depth=2 --real-loss guard:weight=2"
        assert run(f"guard_dc digits --ipc 2 --seed 3 {SMALL} {settings}") == 0
        words = f"evaluate {RUN} --students 1 --student.epochs 3 --attacks linf,pgd:steps=2 --eps 0.1 --test-images 50"
        assert run(f"{words} --backbone mlp --seed 5") == 0
    return place


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, the current one."""
    copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def same(a: Path, b: Path) -> None:
    """Hold two runs against each other: settings, and every result."""
    assert (a / "table.csv").read_bytes() == (b / "table.csv").read_bytes()
    found = [json.loads((folder / "experiment.json").read_text()) for folder in (a, b)]
    assert [record.pop("made_by")["version"] for record in found] == [project_version()] * 2
    assert found[0] == found[1]


def test_a_run_is_repeated_to_the_bit(here: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in RUN.rglob("*")}
    assert run(f"rerun {RUN}") == 0
    again = Path("reruns", *RUN.parts[1:])
    same(RUN, again)
    first, second = DistilledSet.load(RUN), DistilledSet.load(again)
    assert torch.equal(first.images, second.images)
    assert (RUN / "distilled.safetensors").read_bytes() == (again / "distilled.safetensors").read_bytes()
    assert {path: path.stat().st_mtime_ns for path in RUN.rglob("*")} == before


def test_another_seed_is_another_run_of_the_same_settings(here: Path) -> None:
    assert run(f"rerun {RUN} --seed 4 --runs elsewhere") == 0
    other = Path("elsewhere", "guard_dc", "digits", "ipc2", "seed4")
    first, second = (json.loads((folder / "experiment.json").read_text()) for folder in (RUN, other))
    assert second["experiment"].pop("seed") == first["experiment"].pop("seed") + 1
    assert first["experiment"] == second["experiment"]
    assert not torch.equal(DistilledSet.load(RUN).images, DistilledSet.load(other).images)


def test_a_run_of_evaluate_is_repeated(here: Path) -> None:
    (judged,) = Path("runs", "evaluate").rglob("experiment.json")
    assert run(f"rerun {judged.parent} --runs again") == 0
    same(judged.parent, Path("again", *judged.parent.parts[1:]))


def test_a_set_that_was_moved_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (judged,) = Path("runs", "evaluate").rglob("experiment.json")
    record = json.loads(judged.read_text())
    judged.write_text(json.dumps(record | {"set": "nowhere"}))
    assert run(f"rerun {judged.parent}") == 2
    assert "nowhere is missing, the set that" in capsys.readouterr().err
    moved = Path("moved.safetensors")
    (RUN / "distilled.safetensors").rename(moved)
    assert run(f"rerun {judged.parent} --distilled {moved}") == 0
    del record["set"]
    judged.write_text(json.dumps(record))
    assert run(f"rerun {judged.parent}") == 2
    assert "set is missing" in capsys.readouterr().err


def test_another_set_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (judged,) = Path("runs", "evaluate").rglob("experiment.json")
    distilled = DistilledSet.load(RUN)
    distilled.images[0, 0, 0, 0] += 1
    distilled.save(Path("other.safetensors"))
    assert run(f"rerun {judged.parent} --distilled other.safetensors") == 2
    assert "other.safetensors is not the set that" in capsys.readouterr().err


def changed(fields: dict[str, object], **top: object) -> None:
    """Write the run's experiment.json with other settings; a field that is None is taken out."""
    record = json.loads((RUN / "experiment.json").read_text())
    for name, value in fields.items():
        *parents, last = name.split(".")
        place = record
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[last]
        else:
            place[last] = value
    (RUN / "experiment.json").write_text(json.dumps(record | top))


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"experiment.config.lr_imgs": 1.0}, "config.lr_imgs is unknown"),
        ({"experiment.config.lr_img": None}, "config.lr_img is missing"),
        ({"experiment.config.lr_img": -1.0}, "config: lr_img is -1"),
        ({"experiment.config.real_loss.h": "3"}, "config.real_loss.h is '3'; it must be float"),
        ({"experiment.evaluation.student.epochs": None}, "evaluation.student.epochs is missing"),
        ({"experiment.evaluation": 3}, "evaluation is 3"),
        ({"threat": None}, "evaluation.threat is missing"),
        ({"experiment.method": "guard_dd"}, "method is guard_dd, which is unknown"),
        ({"experiment.dataset": "digit"}, "dataset is digit: unknown data set"),
        ({"experiment.recipe": "fast"}, "recipe is fast, which guard_dc does not have"),
        ({"experiment.ipc": 0}, "ipc is 0"),
    ],
)
@pytest.mark.parametrize("version", ["0.0.7", None])
def test_a_run_of_another_version_is_refused_by_name(
    here: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, object], line: str, version: str | None
) -> None:
    changed(fields | {"made_by.version": version})
    assert run(f"rerun {RUN}") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert line in said
    assert ("made by version 0.0.7" if version else "made by an earlier version (commit ") in said
    assert f"cannot be repeated by version {project_version()}" in said
    assert not Path("reruns").exists()


def test_another_package_is_imported_only_if_the_command_names_it(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's experiment.json may come from others."""
    Path("elsewhere").mkdir()
    Path("elsewhere", "__init__.py").write_text("")
    Path("elsewhere", "losses.py").write_text(
        "open('imported', 'w').close()\nfrom robust.losses.trades import TRADES\n"
    )
    monkeypatch.syspath_prepend(here)
    loss = {"class": "elsewhere.losses:TRADES", "threat": {"class": "Threat", "norm": "linf", "eps": 0.1}}
    changed({"experiment.config.real_loss": loss})
    assert run(f"rerun {RUN}") == 2
    assert "names elsewhere.losses:TRADES of another package" in capsys.readouterr().err
    assert not Path("imported").exists()
    assert run(f"rerun {RUN} --packages elsewhere") == 2  # its fields are not all there
    assert "config.real_loss.beta is missing" in capsys.readouterr().err
    assert Path("imported").exists()


def test_other_data_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed({"data.train": "1438 images of 1x8x8, 0000000000000000"})
    assert run(f"rerun {RUN}") == 2
    said = capsys.readouterr().err
    assert "the data here differ from those of the recorded run: train is 1438 images of 1x8x8, 000000000000000" in said
    assert not Path("reruns").exists()


def test_nothing_is_written_over_the_run_itself(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (judged,) = Path("runs", "evaluate").rglob("experiment.json")
    for folder in (RUN, judged.parent):
        assert run(f"rerun {folder} --runs runs") == 2
        assert f"the new run would overwrite {folder}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("rerun", "rerun takes the folder of a run first"),
        ("rerun nowhere", "nowhere has no experiment.json"),
        ("rerun --seed 3", "rerun takes the folder of a run first"),
        (f"rerun {RUN} --seed -1", "--seed is -1"),
        ("rerun stage", "contains the stage squeeze, shared by runs"),
        ("rerun empty", "contains no run"),
    ],
)
def test_bad_input_is_one_line(here: Path, capsys: pytest.CaptureFixture[str], words: str, line: str) -> None:
    for name, experiment in (("stage", {"stage": "squeeze", "seed": 0, "config": {}}), ("empty", None)):
        Path(name).mkdir()
        (Path(name) / "experiment.json").write_text(json.dumps({"experiment": experiment}))
    assert run(words) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
