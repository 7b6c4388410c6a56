"""Label regimes told apart: in rows, in the lines of tables, and by the random images that a set is compared with."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.app.table import run_table
from distill.distilled import DistilledSet
from distill.evaluation.evaluate import evaluate
from distill.evaluation.row_files import read_rows, write_rows
from distill.evaluation.rows import Row, RunDescription
from distill.experiment import Evaluation
from distill.reports.comparison import LAYOUTS
from distill.reports.indices import indices
from distill.reports.rivals import rival_notes
from distill.reports.summary import summary
from distill.reports.tables import FORMATS, render
from distill.runs.run import Run
from distill.training.protocol import Protocol
from distill.training.students import Training
from tests.rows import row as any_row
from tests.toy import toy

TEACHER = "pgd_at:steps=3@4/255"
NAMES = {"method": "dc", "dataset": "toy", "ipc": 2, "seed": 0, "backbone": "mlp", "loss": "cross_entropy"}
DESCRIPTION = RunDescription(**NAMES, recipe="quick", config="12ab")


def student(method: str, accuracy: float, labels: str = "hard", teacher: str = "", **other: Any) -> list[Row]:
    """Return the rows of a student, clean and attacked."""
    common = {"dataset": "cifar10-16px", "config": f"of {method}", "labels": labels, "teacher": teacher} | other
    return [
        any_row(method=method, attack="clean", accuracy=60.0, **common),
        any_row(method=method, attack="pgd_ce_margin@2/255", threat="linf:2/255", accuracy=accuracy, **common),
    ]


def improvements(rows: list[Row]) -> dict[str, float]:
    return {each.method: each.accuracy for each in indices(rows) if each.attack.startswith("IOR")}


# --- rows


@pytest.mark.parametrize(
    ("soft", "teacher", "own", "regime"),
    [
        (False, "", False, "hard"),
        (True, "", False, "soft"),
        (True, TEACHER, False, f"teacher {TEACHER}"),
        (False, "", True, "teacher"),
    ],
)
def test_rows_of_a_run_name_the_regime(soft: bool, teacher: str, own: bool, regime: str, tmp_path: Path) -> None:
    real = toy()
    labels = torch.eye(2)[real.labels[:4]] if soft else real.labels[:4]
    distilled = DistilledSet.of(real, real.images[:4], labels, backbone="mlp", teacher=teacher)
    distilled.save(tmp_path / "set.safetensors")
    run = Run(tmp_path / "run", None).begin()
    settings = Evaluation(students=1, attacks="", student=Training(epochs=1))
    protocol = Protocol(lambda network, name: None, 1, labels_of_teacher=True) if own else None
    stored = DistilledSet.load(tmp_path / "set.safetensors")
    rows = evaluate(stored, real, real, settings, "mlp", run, DESCRIPTION, protocol)
    assert {each.regime for each in rows} == {each.line.labels for each in rows} == {regime}
    assert {each.teacher for each in read_rows(tmp_path / "run" / "results.jsonl")} == {teacher}


def test_old_rows_have_no_teacher_and_no_regime(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [any_row(), any_row(labels="soft")])
    assert "teacher" not in (tmp_path / "rows.jsonl").read_text()
    assert [each.regime for each in read_rows(tmp_path / "rows.jsonl")] == ["", "soft"]


# --- tables

TWO = [*student("mtt", 20.0), *student("mtt", 30.0, "teacher", TEACHER)]


def test_two_regimes_are_two_lines_even_of_one_configuration() -> None:
    assert len({each.line for each in summary(TWO, by_seed=False)}) == 2


@pytest.mark.parametrize("form", FORMATS)
def test_tables_have_a_column_where_lines_differ(form: str) -> None:
    text = render(TWO, form)
    assert all(word in text for word in ("labels", "hard", "teacher pgd"))
    assert "labels" not in render(TWO[:2], form)


@pytest.mark.parametrize("ending", LAYOUTS)
def test_comparisons_have_it_too(ending: str) -> None:
    text = LAYOUTS[ending](TWO)
    assert "hard" in text
    assert "teacher pgd" in text
    assert ("labels" in text) == (ending != "tex")  # LaTeX has words behind the method
    assert "hard" not in LAYOUTS[ending](TWO[:2])


def test_a_plain_teacher_is_not_taken_for_the_plain_loss() -> None:
    rows = [*student("mtt", 20.0), *student("mtt", 21.0, "teacher", "cross_entropy")]
    assert r"mtt (teacher cross\_entropy)" in LAYOUTS["tex"](rows)


# --- improvement over random


def test_sets_are_compared_with_random_images_under_the_same_labels() -> None:
    rows = [*student("random", 14.0), *student("random_robust_labels", 25.0, "teacher", TEACHER)]
    rows += [*student("mtt", 20.0), *student("mtt_robust_labels", 29.0, "teacher", TEACHER)]
    assert improvements(rows) == {"mtt": 6.0, "mtt_robust_labels": 4.0}
    relabelled = student("dm", 26.0, "teacher", TEACHER)  # a set of `relabel` has the name of its images' method
    assert improvements([*rows, *relabelled])["dm"] == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {"labels": "hard", "teacher": ""},
        {"labels": "soft", "teacher": ""},
        {"teacher": f"{TEACHER} T=2"},
        {"teacher": "cross_entropy"},
        {"loss": "own"},
    ],
)
def test_other_labels_are_no_rival(change: dict[str, str]) -> None:
    theirs = {"labels": "teacher", "teacher": TEACHER} | change
    rows = [*student("mtt_robust_labels", 29.0, "teacher", TEACHER), *student("random", 14.0)]
    assert "mtt_robust_labels" not in improvements([*rows, *student("random_robust_labels", 25.0, **theirs)])


def test_random_images_with_labels_of_a_teacher_have_no_improvement_over_hard_ones() -> None:
    rows = [*student("random", 14.0), *student("random_robust_labels", 25.0, "teacher", TEACHER)]
    assert improvements(rows) == {}


def test_a_missing_rival_has_its_command() -> None:
    data = {"dataset": "cifar10-16px-blur0.75-validation", "ipc": 10, "loss": "trades"}
    rows = [*student("mtt", 20.0, **data), *student("guard_mtt", 21.0, **data)]
    rows += [
        *student("mtt_plain_labels", 29.0, "teacher", "cross_entropy T=2 hard=0.5"),
        *student("frepo", 9.0, "soft"),
    ]
    rows += student("dc", 9.0, "teacher", "pgd_at@2/255,pgd_at@4/255")
    meaning, *lines = rival_notes(rows)
    assert meaning.startswith("IOR: robust accuracy minus that of as many random real images under the same labels")
    shared = "--recipe quick --backbone convnet"
    commands = [line.split("`")[1] if "`" in line else "" for line in lines]
    assert commands == [
        f"bash run.sh random cifar10 --ipc 10 {shared} --image-size 16 --blur 0.75 --split validation "
        "--student.loss trades",
        f"bash run.sh random_plain_labels cifar10 --ipc 1 {shared} --teacher cross_entropy --temperature 2 --hard 0.5 "
        "--image-size 16",
        "",
        f"bash run.sh random_robust_labels cifar10 --ipc 1 {shared} --teacher pgd_at@2/255,pgd_at@4/255 "
        "--image-size 16",
    ]
    assert "labels: soft: no such random images; no command is known" in lines[2]
    assert rival_notes([*rows[:4], *student("random", 9.0, **data)]) == [meaning]


def test_names_of_data_become_flags() -> None:
    for name, words in (
        ("folder-pets-1f3a9c-16px", "folder"),
        ("my_package.data.pets", "my_package.data:pets"),
        ("mnist", "mnist"),
    ):
        (line,) = rival_notes(student("dc", 9.0, dataset=name))[1:]
        assert f"bash run.sh random {words} --ipc 1 " in line


def test_the_table_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, of_run in enumerate((student("random", 14.0), student("mtt", 20.0, "teacher", TEACHER))):
        write_rows(tmp_path / str(number) / "results.jsonl", [replace(each, student=0) for each in of_run])
    assert run_table([str(tmp_path), "--indices"]) == 0
    text = capsys.readouterr().out
    assert "\nIOR: " in text
    assert "random_robust_labels cifar10" in text
    assert run_table([str(tmp_path), "--indices", "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    assert "IOR: " not in out
    assert "random_robust_labels cifar10" in err
    assert run_table([str(tmp_path)]) == 0
    assert "IOR" not in capsys.readouterr().out
