"""SRe2L's stages: what diverges says so and is not kept, labels that are gone are made again, strangers are refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.runs.divergence import is_finite
from distill.runs.run import Run
from distill.training.crop_labels import Labels, digest
from robust import Normalize, RobustTeacher
from sre2l.checkpoint import DivergenceMonitor, OwnedCheckpoint
from sre2l.pipeline import Config, distill, is_incomplete, protocol
from sre2l.precision import Compute
from sre2l.recipes import METHODS
from sre2l.recover import Recover, recover
from sre2l.relabel import Relabel, relabel
from sre2l.squeeze import FILE, squeeze
from sre2l.units import read_units
from sre2l.validate import Validate, train
from tests.toy import toy
from tests.unit.test_sre2l import FLOATS, SMALL, TINY, network, run_in

RECIPES = {method.name: method.recipes for method in METHODS}

CROPS = Relabel(3, 4, "cutmix", crop_min=0.5)


def kept(folder: Path) -> list[Path]:
    return [path for ending in ("*.pt", "*.safetensors") for path in folder.rglob(ending)]


def test_a_teacher_that_diverges_leaves_nothing(tmp_path: Path) -> None:
    config = replace(SMALL, lr=1e30)
    for _ in range(2):  # the same command again begins anew
        with pytest.raises(
            InputError, match=r"^the teacher diverged in iteration \d+ \(.*\); take a smaller --squeeze.lr than 1e\+30$"
        ):
            squeeze(toy(), TINY, config, FLOATS, run_in(tmp_path, checkpoint_seconds=0.0))
        assert all(is_finite(torch.load(path)) for path in kept(tmp_path))


def test_a_recovery_that_diverges_leaves_nothing(tmp_path: Path) -> None:
    real, teacher = toy(), RobustTeacher(network().requires_grad_(False))
    with torch.no_grad():
        next(teacher.network.parameters())[0] = 1e38
    config = Recover(5, jitter=(0, 1), batch_size=2)
    for _ in range(2):
        with pytest.raises(
            InputError,
            match=r"^recovery of unit 0 diverged in iteration 0 \(.*\); take a smaller --recover.lr than 0.25$",
        ):
            recover(teacher, "t", real, 1, config, FLOATS, run_in(tmp_path, checkpoint_seconds=0.0))
        assert kept(tmp_path) == []


def test_logits_that_are_not_finite_are_no_labels(tmp_path: Path) -> None:
    teacher, images, normalize = network(), toy(8).images, Normalize((0.4,) * 3, (0.25,) * 3)
    with torch.no_grad():
        list(teacher.parameters())[-1][0] = 1e6
    with pytest.raises(InputError, match=r"^relabelling diverged in iteration 0 \(.*\); take a smaller --squeeze.lr$"):
        relabel(RobustTeacher(teacher), "t", images, normalize, CROPS, FLOATS, run_in(tmp_path))
    assert kept(tmp_path) == []


def test_a_student_that_diverges_leaves_nothing(tmp_path: Path) -> None:
    images, normalize = toy(8).images, Normalize((0.4,) * 3, (0.25,) * 3)
    store = relabel(RobustTeacher(network()), "t", images, normalize, CROPS, FLOATS, run_in(tmp_path))
    labels, config = Labels(store, digest(images)), Validate("sgd", 1e30)
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"^student 0 diverged in iteration \d \(.*\); take a smaller --validate.lr than 1e\+30$"
        ):
            train(network(), images, labels, normalize, config, FLOATS, run_in(tmp_path, checkpoint_seconds=0.0), "0")
        assert list((tmp_path / "run").rglob("*.pt")) == []


def test_the_first_bad_iteration_is_told() -> None:
    bad = DivergenceMonitor("it", "--lr", torch.device("cpu"))
    for iteration, loss in enumerate((1.0, 2.0, float("inf"), 1.0, float("nan"))):
        bad.record(iteration, torch.tensor(loss))
        if iteration < 2:
            bad.check({"a": torch.ones(1)})
    with pytest.raises(InputError, match=r"^it diverged in iteration 2 \(the loss is not finite\); take a .* --lr$"):
        bad.check()


def test_a_checkpoint_of_another_part_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    OwnedCheckpoint(path, "a", 0.0).save({"done": 1})
    assert OwnedCheckpoint(path, "a", 0.0).restore() == {"done": 1, "whose": "a"}
    with pytest.raises(InputError, match=r"c.pt belongs to another run; delete it"):
        OwnedCheckpoint(path, "b", 0.0).restore()
    torch.save([1], path)
    with pytest.raises(InputError, match=r"c.pt belongs to another run; delete it"):
        OwnedCheckpoint(path, "a", 0.0).restore()


def test_a_teacher_of_another_stage_or_unsound_is_refused(tmp_path: Path) -> None:
    (_, one), (_, two) = (
        squeeze(toy(), TINY, replace(SMALL, epochs=epochs), FLOATS, run_in(tmp_path)) for epochs in (1, 2)
    )
    stages = tmp_path / "stages"
    before = (stages / two / FILE).read_bytes()
    shutil.copy(stages / one / FILE, stages / two / FILE)
    with pytest.raises(InputError, match=rf"{two}/{FILE} is the teacher of {one}; delete it to have it made anew"):
        squeeze(toy(), TINY, SMALL, FLOATS, run_in(tmp_path))
    (stages / two / FILE).write_bytes(before)
    tensors = load_file(stages / two / FILE)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.ndim > 1)
    tensors[name][0] = float("inf")
    save_file(tensors, stages / two / FILE)  # of a version that does not say whose it is
    with pytest.raises(InputError, match=rf"{FILE} is unsound: {name} has values that are not finite; delete it"):
        squeeze(toy(), TINY, SMALL, FLOATS, run_in(tmp_path))


def made(tmp_path: Path) -> tuple[DistilledSet, Path]:
    config = Config(SMALL, Recover(3, jitter=(0, 1), batch_size=2), CROPS, backbone=TINY)
    run = Run(tmp_path / "run", "x", seed=7, stages=tmp_path / "stages")
    path = run.folder / "distilled.safetensors"
    distill(toy(), 2, config, run).save(path)
    return DistilledSet.load(path), path


def test_labels_that_are_gone_are_made_again(tmp_path: Path) -> None:
    """By whoever trains students: a run, or an evaluation with another seed."""
    distilled, path = made(tmp_path)
    (store,) = (tmp_path / "stages").glob("relabel*")
    files = sorted(store.glob("[el]*.[sj]*"))
    before = {file: file.read_bytes() for file in files}
    assert len(files) == 3 + 2  # with labels.json and experiment.json
    other = Run(tmp_path / "evaluation", "y", seed=3, stages=tmp_path / "elsewhere")
    for gone in (["epoch-0001.safetensors"], ["labels.json"], ["epoch-0000.safetensors", "labels.json"]):
        for name in gone:
            (store / name).unlink()
        assert is_incomplete(path) == ("labels.json" in gone)
        assert protocol(distilled, path.parent, other).epochs == 3
        assert {file: file.read_bytes() for file in files} == before
    (store / "labels.json").write_text("[" * 100000)
    protocol(distilled, path.parent, other)
    assert (store / "labels.json").read_bytes() == before[store / "labels.json"]
    assert not is_incomplete(path)
    teacher = next((tmp_path / "stages").glob("squeeze*")) / FILE
    teacher.unlink()
    assert is_incomplete(path)
    with pytest.raises(InputError, match=rf"there is no file .*{FILE}"):
        protocol(distilled, path.parent, other)


@pytest.mark.parametrize("kind", ["epoch", "seed", "partners", "order", "nan", "classes", "name"])
def test_labels_of_another_store_are_refused(kind: str, tmp_path: Path) -> None:
    images, normalize = toy(8).images, Normalize((0.4,) * 3, (0.25,) * 3)
    teacher = RobustTeacher(network())
    store = relabel(teacher, "t", images, normalize, CROPS, FLOATS, run_in(tmp_path))
    path = store / "epoch-0001.safetensors"
    tensors = load_file(path)
    if kind == "epoch":
        shutil.copy(store / "epoch-0002.safetensors", path)
    elif kind == "seed":
        theirs = relabel(teacher, "t", images, normalize, CROPS, FLOATS, run_in(tmp_path / "b", seed=1))
        shutil.copy(theirs / path.name, path)
    else:  # of a version that does not say whose they are
        edits = {"partners": ("partners", 4), "order": ("order", 0), "nan": ("logits", float("nan"))}
        if kind in edits:
            name, value = edits[kind]
            tensors[name].view(-1)[:2] = value
        elif kind == "classes":
            tensors["logits"] = tensors["logits"].repeat(1, 2)
        else:
            del tensors["shares"]
        save_file(tensors, path)
    labels = Labels(store, digest(images), 2)
    list(labels.epoch(0))
    with pytest.raises(InputError, match=r"epoch-0001.safetensors has not the labels of epoch 1 of these images"):
        list(labels.epoch(1))


def test_units_of_another_run_are_refused(tmp_path: Path) -> None:
    real, teacher, config = (
        toy(),
        RobustTeacher(network().requires_grad_(False)),
        Recover(2, jitter=(0, 1), batch_size=2),
    )
    ours, theirs = (
        recover(teacher, "t", real, 2, config, FLOATS, run_in(tmp_path / str(seed), seed=seed)) for seed in (0, 1)
    )
    assert read_units(ours).shape == (4, 3, 8, 8)
    name = "unit-00001.safetensors"
    shutil.copy(theirs / name, ours / name)
    with pytest.raises(InputError, match=rf"{name} is of another run \({theirs.name}/1\); delete it"):
        read_units(ours)
    save_file(load_file(ours / "unit-00000.safetensors"), ours / name)  # of a version that does not say whose it is
    with pytest.raises(InputError, match="do not hold each image once; delete that folder"):
        read_units(ours)


def test_facts_of_labels_are_looked_at(tmp_path: Path) -> None:
    images = toy(8).images
    for facts in ([], None, {}, {"format": "guard-labels-1"}, {"format": 1, "digest": "a", "mix": "a"}):
        (tmp_path / "labels.json").write_text(json.dumps(facts))
        with pytest.raises(InputError, match="holds no labels"):
            Labels(tmp_path, digest(images))


@pytest.mark.parametrize("epochs", [2, pytest.param(12, marks=pytest.mark.slow)], ids=["past the warm-up", "the whole"])
@pytest.mark.long
def test_the_quick_recipe_of_guard_on_digits_is_finite(epochs: int, tmp_path: Path) -> None:
    """It was NaN in the fourth step after the warm-up, an epoch, at a quick run's defaults."""
    from distill.data import facts_named, load

    digits, _ = load("digits", tmp_path, None)
    config = RECIPES["guard_sre2l"]["quick"](facts_named("digits"), 1).config
    compute: Compute = config.compute
    shortened = replace(config.squeeze, epochs=epochs)
    teacher, name = squeeze(digits, config.backbone, shortened, compute, run_in(tmp_path))
    assert is_finite(teacher.network.state_dict())
    lines = (tmp_path / "stages" / name / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["squeeze_loss"] for line in lines if "squeeze_loss" in line]
    assert max(losses) < 10
