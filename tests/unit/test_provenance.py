"""What a result was computed with, as runs record it and reports repeat it."""

import json
from pathlib import Path

import pytest
import torch

from distill.runs.provenance import computed_with, device_name, provenance


def _run(folder: Path, made_by: object) -> Path:
    folder.mkdir()
    (folder / "experiment.json").write_text(json.dumps({"experiment": {}, "data": None, "made_by": made_by}))
    return folder


def test_a_report_names_all_commits_versions_and_devices_of_its_runs(tmp_path: Path) -> None:
    first = {"commit": "aaa", "versions": {"torch": "2.14.1"}, "device": "cpu (AMD EPYC, 2 cores)"}
    runs = [_run(tmp_path / "1", first), _run(tmp_path / "2", first), _run(tmp_path / "3", first | {"commit": "bbb"})]
    expected = "Computed at commit aaa and bbb, with torch 2.14.1, on cpu (AMD EPYC, 2 cores)."
    assert computed_with(runs) == expected


@pytest.mark.parametrize("made_by", [None, "a text", {}, {"commit": None, "versions": None}])
def test_runs_without_a_record_add_nothing(made_by: object, tmp_path: Path) -> None:
    assert computed_with([_run(tmp_path / "1", made_by), tmp_path / "no run"]) == ""


def test_the_device_of_a_run_has_its_model_and_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    name = device_name(torch.device("cpu"))
    assert name.startswith("cpu (")
    assert name.endswith(", 3 cores)")
    assert provenance(torch.device("cpu"))["device"] == name
