"""A result belongs to its data, its classes and its attacks: on the command line, from one run to the next."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from distill.app.main import main
from distill.distilled import DistilledSet
from distill.runs.files import read_tensors

SMALL = ["--students", "2", "--student.epochs", "10", "--backbone", "convnet:width=4,depth=2", "--attacks", "linf"]
COLORS = {"ant": 0, "bee": 1, "cat": 2, "dog": 2}


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def own_data(root: Path, classes: tuple[str, ...] = ("ant", "bee", "cat"), seed: int = 0, each: int = 12) -> Path:
    """Write pictures that are mostly of their class's colour; of one size and number whatever the seed."""
    generator = torch.Generator().manual_seed(seed)
    for part in ("train", "val"):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for number in range(each):
                image = 0.5 * torch.rand(3, 8, 8, generator=generator)
                image[COLORS[name]] += 0.4
                picture = Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy())
                picture.save(root / part / name / f"{number}.bmp")
    return root


def results(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def accuracies(folder: Path, attack: str = "clean") -> list[float]:
    return [row["accuracy"] for row in results(folder) if row["attack"] == attack]


def finished(place: Path) -> list[Path]:
    return sorted(path.parent for path in place.rglob("results.jsonl"))


def test_two_own_data_sets_live_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second was "finished already", with the first one's table."""
    first, second = own_data(tmp_path / "a" / "data"), own_data(tmp_path / "b" / "data", seed=1)
    words = ["random", "folder", *SMALL, "--runs", tmp_path / "runs", "--data-dir"]
    assert run(*words, first) == run(*words, second) == 0
    assert "finished already" not in capsys.readouterr().err
    places = finished(tmp_path / "runs")
    assert len(places) == 2
    sets = [DistilledSet.load(place).images for place in places]
    assert not torch.equal(*sets)
    assert run(*words, first) == 0
    assert "finished already" in capsys.readouterr().err

    assert run("evaluate", places[0], *SMALL, "--runs", tmp_path / "runs", "--data-dir", first) == 0
    assert run("evaluate", places[0], *SMALL, "--runs", tmp_path / "runs", "--data-dir", second) == 0
    assert "finished already" not in capsys.readouterr().err
    assert len(finished(tmp_path / "runs" / "evaluate")) == 2

    options = ["--images", "4", "--students", "1", "--data-dir"]
    codes = [run("curvature", places[0], *options, data) for data in (first, second)]
    assert sorted(codes) == [0, 2]
    assert "used other data" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["a picture", "a class's name", "one picture more"])
