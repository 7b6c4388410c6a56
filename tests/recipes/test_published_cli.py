"""Published sets as a user types it: DC-style code's set judged end to end, exports judged as what they came from."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.app.main import main
from distill.data import label, load
from distill.distilled import DistilledSet
from distill.method_training import MethodTraining
from distill.runs.files import read_tensors
from robust import Normalize
from tests.toy import toy

OWN = ["--backbone", "convnet:width=4,depth=2", "--students", "2", "--attacks", "fgsm"]
SMALL = [*OWN, "--student.epochs", "60"]


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def gradient_matching(images: Tensor, labels: Tensor, ipc: int, steps: int) -> tuple[Tensor, Tensor]:
    """Distil as DC does, from its description alone: normal noise, SGD with momentum 0.5, cosines of gradients."""
    generator = torch.Generator().manual_seed(0)
    image_syn = torch.randn(2 * ipc, *images.shape[1:], generator=generator).requires_grad_()
    label_syn = torch.tensor([0] * ipc + [1] * ipc)
    optimizer = torch.optim.SGD([image_syn], lr=1.0, momentum=0.5)
    for _ in range(steps):
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(10**6, (), generator=generator)))
            net = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32, 2)
            )
        loss = torch.zeros(())
        for c in range(2):
            real, syn = ((x[y == c], y[y == c]) for x, y in ((images, labels), (image_syn, label_syn)))
            theirs = torch.autograd.grad(F.cross_entropy(net(real[0]), real[1]), net.parameters())
            ours = torch.autograd.grad(F.cross_entropy(net(syn[0]), syn[1]), net.parameters(), create_graph=True)
            for a, b in zip(ours, theirs, strict=True):
                if a.ndim > 1:
                    loss = loss + (1 - F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1, eps=1e-6)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return image_syn.detach(), label_syn


@pytest.fixture(scope="module")
def published(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file as DC's code writes it: two experiments, the second of them noise."""
    train, _ = load("folder", data)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (train.mean, train.std))
    good = gradient_matching((train.images - mean) / std, train.labels, ipc=2, steps=40)
    noise = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    path = tmp_path_factory.mktemp("published") / "res_DC_FOLDER_ConvNet_2ipc.pt"
    accuracies = {"ConvNet": [np.float64(0.9), np.mean([0.4, 0.6])]}
    torch.save({"data": [list(good), [noise, good[1]]], "accs_all_exps": accuracies}, path)
    return path


def clean(runs: Path) -> list[float]:
    """Return the clean accuracies of all tables of evaluations, by path."""
    tables = sorted((runs / "evaluate").rglob("table.csv"))
    rows = [csv.DictReader(path.read_text().splitlines()) for path in tables]
    return [float(row["mean"]) for each in rows for row in each if row["attack"] == "clean"]


def test_a_set_of_dc_style_code_is_judged_end_to_end(
    data: Path, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", published, "--dataset", "folder", "--data-dir", data, "--runs", tmp_path, *SMALL]
    assert run(*words) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"dc on {label('folder', data)}, ipc 2, convnet:width=4,depth=2")
    assert "dc in the format of DC's code, experiment 0 of 2; normalised with our constants of folder" in err
    assert "warning" not in err
    assert clean(tmp_path)[0] > 85
    (file,) = (tmp_path / "published" / "folder").rglob("distilled.safetensors")
    found, (x, y) = DistilledSet.load(file), torch.load(published, weights_only=False)["data"][0]
    assert torch.allclose(Normalize(found.mean, found.std)(found.images), x, atol=1e-5)
    assert torch.equal(found.labels, y)

    assert run(*words) == 0  # neither read nor judged again, and said again
    err = capsys.readouterr().err
    assert "finished already" in err
    assert "dc in the format of DC's code" in err
    assert run(*words, "--experiment", "1") == 0
    assert len(list((tmp_path / "published" / "folder").iterdir())) == 2
    accuracies = clean(tmp_path)
    assert len(accuracies) == 2
    assert max(accuracies) > 85 > min(accuracies)
    assert run("evaluate", file.parent, "--data-dir", data, "--runs", tmp_path, *SMALL) == 0  # it is like a set of ours
    assert clean(tmp_path) == accuracies


