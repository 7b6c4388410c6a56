"""`bash run.sh frontier`: cells of points, the tables and the figure of a tiny run, and what is bad input."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from distill.app.distil import resolve_flags
from distill.app.frontier_cells import FrontierCommand, planned_curves, reference_point
from distill.app.frontier_points import CONTROLS, Control, controls_of, curve_of, expanded
from distill.app.main import main
from distill.app.registry import find_methods
from distill.errors import InputError

TINY = ["frontier", "digits", "--recipe", "smoke", "--ipc", "1", "--students", "2", "--test-images", "20"]
TINY += ["--attacks", "noise@linf,fgsm@linf"]


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def dry(capsys: pytest.CaptureFixture[str], *words: str | Path) -> list[str]:
    assert run(*words, "--dry-run") == 0
    return capsys.readouterr().out.splitlines()


def test_a_tiny_figure_from_the_first_cell_to_the_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*TINY, "--methods", "random,dc", "--controls", "", "--seeds", "1", "--jobs", "1", "--runs", tmp_path]
    words += ["--strengths", "dc: --student.epochs {5,3}", "random:"]
    assert run(*words) == 0
    out, err = capsys.readouterr()
    assert "3 points of 2 methods and 0 controls, 1 seed each: 3 cells here" in err
    assert "Compared: robust accuracy (fgsm@0.1) at the clean accuracy of dc (epochs 3)" in err  # the recipe has 3
    assert max(map(len, out.splitlines())) <= 100
    assert [line.split()[:3] for line in out.splitlines()[2:5]] == [
        ["random", "recipe", out.splitlines()[2].split()[2]],
        ["dc", "epochs", "5"],
        ["epochs", "3", out.splitlines()[4].split()[2]],
    ]
    folder = tmp_path / "frontier" / "digits-ipc1"
    lines = list(csv.DictReader((folder / "frontier.csv").read_text().splitlines()))
    assert [(line["kind"], line["method"], line["attack"]) for line in lines if line["attack"] == "fgsm@0.1"] == [
        ("point", "random", "fgsm@0.1"),
        ("point", "dc", "fgsm@0.1"),
        ("point", "dc", "fgsm@0.1"),
        ("equal_clean", "random", "fgsm@0.1"),
    ]
    assert "`bash run.sh frontier digits --methods random,dc" in (folder / "frontier.md").read_text()
    with Image.open(folder / "frontier.png") as picture:
        assert picture.width > 500
    assert (folder / "frontier.svg").read_text().startswith("<?xml")

    points = tmp_path / "frontier" / "points"
    first, second = (points / f"student.epochs-{e}" / "dc" / "digits" / "ipc1" / "seed0" for e in (5, 3))
    assert (first / "distilled.safetensors").read_bytes() == (second / "distilled.safetensors").read_bytes()
    logs = [(folder / "logs" / f"dc-epochs-{e}-digits-seed0.log").read_text() for e in (5, 3)]
    assert ["distil: 3/3" in log for log in logs] == [True, False]  # the second cell does not distil

    # another call finds the run whose flags it writes otherwise, and the set of a point that it has not
    again = [*TINY, "--methods", "dc", "--controls", "", "--seeds", "1", "--runs", tmp_path, "--strengths"]
    (line,) = dry(capsys, *again, "dc:")
    assert f"--runs {points / 'student.epochs-3'} " in line
    assert line.endswith("# done")
    assert run(*again, "dc: --student.epochs 4", "--jobs", "1", "--out", tmp_path / "other") == 0
    assert "distil: 3/3" not in (tmp_path / "other" / "logs" / "dc-epochs-4-digits-seed0.log").read_text()
    capsys.readouterr()

    monkeypatch.setattr("distill.app.frontier.STRONGEST", "bim")
    assert run(*words, "--autoattack", "1") == 0
    out, err = capsys.readouterr()
    assert "3 of 3 cells already done" in err
    assert "AutoAttack (bim@0.1) on " in err
    lines = list(csv.DictReader((folder / "frontier.csv").read_text().splitlines()))
    attacked = [(line["method"], line["setting"]) for line in lines if line["attack"] == "bim@0.1" and line["setting"]]
    assert ("dc", "epochs 3") in attacked
    assert len(attacked) <= 2


def test_runs_of_points_do_not_meet_and_stages_are_shared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "--controls", "", "--seeds", "2", "--runs", tmp_path]
    lines = dry(capsys, *words, "--methods", "random,dc,guard_dc,guard_mtt,full")
    folders = [(line.split()[2], line.split(" --runs ")[1].split()[0], line.split(" --seed ")[1][0]) for line in lines]
    assert len(set(folders)) == len(folders)
    assert {line.split(" --stages ")[1].split()[0] for line in lines} == {str(tmp_path / "stages")}
    assert all(line.endswith("# to run") for line in lines)
    few = [*words, "--methods", "random,dc"]
    parts = [dry(capsys, *few, "--cell", f"{number}/3") for number in "123"]
    assert sorted(line for part in parts for line in part) == sorted(dry(capsys, *few))
    for part in parts:  # cells with one distilled set are in one part
        assert all(sum(line.split()[2] == name for line in part) % 3 == 0 for name in ("random", "dc"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name, method in find_methods().items() if not method.whole_class])
def test_strengths_are_flags_of_the_method_that_have_an_effect(name: str) -> None:
    method = find_methods()[name]
    points = curve_of(method, None).points
    assert len(points) > 2
    assert len({point.setting for point in points}) == len(points)
    made = [resolve_flags(method, "cifar10", ["--recipe", "quick", *point.flags.split()])[0] for point in points]
    assert all(one != other for number, one in enumerate(made) for other in made[:number])


def test_controls_that_are_points_of_the_methods_are_left_out() -> None:
    methods = find_methods()
    short, alone = Control("short training", "", "--student.epochs {100,300}"), Control("", "random")
    curves = [curve_of(methods["dc"], None), curve_of(methods["random"], "")]
    assert controls_of("dc", curves, methods, [short, alone]) == []
    (found,) = controls_of("guard_dc", curves, methods, [short, alone])
    assert (found.name, [point.setting for point in found.points]) == (
        "guard_dc, short training",
        ["epochs 100", "epochs 300"],
    )
    assert controls_of("", curves, methods, CONTROLS) == []
    with pytest.raises(InputError, match="takes the method nothing, which is unknown"):
        controls_of("dc", [], methods, [Control("x", "nothing")])


def test_all_controls_can_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = dry(capsys, *TINY, "--methods", "dc", "--seeds", "1", "--runs", tmp_path)
    assert len(lines) == 3 + sum(len(expanded(control.flags)) for control in CONTROLS[1:])


def test_equal_values_are_one_point() -> None:
    curve = curve_of(find_methods()["dc"], "--student.epochs {5,5,7}")
    assert [point.flags for point in curve.points] == ["--student.epochs 5", "--student.epochs 7"]


def test_braces_that_do_not_match_are_refused() -> None:
    for text in ("--student.epochs {1,{2}}", "--student.epochs {1", "--student.epochs 1}"):
        with pytest.raises(InputError, match="brace"):
            expanded(text)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--methods", "dc,guard_cd"], "unknown method 'guard_cd'; did you mean"),
        (["--methods", "random"], "--reference is dc, which is not among the methods: random"),
        (["--methods", ","], "--methods is empty"),
        (
            ["--strengths", "dc --student.epochs 3"],
            "--strengths is 'dc --student.epochs 3'; it takes \"METHOD: flags\"",
        ),
        (["--strengths", "dc: --seed {1,2}"], "--strengths has --seed for dc; give it to the frontier itself"),
        (["--strengths", "dc: --student.epochs {3,0}"], "--student.epochs is 0; it must be >= 1"),
        (["--strengths", "dc: --iteratons {3,4}"], "--iteratons"),
        (["--strengths", "dm: --iterations {3,4}"], "--strengths is for dm, which is not among the methods"),
        (["--attacks", "pdg"], "unknown attack 'pdg'"),
        (["--column", "pgd@linf"], "--column is pgd@linf, which is not among the --attacks"),
        (["--attacks", "corruptions"], "--column is corruptions; it takes an attack with a threat"),
        (["--at", "101"], "--at is 101.0; it must be in [0, 100]"),
        (["--cell", "9/8", "--methods", "dc"], "--cell is 9/8; it takes I/N"),
        (["--split", "validation", "--backbone", "convnet:width=4"], "on the validation split both are one"),
        (["--controls", "dcx"], "unknown method 'dcx'"),
        (["--backbone", "nope"], "unknown backbone 'nope'"),
        (["--backbone", "convnet:width=4,depth=9"], "depth"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(
    flags: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    controls = [] if "--controls" in flags else ["--controls", ""]
    assert run(*TINY, "--runs", tmp_path, *controls, *flags) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("run.sh: ")
    assert len(err.splitlines()) == 1
    assert line in err
    assert not list(tmp_path.iterdir())


def test_the_data_set_is_named_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("frontier", "--methods", "dc") == 2
    assert "frontier takes a data set first" in capsys.readouterr().err
    assert run("frontier", "digts") == 2
    assert "unknown data set 'digts'" in capsys.readouterr().err


def test_the_reference_is_compared_at_the_setting_of_its_recipe(tmp_path: Path) -> None:
    methods = find_methods()
    words = {"recipe": "quick", "methods": "dc,guard_dc", "controls": "", "runs": tmp_path}
    for reference, expected in (("dc", "epochs 1000"), ("guard_dc", "weight=1")):
        command = FrontierCommand("digits", reference=reference, **words)
        (curve,) = [each for each in planned_curves(command, methods, "linf") if each.curve.name == reference]
        assert curve.curve.points[reference_point(command, curve, methods)].setting == expected