def test_a_run_is_not_continued_on_other_data(
    change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted run went on with another set, of another number of classes too."""
    data = own_data(tmp_path / "data")
    words = ["dc", "folder", *SMALL, "--iterations", "3", "--batch-real", "4", "--runs", tmp_path / "runs"]
    words += ["--data-dir", data, "--checkpoint-seconds", "0"]
    from distill.runs.run import Run

    log = Run.log

    def dies(self: Run, step: int, **scalars: float) -> None:
        if step == 2:
            raise KeyboardInterrupt
        log(self, step, **scalars)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", dies)
        assert run(*words) == 130
    kept = shutil.copytree(data, tmp_path / "kept")
    if change == "a picture":
        Image.new("RGB", (8, 8), (1, 2, 3)).save(data / "val" / "ant" / "3.bmp")
    elif change == "a class's name":
        for part in ("train", "val"):
            (data / part / "cat").rename(data / part / "cow")
    else:
        Image.new("RGB", (8, 8)).save(data / "train" / "ant" / "99.bmp")
    capsys.readouterr()
    assert run(*words) == 2
    err = capsys.readouterr().err
    assert "holds a run with other data: " in err
    assert err.count("\n") == 1
    shutil.rmtree(data)
    kept.rename(data)
    assert run(*words) == 0


def test_a_run_without_record_of_its_data_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = own_data(tmp_path / "data")
    words = ["random", "folder", *SMALL, "--runs", tmp_path / "runs", "--data-dir", data]
    assert run(*words) == 0
    (place,) = finished(tmp_path / "runs")
    content = json.loads((place / "experiment.json").read_text())
    del content["data"]  # as earlier versions wrote it
    (place / "experiment.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert run(*words) == 2
    assert "holds a run of an earlier version, which did not record its data" in capsys.readouterr().err


def test_classes_are_compared_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A set of ant, bee and cat was judged on ant, cat and dog by the order of the names, and nothing was said."""
    data = own_data(tmp_path / "data")
    long = ["--students", "2", "--student.epochs", "150", "--backbone", "convnet:width=8,depth=2", "--attacks", "linf"]
    assert run("random", "folder", *long, "--ipc", "4", "--runs", tmp_path, "--data-dir", data) == 0
    (place,) = finished(tmp_path)
    right = accuracies(place)
    assert min(right) > 80
    other = own_data(tmp_path / "other", ("ant", "cat", "dog"))
    options = [*long, "--runs", tmp_path / "b"]
    assert run("evaluate", place, *options, "--data-dir", other) == 2
    assert "only folder has dog" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()

    # the same classes in another order: labels, and the columns of soft ones, go with their names
    made = DistilledSet.load(place)
    order = torch.tensor([2, 0, 1])  # new number of each old class
    classes = tuple(made.classes[old] for old in order.argsort().tolist())
    hard = order[made.labels]
    soft = torch.nn.functional.one_hot(hard, 3).float() * 0.7 + 0.1
    for name, labels in (("hard", hard), ("soft", soft)):
        replace(made, labels=labels, classes=classes).save(tmp_path / name / "distilled.safetensors")
        assert run("evaluate", tmp_path / name, *long, "--data-dir", data, "--runs", tmp_path / f"runs-{name}") == 0
        (judged,) = finished(tmp_path / f"runs-{name}")
        assert min(accuracies(judged)) > 80
        assert "taken for" not in capsys.readouterr().err

    # numbers say nothing but the order
    replace(made, classes=("0", "1", "2")).save(tmp_path / "numbers" / "distilled.safetensors")
    assert run("evaluate", tmp_path / "numbers", *options, "--data-dir", data) == 0
    assert "classes of the distilled set are numbers: number 0 is taken for the first class" in capsys.readouterr().err
    (judged,) = finished(tmp_path / "b")
    assert accuracies(judged) == right


@pytest.mark.parametrize("command", ["method", "evaluate"])
def test_other_attacks_are_added_to_the_students_that_exist(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = own_data(tmp_path / "data")
    words = ["random", "folder", *SMALL, "--data-dir", data, "--runs", tmp_path / "a"]
    assert run(*words) == 0
    (place,) = finished(tmp_path / "a")
    if command == "evaluate":
        words = ["evaluate", place, *SMALL, "--data-dir", data, "--runs", tmp_path / "b"]
        assert run(*words) == 0
        (place,) = finished(tmp_path / "b")
    students = {path: path.stat().st_mtime_ns for path in (place / "students").glob("?.safetensors")}
    before = accuracies(place, "linf")
    capsys.readouterr()
    words[words.index("--attacks") + 1] = "pgd,noise@0.3,worst"
    assert run(*words) == 0
    assert (
        "has trained students: they are evaluated under pgd@8/255, noise@0.3, worst@8/255 too"
        in capsys.readouterr().err
    )
    columns = list(dict.fromkeys(row["attack"] for row in results(place)))
    assert columns == ["clean", "linf", "pgd@8/255", "noise@0.3", "worst@8/255"]
    assert accuracies(place, "linf") == before
    assert students == {path: path.stat().st_mtime_ns for path in students}
    bools = read_tensors(place / "students" / "0-correct.safetensors")[0]
    assert torch.equal(bools["worst@8/255"], bools["clean"] & bools["linf"] & bools["pgd@8/255"])

    # a smaller ball that comes later: whoever falls there has fallen in the larger one, and `worst` has a new member
    words[words.index("--attacks") + 1] = "pgd@7/255,worst"
    assert run(*words) == 0
    bools = read_tensors(place / "students" / "0-correct.safetensors")[0]
    assert (bools["pgd@8/255"] <= bools["pgd@7/255"]).all()
    worst = next(row for row in results(place) if row["attack"] == "worst@8/255")
    assert worst["how"] == "of linf, pgd@7/255, pgd@8/255"
    experiment = json.loads((place / "experiment.json").read_text())
    assert experiment["attacks"] == "pgd@7/255,worst"
    capsys.readouterr()
    for attacks in ("linf", "pgd", "pgd@7/255,linf"):  # what is there is shown
        words[words.index("--attacks") + 1] = attacks
        assert run(*words) == 0
        assert "finished already" in capsys.readouterr().err


def test_results_of_other_settings_of_an_attack_are_not_served(tmp_path: Path) -> None:
    """A run that an earlier version evaluated under another default of the same name is evaluated anew."""
    data = own_data(tmp_path / "data")
    words = ["random", "folder", *SMALL, "--data-dir", data, "--runs", tmp_path / "a"]
    assert run(*words) == 0
    (place,) = finished(tmp_path / "a")
    from distill.runs.files import write_tensors

    for student in (0, 1):
        path = place / "students" / f"{student}-correct.safetensors"
        tensors, metadata = read_tensors(path)
        settings = metadata["settings"] | {"linf": "PGD(steps=7)"}
        write_tensors(path, tensors | {"linf": torch.zeros(36, dtype=torch.bool)}, metadata | {"settings": settings})
    text = (place / "results.jsonl").read_text()
    how = results(place)[1]["how"]
    (place / "results.jsonl").write_text(text.replace(how, "PGD(steps=7)"))
    assert run(*words) == 0
    assert (place / "results.jsonl").read_text().count(how) == 2
    assert sum(accuracies(place, "linf")) > 0


def test_a_benchmark_counts_the_students_of_all_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where sets are evaluated in another network than their own, the table had the last seed alone."""
    data = own_data(tmp_path / "data")
    words = ["benchmark", "--datasets", "folder", "--methods", "random", "--ipc", "1", "--seeds", "2", "--jobs", "2"]
    words += ["--data-dir", data, "--runs", tmp_path / "runs", "--students", "2", "--attacks", "linf", "--flags"]
    words += ["random: --student.epochs 10 --backbone convnet:width=4,depth=2"]
    assert run(*words, "--backbone", "convnet:width=3,depth=2") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| random")]
    assert [cell.strip() for cell in line.strip("|").split("|")][-1] == "4"
    every = [value for place in finished(tmp_path / "runs" / "evaluate") for value in accuracies(place)]
    assert len(every) == 4
    assert f"{sum(every) / 4:.1f} ±" in line