def test_exports_are_judged_as_the_set_itself(data: Path, published: Path, tmp_path: Path) -> None:
    """A student of the same seed on what was exported and read again is the student on the set."""
    words = ["--data-dir", data, *SMALL, "--students", "1"]

    def student(path: Path, runs: Path, *flags: str) -> dict[str, Tensor]:
        assert run("evaluate", path, "--runs", runs, *words, *flags) == 0
        (file,) = runs.rglob("students/0.safetensors")
        return read_tensors(file)[0]

    expected = student(published, tmp_path / "first", "--dataset", "folder")
    (folder,) = (tmp_path / "first" / "published" / "folder").iterdir()
    for form in ("dc", "mtt", "npz", "imagefolder"):
        assert run("export", folder, "--to", form, "--out", tmp_path / form) == 0
        path = tmp_path / form
        flags = ["--augment", ""] if form == "mtt" else []  # its students have DSA's
        again = student(path, tmp_path / f"runs-{form}", "--dataset", "folder", *flags)
        close = all(torch.allclose(again[key], expected[key], atol=1e-3) for key in expected)
        assert close == (form != "imagefolder")  # cut and rounded it is another set


def test_own_ways_of_training(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DD's steps, and MTT's learning rate, whitened or not; without the rate one line says what lacks."""
    train, _ = load("folder", data)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (train.mean, train.std))
    order = train.labels.argsort(stable=True)[[0, 1, 20, 21]]
    x, y = train.images[order], train.labels[order]
    words = ["--dataset", "folder", "--data-dir", data, "--runs", tmp_path / "runs", *OWN, "--protocol", "own"]
    steps = [((x - mean) / std, y, torch.tensor([0.1])) for _ in range(20)]
    torch.save(steps, tmp_path / "results.pth")
    assert run("evaluate", tmp_path / "results.pth", *words) == 0
    assert f"dd on {label('folder', data)}, ipc 2, convnet:width=4,depth=2, own" in capsys.readouterr().out

    (tmp_path / "mtt").mkdir()
    from kornia.enhance import ZCAWhitening

    torch.save(ZCAWhitening(eps=0.1).fit(train.images)(x), tmp_path / "mtt" / "images_best.pt")
    torch.save(y, tmp_path / "mtt" / "labels_best.pt")
    assert run("evaluate", tmp_path / "mtt", *words) == 2
    assert "give --space normalised or --space whitened" in capsys.readouterr().err
    assert run("evaluate", tmp_path / "mtt", *words, "--space", "whitened") == 2
    assert "the set lacks the learned learning rate of mtt's students; give --lr" in capsys.readouterr().err
    words += ["--runs", tmp_path / "second"]
    assert run("evaluate", tmp_path / "mtt", *words, "--space", "whitened", "--lr", "0.05", "--students", "1") == 0
    assert f"mtt on {label('folder', data)}, ipc 2, convnet:width=4,depth=2, own" in capsys.readouterr().out
    (place,) = [path.parent for path in (tmp_path / "second" / "published").rglob("whitening.safetensors")]
    found = DistilledSet.load(place)
    assert (found.images - x).abs().max() < 1e-3
    assert found.training == MethodTraining(lr=0.05, epochs=1000, whitening="whitening.safetensors")


class Evil:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("source", ["auto", "dc"])
def test_a_file_that_would_run_something_is_one_line_and_exit_code_2(
    source: str, data: Path, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "marker"
    content = torch.load(published, weights_only=False)
    content["accs_all_exps"]["ConvNet"].append(Evil(marker))
    torch.save(content, tmp_path / "res_DC_FOLDER_ConvNet_2ipc.pt")
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 8, 8, 3)), labels=np.array([Evil(marker)] * 4, dtype=object))
    words = ["--dataset", "folder", "--data-dir", data, "--runs", tmp_path / "runs", *SMALL, "--source"]
    for name, kind in (("res_DC_FOLDER_ConvNet_2ipc.pt", source), ("a.npz", "kip" if source == "dc" else source)):
        assert run("evaluate", tmp_path / name, *words, kind) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert "is refused" in err
        assert "nothing was run" in err
    assert not marker.exists()
    assert list((tmp_path / "runs" / "published").rglob("*.*")) == []
    torch.load(tmp_path / "res_DC_FOLDER_ConvNet_2ipc.pt", weights_only=False)  # it is what it is said to be
    assert marker.exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("evaluate SET", "does not name its data set: give --dataset, one of cifar10"),
        ("evaluate SET --dataset cifar", "unknown data set 'cifar'; did you mean 'cifar10'?"),
        ("evaluate SET --dataset folder --source dd", "no results.pth of DD's code"),
        ("evaluate SET --dataset folder --source DC", "invalid choice"),
        ("evaluate SET --dataset folder --experiment 7", "--experiment is 7;"),
        (f"evaluate {'x' * 5000} --dataset folder", "cannot be read (File name too long)"),
        (f"evaluate SET --dataset folder --source sre2l --fkd {'x' * 5000}", "cannot be read (File name too long)"),
        (f"export {'x' * 5000}.pt --to dc", "cannot be read (File name too long)"),
        ("evaluate SET --dataset folder --lr 0.1", "--lr 0.1 is for sets of mtt; "),
        ("evaluate SET --dataset folder --factor 0", "factor is 0; it must be in [1, 8]"),
        ("evaluate SET --dataset folder --augment colour", "unknown augmentation 'colour'"),
        ("evaluate SET --dataset folder --lr -1", "lr is -1.0; it must be > 0"),
        ("evaluate SET --dataset digits", "images of 3 channels, digits of 1: give --dataset"),
        ("evaluate SET --dataset folder --source ours", "no set of ours"),
        ("evaluate EMPTY --dataset folder", "no distilled set that is known: the folder has nothing"),
        ("evaluate NOWHERE --source dc", "NOWHERE is not there; --source is for published sets"),
        ("export", "export takes a path first: bash run.sh export RUN --to dc|mtt|imagefolder|npz|hf|hub|set"),
        ("export NOWHERE --to dc", "there is no file NOWHERE"),
        ("export NOWHERE --to csv", "invalid choice"),
        ("export NOWHERE", "--to"),
        ("export SET --to npz", "its name is that of a published set"),
    ],
)
def test_bad_input_is_one_line(
    words: str,
    line: str,
    data: Path,
    published: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    places = ["--data-dir", data] if words.startswith("evaluate") else []
    assert run(*[published if word == "SET" else word for word in words.split()], *places) == 2
    err = capsys.readouterr().err
    assert line.lower() in err.lower()
    assert err.count("\n") == 1


def test_flags_of_published_sets_are_refused_for_ours(
    data: Path, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--data-dir", data, "--runs", tmp_path]
    assert run("evaluate", published, "--dataset", "folder", *place, *SMALL) == 0
    (folder,) = (tmp_path / "published" / "folder").iterdir()
    capsys.readouterr()
    assert run("evaluate", folder, *place, "--experiment", "1", "--lr", "0.1") == 2
    assert "is a set of ours; --experiment, --lr is for published sets" in capsys.readouterr().err


def test_export_says_where(published: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", published, "--dataset", "folder", "--data-dir", data, "--runs", tmp_path, *SMALL) == 0
    (folder,) = (tmp_path / "published" / "folder").iterdir()
    capsys.readouterr()
    assert run("export", folder, "--to", "imagefolder") == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(folder / "export" / "imagefolder")
    assert "lossy" in err
    assert sorted(path.name for path in (folder / "export" / "imagefolder").glob("[!.]*")) == [
        "README.md",
        "above",
        "below",
    ]


def write_fkd(folder: Path, order_seed: int = 42) -> Path:
    """Write four pictures as SRe2L's code does, and ten epochs of labels for them; return the folder of pictures."""
    from PIL import Image

    images = (255 * toy(40).images[[0, 2, 1, 3]]).byte()
    for number, image in enumerate(images):
        place = folder / "syn" / f"new{number // 2:03d}"
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture.save(place / f"class{number // 2:03d}_id{number % 2:03d}.jpg", quality=100)
    generator = torch.Generator().manual_seed(order_seed)
    for epoch in range(10):
        order = torch.randperm(4, generator=generator)
        torch.randperm(4, generator=generator)  # what torch's sampler draws at the end of an epoch
        labels = order // 2
        (folder / "FKD" / f"epoch_{epoch}").mkdir(parents=True)
        for number, part in enumerate(labels.split(3)):
            coords, flips = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * len(part)), torch.zeros(len(part)).bool()
            mixture = [torch.arange(len(part)), 0.9, [np.int64(0), np.int64(0), np.int64(2), np.int64(2)]]
            logits = 8 * F.one_hot(part, 2).half()
            torch.save([coords, flips, *mixture, logits], folder / "FKD" / f"epoch_{epoch}" / f"batch_{number}.tar")
    return folder / "syn"


