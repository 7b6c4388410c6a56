"""Labels of teachers: their formula, what is shared between runs, and the command that relabels a set."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from baselines.robust_labels.labels import MeanTeacher, RobustLabels, Teacher, robust_labels
from baselines.robust_labels.method import Config, relabelled
from distill.app.main import main
from distill.app.registry import find_methods, method_named, methods_named
from distill.data import facts_named
from distill.distilled import DistilledSet
from distill.models import build
from distill.runs.files import hash_of, write_tensors
from distill.runs.run import Run
from distill.training.crop_labels import Labels, digest
from robust import Normalize
from tests.toy import toy, write_toy

NETWORK = "convnet:width=4,depth=2"
METHODS = find_methods()


def teacher_file(path: Path, seed: int) -> nn.Module:
    """Write the weights of an untrained teacher; return it, from pixels to logits."""
    network = build(NETWORK, like=toy(), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0)  # probabilities that are far from uniform
    write_tensors(path, network.state_dict(), {"backbone": NETWORK})
    return nn.Sequential(Normalize(toy().mean, toy().std), network).eval()


def test_labels_are_the_mean_of_softened_probabilities_and_the_class(tmp_path: Path) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    teachers = [teacher_file(file, seed) for seed, file in enumerate(files)]
    real = toy()
    config = RobustLabels(",".join(map(str, files)), temperature=2.0, hard=0.25)
    found = robust_labels(real, "mlp", real.images[:6], real.labels[:6], config, Run(tmp_path / "run", None))
    with torch.no_grad():
        logits = [teacher(real.images[:6]).double() for teacher in teachers]
    for row in range(6):
        for k in range(2):
            each = [float(z[row, k].div(2).exp() / z[row].div(2).exp().sum()) for z in logits]
            expected = 0.75 * sum(each) / 2 + 0.25 * (int(real.labels[row]) == k)
            assert abs(float(found[row, k]) - expected) < 1e-5
    assert (found[:, 0] - found[:1, 0]).abs().max() > 0.01


def test_texts_of_teachers() -> None:
    config = RobustLabels("pgd_at:steps=3,step_size=0.01@2/255, guard:weight=1,h=3", hard=0.5)
    assert config.teachers == ("pgd_at:steps=3,step_size=0.01@2/255", "guard:weight=1,h=3")
    assert config.written == "pgd_at:steps=3,step_size=0.01@2/255,guard:weight=1,h=3 hard=0.5"
    assert RobustLabels("/somewhere/teacher.pt").written == "teacher.pt"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher": "pgd"}, "unknown loss 'pgd'"),
        ({"teacher": " , "}, "it is a loss, such as pgd_at@4/255, or a file"),
        ({"teacher": "pgd_at@4/255,gaurd"}, "unknown loss 'gaurd'"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"hard": 1.5}, "hard is 1.5"),
    ],
)
def test_impossible_labels_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RobustLabels(**fields)


def distilled(name: str, tmp_path: Path, **labels: object) -> DistilledSet:
    """Distil the toy set with a method; all methods of a folder share stages."""
    method = method_named(name, METHODS)
    assert method is not None
    facts = replace(facts_named("folder"), classes=2, size=8, examples=40)
    config = method.recipes["smoke"](facts, 2).config
    if labels:
        config = replace(config, labels=replace(config.labels, **labels))
    run = Run(tmp_path / name, {"config": name}, stages=tmp_path / "stages").begin()
    return method.distill(toy(), 2, config, run)


@pytest.mark.parametrize("base", ["random", "dsa"])
def test_images_are_those_of_the_method(base: str, tmp_path: Path) -> None:
    plain = distilled(base, tmp_path)
    kinds = [distilled(f"{base}_{kind}_labels", tmp_path) for kind in ("robust", "plain")]
    for found in kinds:
        assert torch.equal(found.images, plain.images)
        assert found.labels.shape == (4, 2)
        assert torch.allclose(found.labels.sum(1), torch.ones(4))
        assert found.augment == plain.augment
    assert not torch.equal(kinds[0].labels, kinds[1].labels)
    assert [found.teacher for found in kinds] == ["pgd_at:steps=3@4/255", "cross_entropy"]
    folders = sorted(path.name.partition("-")[0] for path in (tmp_path / "stages").iterdir())
    assert folders == ["images", "squeeze", "squeeze"], "the images are made once, and each teacher once"
    views = distilled(f"{base}_robust_views", tmp_path)
    assert torch.equal(views.images, plain.images)
    assert torch.equal(views.labels, kinds[0].labels)
    folders = sorted(path.name.partition("-")[0] for path in (tmp_path / "stages").iterdir())
    assert folders == ["images", "relabel", "squeeze", "squeeze"], "views have the teacher of the labels"


def test_a_teacher_is_trained_once_for_all_temperatures(tmp_path: Path) -> None:
    one = distilled("random_robust_labels", tmp_path)
    network = next((tmp_path / "stages").glob("squeeze-*/teacher.safetensors"))
    before = network.stat().st_mtime_ns
    other = distilled("random_robust_labels", tmp_path, temperature=4.0)
    assert network.stat().st_mtime_ns == before
    assert (other.labels - 0.5).abs().max() < (one.labels - 0.5).abs().max()


def test_several_teachers_label_views_by_the_mean_of_their_probabilities(tmp_path: Path) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    networks = [teacher_file(file, seed)[1] for seed, file in enumerate(files)]
    found = MeanTeacher([Teacher(network, "", "") for network in networks], temperature=2.0)
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = torch.stack([(network(x) / 2).softmax(1) for network in networks]).mean(0)
        assert torch.allclose(found(x).exp(), expected)
        one = MeanTeacher([Teacher(networks[0], "", "")])
        assert torch.allclose(one(x), networks[0](x).log_softmax(1), atol=1e-6)
    made = distilled("random_plain_views", tmp_path, teacher=",".join(map(str, files)))
    store = Labels(tmp_path / "random_plain_views" / str(made.training.labels), digest(made.images))
    batch = next(iter(store.epoch(0)))
    assert batch.logits.float().exp().sum(1) == pytest.approx(1.0, abs=1e-2)


def test_students_of_views_train_on_them(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = run.parents[3].parent
    words = ["dsa_robust_views", "folder", "--recipe", "smoke", "--ipc", "2", "--attacks", "linf", "--seed", "1"]
    places = ["--data-dir", str(root), "--runs", str(root / "own")]
    assert main([*words, *places, "--stages", str(root / "experts")]) == 2
    assert "take a folder of the name stages" in capsys.readouterr().err
    assert main([*words, *places, "--stages", str(root / "shared" / "stages")]) == 0
    made = next((root / "own" / "dsa_robust_views").rglob("distilled.safetensors"))
    rows = [json.loads(line) for line in (made.parent / "results.jsonl").read_text().splitlines()]
    assert {(row["protocol"], row["labels"], row["teacher"]) for row in rows} == {
        ("own", "teacher", "pgd_at:steps=3@4/255")
    }
    assert "\nteacher: clean " in capsys.readouterr().out  # what bounds its students
    assert "Their teacher has " in (made.parent / "report.html").read_text()
    of_teacher = [json.loads(line) for line in (made.parent / "teacher.jsonl").read_text().splitlines()]
    assert [row["attack"] for row in of_teacher] == ["clean", "linf"]
    evaluate = ["evaluate", str(made), "--students", "1", "--attacks", "linf", *places]
    assert main([*evaluate, "--protocol", "own"]) == 0  # a method that is found by its name alone
    assert main([*evaluate, "--seed", "1", "--student.epochs", "2"]) == 0
    capsys.readouterr()


def test_labels_of_any_method_have_a_name() -> None:
    for name in ("dsa_guard_labels", "kip_plain_labels", "random_robust_labels", "dsa_guard_views"):
        found = method_named(name, METHODS)
        assert found is not None
        assert found.name == name
    assert method_named("nothing_robust_labels", METHODS) is None
    assert method_named("dsa_strange_labels", METHODS) is None
    assert method_named("robust_labels", METHODS) is None


def test_a_list_of_methods_may_have_spaces() -> None:
    assert "dsa_guard_views" in methods_named(["random", " dsa_guard_views", ""], METHODS)


def test_the_record_of_another_method() -> None:
    own = replace(METHODS["dm"], name="my.package:mine")
    found = relabelled(own, "guard")
    assert found.name == "my.package:mine_guard_labels"
    assert found.processes == "divided"
    assert isinstance(found.recipes["quick"](facts_named("cifar10"), 10).config, Config)


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `random` on the toy set, in runs/ beside the data."""
    root = write_toy(tmp_path_factory.mktemp("relabel"))
    words = ["random", "folder", "--recipe", "smoke", "--ipc", "2", "--attacks", "linf"]
    assert main([*words, "--data-dir", str(root), "--runs", str(root / "runs")]) == 0
    return next((root / "runs").rglob("distilled.safetensors")).parent


