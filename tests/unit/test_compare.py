"""Two sides of finished runs: what is one set, what is refused, and to what the result generalises."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from torch import Tensor

from distill.app.compare import run_compare
from distill.app.main import main
from distill.errors import InputError
from distill.evaluation.intervals import difference
from distill.reports.outcome import show
from distill.runs.files import write_tensors
from tests.rows import DEFAULTS


def bools(students: int, share: float, seed: int, images: int = 60) -> Tensor:
    return torch.rand(students, images, generator=torch.Generator().manual_seed(seed)) < share


def write(folder: Path, tables: dict[str, Tensor], experiment: dict[str, Any] | None = None, **fields: Any) -> Path:
    """Write a finished run with columns (students, images), or (students, kinds, images)."""
    common = DEFAULTS | {"backbone": "mlp", "set": str(folder)}
    per_column = {name: fields.pop(name) for name in list(fields) if name in tables}
    rows = []
    for student in range(len(next(iter(tables.values())))):
        sheet = {name: table[student].contiguous() for name, table in tables.items()}
        write_tensors(folder / "students" / f"{student}-correct.safetensors", sheet)
        for name, table in tables.items():
            accuracy = 100 * table[student].double().mean().item()
            row = common | {"student": student, "attack": name, "accuracy": accuracy}
            rows.append(row | fields | per_column.get(name, {}))
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if experiment is not None:
        (folder / "experiment.json").write_text(json.dumps({"experiment": experiment}))
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    assert run_compare([str(word) for word in words]) == 0
    return capsys.readouterr().out.splitlines()


def cells(line: str) -> list[str]:
    return [cell for cell in line.split("  ") if cell]


def test_students_of_one_set_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = bools(3, 0.5, 0), bools(4, 0.7, 1)
    first, second = write(tmp_path / "a", {"clean": a}), write(tmp_path / "b", {"clean": b}, method="guard_dc")
    lines = run(capsys, first, second)
    expected = difference([b], [a])
    means = [f"{100 * table.double().mean():.1f}" for table in (a, b)]
    interval = f"{expected.low:+.1f} to {expected.high:+.1f}"
    assert [cell.strip() for cell in cells(lines[1])] == [
        "clean",
        *means,
        f"{expected.value:+.1f}",
        interval,
        f"{expected.p_value:.2g}",
    ]
    assert lines[2] == f"A: dc, ipc 1, mlp, 1 set, 3 students: {first}"
    assert lines[3] == f"B: guard_dc, ipc 1, mlp, 1 set, 4 students: {second}"
    assert "unit: students; the result generalises to other students of these two distilled sets, not" in lines[5]
    assert "--against" in lines[6]
    assert len(lines[0]) < 60  # no paths in the header


def test_a_folder_of_seeds_is_several_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = [bools(2, 0.5 + 0.03 * seed, seed) for seed in range(6)]
    for seed in range(3):
        write(tmp_path / "dc" / f"seed{seed}", {"clean": tables[seed]}, seed=seed)
        write(tmp_path / "guard_dc" / f"seed{seed}", {"clean": tables[3 + seed]}, seed=seed, method="guard_dc")
    expected = difference(tables[3:], tables[:3])
    folders = run(capsys, tmp_path / "dc", tmp_path / "guard_dc")
    assert f"{expected.low:+.1f} to {expected.high:+.1f}" in folders[1]
    assert "A: dc, ipc 1, mlp, 3 sets, 6 students" in folders[2]
    assert folders[5] == "unit: distilled sets (3 and 3); the result generalises to other seeds of both"
    seeds = [tmp_path / "dc" / f"seed{seed}" for seed in range(3)]
    named = run(capsys, *seeds, "--against", tmp_path / "guard_dc")
    assert named[:2] == folders[:2]
    twice = run(capsys, *seeds, seeds[0], "--against", tmp_path / "guard_dc")
    assert twice[1] == named[1]  # a run that is given twice counts once
    single = run(capsys, tmp_path / "dc", "--against", tmp_path / "guard_dc" / "seed1")
    assert single[6] == "B has a single set: its variance is assumed equal to the variance between the sets of A"


def test_sides_of_the_same_sets_are_compared_set_by_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, tables = ("cc", "aa", "bb"), {}
    for seed, (name, share) in enumerate(zip(names, (0.3, 0.5, 0.7), strict=True)):
        for side, more in (("plain", 0.0), ("robust", 0.1)):
            tables[side, name] = bools(4, share + more, 5 * seed + (more > 0))
            place = tmp_path / side / f"seed{seed if side == 'plain' else 2 - seed}"
            write(place, {"clean": tables[side, name]}, seed=seed, set=name, loss=side)
    lines = run(capsys, tmp_path / "plain", tmp_path / "robust")
    matched = difference(*([tables[side, name] for name in names] for side in ("robust", "plain")), matched=True)
    assert f"{matched.low:+.1f} to {matched.high:+.1f}" in lines[1]
    assert lines[5].startswith("unit: distilled sets (3, equal in A and B, compared in pairs); the result")


def test_one_network_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (write(tmp_path / name, {"clean": bools(1, 0.5, seed)}) for seed, name in enumerate("ab"))
    assert "these two networks, for no other student or seed" in run(capsys, first, second)[5]


def test_runs_of_one_set_are_one_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows name the set that students were trained on: two runs of it are more students, not another set."""
    tables = [bools(2, 0.5, seed) for seed in range(3)]
    for seed in range(3):
        write(tmp_path / "runs" / f"seed{seed}", {"clean": tables[seed]}, seed=seed, set="aa" if seed < 2 else "bb")
    other = write(tmp_path / "other", {"clean": bools(2, 0.5, 9)}, set="cc")
    assert "2 sets, 6 students" in run(capsys, tmp_path / "runs", other)[2]
    same = write(tmp_path / "same", {"clean": bools(2, 0.5, 8)}, set="cc", loss="trades")
    lines = run(capsys, other, same)
    assert lines[5].startswith(
        "unit: students; the result generalises to other students of this distilled set, trained"
    )
    assert not any("--against" in line for line in lines)


