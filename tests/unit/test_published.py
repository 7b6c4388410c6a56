"""Sets of other code: each format written here from its description, what contradicts it, and files that mean harm."""

import codecs
import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from baselines.frepo import students as frepo_students
from baselines.kip import least_squares
from distill import distilled
from distill.data import FACTS, ImageSet, pictures
from distill.data.facts import CODES
from distill.data.image_files import ImageFiles
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.published.formats import SOURCES
from distill.published.read import read
from distill.published.reading import Reading, import_set
from distill.published.recognise import recognised_source
from distill.published.unpickled import as_tensor, read_npz, read_pickle
from distill.runs.run import Run
from distill.training.packing import unpacked
from distill.training.ridge import probabilities
from distill.training.whiten import Whiten, preprocessing, ridge_zca
from robust import Normalize
from tests.toy import toy

REAL = toy(n=400)
CLASSES = torch.tensor([0, 0, 1, 1])
NAMED = {"cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))}


def named(name: str, real: ImageSet = REAL) -> ImageSet:
    """Return the toy set under the name of a real one, whose constants official codes have."""
    return ImageSet(name, real.images, real.labels, real.classes, real.mean, real.std)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def taken(path: Path, real: ImageSet = REAL, **how: object) -> tuple[DistilledSet, list[str]]:
    """Read a set and what is said of it."""
    said: list[str] = []
    place = path if path.is_dir() else path.parent
    return read(path, Reading(**how), lambda size: real.resized(size), place, said.append), said


def save_dc(path: Path, sets: int = 2) -> list[Tensor]:
    images = [drawn(4, 3, 8, 8, seed=seed) for seed in range(sets)]
    accuracies = {"ConvNet": [0.25, np.float64(0.31), np.mean([0.1, 0.3])]}
    torch.save({"data": [[x, CLASSES] for x in images], "accs_all_exps": accuracies}, path)
    return images


# --- formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_dc(legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "res_DSA_toy_ConvNet_2ipc.pt"
    images = save_dc(path)
    if legacy:
        torch.save(torch.load(path, weights_only=False), path, _use_new_zipfile_serialization=False)
    assert recognised_source(path) == recognised_source(tmp_path) == "dc"
    for number, x in ((0, images[0]), (1, images[1]), (-1, images[1])):
        found, said = taken(path, experiment=number)
        assert torch.allclose(Normalize(found.mean, found.std)(found.images), x, atol=1e-6)
        assert f"experiment {number % 2} of 2" in said[0]
    assert torch.equal(found.labels, CLASSES)
    assert (found.method, found.dataset, found.classes) == ("dsa", "toy", REAL.classes)
    assert found.augment == "color_crop_cutout_flip_scale_rotate"
    assert said[0].startswith("dsa in the format of DC's code")
    with pytest.raises(InputError, match=r"--experiment is 2; .* has 2, from 0 to 1"):
        taken(path, experiment=2)


@pytest.mark.parametrize(
    ("method", "std"),
    [("DC", 0.2673), ("DSA", 0.2673), ("CAFE", 0.2023), ("DCC", 0.2023), ("DSAC", 0.2023)],
)
def test_cafe_and_dcc_normalise_cifar100_as_cifar10(method: str, std: float, tmp_path: Path) -> None:
    path = tmp_path / f"res_{method}_CIFAR100_ConvNet_1ipc.pt"
    (images,) = save_dc(path, 1)
    found, said = taken(path, named("cifar100", REAL))
    assert found.std[0] == std
    assert torch.allclose(Normalize(found.mean, found.std)(found.images), images, atol=1e-6)
    assert f"{'dc' if std > 0.25 else 'cafe'}'s code" in said[0]
    save_dc(tmp_path / "res_CAFE_CIFAR10_ConvNet_1ipc.pt")
    assert taken(tmp_path / "res_CAFE_CIFAR10_ConvNet_1ipc.pt", named("cifar10", REAL))[0].std[2] == 0.2010


@pytest.mark.parametrize(
    ("file", "dataset", "policy"),
    [
        ("res_DC_MNIST_ConvNet_1ipc.pt", "mnist", "dc:crop_scale_rotate"),
        ("res_DC_MNIST_ConvNetBN_1ipc.pt", "mnist", "dc:crop_scale_rotate"),  # its code judges it on ConvNet too
        ("res_CAFE_MNIST_ConvNet_1ipc.pt", "mnist", "dc:crop_scale_rotate"),
        ("set.pt", "mnist", "dc:crop_scale_rotate"),
        ("res_DM_MNIST_ConvNet_1ipc.pt", "mnist", "color_crop_cutout_scale_rotate"),
        ("res_DC_FashionMNIST_ConvNet_1ipc.pt", "fashion_mnist", ""),
    ],
)
def test_students_of_grey_sets_are_augmented_as_in_dcs_code(
    file: str, dataset: str, policy: str, tmp_path: Path
) -> None:
    torch.save({"data": [[drawn(4, 1, 8, 8), CLASSES]]}, tmp_path / file)
    found, said = taken(tmp_path / file, named(dataset, toy(channels=1)))
    assert found.augment == policy
    assert said[0].endswith(f"students: augment {policy or 'none'}")
    assert taken(tmp_path / file, named(dataset, toy(channels=1)), augment="")[0].augment == ""


@pytest.mark.parametrize(
    ("source", "std"),
    [("dc", (0.2023, 0.1994, 0.2010)), ("dd", (0.247, 0.243, 0.261)), ("mtt", (0.2023, 0.1994, 0.2010))],
)
def test_constants_are_those_of_the_repository(source: str, std: tuple[float, ...], tmp_path: Path) -> None:
    x, real = drawn(4, 3, 8, 8), named("cifar10")
    if source == "dc":
        torch.save({"data": [[x, CLASSES]]}, tmp_path / "set.pt")
    elif source == "dd":
        torch.save([(x, CLASSES, torch.tensor([0.1]))], tmp_path / "set.pt")
    else:
        torch.save(x, tmp_path / "images_best.pt")
        torch.save(CLASSES, tmp_path / "labels_best.pt")
    path = tmp_path / ("images_best.pt" if source == "mtt" else "set.pt")
    found, said = taken(path, real, space="normalised")
    expected = x * torch.tensor(std).view(3, 1, 1) + torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
    assert torch.allclose(found.images, expected, atol=1e-6)
    assert (found.mean, found.std) == ((0.4914, 0.4822, 0.4465), std)
    assert " ".join(f"{value:.4g}" for value in std) in said[0]


@pytest.mark.parametrize("soft", [False, True])
def test_dd(soft: bool, tmp_path: Path) -> None:
    """Two steps of two images, three times over, by its own protocol equal to those steps taken by hand."""
    from baselines.dd import method as dd
    from distill.runs.run import Run

    x, classes = drawn(2, 2, 3, 8, 8), torch.tensor([[0, 1], [1, 0]])
    y = F.one_hot(classes, 2).float() + 0.1 * drawn(2, 2, 2) if soft else classes
    lrs = [0.02 * n for n in range(1, 7)]
    steps = [(x[n % 2], y[n % 2], torch.tensor([lrs[n]], requires_grad=True)) for n in range(6)]
    torch.save(steps, tmp_path / "results.pth")
    assert recognised_source(tmp_path / "results.pth") == recognised_source(tmp_path) == "dd"
    found, said = taken(tmp_path)
    assert found.method == ("sldd" if soft else "dd")
    assert "2 steps taken 3 times" in said[0]
    assert found.training.lrs == pytest.approx(lrs)
    order = torch.tensor(found.training.order)
    assert torch.allclose(Normalize(found.mean, found.std)(found.images)[order], x, atol=1e-6)
    assert torch.equal(found.training_tensors.get("labels", found.labels)[order], y)
    if soft:
        assert torch.allclose(found.labels[order], probabilities(y.flatten(0, 1)).view_as(y), atol=1e-6)
    else:
        assert found.labels.tolist() == [0, 0, 1, 1]

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    protocol = dd.protocol(found, tmp_path, Run(tmp_path / "run", None))
    protocol.train(network, "0")
    run = Run(tmp_path / "run", None)
    weight = torch.nn.init.xavier_normal_(torch.empty(2, 192), generator=run.generator("student", "0", "initial"))
    bias = torch.zeros(2)
    for images, labels, lr in steps:
        weight, bias = weight.detach().requires_grad_(), bias.detach().requires_grad_()
        gradients = torch.autograd.grad(F.cross_entropy(images.flatten(1) @ weight.T + bias, labels), (weight, bias))
        weight, bias = (p - lr.item() * g for p, g in zip((weight, bias), gradients, strict=True))
    assert torch.allclose(network[1].weight, weight, atol=1e-6)
    assert torch.allclose(network[1].bias, bias, atol=1e-6)


def test_rates_of_whole_numbers_are_kept(tmp_path: Path) -> None:
    """They were written as whole numbers of more digits than are read again."""
    torch.save([(drawn(4, 3, 8, 8), CLASSES, torch.tensor([2**62]))], tmp_path / "results.pth")
    kept = import_set(
        tmp_path / "results.pth", Reading(), "toy", "data", tmp_path, lambda size: REAL.resized(size), read
    )
    assert DistilledSet.load(kept).training.lrs == [2.0**62]


def save_mtt(folder: Path, images: Tensor, labels: Tensor = CLASSES, which: str = "best") -> None:
    torch.save(images, folder / f"images_{which}.pt")
    torch.save(labels, folder / f"labels_{which}.pt")


def test_mtt_normalised(tmp_path: Path) -> None:
    x = drawn(4, 3, 8, 8)
    save_mtt(tmp_path, x)
    save_mtt(tmp_path, x + 1, which="1000")
    assert recognised_source(tmp_path) == recognised_source(tmp_path / "images_1000.pt") == "mtt"
    with pytest.raises(InputError, match=r"does not say whether .* correlate by -0\.01, pixels of toy by 0\.56"):
        taken(tmp_path)
    found, _ = taken(tmp_path, space="normalised", lr=0.02)
    assert torch.allclose(Normalize(REAL.mean, REAL.std)(found.images), x, atol=1e-5)
    assert found.training == MethodTraining(lr=0.02, epochs=1000)
    found, said = taken(tmp_path / "images_1000.pt", space="normalised")
    assert torch.allclose(Normalize(REAL.mean, REAL.std)(found.images), x + 1, atol=1e-5)
    assert found.training == MethodTraining()
    assert "learning rate not in the file" in said[0]
    (tmp_path / "images_best.pt").unlink()
    save_mtt(tmp_path, x, which="2000")
    with pytest.raises(InputError, match=r"several sets: give one file of images_1000\.pt, images_2000\.pt"):
        taken(tmp_path, space="normalised")
    with pytest.raises(InputError, match="give the file images"):
        taken(tmp_path / "labels_1000.pt")


def test_mtt_whitened(tmp_path: Path) -> None:
    from kornia.enhance import ZCAWhitening

    pixels = toy(4, seed=9).images
    theirs = ZCAWhitening(eps=0.1, compute_inv=True).fit(REAL.images)
    save_mtt(tmp_path, theirs(pixels))
    found, said = taken(tmp_path, space="whitened", lr=0.01)
    assert (found.images - pixels).abs().max() < 1e-4
    assert "undone by the ZCA of the 400 training images" in said[0]
    layer = preprocessing(found, tmp_path)
    assert isinstance(layer, Whiten)
    assert (layer(found.images) - theirs(pixels)).abs().max() < 1e-4
    torch.save(pixels, tmp_path / "images_zca_100.pt")  # pixels, in spite of its name
    torch.save(CLASSES, tmp_path / "labels_100.pt")
    found, said = taken(tmp_path / "images_zca_100.pt")
    assert torch.equal(found.images, pixels)
    assert len(said) == 1


def reference_zca(rows: np.ndarray) -> np.ndarray:
    """FRePo's and KIP's W of rows (N, D): by SVD, with rank control."""
    covariance = rows.T @ rows / len(rows)
    size = len(covariance)
    u, s, _ = np.linalg.svd(covariance + 0.1 * np.trace(covariance) / size * np.eye(size))
    s[len(rows) :] = 1.0
    return (u * s**-0.5) @ u.T


def nhwc(images: Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).double().numpy()


@pytest.mark.parametrize("count", [400, 60])  # 60 < 192: directions without data stay as they are
def test_frepo(count: int, tmp_path: Path) -> None:
    real = named("cifar10", toy(count))
    pixels = (real.images[:4] + real.images[8:12]) / 2  # in the span of the data
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])
    rows = ((nhwc(real.images) - mean) / std).reshape(count, -1)
    centre = rows.mean(0)
    whitened = (((nhwc(pixels) - mean) / std).reshape(4, -1) - centre) @ reference_zca(rows - centre)
    labels = (np.eye(2)[CLASSES.numpy()] - 0.5) / np.sqrt(2 / 10)
    np.savez(tmp_path / "step000100.npz", image=whitened.reshape(4, 8, 8, 3).astype("f4"), label=labels.astype("f4"))
    assert recognised_source(tmp_path / "step000100.npz") == "frepo"
    found, said = taken(tmp_path / "step000100.npz", real)
    assert (found.images - pixels).abs().max() < 1e-3
    assert found.labels.tolist() == CLASSES.tolist()
    assert torch.allclose(found.training_tensors["labels"], torch.from_numpy(labels).float())
    layer = preprocessing(found, tmp_path)
    assert np.abs(nhwc(layer(pixels)).reshape(4, -1) - whitened).max() < 1e-3
    assert "frepo's" in said[0]