def test_soft_labels_of_fkd(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = write_fkd(tmp_path)
    words = ["evaluate", pictures, "--dataset", "folder", "--data-dir", data, *OWN, "--source", "sre2l"]
    words += ["--runs", tmp_path / "runs"]
    assert run(*words, "--fkd", tmp_path / "FKD", "--protocol", "own") == 0
    out, err = capsys.readouterr()
    assert f"sre2l on {label('folder', data)}, ipc 2, convnet:width=4,depth=2, own" in out
    assert "teacher" not in out
    assert "10 epochs in batches of 3, mixed by cutmix" in err
    assert "100.0% of 40 labels, 50.0% by chance" in err
    assert "warning" not in err
    (file,) = (tmp_path / "runs" / "published").rglob("distilled.safetensors")
    assert (file.parent / "fkd" / "labels.json").exists()
    assert run("evaluate", file.parent, "--data-dir", data, "--runs", tmp_path / "runs", *OWN, "--protocol", "own") == 0
    assert "finished already" in capsys.readouterr().err

    (tmp_path / "moved").mkdir()
    (tmp_path / "FKD").rename(tmp_path / "moved" / "FKD")  # known by its content
    assert run(*words, "--fkd", tmp_path / "moved" / "FKD", "--protocol", "own") == 0
    assert "finished already" in capsys.readouterr().err

    assert run(*words, "--protocol", "own") == 2
    assert "the set has no labels of a teacher: give --fkd FOLDER" in capsys.readouterr().err
    assert run(*words, "--fkd", tmp_path / "none") == 2
    assert "none: no such folder" in capsys.readouterr().err
    assert run("evaluate", file.parent, "--data-dir", data, "--fkd", tmp_path / "moved") == 2
    assert "is a set of ours; --fkd is for published sets" in capsys.readouterr().err


@pytest.mark.parametrize("harm", ["order", "pickle"])
def test_soft_labels_that_are_refused_leave_nothing(
    harm: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, marker = write_fkd(tmp_path, 42 if harm == "pickle" else 43), tmp_path / "marker"
    if harm == "pickle":
        torch.save([Evil(marker)] * 6, tmp_path / "FKD" / "epoch_1" / "batch_0.tar")
    words = ["--dataset", "folder", "--data-dir", data, "--runs", tmp_path / "runs", *OWN]
    assert run("evaluate", pictures, *words, "--fkd", tmp_path / "FKD", "--protocol", "own") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert ("do not belong to these images in this order" if harm == "order" else "nothing was run") in err
    assert list((tmp_path / "runs" / "published").rglob("*.*")) == []
    assert not marker.exists()
