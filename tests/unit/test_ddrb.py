"""The six columns of DD-RobustBench: what `ddrb` stands for, and the mean and drop rate that tables add."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.errors import InputError
from distill.evaluation.column_kinds import AttackColumn
from distill.evaluation.columns import columns
from distill.evaluation.ddrb import FIVE, ddrb
from distill.evaluation.rows import Row
from distill.experiment import Evaluation
from distill.reports import outcome
from distill.reports.field_mean import field_means
from distill.reports.indices import drop_rate, indices
from distill.reports.tables import FORMATS, render
from robust import PGD, VMIFGSM, AutoAttack, Jitter, Threat
from tests.rows import row

BOX = Threat("linf", 2 / 255)
NAMES = ddrb(BOX)


def found(attacks: str, **options: str) -> list[AttackColumn]:
    return [c for c in columns(Evaluation(attacks=attacks, **options), 3, 32) if isinstance(c, AttackColumn)]


def test_ddrb_is_six_columns_as_a_user_writes_each() -> None:
    step = 2 / 255
    walk = PGD(BOX, steps=10, step_size=step, iterate="last")
    assert [column.attack for column in found("ddrb")] == [
        PGD(BOX, steps=1, step_size=step, random_start=False),
        walk,
        PGD(BOX, steps=10, step_size=step, iterate="last", objective="margin"),
        VMIFGSM(BOX, steps=10, step_size=step, momentum=1.0, neighbours=5, radius=1.5, iterate="last"),
        Jitter(BOX, steps=10, step_size=step, scale=10.0, std=0.1, random_start=True, iterate="last"),
        AutoAttack(BOX),
    ]
    assert found("ddrb") == found(",".join(NAMES))
    assert tuple(column.name for column in found("ddrb")) == NAMES
    assert [column.kind for column in found("ddrb")] == ["single_step", *["white"] * 4, "ensemble"]


@pytest.mark.parametrize(
    ("written", "eps", "step"),
    [
        ("ddrb", "2/255", "2/255"),
        ("ddrb@8/255", "8/255", "2/255"),
        ("ddrb@0.3", "0.3", "0.075"),
        ("ddrb@linf", "2/255", "2/255"),
    ],
)
def test_another_ball(written: str, eps: str, step: str) -> None:
    """`--threat` and `--eps` do not move it: its threat is part of the name, as that of the paper's columns is."""
    for options in ({}, {"threat": "8/255"}, {"eps": "1/255,4/255"}):
        names = [column.name for column in found(written, **options)]
        assert names[1] == f"pgd:step_size={step},iterate=last@{eps}"
        assert all(name.endswith(f"@{eps}") for name in names)


def test_ddrb_is_mixed_with_other_columns() -> None:
    names = [column.name for column in columns(Evaluation(attacks="linf,ddrb,ddrb@4/255,worst@2/255"), 3, 32)]
    assert names == ["linf", *NAMES, *ddrb(Threat("linf", 4 / 255)), "worst@2/255"]


@pytest.mark.parametrize(
    ("attacks", "line"),
    [
        ("ddrb,ddrb", "--attacks has fgsm@2/255 twice; give it once"),
        ("autoattack@2/255,ddrb", "--attacks has autoattack@2/255 twice"),
        ("ddrb@l2:0.5", "ddrb@l2:0.5: DD-RobustBench attacks in linf; write a threat such as 2/255"),
        ("ddrb:steps=5", "ddrb:steps=5: ddrb has no options; write its columns one by one to change them"),
        ("ddrb@8", "write 8/255"),
        ("ddbr", "unknown attack 'ddbr'; did you mean 'ddrb'?"),
    ],
)
def test_what_is_wrong_is_said(attacks: str, line: str) -> None:
    with pytest.raises(InputError, match=line):
        columns(Evaluation(attacks=attacks), 3, 32)


# The mean and the drop rate


def student(clean: float, *accuracies: float, names: tuple[str, ...] = NAMES, **other: object) -> list[Row]:
    """Return rows of one student: clean, and under the first columns of ddrb."""
    attacked = [
        row(attack=name, threat=f"linf:{name.rpartition('@')[2]}", how="x", accuracy=value, **other)
        for name, value in zip(names, accuracies, strict=False)
    ]
    return [row(accuracy=clean, **other), *attacked]


