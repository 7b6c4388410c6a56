"""A finished run goes to an experiment tracker: the real ones where they are installed, one that records elsewhere."""

import csv
import importlib
import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from distill.app.main import main
from distill.data import label
from distill.errors import InputError
from distill.reports import tracking
from distill.reports.tracking import check_tracker, send

NO_SUCH = "the package wandb is not installed"


class Recorder(types.ModuleType):
    """A tracker with wandb's functions, which keeps what it is given."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.opened: dict[str, Any] = {}
        self.logged: list[tuple[int | None, dict[str, float]]] = []
        self.finished = 0

    def init(self, **how: Any) -> None:
        self.opened = how

    def log(self, numbers: dict[str, float], step: int | None = None) -> None:
        self.logged.append((step, numbers))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", found)
    monkeypatch.setattr(tracking, "find_spec", lambda name: name == "wandb" or None)
    return found


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of DC, of two students."""
    runs = tmp_path_factory.mktemp("tracked")
    words = ["--backbone", "convnet:width=4", "--iterations", "3", "--batch-real", "4", "--outer-loop", "1"]
    words += ["--students", "2", "--student.epochs", "20", "--attacks", "linf_star,fgsm"]
    assert main(["dc", "folder", "--data-dir", str(data), "--runs", str(runs), *words]) == 0
    return runs / "dc" / label("folder", data) / "ipc1" / "seed0"


def test_settings_steps_and_accuracies_are_sent(
    run: Path, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    send(run, "wandb")
    assert recorder.opened["config"]["ipc"] == 1
    assert recorder.opened["config"]["evaluation.students"] == 2
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in recorder.logged[:-1]] == [line["step"] for line in steps]
    assert recorder.logged[0][1] == {name: value for name, value in steps[0].items() if name != "step"}
    last = recorder.logged[-1][1]
    table = [*csv.DictReader((run / "table.csv").read_text().splitlines())]
    assert last["accuracy/clean"] == pytest.approx(float(table[0]["mean"]), abs=0.01)
    assert len(last) == len(table)
    assert recorder.finished == 1
    assert "sent to wandb" in capsys.readouterr().err


def test_a_line_that_a_killed_run_cut_is_left_out(run: Path, recorder: Recorder, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    whole = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(whole + '{"step": 99, "lo')
    send(folder, "wandb")
    assert len(recorder.logged) == len(whole.splitlines()) + 1


def test_a_failure_of_the_tracker_is_a_warning_with_the_command(
    run: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_network(**how: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(recorder, "init", no_network)
    send(run, "wandb")
    assert "warning: not sent to wandb: no route" in (told := capsys.readouterr().err)
    assert f"bash run.sh report {run} --track wandb" in told
    assert len(told.splitlines()) == 1


def test_a_missing_package_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=NO_SUCH):
        check_tracker("wandb")
    assert main(["dc", "digits", "--runs", str(tmp_path), "--track", "wandb"]) == 2
    assert NO_SUCH in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
    assert main(["report", str(tmp_path), "--track", "wandb"]) == 2
    assert "takes the folder of one finished run" in capsys.readouterr().err


def test_a_finished_run_is_sent_by_its_command_and_by_report(
    run: Path, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run), "--track", "wandb"]) == 0
    assert recorder.finished == 1
    send(run, "none")
    assert recorder.finished == 1


@pytest.mark.filterwarnings("ignore")  # those of the tracker's own packages
@pytest.mark.parametrize("name", ["trackio", "wandb", "mlflow"])
def test_the_real_tracker_takes_a_run(
    name: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.chdir(tmp_path)
    module = pytest.importorskip(name)
    for _ in range(2):  # a run that is sent again is no error
        send(run, name)
        assert f"sent to {name}" in capsys.readouterr().err
    if name == "mlflow":
        module.set_experiment("robust-dataset-distillation")
        (found,) = module.search_runs(output_format="list")
        history = importlib.import_module("mlflow").MlflowClient().get_metric_history(found.info.run_id, "loss")
        assert {each.step for each in history} == {
            json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()
        }
