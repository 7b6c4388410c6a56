"""Sets of ours for other code: each format is read back, by our reader and by code written from its description."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.mtt import label_recipes, recipes
from distill.app.export import export, run_export
from distill.data import FACTS, ImageSet
from distill.data.facts import Constants
from distill.distilled import FORMAT, DistilledSet
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.published.read import read
from distill.published.reading import Reading
from distill.published.writers import AS_MTT, EXPORTS
from distill.training.whiten import Whiten
from robust import Normalize
from tests.toy import toy

REAL = toy(n=400)
LABELS = torch.arange(2).repeat_interleave(2)


def made(**fields: object) -> DistilledSet:
    """Return a set whose pixels leave [0, 1] here and there, with means and deviations of its own."""
    generator = torch.Generator().manual_seed(0)
    images = 0.5 + 0.4 * torch.randn(4, 3, 8, 8, generator=generator)
    ours = {"labels": LABELS, "augment": "flip", "backbone": "convnet:width=4", "method": "dc"}
    ours |= {"dataset": "toy", "classes": REAL.classes, "mean": REAL.mean, "std": REAL.std}
    return DistilledSet(**{"images": images} | ours | fields)


def back(out: Path, real: ImageSet = REAL, said: list[str] | None = None, **how: object) -> DistilledSet:
    return read(out, Reading(**how), lambda size: real, out, lambda line: None if said is None else said.append(line))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("form", ["dc", "mtt", "npz", "hf"])
def test_what_is_written_is_read_back(form: str, soft: bool, tmp_path: Path) -> None:
    if form == "hf":
        pytest.importorskip("datasets")
    labels = F.one_hot(LABELS).float() * 0.8 + 0.1 if soft else LABELS
    ours = made(labels=labels)
    if form == "mtt":
        ours = replace(ours, method="guard_mtt", training=MethodTraining(lr=0.02, epochs=30))
    if form == "dc" and soft:
        with pytest.raises(InputError, match="soft labels, but dc stores classes; use --to mtt, npz or hf"):
            export(ours, tmp_path, form, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []
        return
    export(ours, tmp_path, form, tmp_path / "out")
    found = back(tmp_path / "out" / "distilled.npz" if form == "npz" else tmp_path / "out", said=(said := []))
    assert not [line for line in said if "outside [0, 1]" in line]  # as a fifth of them is, and the format says so
    assert (found.images - ours.images).abs().max() < 1e-6
    assert torch.equal(found.labels, labels)
    assert (found.dataset, found.classes, found.mean, found.std) == ("toy", ours.classes, ours.mean, ours.std)
    if form in ("npz", "hf"):
        assert torch.equal(found.images, ours.images)
    if form == "npz":
        assert (found.augment, found.backbone, found.method) == ("flip", "convnet:width=4", "dc")
    if form == "mtt":
        assert (found.training.lr, json.loads((tmp_path / "out" / "learned_lr.json").read_text())["lr"]) == (
            0.02,
            0.02,
        )


DD = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
"""of CIFAR-10 in DD's code"""
OWN = ((0.3, 0.4, 0.5), (0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("form", "dataset", "own", "theirs"),
    [
        ("dc", "cifar10", DD, FACTS["cifar10"].constants["dc"]),
        ("mtt", "cifar10", DD, FACTS["cifar10"].constants["mtt"]),
        ("dc", "cifar100", OWN, FACTS["cifar100"].constants["dc"]),
        ("mtt", "cifar100", FACTS["cifar100"].constants["dc"], FACTS["cifar10"].constants["mtt"]),
        ("dc", "tiny_imagenet", OWN, FACTS["tiny_imagenet"].constants["dc"]),
        ("mtt", "tiny_imagenet", OWN, FACTS["imagenet"].constants["mtt"]),
        ("dc", "mnist", ((0.2,), (0.4,)), FACTS["mnist"].constants["dc"]),
        ("mtt", "mnist", ((0.2,), (0.4,)), None),  # which MTT's code does not have
        ("mtt", "toy", OWN, None),
    ],
)
def test_images_are_normalised_as_the_code_that_reads_them_does(
    form: str, dataset: str, own: Constants, theirs: Constants | None, tmp_path: Path
) -> None:
    images: Tensor = made().images[:, : len(own[0])]
    ours = made(images=images, dataset=dataset, mean=own[0], std=own[1])
    lines = export(ours, tmp_path, form, tmp_path / "out")
    expected = theirs or own
    assert f"std {' '.join(f'{value:.4g}' for value in expected[1])}" in lines[0]
    (path,) = (tmp_path / "out").glob("res_*.pt" if form == "dc" else "images_best.pt")
    content = torch.load(path, weights_only=True)
    written = content["data"][0][0] if form == "dc" else content
    assert torch.equal(written, Normalize(*expected)(images))
    channels = len(own[0])  # the real set has constants that are not the distilled one's
    real = replace(REAL, name=dataset, images=REAL.images[:, :channels], mean=(0.6,) * channels, std=(0.7,) * channels)
    found = back(tmp_path / "out", real)
    assert (found.images - images).abs().max() < 1e-5
    assert (found.mean, found.std) == expected


def test_a_card_with_impossible_constants_is_damaged(tmp_path: Path) -> None:
    export(made(), tmp_path, "mtt", tmp_path / "out")
    card = tmp_path / "out" / "learned_lr.json"
    kept = json.loads(card.read_text())
    for wrong in ([0.2, 0.2], [0.2, 0.2, 0], [0.2, 0.2, float("nan")], 0.2, ["a", "b", "c"], None):
        card.write_text(json.dumps(kept | {"std": wrong}))
        with pytest.raises(InputError, match=r"learned_lr\.json is damaged; delete it and give --lr and --space"):
            back(tmp_path / "out")
    assert (back(tmp_path / "out", space="normalised").images - made().images).abs().max() < 1e-6  # without the card


def test_pictures_are_equal_but_for_rounding_and_say_so(tmp_path: Path) -> None:
    ours = made()
    lines = export(ours, tmp_path, "imagefolder", tmp_path / "out")
    share = ((ours.images < 0) | (ours.images > 1)).float().mean().item()
    assert share > 0.05
    assert "lossy: PNG has 8 bits" in lines[0]
    assert f"({share:.1%} are outside)" in lines[0]
    found = back(tmp_path / "out")
    assert (found.images - ours.images.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(found.labels, ours.labels)


def test_npz_keeps_own_tensors_and_training(tmp_path: Path) -> None:
    ours = made(
        training_tensors={"labels": torch.ones(4, 2)},
        training=MethodTraining(order=[[0, 1], [2, 3]], whitening="w.safetensors"),
    )
    ours = replace(ours, mean=(0.5, 0.5, 0.4), std=(0.1, 0.2, 0.3))  # others than the data set's
    lines = export(ours, tmp_path, "npz", tmp_path / "out")
    assert "the whitening is left out" in lines[0]
    found = back(tmp_path / "out" / "distilled.npz")
    assert torch.equal(found.training_tensors["labels"], torch.ones(4, 2))
    assert found.training == MethodTraining(order=[[0, 1], [2, 3]])
    assert (found.mean, found.std) == (ours.mean, ours.std)


def test_npz_keeps_the_classes_that_images_were_made_for(tmp_path: Path) -> None:
    ours = made(labels=torch.tensor([[0.9, 0.1]] * 4), made_for=(0, 0, 1, 1), teacher="pgd_at@4/255")
    export(ours, tmp_path, "npz", tmp_path / "out")
    found = back(tmp_path / "out" / "distilled.npz")
    assert (found.made_for, found.teacher) == ((0, 0, 1, 1), "pgd_at@4/255")
    turned = back(tmp_path / "out" / "distilled.npz", replace(REAL, classes=REAL.classes[::-1]))
    assert (turned.classes, turned.made_for) == (REAL.classes[::-1], (1, 1, 0, 0))
    assert torch.equal(turned.labels, ours.labels.flip(1))


@pytest.mark.parametrize("wrong", [[0, 0, 1, 2], [0, 0, 1, -1], [0, 1], ["a", 0, 1, 1], [[0], 0, 1, 1], 3])
def test_an_npz_whose_made_for_is_damaged_gets_one_line(wrong: object, tmp_path: Path) -> None:
    ours = made(labels=torch.tensor([[0.9, 0.1]] * 4), made_for=(0, 0, 1, 1))
    export(ours, tmp_path, "npz", tmp_path / "out")
    with np.load(tmp_path / "out" / "distilled.npz") as stored:
        arrays = dict(stored)
    facts = json.loads(str(arrays[FORMAT])) | {"made_for": wrong}
    np.savez(tmp_path / "a.npz", **(arrays | {FORMAT: np.array(json.dumps(facts))}))
    with pytest.raises(InputError, match=r"made_for|is no set of ours"):
        back(tmp_path / "a.npz")


def test_mtt_of_a_whitened_set_is_whitened(tmp_path: Path) -> None:
    layer = Whiten.fit(REAL.images)
    layer.save(tmp_path / "whitening.safetensors")
    ours = made(method="mtt", training=MethodTraining(lr=0.01, epochs=30, whitening="whitening.safetensors"))
    lines = export(ours, tmp_path, "mtt", tmp_path / "out")
    assert "whitened (kornia's ZCA" in lines[0]
    images = torch.load(tmp_path / "out" / "images_best.pt", weights_only=True)
    assert (images - layer(ours.images)).abs().max() < 1e-6
    assert (back(tmp_path / "out").images - ours.images).abs().max() < 1e-3


@pytest.mark.parametrize("method", ["frepo", "kip"])
def test_mtt_of_a_set_that_is_whitened_otherwise_is_normalised(method: str, tmp_path: Path) -> None:
    Whiten.fit_normalised(REAL.images, Normalize(REAL.mean, REAL.std)).save(tmp_path / "whitening.safetensors")
    training = MethodTraining(lr=3e-4, whitening="whitening.safetensors")  # a rate that nobody learned
    lines = export(made(method=method, training=training), tmp_path, "mtt", tmp_path / "out")
    assert "normalised with" in lines[0]
    assert "no learned learning rate in learned_lr.json; the whitening is left out" in lines[0]
    found = back(tmp_path / "out")
    assert (found.images - made().images).abs().max() < 1e-6
    assert found.training == MethodTraining()


@pytest.mark.parametrize("method", AS_MTT)
def test_all_methods_that_whiten_as_mtt_are_known(method: str, tmp_path: Path) -> None:
    Whiten.fit(REAL.images).save(tmp_path / "whitening.safetensors")
    ours = made(method=method, training=MethodTraining(lr=0.01, epochs=30, whitening="whitening.safetensors"))
    (line, _) = export(ours, tmp_path, "mtt", tmp_path / "out")
    assert "whitened (kornia's ZCA" in line
    assert "left out" not in line
    assert set(AS_MTT) == {method.name for method in (*recipes.METHODS, *label_recipes.METHODS)}


def official_evaluation(path: Path, test: ImageSet, epochs: int) -> float:
    """Train and test as the official repository does, from its description: load, data[0], SGD, accuracy."""
    content = torch.load(path, weights_only=True)
    image_syn, label_syn = content["data"][0]
    assert (image_syn.dtype, label_syn.dtype) == (torch.float32, torch.int64)
    assert isinstance(content["accs_all_exps"], dict)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(epochs):
        loss = F.cross_entropy(net(image_syn), label_syn)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (test.mean, test.std))
    guessed = net((test.images - mean) / std).argmax(1).numpy()
    return float(np.mean(np.equal(guessed, test.labels.numpy())))


def test_the_official_evaluation_accepts_dc(tmp_path: Path) -> None:
    real, test = toy(4, seed=5), toy(40, seed=1)
    order = real.labels.argsort(stable=True)
    ours = replace(made(), images=real.images[order])
    export(ours, tmp_path, "dc", tmp_path / "out")
    (path,) = (tmp_path / "out").glob("[!.]*")
    assert path.name == "res_DC_toy_convnet_width=4_2ipc.pt"
    assert official_evaluation(path, test, 60) > 0.9
    export(replace(ours, labels=1 - ours.labels), tmp_path, "dc", tmp_path / "wrong")
    assert official_evaluation(tmp_path / "wrong" / path.name, test, 60) < 0.1


def test_official_names(tmp_path: Path) -> None:
    ours = replace(made(), dataset="cifar10", backbone="convnet", method="guard_dc")
    export(ours, tmp_path, "dc", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["res_GUARD_DC_CIFAR10_ConvNet_2ipc.pt"]


@pytest.mark.parametrize("form", ["dc", "mtt", "imagefolder", "npz"])
def test_nothing_else_is_overwritten_unasked(form: str, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def contents() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    export(made(), tmp_path, form, out)
    before = contents()
    export(made(), tmp_path, form, out)  # the same again
    assert contents() == before
    other = replace(made(), images=made().images.flip(0))
    with pytest.raises(InputError, match=r"has other content .*give another --out, or --overwrite"):
        export(other, tmp_path, form, out)
    assert contents() == before
    lines = export(other, tmp_path, form, out, overwrite=True)
    assert "of an earlier export replaced" in lines[-1]
    assert contents() != before
    (out / "notes.txt").write_text("mine")
    export(other, tmp_path, form, out)
    assert (out / "notes.txt").read_text() == "mine"


def test_pictures_of_another_set_are_not_mixed_with(tmp_path: Path) -> None:
    export(made(), tmp_path, "imagefolder", tmp_path / "out")
    fewer: Tensor = made().images[[0, 2]]
    smaller = replace(made(), images=fewer, labels=torch.tensor([0, 1]))
    with pytest.raises(InputError, match="belongs to another set, and would be read with this set"):
        export(smaller, tmp_path, "imagefolder", tmp_path / "out")
    export(smaller, tmp_path, "imagefolder", tmp_path / "out", overwrite=True)
    assert len(back(tmp_path / "out").images) == 2


@pytest.mark.parametrize("name", ["above/0009.png", "above/mine.jpg", "holiday/a.webp", "above/0000.png"])
def test_pictures_of_others_are_never_deleted_nor_replaced(name: str, tmp_path: Path) -> None:
    """--overwrite deleted every picture in the class folders below --out, whoever had put it there."""
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"no export wrote it \(files: 1\); give another --out"):
            export(made(), tmp_path, "imagefolder", out, overwrite=overwrite)
        assert [path.read_bytes() for path in out.rglob("*") if path.is_file()] == [b"mine"]
    (out / name).unlink()
    export(made(), tmp_path, "imagefolder", out)
    (out / "below" / "0001.png").write_bytes(b"mine now")  # ours, and then changed by its user
    fewer = replace(made(), images=made().images[[0, 2]], labels=torch.tensor([0, 1]))
    with pytest.raises(InputError, match="is not part of this set, but would be read with it, and no export wrote it"):
        export(fewer, tmp_path, "imagefolder", out, overwrite=True)
    assert (out / "below" / "0001.png").read_bytes() == b"mine now"


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    digest = hashlib.sha256(b"mine").hexdigest()
    for path in ("../victim.txt", str(victim)):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / ".guard-export.json").write_text(json.dumps({"files": {path: [digest]}}))
        export(made(), tmp_path, "npz", tmp_path / "out", overwrite=True)
        assert victim.read_text() == "mine"


def test_an_export_that_was_killed_half_way_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, other = tmp_path / "out", replace(made(), images=made().images.flip(0))
    export(made(), tmp_path, "imagefolder", out)
    replaced, move = [], os.replace

    def dies(source: Path, target: Path) -> None:
        if len(replaced) == 3:
            raise KeyboardInterrupt
        replaced.append(target)
        move(source, target)

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        export(other, tmp_path, "imagefolder", out, overwrite=True)
    monkeypatch.undo()
    export(other, tmp_path, "imagefolder", out, overwrite=True)
    whole = tmp_path / "whole"
    export(other, tmp_path, "imagefolder", whole)
    contents = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in (out, whole)]
    assert contents[0] == contents[1]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*choose another --out"):
        export(made(), tmp_path, "npz", tmp_path / "file" / "out")
    (tmp_path / "out" / "distilled.npz").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot write to"):
        export(made(), tmp_path, "npz", tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("out", [".", "", "../here", "link"])
def test_the_current_folder_is_a_place(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made().save(tmp_path / "distilled.safetensors")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(".")
    monkeypatch.chdir(tmp_path / "here")
    assert run_export([str(tmp_path), "--to", "npz", "--out", out]) == 0
    assert back(tmp_path / "here" / "distilled.npz").images.equal(made().images)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["distilled.safetensors", "here"]


def test_a_place_with_nothing_beside_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made().save(tmp_path / "distilled.safetensors")
    with pytest.raises(InputError, match=r"^cannot write to / \(it has no folder above it\); choose another --out$"):
        run_export([str(tmp_path), "--to", "npz", "--out", "/"])
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(InputError, match=r"^cannot write to \. \(No such file or directory\); choose another --out$"):
        run_export([str(tmp_path), "--to", "npz", "--out", "."])


@pytest.mark.parametrize("name", ["distilled.npz", "res_DC_toy_ConvNet_2ipc.pt", "results.pth"])
def test_a_published_file_is_to_be_read_first(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x" * 100)
    with pytest.raises(InputError, match=rf"read it first, bash run\.sh evaluate \S*{name} --dataset NAME") as error:
        run_export([str(tmp_path / name), "--to", "dc"])
    assert "delete it" not in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="there is no file"):
        run_export([str(tmp_path / "absent.npz"), "--to", "dc"])


def test_only_files_of_this_program_are_to_be_deleted(tmp_path: Path) -> None:
    for name, advised in (("distilled.safetensors", True), ("photo.png", False)):
        (tmp_path / name).write_bytes(b"x" * 100)
        with pytest.raises(InputError, match="not a whole safetensors file") as error:
            run_export([str(tmp_path / name), "--to", "dc"])
        assert ("delete it to have it made anew" in str(error.value)) == advised


def test_hf_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="needs the package datasets: pip install datasets; or use --to npz"):
        export(made(), tmp_path, "hf", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_normalised_tensor_is_the_networks_input(tmp_path: Path) -> None:
    export(made(), tmp_path, "mtt", tmp_path / "out")
    images = torch.load(tmp_path / "out" / "images_best.pt", weights_only=True)
    assert torch.equal(images, Normalize(REAL.mean, REAL.std)(made().images))
    assert set(EXPORTS) == {"dc", "mtt", "imagefolder", "npz", "hf", "hub", "set"}
