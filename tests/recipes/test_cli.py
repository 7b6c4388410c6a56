"""The commands as a user types them: what a run leaves, what it prints, and what it says to bad input."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.app.main import main
from distill.data import label
from distill.distilled import DistilledSet
from distill.runs.files import read_tensors
from distill.runs.version import project_version
from robust.attacks import APGD, FAB, AutoAttack, Square
from tests.toy import write_toy

ROOT = Path(__file__).parent.parent.parent
SMALL = ["--backbone", "convnet:width=4", "--iterations", "2", "--outer-loop", "2", "--inner-loop", "1"]
SMALL += ["--batch-real", "8", "--students", "2", "--student.epochs", "20", "--ipc", "1"]
SMALL_STUDENTS = ["--backbone", "convnet:width=4", "--students", "1", "--student.epochs", "5"]
FILES = "distilled.safetensors experiment.json grid.png memory.json metrics.jsonl report.html results.jsonl "
FILES += "students table.csv table.md"


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


@pytest.mark.parametrize("recipe", ["quick", "paper"])
@pytest.mark.parametrize("method", ["dc", "dsa", "guard_dc", "guard_dsa"])
def test_every_recipe_runs_and_leaves_a_whole_folder(
    method: str, recipe: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [method, "folder", "--data-dir", data, "--runs", tmp_path, "--recipe", recipe, *SMALL]
    assert run(*words) == 0
    folder = tmp_path / method / label("folder", data) / "ipc1" / "seed0"
    assert sorted(path.name for path in folder.glob("[!.]*")) == [*FILES.split(" "), "tensorboard"]
    distilled = DistilledSet.load(folder)
    assert (distilled.method, distilled.version) == (method, project_version())

    experiment = json.loads((folder / "experiment.json").read_text())
    loss = "CurvatureRegularizedLoss" if method.startswith("guard") else "CrossEntropy"
    assert experiment["experiment"]["config"]["real_loss"]["class"] == loss
    assert (experiment["format"], experiment["made_by"]["version"]) == (1, project_version())
    assert set(experiment["made_by"]) == {"version", "versions", "device", "commit", "command"}

    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert [row["attack"] for row in rows] == ["clean", "linf_star", "linf", "l2", "pgd_ce_margin@2/255"]
    accuracy = {row["attack"]: float(row["mean"]) for row in rows}
    assert {row["n"] for row in rows} == {"2"}
    assert {row["version"] for row in rows} == {project_version()}
    assert accuracy["clean"] >= accuracy["linf"] >= accuracy["linf_star"]
    for student in range(2):
        bools = read_tensors(folder / "students" / f"{student}-correct.safetensors")[0]
        assert all((bools[attack] <= bools["clean"]).all() for attack in bools)
    assert json.loads((folder / "results.jsonl").read_text().splitlines()[0])["images"] == 40

    printed = capsys.readouterr()
    assert f"{method} on {label('folder', data)}, ipc 1, recipe {recipe}: about" in printed.err
    assert f"{accuracy['clean']:.1f} ±" in printed.out

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert run(*words) == 0  # a finished run is not repeated
    again = capsys.readouterr()
    assert "finished already" in again.err
    assert again.out == printed.out
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


TRAJECTORIES = ["--num-experts", "1", "--train-epochs", "2", "--expert-epochs", "1", "--max-start-epoch", "2"]
TRAJECTORIES += ["--batch-train", "8", "--iterations", "2", "--syn-steps", "2", "--lr-img", "0.1", "--no-zca"]


@pytest.mark.parametrize("recipe", ["quick", "paper"])
@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("dm", ["--iterations", "2", "--batch-real", "8"]),
        ("guard_dm", ["--iterations", "2", "--batch-real", "8", "--extractor-epochs", "1"]),
        ("random", []),
        ("full", ["--student.epochs", "5"]),
        ("herding", ["--extractor-epochs", "1"]),
        ("kcenter", ["--extractor-epochs", "1"]),
        ("mtt", TRAJECTORIES),
        ("guard_mtt", TRAJECTORIES),
        ("tesla", TRAJECTORIES),
        ("dd", ["--epochs", "1", "--epoch-iterations", "2", "--batch-size", "8"]),
        ("sldd", ["--epochs", "1", "--epoch-iterations", "2", "--batch-size", "8"]),
        ("kip", ["--iterations", "2", "--target-batch", "8"]),
    ],
)
def test_the_baselines_run(method: str, flags: list[str], recipe: str, data: Path, tmp_path: Path) -> None:
    words = [method, "folder", "--data-dir", data, "--runs", tmp_path, "--recipe", recipe, "--ipc", "2"]
    words += ["--backbone", "convnet:width=4", "--students", "2", "--student.epochs", "10", *flags]
    assert run(*words) == 0
    folder = tmp_path / method / label("folder", data) / "ipc2" / "seed0"
    assert DistilledSet.load(folder).method == method
    assert len(DistilledSet.load(folder).images) == (40 if method == "full" else 4)
    assert [row["attack"] for row in csv.DictReader((folder / "table.csv").read_text().splitlines())] == [
        "clean",
        "linf_star",
        "linf",
        "l2",
        "pgd_ce_margin@2/255",
    ]


def test_students_take_the_distilled_steps_on_request(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The standard way by default; the method's own in a run, and for a set that exists; the table says which."""
    words = ["--data-dir", data, "--backbone", "convnet:width=4", "--students", "2"]
    own = ["--protocol", "own", "--runs", tmp_path / "c"]
    method = ["--epochs", "1", "--epoch-iterations", "2", "--batch-size", "8", "--ipc", "2"]
    assert run("sldd", "folder", *words, *method, "--runs", tmp_path / "a", "--student.epochs", "10") == 0
    assert "convnet:width=4, cross_entropy, recipe" in capsys.readouterr().out
    assert run("sldd", "folder", *words, *method, "--runs", tmp_path / "b", "--protocol", "own") == 0
    assert "convnet:width=4, own, recipe" in capsys.readouterr().out
    assert run("evaluate", tmp_path / "a" / "sldd" / label("folder", data) / "ipc2" / "seed0", *words, *own) == 0
    assert "convnet:width=4, own, recipe" in capsys.readouterr().out
    place = Path("sldd", label("folder", data), "ipc2", "seed0")
    sets = [(tmp_path / name / place / "distilled.safetensors").read_bytes() for name in "ab"]
    assert sets[0] == sets[1]  # evaluation does not reach into distilling
    weights = [read_tensors(tmp_path / name / place / "students" / "0.safetensors")[0] for name in "ab"]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_recipe_is_chosen_and_said(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("dc", "folder", "--data-dir", data, "--runs", tmp_path, "--device", "cpu", *SMALL) == 0
    first, second = capsys.readouterr().err.splitlines()[:2]
    assert first.startswith(f"No GPU here: dc on {label('folder', data)}, ipc 1, recipe quick (about ")
    assert "--recipe paper would take about" in first
    assert second == "The recipe is derived from the data (2 classes, 3x8x8, 40 images): no paper has this data set"


def test_recipes_are_for_the_size_at_which_images_are_seen(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["random", "imagenette", "--data-dir", data, "--runs", tmp_path, "--image-size", "8", "--device", "cpu"]
    assert run(*words, *SMALL_STUDENTS) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("No GPU here: random on imagenette-8px, ipc 1, recipe quick (about ")
    assert "--recipe paper would take about" in first  # the paper's ConvNet for 224 px would be halved to nothing


def test_an_interrupted_evaluation_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.evaluation.column_kinds import AttackColumn

    words = ["dc", "folder", "--data-dir", data, *SMALL, "--attacks", "linf_star,linf,l2"]
    assert run(*words, "--runs", tmp_path / "whole") == 0
    evaluate, calls = AttackColumn.evaluate, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 5:  # in the middle of the second student
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(AttackColumn, "evaluate", dies)
    assert run(*words, "--runs", tmp_path / "cut") == 130
    calls.clear()
    monkeypatch.setattr(AttackColumn, "evaluate", lambda *arguments: calls.append(1) or evaluate(*arguments))
    assert run(*words, "--runs", tmp_path / "cut") == 0
    assert len(calls) == 6
    place = Path("dc", label("folder", data), "ipc1", "seed0", "results.jsonl")
    texts = [(tmp_path / name / place).read_text().splitlines() for name in ("whole", "cut")]
    whole, cut = ([json.loads(row) for row in text] for text in texts)
    for row in (*whole, *cut):
        assert row.pop("seconds") >= 0
        assert row.pop("epoch_seconds") > 0
    assert whole == cut


def test_evaluate_judges_a_file_and_a_folder(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("dc", "folder", "--data-dir", data, "--runs", tmp_path / "a", *SMALL) == 0
    folder = tmp_path / "a" / "dc" / label("folder", data) / "ipc1" / "seed0"
    options = ["--data-dir", data, "--runs", tmp_path / "b", "--students", "1", "--student.epochs", "5"]
    capsys.readouterr()
    for flag, value, line in (
        ("--attacks", "fgms", "unknown attack 'fgms'; did you mean 'fgsm'?"),
        ("--backbone", "x", "unknown backbone 'x'"),
    ):
        assert run("evaluate", folder, *options, flag, value) == 2
        assert line in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    assert run("evaluate", folder, *options) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        f"dc on {label('folder', data)}, ipc 1, convnet:width=4, cross_entropy, recipe quick, seed 0: 1 student, 40"
    )
    assert run("evaluate", folder / "distilled.safetensors", *options) == 0  # the same set: finished already
    assert capsys.readouterr().out == printed
    assert run("evaluate", folder, *options, "--student.lr", "0.1") == 2  # another config in that folder
    assert "evaluation.student.lr is 0.01 there, 0.1 now" in capsys.readouterr().err
    assert run("table", tmp_path / "a", tmp_path / "b", "--format", "csv") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2 * 5


def test_other_networks_on_the_same_set(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("random", "folder", "--data-dir", data, "--runs", tmp_path / "a", *SMALL_STUDENTS) == 0
    folder = tmp_path / "a" / "random" / label("folder", data) / "ipc1" / "seed0"
    options = ["--data-dir", data, "--runs", tmp_path / "b", "--students", "1", "--student.epochs", "5"]
    assert run("evaluate", folder, *options, "--backbones", "convnet:width=4,mpl") == 2
    assert "unknown backbone 'mpl'; did you mean 'mlp'?" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    assert run("evaluate", folder, *options, "--backbone", "mlp") == 0
    capsys.readouterr()
    assert run("evaluate", folder, *options, "--backbones", "convnet:width=4,mlp,convnet:width=4,depth=2") == 0
    out, err = capsys.readouterr()
    assert err.count("finished already in") == 1
    table = out.split("\n\n")[-1].splitlines()
    assert [line.split()[3] for line in table[1:4]] == ["convnet:width=4", "mlp", "convnet:width=4,depth=2"]
    names = sorted(
        path.name for path in next((tmp_path / "b" / "evaluate" / label("folder", data)).iterdir()).iterdir()
    )
    assert names == ["seed0", "seed0-convnet_width=4_depth=2", "seed0-mlp"]


EVERY = "linf_star,linf,l2,fgsm,pgd:steps=3,square:queries=20@0.1,autoattack@l2,cw:steps=5@l2:0.3,deepfool,jsma"
EVERY += ",noise,transfer,transfer_student,worst,corruptions,certified:n=50,n0=10"


def test_every_column_from_end_to_end(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column of each kind in a run; the same run compared with another, measured, and in a table with indices."""

    def shorter(attack: AutoAttack) -> tuple[APGD | FAB | Square, ...]:  # Square's 5,000 queries take half of the test
        return tuple(replace(each, queries=20) if isinstance(each, Square) else each for each in members(attack))

    members = AutoAttack.members
    monkeypatch.setattr(AutoAttack, "members", shorter)
    shared = ["--data-dir", data, "--runs", tmp_path, *SMALL, "--attacks", EVERY, "--surrogate-epochs", "2"]
    shared += ["--transfer-backbone", "mlp"]
    assert run("dc", "folder", *shared) == 0
    assert run("dc", "folder", *shared, "--seed", "1", "--student.loss", "trades:steps=2@2/255") == 0
    first, second = (tmp_path / "dc" / label("folder", data) / "ipc1" / f"seed{seed}" for seed in (0, 1))
    rows = [json.loads(line) for line in (first / "results.jsonl").read_text().splitlines()]
    names = [row["attack"] for row in rows if row["student"] == 0]
    assert len(names) == 1 + 16
    for row in rows:
        clean = next(r["accuracy"] for r in rows if r["student"] == row["student"] and r["attack"] == "clean")
        assert row["attack"].startswith(("corruptions", "certified")) or row["accuracy"] <= clean
        least = re.split("[:@]", row["attack"])[0] in ("cw", "deepfool", "jsma")
        assert (row["median_distance"] is not None) == least
        assert row["verdict"] == "ok" or row["verdict"].startswith("suspicious: ")
    assert {path.name for path in (first / "students").glob("surrogate*")} == {
        "surrogate-transfer.safetensors",
        "surrogate-transfer_student.safetensors",
    }

    capsys.readouterr()
    assert run("compare", first, second) == 0
    table, _, notes = capsys.readouterr().out.partition("\nA: ")
    assert len(table.splitlines()) == 1 + 16  # header; all columns but corruptions
    assert "\nunit: " in notes
    assert run("compare", first, first) == 0
    table = capsys.readouterr().out.partition("\nA: ")[0]
    assert all(line.endswith(" 1") and "+0.0" in line for line in table.splitlines()[1:])

    assert run("curvature", first, second, "--data-dir", data, "--images", "4", "--students", "1") == 0
    printed = capsys.readouterr().out
    assert "training images, bound (2) at rho = 0.2 (nats)" in printed
    assert max(map(len, printed.partition("\nMeans over")[0].splitlines())) <= 100
    assert sorted(path.name for path in (first / "curvature").iterdir()) == [
        "accuracy.png",
        "accuracy.svg",
        "bound.png",
        "bound.svg",
        "cosine.png",
        "cosine.svg",
        "curvature.csv",
        "curvature.txt",
        "lambda_1.png",
        "lambda_1.svg",
        "loss.png",
        "loss.svg",
        "predictions.png",
        "predictions.svg",
    ]
    assert run("table", tmp_path, "--indices") == 0
    printed = capsys.readouterr().out
    assert " AE " in printed
    assert "ms/epoch" in printed


def test_the_curve_never_rises(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["dc", "folder", "--data-dir", data, "--runs", tmp_path, *SMALL, "--attacks", "pgd,fgsm"]
    assert run(*words, "--eps", "0,0.02,0.1,0.3") == 0
    rows = list(
        csv.DictReader(
            (tmp_path / "dc" / label("folder", data) / "ipc1" / "seed0" / "table.csv").read_text().splitlines()
        )
    )
    found = {row["attack"]: float(row["mean"]) for row in rows}
    assert list(found) == [
        "clean",
        *(f"{name}@{eps}" for name in ("pgd", "fgsm") for eps in ("0", "0.02", "0.1", "0.3")),
    ]
    for name in ("pgd", "fgsm"):
        curve = [found[f"{name}@{eps}"] for eps in ("0", "0.02", "0.1", "0.3")]
        assert curve[0] == found["clean"]
        assert curve == sorted(curve, reverse=True)


def test_words_that_explain(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["dc", "--help"]):
        assert run(*words) == 0
        assert "guard_dc" in capsys.readouterr().out or words == ["dc", "--help"]
    for words in (
        ["dc", "digits", "--help"],
        ["evaluate", "--help"],
        ["table", "--help"],
        ["compare", "--help"],
        ["curvature", "--help"],
    ):
        with pytest.raises(SystemExit) as stop:
            run(*words)
        assert stop.value.code == 0
        assert "usage: bash run.sh" in capsys.readouterr().out
    assert run("list") == 0
    listed = capsys.readouterr().out
    assert all(
        word in listed for word in ("guard_dsa", "cifar100", "alexnet", "linf_star", "autoattack", "trades", "0.03137")
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("guard_dcx digits", "unknown method 'guard_dcx'; did you mean 'guard_dc'? Known: dc, "),
        ("bench --help", "bench is a command of run.sh alone: bash run.sh bench"),
        ("dc cifar", "unknown data set 'cifar'; did you mean 'cifar10'? Known: "),
        ("dc digits --iteration 3", "--iterations"),
        ("dc digits --frobnicate 3", "run.sh: Unrecognized options: --frobnicate, 3; see bash run.sh dc digits --help"),
        ("dc digits --ipc 0", "--ipc is 0; it takes a whole number >= 1"),
        ("dc digits --ipc many", "--ipc is many; it takes a whole number >= 1"),
        ("dc digits --ipc 100000", "ipc is 100000; the smallest class of digits has "),
        ("dc digits --recipe fast", "unknown recipe 'fast'. Known: paper, quick"),
        ("dc digits --backbone convnex", "unknown backbone 'convnex'"),
        ("dc digits --backbone convnet:width=wide", "width"),
        (
            "dc digits --attacks linf,fgms",
            "unknown attack 'fgms'; did you mean 'fgsm'? Known: linf_star, linf, l2, apgd_ce, ",
        ),
        ("dc digits --attacks pgd:step=3", "attack pgd has no field 'step'; choose from steps, step_size, restarts"),
        ("dc digits --attacks pgd:steps=many", "steps of attack pgd is 'many'; it takes a whole number"),
        ("dc digits --attacks pgd@8/256x", "threat is '8/256x'; choose from linf_star, linf, l2"),
        ("dc digits --attacks cw@linf", "cw"),
        ("dc digits --attacks pgd,pgd", "--attacks has pgd@0.3 twice; give it once"),
        ("dc digits --eps 1/255,x --attacks pgd", "threat is 'linf:x'"),
        ("dc digits --student.loss pgd", "unknown loss 'pgd'; choose from cross_entropy, cure, fast_at"),
        ("dc digits --student.loss trades:beta=x", "beta of loss trades is 'x'; it takes a number"),
        ("compare NOWHERE", "compare takes the folders of two runs"),
        ("compare NOWHERE NOWHERE", "NOWHERE is not the folder of a finished run"),
        ("dc CIFAR-10", "unknown data set 'CIFAR-10'; did you mean 'cifar10'?"),
        ("guard digits", "unknown method 'guard'; did you mean 'guard_dc'?"),
        ("guard_dc digits --lambda 3", "Unrecognized options: --lambda, 3; write --real-loss guard:weight=VALUE"),
        ("dc digits --num_eval 5", "Unrecognized options: --num_eval, 5; write --students"),
        ("curvature", "curvature takes the folder of a run"),
        ("curvature NOWHERE", "NOWHERE is not the folder of a finished run"),
        ("dc digits --threat 1e400", "--threat: threat is '1e400': eps is inf"),
        ("dc digits --eps 8", "write 8/255"),
        ("dc digits --device tpu", "device 'tpu' does not work here"),
        ("dc digits --seed -1", "seed is -1"),
        ("dc digits --iterations 0", "iterations is 0; it must be >= 1"),
        ("dc digits --students 0", "students is 0"),
        ("dc digits --image-size 2", "--image-size is 2"),
        ("dc digits --augment colour", "unknown augmentation"),
        ("guard_dc digits --real-loss guard:h=0", "--real-loss: h is 0.0; it must be > 0"),
        ("guard_dc digits --real-loss guard:penalty=cubed", "--real-loss: penalty is 'cubed'; choose from squared"),
        ("guard_dc digits --real-loss guard:h_warmup=1:2", "real_loss has h_warmup, for training a teacher"),
        ("dc digits --real-loss gaurd", "--real-loss: unknown loss 'gaurd'; choose from cross_entropy, cure, fast_at"),
        ("dc digits --real-loss trades@1/0", "--real-loss: threat is '1/0'"),
        ("dc digits --real-loss trades@standard_l2", "--real-loss: threat is 'standard_l2'; choose from linf_star"),
        (
            "dc digits --real-loss no.such:Loss",
            "loss 'no.such:Loss' cannot be imported: ModuleNotFoundError",
        ),
        ("dc digits --real-loss noise --compile", "--compile is for a real_loss without randomness"),
        ("dm digits --real-loss noise", "--extractor-epochs is 0, so no network is trained with real_loss"),
        (
            "guard_dc digits --real-loss.weight 3",
            "is no longer a flag; write --real-loss guard:weight=3",
        ),
        (
            "guard_mtt digits --expert-loss.weight=3 --expert-loss.h-warmup 1",
            "--expert-loss.weight is no longer a flag; write --expert-loss guard:weight=3,h_warmup=1",
        ),
        ("sre2l digits --squeeze.loss.weight 3", "is no longer a flag; write --squeeze.loss guard:weight=3"),
        ("dc digits --student.loss.weight 3", "is no longer a flag; write --student.loss guard:weight=3"),
        ("dc digits --student.loss guard:h_warmup=1", "a student has one h; h_warmup is for teachers"),
        ("dc folder --data-dir NOWHERE", "NOWHERE"),
        ("dc mnist --data-dir NOWHERE", "digits"),
        ("evaluate", "evaluate takes a path first"),
        ("evaluate NOWHERE", "there is no file NOWHERE"),
        ("list everything", "list takes no arguments, but got everything"),
        ("table NOWHERE", "there is no folder NOWHERE"),
        ("table --format html", "html"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import urllib.request
    from urllib.error import URLError

    def offline(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.chdir(tmp_path)
    assert run(*words.split()) == 2
    said = capsys.readouterr()
    assert line in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert said.err.startswith("run.sh: ")
    assert said.out == ""
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_changed_config_or_a_bad_folder_loses_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dc", "folder", "--data-dir", data, *SMALL]
    assert run(*words, "--runs", tmp_path / "runs") == 0
    folder = tmp_path / "runs" / "dc" / label("folder", data) / "ipc1" / "seed0"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(*words, "--runs", tmp_path / "runs", "--lr-img", "0.2") == 2
    assert "config.lr_img is 0.1 there, 0.2 now" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (tmp_path / "file").write_text("")
    assert run(*words, "--runs", tmp_path / "file") == 2
    assert "cannot write" in capsys.readouterr().err

    (folder / "table.csv").unlink()
    (folder / "distilled.safetensors").write_bytes(b"damaged")
    assert run(*words, "--runs", tmp_path / "runs") == 2
    assert "distilled.safetensors is not a whole safetensors file" in capsys.readouterr().err


def test_damaged_data_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_toy(tmp_path / "toy")
    (data / "train" / "above" / "002.png").write_bytes(b"\x89PNG no more")
    assert run("dc", "folder", "--data-dir", data, "--runs", tmp_path / "runs", *SMALL) == 2
    assert "002.png" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_attention_is_matched_too(data: Path, tmp_path: Path) -> None:
    words = ["guard_dc", "folder", "--data-dir", data, "--runs", tmp_path, *SMALL]
    assert run(*words, "--backbone", "test_vit", "--student.epochs", "1", "--students", "1") == 0


def started(folder: Path, *words: str | Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = ["bash", ROOT / "run.sh", *words, "--runs", folder]

    def heed_signals() -> None:  # a background shell has us ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with open(folder.with_suffix(".log"), "w") as log:
        return subprocess.Popen(
            list(map(str, command)), env=environment, stdout=log, stderr=subprocess.STDOUT, preexec_fn=heed_signals
        )


def test_a_real_kill_ends_with_the_same_bits(tmp_path: Path) -> None:
    words = ["guard_dc", "digits", "--iterations", "12", "--ipc", "2", "--batch-real", "16", "--students", "1"]
    words += ["--student.epochs", "10", "--backbone", "convnet:width=8", "--checkpoint-seconds", "0"]
    words += ["--outer-loop", "2", "--test-images", "100", "--attacks", "linf"]
    place = Path("guard_dc", "digits", "ipc2", "seed0")
    whole = started(tmp_path / "whole", *words)
    killed = started(tmp_path / "killed", *words)
    metrics = tmp_path / "killed" / place / "metrics.jsonl"
    until = random.Random(os.getpid()).randint(1, 8)
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= until):
        assert killed.poll() is None, (tmp_path / "killed.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / place / "distilled.safetensors").exists()
    again = started(tmp_path / "killed", *words)
    assert whole.wait(timeout=200) == again.wait(timeout=200) == 0, (tmp_path / "killed.log").read_text()
    for name in ("distilled.safetensors", "table.csv"):  # results.jsonl also has seconds
        assert (tmp_path / "whole" / place / name).read_bytes() == (tmp_path / "killed" / place / name).read_bytes()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_is_exit_code_130(how: signal.Signals, tmp_path: Path) -> None:
    words = ["dc", "digits", "--iterations", "100000", "--backbone", "convnet:width=4"]
    process = started(tmp_path / "runs", *words)
    metrics = tmp_path / "runs" / "dc" / "digits" / "ipc1" / "seed0" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(how)
    try:
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.wait()
    assert "interrupted; the same command continues" in (tmp_path / "runs.log").read_text()


def test_run_sh_says_what_it_lacks(tmp_path: Path) -> None:
    shutil.copy(ROOT / "run.sh", tmp_path)
    for tool in ("dirname", "cksum", "tr"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    environment = {"PATH": str(tmp_path), "PYTHON": "/nonexistent"}
    done = subprocess.run(
        [str(shutil.which("bash")), str(tmp_path / "run.sh"), "list"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no Python 3.11 or newer" in done.stderr


def test_an_error_of_ours_is_not_called_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("distill.methods.dc.match", broken)
    with pytest.raises(ValueError, match="a bug"):
        run("dc", "digits", "--runs", tmp_path, *SMALL)