def values(rows: list[Row]) -> dict[str, float]:
    return {each.attack: each.accuracy for each in field_means(rows)}


def test_mean_and_drop_rate_are_over_the_five_without_autoattack() -> None:
    """AutoAttack has a column of its own: published means are over the five."""
    expected = {"ddrb mean@2/255": 30.0, "ddrb drop rate@2/255": 25.0}
    assert values(student(40.0, 36.0, 32.0, 30.0, 28.0, 24.0, 10.0)) == expected
    assert values(student(40.0, 36.0, 32.0, 30.0, 28.0, 24.0)) == expected
    assert values(student(40.0, 36.0, 32.0, 30.0, 28.0)) == {}
    assert len(NAMES) == FIVE + 1
    assert NAMES[-1].startswith("autoattack")


def test_each_threat_and_each_student_has_its_own() -> None:
    two = ddrb(Threat("linf", 4 / 255))
    rows = student(50.0, *[40.0] * 6) + student(50.0, *[20.0] * 6, names=two)[1:]
    rows += student(0.0, *[0.0] * 6, student=1)
    found = [(each.student, each.attack, each.accuracy) for each in field_means(rows)]
    assert found == [
        (0, "ddrb mean@2/255", 40.0),
        (0, "ddrb drop rate@2/255", 20.0),
        (0, "ddrb mean@4/255", 20.0),
        (0, "ddrb drop rate@4/255", 60.0),
        (1, "ddrb mean@2/255", 0.0),  # 0 / 0 is no drop rate
    ]


def test_a_doubtful_attack_makes_the_mean_doubtful() -> None:
    rows = student(50.0, *[40.0] * 6)
    masked = replace(rows[2], verdict="suspicious: masked")
    doubtful = [*rows[:2], masked, *rows[3:]]
    assert {each.verdict for each in field_means(doubtful)} == {"suspicious: masked"}
    assert {each.verdict for each in field_means(rows)} == {"ok"}


@pytest.mark.parametrize("form", FORMATS)
def test_tables_with_the_columns_show_both(form: str) -> None:
    rows = student(40.0, *[30.0] * 6) + student(60.0, *[30.0] * 6, student=1)
    text = render(rows, form)
    assert "ddrb mean@2/255" in text
    assert "ddrb drop rate@2/255" in text
    assert "ddrb" not in render(rows[:4], form)
    if form == "csv":
        lines = {line["attack"]: line for line in csv.DictReader(io.StringIO(text))}
        assert (lines["ddrb mean@2/255"]["mean"], lines["ddrb mean@2/255"]["threat"]) == ("30.00", "linf:2/255")
        assert (lines["ddrb drop rate@2/255"]["mean"], lines["ddrb drop rate@2/255"]["how"]) == ("37.50", "")


def test_drop_rate_by_hand_and_what_it_hides() -> None:
    assert drop_rate(48.31, 29.12) == pytest.approx(39.72, abs=0.01)  # C2R on CIFAR-10
    assert drop_rate(12.0, 11.0) < drop_rate(80.0, 60.0)  # hardly a network, and the better one
    for clean, robust, words in ((0, 0, "clean accuracy is 0"), (40, 41, "above the clean 40"), (101, 1, "101")):
        with pytest.raises(ValueError, match=words):
            drop_rate(clean, robust)


def test_drop_rate_is_an_index_of_any_attacks() -> None:
    rows = [row(accuracy=80.0), row(attack="pgd", accuracy=30.0, seconds=2.0), row(attack="fgsm", accuracy=50.0)]
    assert [each.accuracy for each in indices(rows) if each.attack == "DR"] == [50.0]
    assert [each.attack for each in indices(rows[:1])] == []


def test_the_printed_table_of_a_run_has_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With neither an interval nor a time, as they follow from the other columns."""
    rows = student(40.0, *[30.0] * 6)
    monkeypatch.setattr(outcome, "find_rows", lambda folders: rows)
    measured = {each.column: torch.ones(1, 60, dtype=torch.bool) for each in rows}
    monkeypatch.setattr(outcome, "bools_of", lambda folder, rows: measured)
    outcome.show(tmp_path)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["ddrb", "mean@2/255", "30.0", "ok"] in printed
    assert ["ddrb", "drop", "rate@2/255", "25.0", "ok"] in printed
    assert any(line[:2] == ["ddrb", "mean:"] for line in printed)