@pytest.mark.parametrize("count", [30, 12, 5])
def test_directions_without_data_stay_as_they_are(count: int) -> None:
    rows = drawn(count, 12).double()
    matrix, inverse = ridge_zca(iter(rows.split(7)), 12, count)
    assert np.abs(matrix.numpy() - reference_zca(rows.numpy())).max() < 1e-9
    assert torch.allclose(matrix @ inverse, torch.eye(12, dtype=torch.float64), atol=1e-9)


def test_frepo_of_grey_digits_is_standardised_with_learned_labels(tmp_path: Path) -> None:
    real = named("mnist", toy(channels=1))
    x, y = drawn(4, 1, 8, 8), torch.tensor([[0.8, -0.8], [0.3, -0.3], [-0.9, 0.9], [-2.0, 2.0]])
    np.savez(tmp_path / "a.npz", image=nhwc(x), label=y.numpy())
    found, _ = taken(tmp_path / "a.npz", real)
    assert torch.allclose(found.images, x * 0.3081 + 0.1307, atol=1e-6)
    scaled = y * 0.2**0.5 + 0.5
    assert torch.allclose(found.labels[:3], scaled[:3], atol=1e-6)
    assert found.labels[3].tolist() == [0.0, 1.0]
    assert found.training.whitening is None