@pytest.mark.parametrize(
    ("of_a", "of_b", "line"),
    [
        ({"threat": "linf:2/255"}, {"threat": "linf:8/255"}, "threat linf:2/255 of A, linf:8/255 of B"),
        (
            {"threat": "linf:2/255", "how": "pgd:steps=10"},
            {"threat": "linf:2/255", "how": "pgd:steps=20"},
            "how pgd:steps=10 of A, pgd:steps=20 of B",
        ),
    ],
)
def test_another_attack_of_one_name_is_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], of_a: dict, of_b: dict, line: str
) -> None:
    tables = {"clean": bools(2, 0.8, 0), "pgd": bools(2, 0.5, 1)}
    first, second = write(tmp_path / "a", tables, pgd=of_a), write(tmp_path / "b", tables, pgd=of_b)
    lines = run(capsys, first, second)
    assert [cells(text)[0] for text in lines[1:2]] == ["clean"]
    assert lines[2].startswith("A: ")
    assert lines[-1] == f"pgd is not compared, because A and B have different attacks: {line}"
    assert run(capsys, first, first)[2].startswith("pgd 2/255")


def test_columns_of_one_side_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PGD at 2/255 of A and at 8/255 of B, each in the column's name: both vanished without a word."""
    threats = {eps: {"threat": f"linf:{eps}"} for eps in ("2/255", "8/255")}
    tables = {"clean": bools(2, 0.8, 0)}
    first = write(tmp_path / "a", tables | {"pgd@2/255": bools(2, 0.5, 1)}, **{"pgd@2/255": threats["2/255"]})
    second = write(tmp_path / "b", tables | {"pgd@8/255": bools(2, 0.3, 1)}, **{"pgd@8/255": threats["8/255"]})
    lines = run(capsys, first, second)
    assert [cells(line)[0] for line in lines[1:2]] == ["clean"]
    assert lines[2].startswith("A: ")
    assert lines[-2:] == ["only A has pgd@2/255", "only B has pgd@8/255"]


def test_what_only_some_runs_of_a_side_have_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = {"clean": bools(2, 0.8, 0)}
    attacked = table | {"pgd@2/255": bools(2, 0.5, 1)}
    write(tmp_path / "a" / "seed0", attacked, seed=0)
    write(tmp_path / "a" / "seed1", table, seed=1)
    other = write(tmp_path / "b", attacked)
    assert run(capsys, tmp_path / "a", other)[-1] == "pgd@2/255 is not compared: some runs of A lack it"


