"""Rows of results: what is written, what is read back, and what is refused."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from distill.errors import InputError
from distill.evaluation.row_files import find_rows, read_rows, write_rows
from distill.evaluation.rows import Row, RunDescription, ShareOfValues
from distill.runs.files import write_text
from robust import Threat
from tests.rows import DEFAULTS, row

LINES = """\
{"method": "random", "dataset": "digits", "ipc": 1, "seed": 0, "backbone": "convnet:width=64,depth=2", "loss": \
"cross_entropy", "recipe": "quick", "config": "938e2f7d", "set": "15c5e885483a1f83", "test": "a5119a3379df146d", \
"chance": 10.30640668523677, "student": 1, "attack": "linf", "threat": "linf:0.1", "how": "PGD(step_size=0.03)", \
"accuracy": 34.26183844011142, "low": 29.542427509463504, "high": 39.31449408729335, "images": 359, \
"median_distance": null, "seconds": 0.2518156119986088, "epoch_seconds": 0.0034009246948052086, "verdict": "ok", \
"advised": "", "advised_accuracy": null}
{"method": "random", "dataset": "digits", "ipc": 1, "seed": 0, "backbone": "mlp", "loss": "own", "recipe": "quick", \
"config": "938e2f7d", "set": "15c5e885483a1f83", "test": "a5119a3379df146d", "chance": 10.5, "student": 1, \
"attack": "jsma@l0:0.1", "threat": "l0:0.1", "how": "JSMA()", "accuracy": 34.0, "low": null, "high": null, \
"images": 359, "median_distance": Infinity, "seconds": 0.25, "epoch_seconds": 0.003, "verdict": "ok", \
"advised": "square@0.1", "advised_accuracy": 3.5}
"""
"""as the version before typed rows wrote them"""


def test_lines_of_the_version_before_are_read_and_written_again_byte_by_byte(tmp_path: Path) -> None:
    write_text(tmp_path / "results.jsonl", LINES)
    first, second = find_rows([tmp_path])
    assert first.threat == Threat("linf", 0.1)
    assert second.threat == ShareOfValues(0.1)
    assert second.median_distance == float("inf")
    assert (first.protocol, first.labels, first.folder) == ("", "", tmp_path)
    write_rows(tmp_path / "again", [first, second])
    assert (tmp_path / "again").read_text() == LINES


def test_a_row_comes_back(tmp_path: Path) -> None:
    rows = [
        row(
            threat="l2:0.5",
            attack="pgd@l2:0.5",
            protocol="own",
            labels="teacher",
            teacher="trades",
            chance=10.0,
            version="1",
        ),
        row(threat="linf:8/255", student=None),
    ]
    write_rows(tmp_path / "teacher.jsonl", rows)
    assert read_rows(tmp_path / "teacher.jsonl") == rows
    names = [{*json.loads(line)} for line in (tmp_path / "teacher.jsonl").read_text().splitlines()]
    every = {each.name for each in fields(Row)} - {"folder"}
    assert names == [every, every - {"chance", "student", "protocol", "labels", "teacher", "version"}]


def test_every_ball_keeps_its_text(tmp_path: Path) -> None:
    texts = ["", "linf:8/255", "linf:0.1", "linf:0", "l2:0.2", "l2:0.14285714285714285", "l0:0.1", "l0:0.05"]
    write_rows(tmp_path / "results.jsonl", [row(threat=text, attack=f"a{text}") for text in texts])
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["threat"] for line in lines] == texts
    assert [each.threat for each in find_rows([tmp_path])] == [row(threat=text).threat for text in texts]


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": "50"},
        {"accuracy": None},
        {"accuracy": True},
        {"ipc": 1.5},
        {"ipc": "1"},
        {"student": "0"},
        {"student": None},
        {"threat": "8/255"},
        {"threat": "l1:1"},
        {"threat": "linf:eight"},
        {"threat": "linf:7"},
        {"threat": "l0:2"},
        {"threat": "l0:nan"},
        {"threat": None},
        {"verdict": None},
        {"images": [359]},
        {"protocol": "mine"},
        {"low": "0"},
        *({name: ...} for name in DEFAULTS if name != "threat"),
    ],
    ids=str,
)
def test_a_value_of_another_type_or_a_missing_field_is_damage(change: dict[str, Any], tmp_path: Path) -> None:
    line = {name: value for name, value in (DEFAULTS | change).items() if value is not ...}
    write_text(tmp_path / "results.jsonl", json.dumps(DEFAULTS | {"student": 1}) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(InputError, match=r"results\.jsonl is damaged: run its command again"):
        find_rows([tmp_path])


def test_a_description_is_of_its_rows_alone() -> None:
    of_run = {each.name: getattr(row(), each.name) for each in fields(RunDescription)}
    description = RunDescription(**of_run)
    assert description.describes(row(student=4, attack="pgd", accuracy=1.0))
    assert replace(description, set="").describes(row())  # before the set is there
    for name, value in {"seed": 1, "config": "34cd", "set": "other", "ipc": 2}.items():
        assert not description.describes(replace(row(), **{name: value})), name


def test_rows_are_found_or_told(tmp_path: Path) -> None:
    lines = [DEFAULTS | {"student": student} for student in range(2)]
    expected = [row(student=student) for student in range(2)]
    with pytest.raises(InputError, match="no finished run below"):
        find_rows([tmp_path])
    with pytest.raises(InputError, match="there is no folder"):
        find_rows([tmp_path / "absent"])
    write_text(tmp_path / "a" / "results.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert find_rows([tmp_path]) == expected
    assert find_rows([tmp_path, tmp_path / "a", tmp_path / "a" / ".." / "a"]) == expected  # no run counts twice
    earlier = [{name: value for name, value in line.items() if name not in ("threat", "how", "set")} for line in lines]
    write_text(tmp_path / "b" / "results.jsonl", "".join(json.dumps(line) + "\n" for line in earlier))
    with pytest.raises(InputError, match="is of an earlier version"):
        find_rows([tmp_path])
    whole = [DEFAULTS | {"student": student, "attack": attack} for student in range(2) for attack in ("clean", "pgd")]
    cut = "".join(json.dumps(line) + "\n" for line in whole[:3])  # at the end of a line
    for text in ("{", "{}\n", "[1]\n", "", cut):
        write_text(tmp_path / "b" / "results.jsonl", text)
        with pytest.raises(InputError, match="is damaged"):
            find_rows([tmp_path])
