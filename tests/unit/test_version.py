"""One version, and formats: files of earlier versions are read, those of a newer format are refused by name."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from distill.app.main import main
from distill.distilled import FORMAT, DistilledSet
from distill.errors import InputError
from distill.runs.files import FACTS, read_tensors
from distill.runs.own_files import read_record
from distill.runs.run import Run
from distill.runs.version import NAME, project_version

ROOT = Path(__file__).parents[2]


def small(**fields: object) -> DistilledSet:
    values = {"images": torch.rand(2, 1, 4, 4), "labels": torch.arange(2), "dataset": "toy", "classes": ("a", "b")}
    return DistilledSet(**values | {"mean": (0.0,), "std": (1.0,)} | fields)


def test_the_version_of_pyproject_is_printed_and_cited(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    printed = capsys.readouterr().out
    versions = re.escape(f"{NAME} {project_version()}, torch {torch.__version__}, commit ")
    assert re.fullmatch(rf"{versions}[\w-]+\n", printed)
    assert f"\nversion: {project_version()}\n" in (ROOT / "CITATION.cff").read_text()
    text = (ROOT / "pyproject.toml").read_text()
    assert f'\nname = "{NAME}"\nversion = "{project_version()}"\n' in text


def test_a_set_says_which_version_made_it(tmp_path: Path) -> None:
    small(version="0.9").save(tmp_path / "a.safetensors")
    assert DistilledSet.load(tmp_path / "a.safetensors").version == "0.9"


def rewritten(path: Path, key: str, **fields: object) -> None:
    """Write the file once more, with its facts under another key, and other facts."""
    tensors, facts = read_tensors(path, key=FORMAT)
    save_file(tensors, path, {key: json.dumps({**facts, **fields})})


def test_a_set_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    small(version="0.9").save(path)
    tensors, facts = read_tensors(path, key=FORMAT)
    del facts["version"]
    save_file(tensors, path, {FORMAT: json.dumps(facts)})
    assert DistilledSet.load(path).version == ""


@pytest.mark.parametrize(
    ("version", "named"), [("7.1", "version 7.1"), (None, "another version"), (3, "another version")]
)
def test_a_set_of_a_newer_format_is_refused_by_name(tmp_path: Path, version: object, named: str) -> None:
    path = tmp_path / "a.safetensors"
    small().save(path)
    rewritten(path, "guard-distilled-2", version=version)
    line = f"{named} of this program, in guard-distilled-2; .* {project_version()}, which reads {FORMAT}"
    with pytest.raises(InputError, match=line):
        DistilledSet.load(path)


def test_a_set_that_has_this_format_beside_a_newer_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    small().save(path)
    tensors, facts = read_tensors(path, key=FORMAT)
    save_file(tensors, path, {FORMAT: json.dumps(facts), "guard-distilled-2": "{}"})
    assert DistilledSet.load(path).dataset == "toy"


def test_tensors_of_a_stage_of_a_newer_format_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save_file({"weight": torch.ones(2)}, path, {"guard-facts-12": "no JSON"})
    with pytest.raises(InputError, match=f"in guard-facts-12; .* reads {FACTS}"):
        read_tensors(path)


def test_a_run_says_which_version_made_it_and_which_format_it_has(tmp_path: Path) -> None:
    Run(tmp_path, {"ipc": 1}).begin()
    record = json.loads((tmp_path / "experiment.json").read_text())
    assert (record["format"], record["made_by"]["version"]) == (1, project_version())


def test_a_run_of_an_earlier_version_goes_on_and_keeps_its_record(tmp_path: Path) -> None:
    path = tmp_path / "experiment.json"
    path.write_text(json.dumps({"experiment": {"ipc": 1}, "data": None, "made_by": {"commit": "abc"}}))
    before = path.read_bytes()
    Run(tmp_path, {"ipc": 1}).begin()
    assert path.read_bytes() == before


@pytest.mark.parametrize("found", [2, 0, "1", True, None, 1.5])
def test_a_run_of_another_format_is_refused_by_name(tmp_path: Path, found: object) -> None:
    record = {"format": found, "experiment": {"ipc": 1}, "made_by": {"version": "9.0\n"}}
    (tmp_path / "experiment.json").write_text(json.dumps(record))
    for read in (read_record, lambda folder: Run(folder, {"ipc": 1})):
        with pytest.raises(InputError, match=f"version 9.0 of this program, in format {found}; .* reads format 1"):
            read(tmp_path)


def test_a_newer_run_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "random" / "digits" / "ipc1" / "seed0"
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(json.dumps({"format": 2, "experiment": {}, "made_by": {"version": "9.0"}}))
    assert main(["random", "digits"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "version 9.0" in line
