"""The distilled set's file, and tables made from rows."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from distill.distilled import FORMAT, DistilledSet
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.reports.outcome import verdict_of
from distill.reports.tables import COLUMNS, find_rows, render, save_grid, summary
from distill.runs.files import read_tensors, write_tensors, write_text

SET = DistilledSet(
    images=torch.linspace(-0.5, 1.5, 6 * 3 * 4 * 4).view(6, 3, 4, 4),
    labels=torch.tensor([0, 0, 1, 1, 2, 2]),
    dataset="toy",
    classes=("a", "b", "c"),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.2),
    augment="flip",
    backbone="convnet:width=8",
    method="dc",
)


def test_a_set_comes_back_unclamped(tmp_path: Path) -> None:
    SET.save(tmp_path / "distilled.safetensors")
    for path in (tmp_path, tmp_path / "distilled.safetensors"):
        back = DistilledSet.load(path)
        assert torch.equal(back.images, SET.images)
        assert torch.equal(back.labels, SET.labels)
        assert replace(back, images=SET.images, labels=SET.labels) == SET
    assert SET.ipc == 2


def test_soft_labels_come_back(tmp_path: Path) -> None:
    soft = replace(SET, labels=torch.rand(6, 3).softmax(1))
    soft.save(tmp_path / "s")
    assert torch.equal(DistilledSet.load(tmp_path / "s").labels, soft.labels)


def test_tensors_of_the_methods_own_come_back(tmp_path: Path) -> None:
    own = {"labels": torch.randn(6, 3), "generator.weight": torch.randn(2)}
    replace(SET, training_tensors=own).save(tmp_path / "s")
    back = DistilledSet.load(tmp_path / "s").to("cpu")
    assert back.training_tensors.keys() == own.keys()
    assert all(torch.equal(back.training_tensors[name], own[name]) for name in own)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": torch.zeros(6, 3, 4)}, r"distilled set has float \(N, C, H, H\)"),
        ({"images": torch.zeros(6, 3, 4, 5)}, r"distilled set has float"),
        ({"images": torch.zeros(0, 3, 4, 4), "labels": torch.zeros(0, dtype=torch.long)}, "N >= 1"),
        ({"images": torch.full((6, 3, 4, 4), float("nan"))}, "not finite"),
        ({"labels": torch.tensor([0, 1])}, r"labels are torch.int64 \(2,\)"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2, 3])}, r"range over \[0, 3\]; there are 3 classes"),
        ({"labels": torch.rand(6, 4)}, r"labels are torch.float32 \(6, 4\)"),
        ({"mean": (0.5,)}, "do not fit images of 3 channels"),
        ({"method": "../../x"}, "method is '../../x'; a name has letters"),
        ({"method": ".."}, "method is '..'"),
        ({"dataset": "/tmp/x"}, "dataset is '/tmp/x'"),
        ({"dataset": "."}, "dataset is '.'"),
        ({"dataset": "a\n"}, "dataset is "),
        ({"method": [1]}, r"method is '\[1\]'"),
    ],
)
def test_a_set_of_wrong_shape_is_refused(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(SET, **change)


def test_a_file_of_wrong_content_is_refused(tmp_path: Path) -> None:
    SET.save(tmp_path / "whole")
    fields = {
        "dataset": "toy",
        "augment": "",
        "backbone": "x",
        "method": "",
        "classes": ["a", "b"],
        "mean": [0.5],
        "std": [1],
    }
    key = "guard-distilled-1"
    write_tensors(tmp_path / "other", {"weights": torch.ones(2)})
    write_tensors(tmp_path / "shape", {"images": torch.ones(2, 3), "labels": torch.zeros(2)}, fields, key)
    write_tensors(tmp_path / "keys", {"images": torch.ones(2, 3), "labels": torch.zeros(2)}, {"dataset": "toy"}, key)
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:300])
    for name, words in {
        "other": "no distilled set: it has tensors weights, metadata guard-facts-1",
        "shape": "no distilled set: images are",
        "keys": "no distilled set: it has tensors images, labels, metadata dataset; expected",
        "cut": "not a whole safetensors file",
        "absent": "there is no file",
    }.items():
        with pytest.raises(InputError, match=words):
            DistilledSet.load(tmp_path / name)


def test_the_grid_has_a_row_a_class(tmp_path: Path) -> None:
    save_grid(SET, tmp_path / "grid.png")
    picture = Image.open(tmp_path / "grid.png")
    assert picture.size == (2 * (64 + 2) + 2, 3 * (64 + 2) + 2)
    assert picture.getpixel((34, 34)) != picture.getpixel((34, 34 + 2 * 66))  # class a is dark, class c light


def rows(
    method: str,
    seed: int,
    accuracies: dict[str, list[float]],
    recipe: str = "quick",
    config: str = "a",
    loss: str = "cross_entropy",
    **other: object,
) -> list:
    shared = {"method": method, "dataset": "toy", "ipc": 1, "seed": seed, "backbone": "convnet", "recipe": recipe}
    shared["loss"] = loss
    shared |= {"config": config, "low": 0.0, "high": 100.0, "images": 9, "median_distance": None}
    shared |= {"seconds": 1.5, "epoch_seconds": 0.02, "verdict": "ok", "advised": "", "advised_accuracy": None}
    shared |= {"set": f"set{seed}", "test": "images", "how": "PGD()"} | other
    threats = {"clean": "", "l2": "l2:0.2"}
    return [
        shared
        | {"student": student, "attack": attack, "accuracy": value, "threat": other.get("threat", threats[attack])}
        for attack, values in accuracies.items()
        for student, value in enumerate(values)
    ]


ROWS = rows("dc", 0, {"clean": [50.0, 52.0], "l2": [10.0, 14.0]}) + rows("dc", 1, {"clean": [54.0, 56.0], "l2": [0, 4]})


def test_csv_has_a_row_per_seed_and_attack() -> None:
    table = list(csv.DictReader(io.StringIO(render(ROWS, "csv"))))
    first = ("method", "dataset", "ipc", "seed", "backbone", "loss", "recipe", "attack", "threat", "mean", "std", "n")
    assert tuple(table[0]) == COLUMNS == (*first, "verdict", "advised", "advised_mean", "how", "config", "set")
    assert {(row["attack"], row["threat"]) for row in table} == {("clean", ""), ("l2", "l2:0.2")}
    assert {row["verdict"] for row in table} == {"ok"}
    assert [(row["seed"], row["attack"], row["mean"], row["std"], row["n"]) for row in table] == [
        ("0", "clean", "51.00", "1.41", "2"),
        ("0", "l2", "12.00", "2.83", "2"),
        ("1", "clean", "55.00", "1.41", "2"),
        ("1", "l2", "2.00", "2.83", "2"),
    ]


def test_tables_put_seeds_together_and_keep_recipes_apart() -> None:
    clean = summary(ROWS, by_seed=False)[0]
    assert (clean["mean"], clean["n"]) == (53.0, 4)
    assert clean["std"] == pytest.approx(2.582, abs=1e-3)
    both = ROWS + rows("dc", 0, {"clean": [90.0]}, recipe="paper")
    text = render(both, "text")
    assert "53.0 ± 2.6" in text
    assert "90.0  -" in " ".join(text.splitlines()[2].split()).replace(" - ", "  - ")
    assert len(text.splitlines()) == 3
    other = render(ROWS + rows("dc", 0, {"clean": [90.0]}, config="b"), "text").splitlines()
    assert other[0].split()[5] == "config"  # named where nothing else tells two rows apart
    assert [line.split()[5] for line in other[1:]] == ["a", "b"]
    assert "config" not in text
    assert "loss" not in text
    robust = render(ROWS + rows("dc", 0, {"clean": [90.0]}, loss="trades"), "text").splitlines()
    assert [line.split()[4] for line in robust] == ["loss", "cross_entropy", "trades"]
    assert render(ROWS, "markdown").splitlines()[2].startswith("| dc | toy | 1 | convnet | quick | 53.0 ± 2.6 | 7.0 ±")
    assert r"dc & toy & 1 & convnet & quick & 53.0 $\pm$ 2.6" in render(ROWS, "latex")


def test_nothing_but_seeds_sets_students_and_images_is_put_together() -> None:
    """Three seeds of three students were a mean of the last seed; two threats of one attack shared a column."""
    runs = [row for seed in range(3) for row in rows("dc", seed, {"clean": [50.0, 51.0, 52.0 + seed]})]
    (joined,) = summary(runs, by_seed=False)
    assert (joined["n"], joined["mean"]) == (9, pytest.approx(51.3333, abs=1e-3))
    assert [row["n"] for row in summary(runs)] == [3, 3, 3]
    two_sets = rows("dc", 0, {"clean": [50.0, 52.0]}) + rows("dc", 0, {"clean": [60.0, 62.0]}, set="another")
    assert [row["n"] for row in summary(two_sets)] == [2, 2]
    assert [row["n"] for row in summary(two_sets, by_seed=False)] == [4]
    for name in ("method", "dataset", "ipc", "backbone", "loss", "recipe", "config", "threat", "how"):
        other = [row | {name: "other"} for row in rows("dc", 1, {"l2": [1.0]})]
        assert [row["n"] for row in summary([*ROWS[2:4], *other], by_seed=False)] == [2, 1], name
    weak = rows("dc", 0, {"l2": [30.0]}, threat="l2:0.1")
    header, line = render([*ROWS, *weak], "text").splitlines()
    assert re.split("  +", header)[-5:] == ["clean", "l2 0.2", "l2 0.1", "n", "ms/epoch"]
    assert line.split()[-2] == "4/1"  # each column says how many students it has
    with pytest.raises(InputError, match="seed 0, set set0, student 1, column clean is there more than once"):
        summary([*ROWS, ROWS[1]], by_seed=False)


def test_doubtful_numbers_are_marked_and_the_reason_is_given() -> None:
    doubt = "suspicious: black-box square beats it, 9 to 0"
    doubtful = [row | {"verdict": doubt} if (row["attack"], row["student"]) == ("l2", 1) else row for row in ROWS]
    text = render(doubtful, "text")
    assert "7.0 ± 6.2 ?" in text
    assert "~~7.0 ± 6.2~~ ?" in render(doubtful, "markdown")
    assert r"\sout{7.0 $\pm$ 6.2} ?" in render(doubtful, "latex")
    assert text.splitlines()[-1] == f"? dc toy ipc 1, l2: {doubt}"
    advised = [
        row | ({"advised": "square@l2:0.2", "advised_accuracy": 6.0} if row["verdict"] == doubt else {})
        for row in doubtful
    ]
    assert "7.0 ± 6.2 ? 5.5 by square@l2:0.2" in render(advised, "text")  # (10 + 6 + 0 + 6) / 4
    assert f"? dc toy ipc 1, l2: {doubt}" in render(doubtful, "markdown")
    verdicts = {row["attack"]: row["verdict"] for row in csv.DictReader(io.StringIO(render(doubtful, "csv")))}
    assert verdicts == {"clean": "ok", "l2": doubt}
    assert "?" not in render(ROWS, "text")
    assert verdict_of(["ok", doubt, "ok"]) == f"{doubt} (1 of 3 students)"


def test_rows_are_found_or_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished run below"):
        find_rows([tmp_path])
    with pytest.raises(InputError, match="there is no folder"):
        find_rows([tmp_path / "absent"])
    write_text(tmp_path / "a" / "results.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    assert find_rows([tmp_path]) == ROWS
    assert find_rows([tmp_path, tmp_path / "a", tmp_path / "a" / ".." / "a"]) == ROWS  # no run counts twice
    earlier = [{name: value for name, value in row.items() if name not in ("threat", "how", "set")} for row in ROWS]
    write_text(tmp_path / "b" / "results.jsonl", "".join(json.dumps(row) + "\n" for row in earlier))
    with pytest.raises(InputError, match="is of an earlier version"):
        find_rows([tmp_path])
    for text in ("{", "{}\n", "[1]\n"):
        write_text(tmp_path / "b" / "results.jsonl", text)
        with pytest.raises(InputError, match="is damaged"):
            find_rows([tmp_path])


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"width": 4.0}, r"width is 4\.0; it must be a whole number >= 1"),
        ({"epochs": True}, "epochs is True; it must be a whole number"),
        ({"lr": "0.1"}, "lr is '0.1'; it must be a finite number > 0"),
        ({"lr": 0}, "lr is 0; it must be > 0"),
        ({"augment": 3}, "augment of the set's training is 3; it must be a text"),
        ({"whitening": 5}, "whitening of the set's training is 5; it must be a text"),
        ({"lrs": 0.1}, "lrs of the set's training is 0.1; it must be a list"),
        ({"lrs": [0.1, -1]}, r"lrs\[1\] is -1; it must be >= 0"),
        ({"validate": []}, "validate of the set's training is .*; it must be a dict"),
        ([], "training is a list; it must be a dict"),
    ],
)
def test_a_set_with_damaged_settings_of_a_protocol_is_refused(training: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        MethodTraining.from_json(training)
    SET.save(tmp_path / "s")
    tensors, facts = read_tensors(tmp_path / "s", key=FORMAT)
    write_tensors(tmp_path / "s", tensors, facts | {"training": training}, FORMAT)
    with pytest.raises(InputError, match=f"is no distilled set: .*{words}"):
        DistilledSet.load(tmp_path / "s")


def test_settings_of_methods_outside_this_tree_come_back(tmp_path: Path) -> None:
    replace(SET, training=MethodTraining(lr=0.1, extra={"rounds": [1, 2]})).save(tmp_path / "s")
    _, facts = read_tensors(tmp_path / "s", key=FORMAT)
    assert facts["training"] == {"lr": 0.1, "rounds": [1, 2]}
    assert DistilledSet.load(tmp_path / "s").training == MethodTraining(lr=0.1, extra={"rounds": [1, 2]})
    with pytest.raises(ValueError, match="extra has lr, which are fields already"):
        MethodTraining(extra={"lr": 0.1})