def test_sides_without_a_column_in_common_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is left to compare: one line, exit code 2."""
    table = {"pgd": bools(2, 0.5, 0)}
    first = write(tmp_path / "a", table, threat="linf:2/255")
    second = write(tmp_path / "b", table, threat="linf:8/255")
    assert main(["compare", str(first), str(second)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err == (
        "run.sh: A and B have no column in common: pgd is not compared, because A and B have different attacks: "
        "threat linf:2/255 of A, linf:8/255 of B\n"
    )


def test_within_a_side_nothing_but_the_seed_differs(tmp_path: Path) -> None:
    table = {"clean": bools(2, 0.5, 0)}
    config = {"lr": 0.1, "steps": 5}
    base = {"seed": 0, "config": config, "evaluation": {"students": 2, "attacks": "", "test_images": 60}}
    side = [write(tmp_path / "a" / "seed0", table, base)]
    write(tmp_path / "a" / "seed1", table, base | {"seed": 1, "distilled": "f00"}, seed=1)
    other = write(tmp_path / "b", table, base)
    assert run_compare([str(tmp_path / "a"), str(other)]) == 0
    for name, change, words in (
        ("m", {"method": "dm"}, "method dc and dm"),
        ("i", {"ipc": 10}, "ipc 1 and 10"),
        ("e", {"experiment": base | {"config": config | {"lr": 0.2}}}, r"config\.lr 0\.1 and 0\.2"),
        ("t", {"experiment": base | {"evaluation": base["evaluation"] | {"test_images": 61}}}, "test_images 60 and 61"),
    ):
        experiment = change.pop("experiment", base)
        odd = write(tmp_path / name, table, experiment, **change)
        with pytest.raises(InputError, match=f"the runs of A differ in more than their seed: {words}"):
            run_compare([str(side[0]), str(odd), "--against", str(other)])


def test_other_images_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a", {"clean": bools(2, 0.5, 0)}, test="aaaa")
    for name, change, words in (
        ("n", {"images": 70}, "A 60 of toy; B 70 of toy"),
        ("s", {"dataset": "digits", "test": "cccc"}, "A 60 of toy; B 60 of digits"),
        ("d", {"test": "bbbb"}, "evaluated on different images"),
    ):
        images = {"images": 60} | change
        other = write(tmp_path / name, {"clean": bools(2, 0.5, 0, images["images"])}, **({"test": "aaaa"} | change))
        with pytest.raises(InputError, match=words):
            run_compare([str(first), str(other)])
    blurred = write(tmp_path / "b", {"clean": bools(2, 0.5, 0)}, test="aaaa", dataset="toy-blur0.75")
    assert run_compare([str(first), str(blurred)]) == 0  # the training images are blurred, the test images are not


def test_doubts_are_named_and_corruptions_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = {"clean": bools(2, 0.8, 0), "pgd": bools(2, 0.5, 1), "pgd_ce_margin@2/255": bools(2, 0.5, 1)}
    tables["corruptions"] = torch.ones(2, 75, 60, dtype=torch.bool)
    first = write(tmp_path / "a", tables, pgd={"verdict": "suspicious: masked"})
    lines = run(capsys, first, write(tmp_path / "b", tables))
    assert lines[2].split()[:3] == ["pgd", f"{100 * tables['pgd'].double().mean():.1f}", "?"]
    assert "corruptions is not compared: it counts each image many times" in lines
    assert "? A, pgd: suspicious: masked (2 of 2 students)" in lines
    assert any(line.startswith("rank methods by pgd_ce_margin") for line in lines)


@pytest.mark.parametrize("words", [["A"], [], ["A", "B", "C"], ["A", "B", "--against"], ["--against", "B"]])
def test_two_sides_are_needed(words: list[str], tmp_path: Path) -> None:
    run_folder = write(tmp_path / "a", {"clean": bools(1, 0.5, 0)})
    with pytest.raises(InputError, match="compare takes the folders of two runs"):
        run_compare([word if word.startswith("--") else str(run_folder) for word in words])


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    run_folder = write(tmp_path / "a", {"clean": bools(1, 0.5, 0)})
    (tmp_path / "empty").mkdir()
    for place in ("empty", "nowhere"):
        with pytest.raises(InputError, match=f"{place} is not the folder of a finished run"):
            run_compare([str(run_folder), str(tmp_path / place)])
    other = write(tmp_path / "b", {"clean": bools(1, 0.5, 1)})
    (run_folder / "experiment.json").write_text("[")
    with pytest.raises(InputError, match=r"experiment\.json is damaged"):
        run_compare([str(run_folder), str(other), "--against", str(other)])


@pytest.mark.parametrize("students", [1, 3])
def test_a_column_of_zeros_has_an_interval_in_a_runs_table(
    students: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = {"clean": torch.ones(students, 1000, dtype=torch.bool), "pgd": torch.zeros(students, 1000).bool()}
    assert show(write(tmp_path, tables, images=1000)) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    spread = "" if students == 1 else " ± 0.0"
    assert lines[2].startswith(f"clean 100.0{spread} 99.6 to 100.0 ")
    assert lines[3].startswith(f"pgd 0.0{spread} 0.0 to 0.4 ")


def test_the_differences_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = bools(3, 0.5, 0), bools(3, 0.7, 1)
    first = write(tmp_path / "a", {"clean": a, "linf": a.clone()})
    second = write(tmp_path / "b", {"clean": b, "linf": a.clone()}, method="guard_dc", linf={"verdict": "masked"})
    run(capsys, first, second, "--plot", tmp_path / "d.png")
    words = [each.text or "" for each in ElementTree.parse(tmp_path / "d.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert {"clean", "linf", f"p = {difference([b], [a]).p_value:.2g}", "p = 1"} <= {*words}
    assert "guard_dc (B) and dc (A), " in " ".join(words)
    with Image.open(tmp_path / "d.png") as picture:
        assert picture.size == (1300, round(200 * (1.3 + 2 * 0.34)))
    assert main(["compare", str(first), str(second), "--plot", "d.pdf"]) == 2
    assert "--plot is d.pdf; it takes a file that ends in .png or .svg" in capsys.readouterr().err