def test_students_of_published_frepo_sets_are_trained_in_its_own_way(tmp_path: Path) -> None:
    real = named("cifar10", toy(400))
    labels = np.eye(2)[CLASSES.numpy()] - 0.5
    np.savez(tmp_path / "a.npz", image=nhwc(real.images[:4]).astype("f4"), label=labels.astype("f4"))
    found, _ = taken(tmp_path / "a.npz", real)
    assert found.backbone == "frepo_convnet"
    way = frepo_students.protocol(found, tmp_path, Run(tmp_path / "run", None).begin())
    assert (way.epochs, type(way.preprocess).__name__) == (frepo_students.steps_for(4), "Whiten")
    assert found.training.augment.startswith("flip_")
    grey = named("mnist", toy(channels=1))
    np.savez(tmp_path / "b.npz", image=nhwc(grey.images[:4]), label=labels)
    assert taken(tmp_path / "b.npz", grey)[0].training.augment.startswith("color_")


def test_kip(tmp_path: Path) -> None:
    pixels, values = toy(4, seed=9).images, nhwc(REAL.images)
    mean, std = values.mean((0, 1, 2)), values.std((0, 1, 2))

    def unit(images: np.ndarray) -> np.ndarray:
        rows = ((images - mean) / std).reshape(len(images), -1)
        rows = rows - rows.mean(1, keepdims=True)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    whitened = (unit(nhwc(pixels)) @ reference_zca(unit(values))).reshape(4, 8, 8, 3)
    labels = np.eye(2)[CLASSES.numpy()] - 0.5
    path = tmp_path / "kip_cifar10_ConvNet3_ssize4_zca_nol_noaug_ckpt1000.npz"
    np.savez(path, images=whitened, labels=labels)
    assert recognised_source(path) == "kip"
    found, said = taken(path)
    assert np.abs(unit(nhwc(found.images)) - unit(nhwc(pixels))).max() < 1e-4  # all that KIP keeps of an image
    assert (found.images - pixels).abs().mean() < 0.03
    assert found.labels.tolist() == CLASSES.tolist()
    assert "KIP drops both" in said[0]
    for name, space in (("x_nozca_l.npz", {}), ("x.npz", {"space": "normalised"})):
        np.savez(tmp_path / name, images=(nhwc(pixels) - mean) / std, labels=labels)
        assert (taken(tmp_path / name, **space)[0].images - pixels).abs().max() < 1e-5
    with pytest.raises(InputError, match="normalised or whitened"):
        taken(tmp_path / "x.npz")
    run = Run(tmp_path / "run", None).begin()
    assert least_squares.protocol(taken(tmp_path / "x_nozca_l.npz")[0], tmp_path, run).epochs == 5000
    with pytest.raises(InputError, match="lacks b_std, steps, w_std"):
        least_squares.protocol(found, tmp_path, run)


@pytest.mark.parametrize(("size", "factor"), [(8, 1), (8, 2), (8, 3), (9, 2)])
def test_idc_unpacks(size: int, factor: int, tmp_path: Path) -> None:
    """Class by class, one part of all its images after another, as in the official code's decoder."""
    images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    side = -(-size // factor)
    filled = torch.full((4, 3, side * factor, side * factor), 0.5)
    filled[:, :, :size, :size] = images
    parts = filled.unfold(2, side, side).unfold(3, side, side)
    expected = [
        F.interpolate(parts[n, None, :, i, j], (size, size), mode="bilinear")
        for label in (0, 1)
        for i in range(factor)
        for j in range(factor)
        for n in range(4)
        if CLASSES[n] == label
    ]
    found, labels = unpacked(images, CLASSES, factor)
    assert torch.allclose(found, torch.cat(expected), atol=1e-6)
    assert labels.tolist() == [0] * 2 * factor**2 + [1] * 2 * factor**2

    place = tmp_path / f"conv3in_factor{factor}_lr0.005_ipc2"
    place.mkdir()
    torch.save([images, CLASSES], place / "data.pt")
    real = REAL.resized(size)
    assert recognised_source(place) == recognised_source(place / "data.pt") == "idc"
    assert torch.equal(taken(place, real)[0].images, found)
    torch.save([images, CLASSES], tmp_path / "data.pt")
    with pytest.raises(InputError, match="give --factor 2"):
        taken(tmp_path / "data.pt", real)
    assert torch.equal(taken(tmp_path / "data.pt", real, factor=factor)[0].images, found)


def write_pictures(folder: Path, names: list[str], size: int = 8) -> None:

    for class_, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(2):
            file = folder / name / (f"class{class_:03d}_id{index:03d}.jpg" if "new" in name else f"{index}.png")
            Image.new("RGB", (size, size), (100 * class_ + 50, 50 * index, 7)).save(file, quality=100)


def test_sre2l(tmp_path: Path) -> None:
    write_pictures(tmp_path / "syn", ["new000", "new001"])
    (tmp_path / "FKD_cutmix_fp16" / "epoch_0").mkdir(parents=True)
    (tmp_path / "FKD_cutmix_fp16" / "epoch_0" / "batch_0.tar").write_bytes(b"")
    assert recognised_source(tmp_path / "syn") == "sre2l"
    found, said = taken(tmp_path / "syn")
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert (255 * found.images.mean((2, 3))[:, 0]).round().tolist() == pytest.approx([50, 50, 150, 150], abs=2)
    assert (found.mean, found.std, found.method) == (REAL.mean, REAL.std, "sre2l")
    assert "for its soft labels give --fkd" in said[1]
    with pytest.raises(InputError, match="soft labels of FKD, not images"):
        taken(tmp_path / "FKD_cutmix_fp16")


def test_pictures_are_matched_by_the_names_of_classes(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", ["below", "above"])  # the toy set has them the other way round
    assert recognised_source(tmp_path / "a") == "imagefolder"
    found, _ = taken(tmp_path / "a")
    assert (255 * found.images.mean((2, 3))[:, 0]).round().tolist() == [150, 150, 50, 50]
    assert found.labels.tolist() == [0, 0, 1, 1]
    write_pictures(tmp_path / "b", ["above", "beneath"])
    with pytest.raises(InputError, match="beneath is no class of toy"):
        taken(tmp_path / "b")
    write_pictures(tmp_path / "c", ["above"])
    write_pictures(tmp_path / "c", ["below"], size=16)
    with pytest.raises(
        InputError, match=r"0\.png has 16x16 pixels, the first one 8x8; images must be squares of one size"
    ):
        taken(tmp_path / "c")
    (tmp_path / "a" / "above" / "0.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"0\.png cannot be read as an image"):
        taken(tmp_path / "a")


def test_hugging_face_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "state.json").write_text("{}")
    assert recognised_source(tmp_path) == "hf"
    with pytest.raises(InputError, match="needs the package datasets: pip install datasets"):
        taken(tmp_path)


def test_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")

    pictures = [Image.new("RGB", (8, 8), (10 * n, 0, 255)) for n in range(4)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["below", "above"])})
    made = datasets.Dataset.from_dict({"image": pictures, "label": [1, 1, 0, 0]}, features=features)
    for name, folder in (("a", made), ("b", datasets.DatasetDict({"train": made}))):
        folder.save_to_disk(str(tmp_path / name))
        assert recognised_source(tmp_path / name) == "hf"
        found, _ = taken(tmp_path / name)
        assert found.labels.tolist() == [0, 0, 1, 1]
        assert (255 * found.images[:, 0, 0, 0]).tolist() == [0, 10, 20, 30]


