"""Tables made from rows: what is joined, what is kept apart, what is named."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from distill.app.table import run_table
from distill.errors import InputError
from distill.evaluation.row_files import write_rows
from distill.evaluation.rows import ColumnKey, Row
from distill.reports.indices import indices
from distill.reports.outcome import verdict_of
from distill.reports.summary import headings, summary
from distill.reports.tables import CSV_COLUMNS, render
from distill.runs.files import write_text
from robust import Threat
from tests.rows import row

THREATS = {"clean": "", "l2": "l2:0.2"}


def rows(method: str, seed: int, accuracies: dict[str, list[float]], **other: object) -> list[Row]:
    """Return rows by attack, an accuracy for each student."""
    shared = {"method": method, "seed": seed, "config": "a", "low": 0.0, "high": 100.0, "images": 9, "seconds": 1.5}
    shared |= {"epoch_seconds": 0.02, "set": f"set{seed}", "how": "PGD()"}
    return [
        row(**shared | {"student": student, "attack": attack, "accuracy": value, "threat": THREATS[attack]} | other)
        for attack, values in accuracies.items()
        for student, value in enumerate(values)
    ]


ROWS = rows("dc", 0, {"clean": [50.0, 52.0], "l2": [10.0, 14.0]}) + rows("dc", 1, {"clean": [54.0, 56.0], "l2": [0, 4]})


def test_csv_has_a_row_per_seed_and_attack() -> None:
    table = list(csv.DictReader(io.StringIO(render(ROWS, "csv"))))
    first = ("method", "dataset", "ipc", "seed", "backbone", "loss", "recipe", "attack", "threat", "mean", "std", "n")
    assert tuple(table[0]) == CSV_COLUMNS == (*first, "verdict", "advised", "advised_mean", "how", "config", "set")
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
    assert (clean.mean, clean.n) == (53.0, 4)
    assert clean.std == pytest.approx(2.582, abs=1e-3)
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
    assert (joined.n, joined.mean) == (9, pytest.approx(51.3333, abs=1e-3))
    assert [mean.n for mean in summary(runs)] == [3, 3, 3]
    two_sets = rows("dc", 0, {"clean": [50.0, 52.0]}) + rows("dc", 0, {"clean": [60.0, 62.0]}, set="another")
    assert [mean.n for mean in summary(two_sets)] == [2, 2]
    assert [mean.n for mean in summary(two_sets, by_seed=False)] == [4]
    for name in ("method", "dataset", "ipc", "backbone", "loss", "recipe", "config", "threat", "how"):
        value = {"ipc": 7, "threat": Threat("l2", 0.7)}.get(name, "other")
        other = [replace(row, **{name: value}) for row in rows("dc", 1, {"l2": [1.0]})]
        assert [mean.n for mean in summary([*ROWS[2:4], *other], by_seed=False)] == [2, 1], name
    weak = rows("dc", 0, {"l2": [30.0]}, threat="l2:0.1")
    header, line = render([*ROWS, *weak], "text").splitlines()
    assert re.split("  +", header)[-5:] == ["clean", "l2 0.2", "l2 0.1", "n", "ms/epoch"]
    assert line.split()[-2] == "4/1"  # each column says how many students it has
    with pytest.raises(InputError, match="seed 0, set set0, student 1, column clean is there more than once"):
        summary([*ROWS, ROWS[1]], by_seed=False)


def test_doubtful_numbers_are_marked_and_the_reason_is_given() -> None:
    doubt = "suspicious: black-box square beats it, 9 to 0"
    doubtful = [replace(row, verdict=doubt) if (row.attack, row.student) == ("l2", 1) else row for row in ROWS]
    text = render(doubtful, "text")
    assert "7.0 ± 6.2 ?" in text
    assert "~~7.0 ± 6.2~~ ?" in render(doubtful, "markdown")
    assert r"\sout{7.0 $\pm$ 6.2} ?" in render(doubtful, "latex")
    assert text.splitlines()[-1] == f"? dc toy ipc 1, l2: {doubt}"
    advised = [
        replace(row, advised="square@l2:0.2", advised_accuracy=6.0) if row.verdict == doubt else row for row in doubtful
    ]
    assert "7.0 ± 6.2 ? 5.5 by square@l2:0.2" in render(advised, "text")  # (10 + 6 + 0 + 6) / 4
    assert f"? dc toy ipc 1, l2: {doubt}" in render(doubtful, "markdown")
    verdicts = {row["attack"]: row["verdict"] for row in csv.DictReader(io.StringIO(render(doubtful, "csv")))}
    assert verdicts == {"clean": "ok", "l2": doubt}
    assert "?" not in render(ROWS, "text")
    assert verdict_of(["ok", doubt, "ok"]) == f"{doubt} (1 of 3 students)"


def test_no_two_columns_have_one_heading() -> None:
    """An attack of one name at two threats, with two settings, and at one size of two norms."""
    box, sphere = Threat("linf", 0.1), Threat("l2", 0.1)
    keys = [
        ColumnKey("pgd", threat, how) for threat in (box, sphere, None) for how in ("", "PGD(steps=50)", "PGD(steps=5)")
    ]
    keys += [ColumnKey("l2", sphere, "PGD()"), ColumnKey("l2", box, "PGD()"), ColumnKey("clean", None, "")]
    found = headings(keys)
    assert list(found) == keys
    assert len({*found.values()}) == len(keys)
    assert found[ColumnKey("pgd", sphere, "")] == "pgd l2:0.1"
    assert list(headings([ColumnKey("linf", Threat("linf", 2 / 255), "")]).values()) == ["linf 2/255"]


def test_the_papers_names_mean_two_threats_on_two_data_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`linf` is 0.1 on digits and 2/255 on CIFAR-10, `l2` is 1 and 0.2: each has a column, and indices have theirs.

    RR and AE of both data sets were one column, though they join attacks at other threats.
    """
    for dataset, linf, l2 in (("digits", "linf:0.1", "l2:1"), ("cifar10", "linf:2/255", "l2:0.2")):
        mine = [row(dataset=dataset, attack="clean", accuracy=80.0, seconds=0.1)]
        for attack, threat, accuracy, seconds in (("linf", linf, 30.0, 1.0), ("l2", l2, 20.0, 2.0)):
            values = {"attack": attack, "threat": threat, "accuracy": accuracy, "seconds": seconds}
            mine.append(row(**values, dataset=dataset, how="PGD()"))
        (tmp_path / dataset).mkdir()
        write_rows(tmp_path / dataset / "results.jsonl", mine)
    assert run_table([str(tmp_path), "--indices"]) == 0
    header, *lines = [re.split("  +", line.strip()) for line in capsys.readouterr().out.splitlines()]
    threats = {"cifar10": ("linf 2/255", "l2 0.2"), "digits": ("linf 0.1", "l2 1")}
    for (dataset, (linf, l2)), line in zip(threats.items(), lines[:2], strict=True):
        values = dict(zip(header, line, strict=True))
        assert values["dataset"] == dataset
        shown = {name for name, value in values.items() if name.startswith(("linf", "l2", "RR", "AE")) and value != "-"}
        assert shown == {linf, l2, f"RR of {l2}, {linf}", f"AE of {l2}, {linf}"}