def relabel(run: Path, *flags: str) -> int:
    root = next(parent for parent in run.parents if (parent / "train").is_dir())
    words = ["relabel", str(run), "--teacher-epochs", "2", "--teacher-batch-size", "16"]
    return main([*words, "--data-dir", str(root), "--runs", str(root / "runs"), *flags])


def test_relabel_writes_a_new_set_beside_the_old_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = hash_of(run / "distilled.safetensors")
    assert relabel(run, "--teacher", "pgd_at:steps=1@4/255", "--temperature", "2") == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder.parent == run / "relabelled"
    old, new = DistilledSet.load(run), DistilledSet.load(folder)
    assert hash_of(run / "distilled.safetensors") == before
    assert torch.equal(new.images, old.images)
    assert new.labels.shape == (4, 2)
    assert new.teacher == "pgd_at:steps=1@4/255 T=2"
    assert new.method == "random_relabelled"
    first = hash_of(folder / "distilled.safetensors")
    assert relabel(run, "--teacher", "pgd_at:steps=1@4/255", "--temperature", "2") == 0
    found = capsys.readouterr()
    assert (Path(found.out.strip()), "labelled already" in found.err) == (folder, True)
    assert hash_of(folder / "distilled.safetensors") == first
    foreign = run.parent / "foreign"
    foreign.mkdir()
    shutil.copy(run / "distilled.safetensors", foreign)
    assert relabel(run, "--teacher", "cross_entropy", "--out", str(foreign)) == 2
    assert f"{foreign} has another set; give another --out" in capsys.readouterr().err
    assert hash_of(foreign / "distilled.safetensors") == before
    evaluate = ["evaluate", str(folder), "--students", "1", "--student.epochs", "2", "--attacks", "linf"]
    root = run.parents[3].parent
    assert main([*evaluate, "--data-dir", str(root), "--runs", str(root / "runs")]) == 0