def test_hugging_face_opens_nothing_but_its_own_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    write_pictures(tmp_path / "theirs", ["a"])
    content = (tmp_path / "theirs" / "a" / "0.png").read_bytes()
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})

    def saved(name: str, cells: list, features: object = kinds) -> Path:
        columns = {"image": cells, "label": list(range(len(cells)))}
        datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / name))
        return tmp_path / name

    whole, elsewhere = {"bytes": content, "path": None}, {"bytes": None, "path": str(tmp_path / "theirs/a/0.png")}
    assert taken(saved("whole", [whole, whole]))[0].images.shape == (2, 3, 8, 8)
    with monkeypatch.context() as patch:  # or datasets would put the bytes in
        patch.setattr(datasets.Image, "embed_storage", lambda self, storage, **_: storage)
        folder = saved("b", [whole, elsewhere])
    (tmp_path / "theirs" / "a" / "0.png").unlink()  # whoever opens it fails otherwise
    with pytest.raises(InputError, match="column image has no bytes in row 1; referenced files and addresses are not"):
        taken(folder)
    with pytest.raises(InputError, match="row 1 cannot be read as an image"):
        taken(saved("c", [whole, {"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n", "path": None}]))
    lists = datasets.Features({"image": datasets.Sequence(datasets.Image()), "label": datasets.Value("int64")})
    with pytest.raises(InputError, match=r"column image holds (List|Sequence), not numbers"):
        taken(saved("d", [[whole]], lists))
    small = io.BytesIO()
    Image.new("RGB", (4, 4)).save(small, "PNG")
    with pytest.raises(InputError, match="row 1 has 4x4 pixels, the first one 8x8; images must be squares of one size"):
        taken(saved("e", [whole, {"bytes": small.getvalue(), "path": None}]))
    monkeypatch.setattr(pictures, "LIMIT", 100)
    with pytest.raises(InputError, match="2 images, which take more than"):
        taken(tmp_path / "whole")