def test_indices_of_equal_attacks_share_a_column() -> None:
    mine = [row(attack="clean", accuracy=80.0, method=method) for method in ("dc", "dm")]
    mine += [
        row(attack=f"{name}@0.1", threat="linf:0.1", accuracy=value, method=method)
        for method in ("dc", "dm")
        for name, value in (("pgd", 30.0), ("fgsm", 40.0))
    ]
    header = render([*mine, *indices(mine)], "text").splitlines()[0]
    assert "RR  " in header
    assert "RR of" not in header


def test_a_doubt_names_the_threat_where_two_columns_have_one_attack() -> None:
    doubt = "suspicious: masked"
    two = rows("dc", 0, {"l2": [10.0]}, verdict=doubt) + rows("dc", 0, {"l2": [30.0]}, threat="l2:0.1")
    assert render(two, "text").splitlines()[-1] == f"? dc toy ipc 1, l2 0.2: {doubt}"


def test_two_configurations_are_two_lines_and_the_difference_is_named(tmp_path: Path) -> None:
    found = []
    for config, epochs in (("aa", 20), ("bb", 30)):
        folder = tmp_path / config
        record = {"experiment": {"seed": 0, "evaluation": {"student": {"epochs": epochs}, "students": 1}}, "data": None}
        write_text(folder / "experiment.json", json.dumps(record))
        found += [replace(each, folder=folder) for each in rows("dc", 0, {"clean": [50.0]}, config=config)]
    lines = render(found, "text").splitlines()
    assert [line.split()[5] for line in lines[1:3]] == ["aa", "bb"]
    assert lines[3] == "config aa and bb (dc on toy, ipc 1) differ in evaluation.student.epochs 20 and 30"
    assert render(found[:1], "text").count("\n") == 2


def test_tables_name_the_version_that_made_their_rows() -> None:
    """A table of rows without a version is the text that earlier versions wrote, so a finished run stays finished."""
    old, new = rows("dc", 0, {"clean": [50.0, 52.0]}), rows("dc", 1, {"clean": [51.0, 53.0]}, version="0.1.0")
    assert "version" not in render(old, "csv")
    header, *lines = (line.split(",") for line in render([*old, *new], "csv").splitlines())
    assert header[-1] == "version"
    assert [line[-1] for line in lines] == ["", "0.1.0"]