def test_a_small_set_has_a_teacher_of_small_batches(run: Path, tmp_path: Path) -> None:
    root = run.parents[3].parent
    words = ["relabel", str(run), "--teacher", "cross_entropy", "--teacher-epochs", "1", "--out", str(tmp_path / "new")]
    assert main([*words, "--data-dir", str(root), "--runs", str(tmp_path / "runs")]) == 0
    record = json.loads((tmp_path / "new" / "experiment.json").read_text())
    assert record["experiment"]["relabel"]["teacher_batch_size"] < 128


def test_a_set_that_relabel_made_equals_the_methods(run: Path, tmp_path: Path) -> None:
    """`relabel` of the set of `random` has the labels of `random_robust_labels` with the same teacher."""
    assert relabel(run, "--teacher", "pgd_at:steps=3@4/255", "--out", str(tmp_path / "new")) == 0
    root = run.parents[3].parent
    words = ["random_robust_labels", "folder", "--recipe", "smoke", "--ipc", "2", "--attacks", "linf"]
    assert main([*words, "--data-dir", str(root), "--runs", str(root / "runs")]) == 0
    method = DistilledSet.load(next((root / "runs" / "random_robust_labels").rglob("distilled.safetensors")))
    assert torch.equal(DistilledSet.load(tmp_path / "new").labels, method.labels)


def test_a_published_set_is_relabelled(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--to", "dc", "--out", str(tmp_path / "dc")]) == 0
    published = next((tmp_path / "dc").glob("res_*.pt"))
    capsys.readouterr()
    root = run.parents[3].parent
    places = ["--data-dir", str(root), "--runs", str(root / "runs")]
    teacher = ["--teacher", "fast_at@4/255", "--teacher-epochs", "2", "--teacher-batch-size", "16"]
    assert main(["relabel", str(published), *teacher, *places]) == 2
    assert "give --dataset" in capsys.readouterr().err
    assert main(["relabel", str(published), "--dataset", "folder", *teacher, *places]) == 0
    folder = Path(capsys.readouterr().out.strip())
    new = DistilledSet.load(folder)
    assert torch.allclose(new.images[:], DistilledSet.load(run).images[:], atol=1e-6)
    assert (new.teacher, new.labels.ndim) == ("fast_at@4/255", 2)
    assert new.image_classes.tolist() == DistilledSet.load(run).labels.tolist()
    assert folder.is_relative_to(root / "runs" / "published")


def test_relabel_refuses_in_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = {
        "unknown loss 'nothing'": ["--teacher", "nothing"],
        "no such file": ["--teacher", str(tmp_path / "none.pt")],
        "--teacher-batch-size is 5000": ["--teacher-batch-size", "5000"],
        "--temperature is 0": ["--temperature", "0"],
    }
    before = sorted(run.rglob("*"))
    for message, flags in refused.items():
        assert relabel(run, *flags) == 2
        found = capsys.readouterr().err
        assert message in found
        assert len(found.strip().splitlines()) == 1
    assert main(["relabel"]) == 2
    assert "relabel takes a path first" in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before


def test_a_folder_with_another_new_set_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = partial(relabel, run, "--out", str(tmp_path / "one"), "--teacher", "cross_entropy")
    assert again() == 0
    assert again("--temperature", "3") == 2
    assert "temperature" in capsys.readouterr().err


def test_the_images_of_a_finished_run_are_not_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["digits", "--recipe", "smoke", "--attacks", "linf", "--runs", str(tmp_path)]
    assert main(["random", *words]) == 0
    plain = tmp_path / "random" / "digits" / "ipc1" / "seed0" / "distilled.safetensors"
    capsys.readouterr()
    assert main(["random_robust_labels", *words]) == 0
    assert f"the images are those of {plain}" in capsys.readouterr().err
    made = [*(tmp_path / "random_robust_labels").rglob("distilled.safetensors")]
    assert torch.equal(DistilledSet.load(made[0]).images, DistilledSet.load(plain).images)
    for other in (["--seed", "1"], ["--split", "validation"]):
        assert main(["random_robust_labels", *words, *other]) == 0
        assert "the images are those of" not in capsys.readouterr().err
    # what was distilled from other settings in the same folder is another set
    shutil.rmtree(tmp_path / "stages")
    distilled = DistilledSet.load(plain)
    replace(distilled, run="of other settings").save(plain)
    assert main(["random_plain_labels", *words]) == 0
    assert "the images are those of" not in capsys.readouterr().err