def test_pictures_are_decoded_from_bytes(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a"])
    contents = [path.read_bytes() for path in sorted((tmp_path / "a").iterdir())]
    found = pictures.decode_pictures(contents, "it")
    assert torch.equal(found, pictures.read_all_pictures(sorted((tmp_path / "a").iterdir())))
    with pytest.raises(InputError, match="it has no bytes in row 1"):
        pictures.decode_pictures([contents[0], None], "it")
    with pytest.raises(InputError, match="it, row 0 cannot be read as an image"):
        pictures.decode_pictures([b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"], "it")


# --- what contradicts --------------------------------------------------------------------------------------------


def smooth(n: int, seed: int = 0) -> Tensor:
    """Return pixels (n, 3, 8, 8) of which neighbours are alike, as those of photographs."""
    noise = F.avg_pool2d(drawn(n, 3, 14, 14, seed=seed), 7, stride=1)
    return (0.5 + noise).clamp(0, 1)


PHOTOS = ImageSet("toy", smooth(400), REAL.labels, REAL.classes, REAL.mean, REAL.std)


def doubt(folder: Path, images: Tensor, space: str, source: str = "dc", real: ImageSet = PHOTOS) -> str:
    """Return the one warning of a set, or ""."""
    if source == "mtt":
        save_mtt(folder, images)
        said = taken(folder, real, space=space)[1]
    else:
        torch.save({"data": [[images, CLASSES]]}, folder / "res_DC_toy_ConvNet_2ipc.pt")
        said = taken(folder / "res_DC_toy_ConvNet_2ipc.pt", real, space=space)[1]
    assert len(said) < 3
    return said[1] if len(said) == 2 else ""


@pytest.mark.parametrize("source", ["dc", "mtt"])
def test_numbers_that_contradict_the_space_are_told(source: str, tmp_path: Path) -> None:
    pixels, normalize = smooth(4, seed=9), Normalize(REAL.mean, REAL.std)
    assert doubt(tmp_path, normalize(pixels), "normalised", source) == ""
    assert doubt(tmp_path, pixels, "pixels", source) == ""
    assert "all values are in [0, 1]: pixels, not normalised" in doubt(tmp_path, pixels, "normalised", source)
    assert "outside [0, 1]: no pixels" in doubt(tmp_path, normalize(pixels), "pixels", source)
    assert "bytes rather than pixels" in doubt(tmp_path, 255 * pixels, "pixels", source)
    assert "another space than normalised" in doubt(tmp_path, 0.1 * normalize(pixels), "normalised", source)
    assert ("outside [-1, 2]" in doubt(tmp_path, 20 * normalize(pixels), "normalised", source)) == (source == "dc")


def test_whitened_and_normalised_sets_are_told_apart_by_their_neighbours(tmp_path: Path) -> None:
    pixels = smooth(4, seed=9)
    normalised, whitened = Normalize(REAL.mean, REAL.std)(pixels), Whiten.fit(PHOTOS.images, eps=1e-3)(pixels)
    assert doubt(tmp_path, whitened, "whitened", "mtt") == ""
    assert doubt(tmp_path, 20 * whitened, "whitened", "mtt") == ""  # learned images go far, and MTT's most of all
    assert "as of whitened images; --space whitened?" in doubt(tmp_path, whitened, "normalised", "mtt")
    assert "as of normalised images; --space normalised?" in doubt(tmp_path, normalised, "whitened", "mtt")
    assert doubt(tmp_path, toy(4, seed=9).images - 0.5, "whitened", "mtt", toy(400)) == ""  # of no photographs


def test_pictures_of_whitened_sets_may_go_far(tmp_path: Path) -> None:
    torch.save(20 * drawn(4, 3, 8, 8), tmp_path / "images_zca_100.pt")
    torch.save(CLASSES, tmp_path / "labels_100.pt")
    assert len(taken(tmp_path / "images_zca_100.pt")[1]) == 1


def test_another_data_set_is_told(tmp_path: Path) -> None:
    one = torch.zeros(4, dtype=torch.int64)
    torch.save({"data": [[drawn(4, 3, 8, 8), one]]}, tmp_path / "res_DC_OCTMNIST_ConvNet_2ipc.pt")
    said = taken(tmp_path, named("cifar10"))[1]
    assert said[1] == "warning: its name says OCTMNIST, and it is read as cifar10: another --dataset?"
    assert said[2] == "warning: 1 of the 2 classes of cifar10 have no image: another --dataset?"
    (tmp_path / "res_DC_OCTMNIST_ConvNet_2ipc.pt").rename(tmp_path / "res_DC_TinyImageNet_ConvNet_2ipc.pt")
    assert len(taken(tmp_path, named("tiny_imagenet"))[1]) == 2  # the classes alone


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("DSA_CIFAR10_ConvNet_50ipc.pt", "dsa"),
        ("modelpool_res_DC_CIFAR10_ConvNet_1ipc.pt", "dc"),
        ("res_CAFE_CIFAR10_ConvNet_1ipc.pt", "cafe"),
        ("res_CAMDM_CIFAR10_ConvNet_10ipc.pt", None),
    ],
)
def test_the_method_is_told_by_the_name(name: str, method: str | None, tmp_path: Path) -> None:
    save_dc(tmp_path / name)
    found, said = taken(tmp_path / name, named("cifar10"))
    assert found.method == (method or "dc")
    assert ("does not say which method" in said[0]) == (method is None)
    assert bool(found.augment) == (method == "dsa")


def test_several_sets_of_dc_are_named(tmp_path: Path) -> None:
    for network in ("ConvNet", "MLP"):
        save_dc(tmp_path / f"res_DC_toy_{network}_2ipc.pt")
    with pytest.raises(InputError, match=r"give one file of res_DC_toy_ConvNet_2ipc\.pt, res_DC_toy_MLP_2ipc\.pt"):
        read(tmp_path, Reading(), lambda size: REAL.resized(size), tmp_path, print)


def test_datm(tmp_path: Path) -> None:
    """Logits for labels, as its students take them: through a softmax; and the learned rate in a file."""
    x, logits = drawn(4, 3, 8, 8), 5 * drawn(4, 2, seed=1)
    save_mtt(tmp_path, x, logits)
    torch.save(torch.tensor(0.0123), tmp_path / "lr_best.pt")
    found, said = taken(tmp_path, space="normalised")
    assert torch.allclose(found.labels, logits.softmax(1))
    assert torch.equal(found.training_tensors["labels"], logits)
    assert found.training.lr == pytest.approx(0.0123)
    assert "learning rate 0.0123, labels are logits" in said[0]
    save_mtt(tmp_path, x, logits.softmax(1))  # TESLA's are probabilities
    assert torch.allclose(taken(tmp_path, space="normalised", lr=0.5)[0].labels, logits.softmax(1))
    assert taken(tmp_path, space="normalised", lr=0.5)[0].training.lr == 0.5


@pytest.mark.parametrize("rate", [[0.1, 0.2], [-0.1], [0.0]])
def test_a_learned_rate_that_is_none_is_told(rate: list[float], tmp_path: Path) -> None:
    save_mtt(tmp_path, drawn(4, 3, 8, 8))
    torch.save(torch.tensor(rate), tmp_path / "lr_best.pt")
    with pytest.raises(InputError, match=r"lr_best\.pt holds no learning rate, one number > 0; give --lr"):
        taken(tmp_path, space="normalised")
    assert taken(tmp_path, space="normalised", lr=0.5)[0].training.lr == 0.5


def test_images_and_labels_need_no_number(tmp_path: Path) -> None:
    torch.save(drawn(4, 3, 8, 8), tmp_path / "images.pt")
    torch.save(CLASSES, tmp_path / "labels.pt")
    assert taken(tmp_path / "images.pt", space="normalised")[0].labels.tolist() == CLASSES.tolist()


def test_averages_of_ftd(tmp_path: Path) -> None:
    x = drawn(4, 3, 8, 8)
    torch.save(x, tmp_path / "ema_images_best.pt")
    torch.save(CLASSES, tmp_path / "ema_labels_best.pt")
    torch.save(smooth(4), tmp_path / "images_zca_best.pt")
    for path in (tmp_path, tmp_path / "ema_images_best.pt"):
        assert recognised_source(path) == "mtt"
        assert torch.allclose(Normalize(REAL.mean, REAL.std)(taken(path, space="normalised")[0].images), x, atol=1e-5)
    assert torch.equal(taken(tmp_path / "images_zca_best.pt")[0].images, smooth(4))
    (tmp_path / "ema_labels_best.pt").unlink()
    with pytest.raises(InputError, match=r"there is no file .*ema_labels_best\.pt, with the labels of ema_images_best"):
        taken(tmp_path / "ema_images_best.pt", space="normalised")


def test_soft_labels_are_probabilities() -> None:
    with pytest.raises(ValueError, match="no probabilities"):
        DistilledSet.of(REAL, drawn(4, 3, 8, 8), drawn(4, 2))


def test_labels_that_are_not_sorted_are_told(tmp_path: Path) -> None:
    torch.save({"data": [[drawn(4, 3, 8, 8), CLASSES.flip(0).int()]]}, tmp_path / "a.pt")
    found, said = taken(tmp_path / "a.pt")
    assert found.labels.tolist() == [1, 1, 0, 0]
    assert "labels are not sorted" in said[1]
    assert "its name does not say which method" in said[0]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            {"data": [[drawn(4, 3, 8, 8), CLASSES + 1]]},
            "labels from 1 to 2, toy has 2 classes from 0: give --dataset",
        ),
        ({"data": [[drawn(4, 1, 8, 8), CLASSES]]}, "images of 1 channels, toy of 3: give --dataset"),
        ({"data": [[drawn(4, 3, 8, 8), F.one_hot(CLASSES, 5).float()]]}, "labels for 5 classes, toy has 2"),
        ({"data": [[drawn(4, 3, 8, 6), CLASSES]]}, r"images of \(4, 3, 8, 6\)"),
        ({"data": [[drawn(4, 3, 8, 8), CLASSES[:3]]]}, r"experiment 0 has 4 images and labels of \(3,\)"),
        ({"data": [[drawn(4, 3, 8, 8), CLASSES + 0.5]]}, "no whole numbers"),
        ({"data": [[drawn(4, 3, 8, 8) / 0, CLASSES]]}, "not finite"),
        ({"data": []}, r"no file of DC's code"),
        ({"data": [drawn(4, 3, 8, 8)]}, "no pair of images and labels"),
        ({"state_dict": {}}, "no distilled set that is known: it holds a dict of state_dict"),
        (3, "it holds int"),
        ([(drawn(4, 3, 8, 8), CLASSES, torch.tensor([-0.1]))], "lack a learning rate > 0"),
        ({"data": [[drawn(1, 3, 8, 8).expand(10**6, 3, 8, 8), CLASSES]]}, "the file holds 768"),
        (
            {"data": [[drawn(4, 3, 8, 8).to_sparse(), CLASSES]]},
            "would run or build torch._utils._rebuild_sparse_tensor",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(content: object, line: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputError, match=line) as error:
        taken(tmp_path / "a.pt")
    assert "\n" not in str(error.value)


def test_what_is_no_set(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    for place in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(InputError, match=r"no distilled set that is known: .*--source names one"):
            recognised_source(place)
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(InputError, match="it has arrays x"):
        recognised_source(tmp_path / "a.npz")
    save_dc(tmp_path / "a.pt")
    for source, line in (("dd", "no results.pth"), ("idc", "no data.pt"), ("frepo", "not a whole .npz")):
        with pytest.raises(InputError, match=line):
            taken(tmp_path / "a.pt", source=source)
    with pytest.raises(InputError, match="no set of source dc is; sources that are: mtt, frepo, kip"):
        taken(tmp_path / "a.pt", space="whitened")


# --- harm --------------------------------------------------------------------------------------------------------


REFUSED = "is refused: .*nothing was run|is not a whole|give the file"


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def evil_files(folder: Path, marker: Path) -> list[Path]:
    """Write files that would each make the marker, were they unpickled."""
    evil, good = Evil(marker), [drawn(4, 3, 8, 8), CLASSES]
    contents = {
        "alone": evil,
        "in_accuracies": {"data": [good], "accs_all_exps": {"ConvNet": [0.1, evil]}},
        "in_the_list": {"data": [good, [evil, CLASSES]]},
        "as_a_key": {"data": [good], evil: 1},
        "in_steps": [(good[0], good[1], torch.tensor([0.1])), (good[0], evil, torch.tensor([0.1]))],
        "array": {"data": [[np.array([evil, 1], dtype=object), CLASSES]]},
    }
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pt")
        torch.save(content, folder / f"{name}_legacy.pt", _use_new_zipfile_serialization=False)
    (folder / "plain.pt").write_bytes(pickle.dumps({"data": [evil]}))
    np.savez(folder / "object.npz", images=np.array([evil], dtype=object), labels=np.eye(2))
    np.savez(folder / "beside.npz", image=nhwc(good[0]), label=np.eye(4)[:, :2], other=np.array(evil, dtype=object))
    np.save(folder / "single.npy", np.array([evil], dtype=object))
    (folder / "single.npy").rename(folder / "single.npz")
    with zipfile.ZipFile(folder / "raw.npz", "w") as archive:
        archive.writestr("images.npy", pickle.dumps(evil))
    return sorted(path for path in folder.iterdir() if path.is_file())


def test_nothing_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "evil").mkdir()
    files = evil_files(tmp_path / "evil", marker)
    assert len(files) == 17
    for path in files:
        for source in ("auto", "dc", "dd", "mtt", "idc", "kip", "frepo"):
            with pytest.raises(InputError, match=REFUSED) as error:
                taken(path, source=source)
            assert "\n" not in str(error.value)
    assert not marker.exists()
    for name in ("in_accuracies.pt", "in_steps_legacy.pt"):  # the files are what they are said to be
        torch.load(tmp_path / "evil" / name, weights_only=False)
        assert marker.exists()
        marker.unlink()
    np.load(tmp_path / "evil" / "object.npz", allow_pickle=True)["images"]
    assert marker.exists()


def test_numbers_of_numpy_pass_and_nothing_of_numpy_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_dc(tmp_path / "a.pt")
    old = (tmp_path / "a.pt").read_bytes()
    content = read_pickle(tmp_path / "a.pt")
    assert content["accs_all_exps"]["ConvNet"][0] == 0.25
    assert content["accs_all_exps"]["ConvNet"][1:] == [0.31, 0.2]

    class Old:  # as numpy 1 pickled its numbers
        def __reduce__(self) -> tuple:
            import sys
            import types

            scalar = types.FunctionType((lambda *a: a).__code__, {}, "scalar")
            scalar.__module__, scalar.__qualname__ = "numpy.core.multiarray", "scalar"
            module = types.ModuleType("numpy.core.multiarray")
            module.scalar = scalar
            monkeypatch.setitem(sys.modules, "numpy.core.multiarray", module)
            return scalar, (np.dtype("f8"), struct.pack("<d", 0.5))

    torch.save({"data": [[drawn(4, 3, 8, 8), CLASSES]], "accs_all_exps": Old()}, tmp_path / "b.pt")
    assert len(taken(tmp_path / "b.pt")[0].images) == 4
    assert read_pickle(tmp_path / "b.pt")["accs_all_exps"] == 0.5
    assert old == (tmp_path / "a.pt").read_bytes()


def test_damaged_files_are_told(tmp_path: Path) -> None:
    save_dc(tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 8, 8, 3), "f4"), labels=np.eye(4, 2))
    for ending in ("pt", "npz"):
        whole = (tmp_path / f"a.{ending}").read_bytes()
        rows = [b"", b"PK\x03\x04", whole[: len(whole) // 2], whole[:-30], os.urandom(300), whole[:80] + whole[90:]]
        for content in rows:
            (tmp_path / f"b.{ending}").write_bytes(content)
            with pytest.raises(InputError, match="is not a whole") as error:
                taken(tmp_path / f"b.{ending}")
            assert "\n" not in str(error.value)
    for read_it in (read_pickle, read_npz):
        with pytest.raises(InputError, match="there is no file"):
            read_it(tmp_path / "none.pt")


def test_bombs_are_refused_before_they_take_memory(tmp_path: Path) -> None:
    save_dc(tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as archive,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for name in archive.namelist():
            out.writestr(name, archive.read(name) + b"\0" * 10**6)
    with pytest.raises(InputError, match="that unpack to"):
        read_pickle(tmp_path / "b.pt")

    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 32, 32, 3), }"
    for shape, line in ((10**9, "says it has 12,288,000,000,000 bytes, but has 4"), (10**20, "says it has")):
        text = (header % shape).ljust(117).encode() + b"\n"
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("image.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + b"\0" * 4)
        with pytest.raises(InputError, match=line):
            read_npz(tmp_path / "a.npz")


def test_no_picture_is_written_outside_its_folder(tmp_path: Path) -> None:
    names = ("..", ".", "../../a", "/b", "")
    place = tmp_path / "in" / "it"
    pictures.write_pictures(torch.zeros(5, 3, 2, 2), torch.arange(5), names, place)
    assert len(list(place.glob("*/0000.png"))) == 5
    assert [path for path in tmp_path.rglob("*.png") if place not in path.parents] == []


def test_every_class_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """Names that differ in signs alone fell into one folder, and a class was lost."""
    names = (
        "a dog",
        "a_dog",
        "a-dog",
        "a/dog",
        "+",
        "-",
        "=",
        "%",
        "%25",
        ".x",
        "x.",
        "x",
        "\u732b",
        "n" * 300,
        "n" * 301,
    )
    images = torch.arange(len(names)).view(-1, 1, 1, 1).expand(-1, 3, 4, 4) / 255
    pictures.write_pictures(images, torch.arange(len(names)), names, tmp_path)
    folders = pictures.picture_folders(tmp_path)
    assert len(folders) == len(names)
    assert sorted(pictures.class_of(folder, names) for folder in folders) == list(range(len(names)))
    assert torch.equal(pictures.read_pictures(tmp_path, names, 1, (3, 4, 4)), images)
    real = replace(REAL, classes=names)
    found = read(tmp_path, Reading(), lambda size: real.resized(size), tmp_path, lambda _: None)
    assert torch.equal(found.images[found.labels.argsort()], images)
    (tmp_path / "._x.png").write_bytes(b"not a picture")  # what macOS leaves
    (tmp_path / "-" / "._0.png").write_bytes(b"not a picture")
    assert len(pictures.picture_folders(tmp_path)["-"]) == 1


def test_folders_of_earlier_versions_are_still_read_where_they_name_one_class(tmp_path: Path) -> None:
    for folder in ("a_dog", "c"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / folder / "0000.png")
    assert len(pictures.read_pictures(tmp_path, ("a dog", "c"), 1, (3, 4, 4))) == 2
    with pytest.raises(InputError, match=r"no folder for class a/dog \(looked for a/dog, a%2Fdog, new000\)"):
        pictures.read_pictures(tmp_path, ("a/dog", "a dog"), 1, (3, 4, 4))


def test_soft_labels_follow_the_names_of_their_classes(tmp_path: Path) -> None:
    soft = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    fields = {"dataset": "toy", "method": "dc", "classes": REAL.classes[::-1], "mean": REAL.mean, "std": REAL.std}
    fields |= {"augment": "", "backbone": "convnet", "training": {}}
    arrays = {"images": drawn(2, 3, 8, 8).numpy(), "labels": soft.numpy()}
    np.savez(tmp_path / "a.npz", **arrays, **{"guard-distilled-1": json.dumps(fields)})
    found = read(tmp_path / "a.npz", Reading(), lambda size: REAL.resized(size), tmp_path, lambda _: None)
    assert found.classes == REAL.classes
    assert torch.equal(found.labels, soft.flip(1))


def test_the_same_file_on_other_data_is_another_set(tmp_path: Path) -> None:
    """A set of own data was served with the mean, the deviation and the class names of the data read before."""
    torch.save([smooth(4), CLASSES], tmp_path / "data.pt")
    other = replace(REAL, mean=(0.1,) * 3, classes=("x", "y"))
    places = [
        import_set(
            tmp_path / "data.pt", Reading(factor=1), "toy", data, tmp_path, lambda size, r=r: r.resized(size), read
        )
        for data, r in (("first", REAL), ("second", other), ("first", REAL))
    ]
    assert places[0] == places[2] != places[1]
    assert [DistilledSet.load(place).classes for place in places[:2]] == [REAL.classes, ("x", "y")]


@pytest.mark.parametrize(
    "change",
    [
        {"training": [1]},
        {"augment": 5},
        {"backbone": 7},
        {"std": [0.0] * 3},
        {"mean": ["a"] * 3},
        {"mean": [float("nan")] * 3},
        {"std": [1.0]},
        {"method": [1]},
        {"method": "../x"},
        {"classes": [1, 2]},
    ],
)
def test_a_damaged_npz_of_ours_is_one_line(change: dict, tmp_path: Path) -> None:
    fields = {"dataset": "toy", "method": "dc", "classes": REAL.classes, "mean": REAL.mean, "std": REAL.std}
    fields |= {"augment": "", "backbone": "convnet", "training": {}}
    real = lambda size: REAL.resized(size)  # noqa: E731
    for name, content in (("whole", fields | {"training": {"whitening": "/x"}}), ("damaged", fields | change)):
        arrays = {"images": drawn(4, 3, 8, 8).numpy(), "labels": CLASSES.numpy()}
        np.savez(tmp_path / f"{name}.npz", **arrays, **{"guard-distilled-1": json.dumps(content)})
    kept = import_set(tmp_path / "whole.npz", Reading(), "toy", "data", tmp_path, real, read)
    assert DistilledSet.load(kept).training == MethodTraining()  # no file elsewhere is named by a set of others
    with pytest.raises(InputError, match=r"damaged\.npz is no (distilled )?set") as error:
        import_set(tmp_path / "damaged.npz", Reading(), "toy", "data", tmp_path, real, read)
    assert "\n" not in str(error.value)
    assert len(list((tmp_path / "published" / "toy").iterdir())) == 1


def test_the_factor_in_a_path_makes_another_reading(tmp_path: Path) -> None:
    counts = []
    for factor in (1, 2):
        path = tmp_path / f"factor{factor}" / "data.pt"
        path.parent.mkdir()
        torch.save([smooth(4), CLASSES], path)
        kept = import_set(path, Reading(), "toy", "data", tmp_path, lambda size: REAL.resized(size), read)
        counts.append(len(DistilledSet.load(kept).images))
    assert counts == [4, 16]


class Calling:
    """Calls a function when it is unpickled."""

    def __init__(self, *called: object):
        self.called = called

    def __reduce__(self) -> tuple:
        return self.called[0], self.called[1:]


@pytest.mark.parametrize("zipped", [True, False])
def test_calls_that_torch_allows_and_a_set_does_not_need_are_refused(zipped: bool, tmp_path: Path) -> None:
    """Each loads with weights_only, and takes more memory than it has bytes, as large as one likes."""
    doubled = b"ab"
    for _ in range(4):
        doubled = Calling(codecs.encode, doubled, "hex")
    rows = (
        (Calling(bytearray, 800), "bytearray"),
        (doubled, r"_codecs\.encode with what torch\.save does not give it"),
        (Calling(codecs.encode, "ab", "utf-32"), r"_codecs\.encode with"),
        (Calling(torch.Size, (3,)), r"torch\.Size"),
        (Calling(OrderedDict, [("a", 1)]), r"collections\.OrderedDict with"),
        ({"data": [drawn(4, 3, 8, 8), Calling(complex, 1)]}, "complex"),
    )
    for content, name in rows:
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match=f"refused: it would run or build .*{name}.*; nothing was run") as error:
            read_pickle(tmp_path / "a.pt")
        assert "\n" not in str(error.value)


def test_weights_are_told_by_what_they_are(tmp_path: Path) -> None:
    torch.save(torch.nn.Conv2d(3, 3, 3).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(InputError, match="no distilled set that is known: it holds a dict of weight, bias"):
        recognised_source(tmp_path / "weights.pth")


def test_what_torch_writes_of_tensors_dicts_and_bytes_passes(tmp_path: Path) -> None:
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.uint8, torch.bool)
    content = {
        "kinds": [torch.ones(2, dtype=kind) for kind in kinds],
        "learned": torch.nn.Parameter(torch.ones(2)),
        "ordered": OrderedDict(a=1, b=(2, 3.5, None, True)),
        "bytes": [b"abc", bytes(range(256)), b"a"],
        "numpy": [np.float32(0.5), np.int64(3), np.bool_(True), np.dtype(">f4").type(2)],
        "kind": torch.float32,
    }
    for zipped in (True, False):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        found = read_pickle(tmp_path / "a.pt")
        assert [each.dtype for each in found["kinds"]] == list(kinds)
        assert torch.equal(found["learned"], content["learned"])
        assert found["numpy"] == [0.5, 3, True, 2.0]
        for name in ("ordered", "bytes", "kind"):
            assert found[name] == content[name]


@pytest.mark.parametrize(
    ("program", "line"),
    [
        # bytes of one text over and over, a dict on and on, ...
        (
            b"](c_codecs\nencode\nq\x00X\x40\0\0\0"
            + 64 * b"a"
            + b"X\x06\0\0\0latin1\x86q\x01R"
            + 9 * b"h\0h\1R"
            + b"e.",
            "of more",
        ),
        (b"](cnumpy.core.multiarray\nscalar\n)R}be.", r"build numpy\.core\.multiarray\.scalar with a state"),
        (b"ccollections\nOrderedDict\n](K\1K\2\x86e\x85R.", r"build collections\.OrderedDict with"),
        (b"}" + b"N" + 30 * b"q\0h\0\x86" + b"Ns.", "a key that is no text or number"),
        (b"X\7\0\0\0storagectorch\nFloatStorage\nN" + 30 * b"q\0h\0\x86" + b"\x87Q.", "without a plain key"),
        (b"ctorch.storage\nUntypedStorage\nJ\0\0\0\x10\x85R.", r"build torch\.storage\.UntypedStorage"),
        (b"ctorch\nfloat32\n)R.", r"build torch\.float32"),
        (b"K\1)R.", "calls something that is no name"),
        (b"cbuiltins\nbytearray\n)\x81.", "build builtins.bytearray"),
        (b"X\2\0\0\0osX\6\0\0\0system\x93.", "it has STACK_GLOBAL, which"),
        (b"(ios\nsystem\n.", "it has INST, which"),
        (b"R.", "is not a whole"),
        (b"t.", "is not a whole"),
    ],
)
def test_programs_that_torch_save_does_not_write(program: bytes, line: str, tmp_path: Path) -> None:
    torch.save(drawn(2), tmp_path / "a.pt")
    torch.save(drawn(2), tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(tmp_path / "a.pt") as archive, zipfile.ZipFile(tmp_path / "c.pt", "w") as out:
        for name in archive.namelist():
            out.writestr(name, b"\x80\2" + program if name.endswith("data.pkl") else archive.read(name))
    with pytest.raises(InputError, match=line):
        read_pickle(tmp_path / "c.pt")
    (tmp_path / "d.pt").write_bytes((tmp_path / "b.pt").read_bytes().partition(b".\x80\2")[0] + b".\x80\2" + program)
    with pytest.raises(InputError, match=line):
        read_pickle(tmp_path / "d.pt")


def test_as_tensor_takes_numbers_only() -> None:
    assert as_tensor(np.arange(3, dtype=">i2"), "x").tolist() == [0, 1, 2]
    assert as_tensor(np.array([True]), "x").dtype == torch.int64
    assert as_tensor(torch.nn.Parameter(torch.ones(2, dtype=torch.float16)), "x").dtype == torch.float32
    for value in ("a", None, np.array(["a"]), torch.ones(2, dtype=torch.complex64), [1.0]):
        with pytest.raises(InputError, match="no plain tensor"):
            as_tensor(value, "x")


def test_every_reader_has_a_name_of_its_flag() -> None:
    assert get_args(get_type_hints(Reading)["source"]) == ("auto", *SOURCES)


def test_the_record_of_constants_fits_the_data_sets() -> None:
    for facts in FACTS.values():
        for mean, std in facts.constants.values():
            assert len(mean) == len(std) == facts.channels
            assert min(std) > 0
    assert {code for facts in FACTS.values() for code in facts.constants} == set(CODES)


def test_a_card_of_our_export_is_read_and_a_damaged_one_told(tmp_path: Path) -> None:
    save_mtt(tmp_path, drawn(4, 3, 8, 8))
    (tmp_path / "learned_lr.json").write_text(json.dumps({"lr": 0.03, "space": "normalised"}))
    assert taken(tmp_path)[0].training.lr == 0.03
    assert taken(tmp_path, lr=0.5)[0].training.lr == 0.5
    (tmp_path / "learned_lr.json").write_text("{")
    with pytest.raises(InputError, match=r"learned_lr\.json is damaged"):
        taken(tmp_path)


def test_pictures_that_are_too_many_for_memory_stay_in_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = toy(40).images, toy(40).labels.sort().values
    pictures.write_pictures(images, labels, ("above", "below"), tmp_path / "set")
    whole, _ = taken(tmp_path / "set", source="imagefolder")
    monkeypatch.setattr(pictures, "LIMIT", 4 * images.numel() - 1)
    monkeypatch.setattr(distilled, "SHARD", 4 * images[:7].numel())
    found, said = taken(tmp_path / "set", source="imagefolder")
    assert isinstance(found.images, ImageFiles)
    assert not [line for line in said if "warning" in line]
    found.save(tmp_path / "kept" / "distilled.safetensors")
    assert len(list((tmp_path / "kept").iterdir())) == 1 + 6
    kept = DistilledSet.load(tmp_path / "kept")
    assert torch.equal(kept.images[:], whole.images)
    assert torch.equal(kept.labels, whole.labels)
    bright = np.full((8, 8), 90, np.uint8)
    for name in ("above", "below"):
        (tmp_path / "grey" / name).mkdir(parents=True)
        for n in range(20):
            Image.fromarray(bright).save(tmp_path / "grey" / name / f"{n}.png")
    monkeypatch.setattr(pictures, "LIMIT", 100)
    grey, _ = taken(tmp_path / "grey", named("mnist", toy(channels=1)), source="imagefolder")
    assert grey.images.shape == (40, 1, 8, 8)
    assert torch.equal(grey.images[:], torch.full((40, 1, 8, 8), 90 / 255))
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "grey" / "below" / "3.png")
    deep, _ = taken(tmp_path / "grey", named("mnist", toy(channels=1)), source="imagefolder")
    assert (deep.images[:] == 40000 / 65535).sum() == 64
