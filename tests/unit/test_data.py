import gzip
import hashlib
import os
import pickle
import socket
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from distill.data import DATASETS, ImageSet, _folders, fingerprint, folder, imageset, load
from distill.data.image_files import ImageFiles
from distill.errors import InputError

# --- ImageSet --------------------------------------------------------------------------------------------------------


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(counts: tuple[int, ...] = (9, 5, 2), size: int = 4) -> ImageSet:
    """Classes in mixed order; the red of an image is its index, so that every image is told from the others."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator(1))]
    images = torch.rand(len(labels), 2, size, size, generator=generator(2))
    images[:, 0] = (torch.arange(len(labels)) / 255).view(-1, 1, 1)
    names = tuple("abcdefgh"[: len(counts)])
    return ImageSet("numbered", images, labels, names, (0.5, 0.5), (0.2, 0.2))


def indices(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0] * 255).round().long().tolist()


def test_properties() -> None:
    data = numbered()
    assert (len(data), data.num_classes, data.image_shape) == (16, 3, (2, 4, 4))
    assert torch.equal(data.to("cpu").images, data.images)


def test_identity_is_what_stages_on_disk_are_named_by() -> None:
    """To change what it says is to make all teachers and experts anew."""
    data = numbered()
    known = {"name": "numbered", "shape": [2, 4, 4], "counts": [9, 5, 2], "classes": ["a", "b", "c"]}
    known |= {"mean": [0.5, 0.5], "std": [0.2, 0.2], "digest": data.digest}
    assert data.identity() == known
    assert data.to("cpu").digest == numbered().digest == data.digest
    one_pixel = data.images.clone()
    one_pixel[7, 1, 2, 3] += 1 / 255
    exchanged = data.labels[torch.tensor([1, 0, *range(2, 16)])]
    parts = data.split(0.4, generator())
    changed = [replace(data, mean=(0.1, 0.5)), replace(data, classes=("a", "b", "d")), data.resized(2), *parts]
    changed += [
        replace(data, images=one_pixel),
        replace(data, labels=exchanged),
        replace(data, images=one_pixel).resized(2),
    ]
    found = [one.identity() for one in (data, *changed)]
    assert all(found.count(one) == 1 for one in found)
    assert len({one.digest for one in changed}) == len(changed) - 1  # of mean and names other fields tell


def test_identity_of_files_is_that_of_their_bytes(tmp_path: Path) -> None:
    """A set that was moved, or is decoded at another time, is the same; another picture of the same name is not."""

    def made(folder: str, value: int) -> ImageSet:
        for part in ("train/a", "train/b", "val/a", "val/b"):
            (tmp_path / folder / part).mkdir(parents=True)
            Image.new("RGB", (4, 4), (value, 0, 9)).save(tmp_path / folder / part / "0.bmp")
        Image.new("RGB", (4, 4), (255, 255, 255)).save(tmp_path / folder / "train/b/1.bmp")
        return load("folder", tmp_path / folder)[0]

    first, other, same = made("x", 1), made("y", 2), made("z", 1)
    assert first.identity() == same.identity() != other.identity()
    assert first.digest == load("folder", tmp_path / "x", 8)[0].digest  # decoded otherwise, and the shape says so
    assert fingerprint("folder", tmp_path / "x") == fingerprint("folder", tmp_path / "z") == first.source
    assert fingerprint("folder", tmp_path / "y") != first.source
    files = replace(first, images=ImageFiles(np.array([str(tmp_path / "x/train/a/0.bmp")] * 3), 4, "square"), source="")
    moved = replace(files, images=ImageFiles(np.array([str(tmp_path / "y/train/a/0.bmp")] * 3), 4, "square"))
    assert files.digest != moved.digest


def test_ordered_as_keeps_which_image_is_of_which_class() -> None:
    data = numbered()
    other = data.ordered_as(("c", "a", "b"))
    assert [other.classes[label] for label in other.labels] == [data.classes[label] for label in data.labels]
    assert torch.equal(other.images, data.images)
    assert other.ordered_as(data.classes).identity() == data.identity()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(16, 4, 4)}, "N, C, H, W"),
        ({"images": torch.zeros(16, 2, 4, 4, dtype=torch.float64)}, "float32"),
        ({"images": torch.zeros(0, 2, 4, 4), "labels": torch.zeros(0, dtype=torch.int64)}, "images are"),
        ({"labels": torch.zeros(15, dtype=torch.int64)}, "labels are"),
        ({"labels": torch.zeros(16, dtype=torch.int32)}, "int64"),
        ({"labels": torch.full((16,), 3)}, "from 3 to 3"),
        ({"labels": torch.full((16,), -1)}, "from -1"),
        ({"mean": (0.5,)}, "each of 2 channels"),
        ({"std": (0.5, 0.0)}, "std > 0"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str) -> None:
    data = numbered()
    fields = {name: getattr(data, name) for name in ("name", "images", "labels", "classes", "mean", "std")}
    with pytest.raises(ValueError, match=message):
        ImageSet(**(fields | change))


@pytest.mark.parametrize("n", [1, 3, 5, 8])
def test_sample_draws_from_its_class_without_replacement(n: int) -> None:
    data = numbered()
    drawn = indices(data.sample(1, n, generator()))
    assert len(drawn) == len(set(drawn)) == min(n, 5)
    assert {int(data.labels[i]) for i in drawn} == {1}


def test_sample_reaches_every_image_in_changing_order() -> None:
    data, draws = numbered(), generator()
    drawn = [tuple(indices(data.sample(0, 9, draws))) for _ in range(5)]
    assert len(set(drawn)) == 5
    assert {tuple(sorted(one)) for one in drawn} == {tuple((data.labels == 0).nonzero()[:, 0].tolist())}


def test_randomness_is_the_generator_s_alone() -> None:
    data, before = numbered(), torch.random.get_rng_state()
    assert torch.equal(data.sample(0, 4, generator(3)), data.sample(0, 4, generator(3)))
    assert not torch.equal(data.sample(0, 4, generator(3)), data.sample(0, 4, generator(4)))
    assert torch.equal(data.split(0.3, generator(3))[1].images, data.split(0.3, generator(3))[1].images)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_split_is_stratified_disjoint_and_complete() -> None:
    data = numbered()
    rest, held_out = data.split(0.3, generator())
    assert held_out.labels.bincount().tolist() == [3, 2, 1]  # round(2.7), round(1.5), at least 1
    ours, theirs = indices(rest.images), indices(held_out.images)
    assert sorted(ours + theirs) == list(range(16))
    assert ours == sorted(ours)
    assert theirs == sorted(theirs)
    assert torch.equal(rest.labels, data.labels[ours])
    assert torch.equal(held_out.labels, data.labels[theirs])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_split_refuses_what_is_no_part(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction is"):
        numbered().split(fraction, generator())


def test_split_leaves_something_of_each_class() -> None:
    with pytest.raises(InputError, match="class c of numbered has 1 examples"):
        numbered((5, 5, 1)).split(0.1, generator())


@pytest.mark.parametrize(("n", "counts"), [(1, [1, 0, 0]), (3, [1, 1, 1]), (7, [3, 2, 2]), (10, [4, 4, 2])])
def test_a_subset_is_even_and_in_order(n: int, counts: list[int]) -> None:
    data = numbered()
    subset = data.subset(n)
    chosen = indices(subset.images)
    assert subset.labels.bincount(minlength=3).tolist() == counts
    assert chosen == sorted(chosen) == indices(data.subset(n).images)
    assert torch.equal(subset.labels, data.labels[chosen])
    assert set(chosen) <= set(indices(data.subset(n + 3).images))


def test_a_subset_is_random_whatever_the_order_of_the_set() -> None:
    """MNIST's first test images are harder than the others: accuracies on them were three points too low."""
    data = numbered((100, 100, 100))
    chosen = data.subset(150)
    for class_ in range(3):
        places = (data.labels == class_).nonzero()[:, 0].tolist()
        ranks = [places.index(i) for i in indices(chosen.images) if data.labels[i] == class_]
        assert 40 < sum(ranks) / 50 < 60  # of 0 to 99; the first fifty have 24.5


def test_a_subset_of_no_or_many_is_the_whole() -> None:
    data = numbered()
    assert all(data.subset(n) is data for n in (None, 16, 99))
    with pytest.raises(ValueError, match="n is 0"):
        data.subset(0)


def test_resized_by_two_is_the_mean_of_blocks() -> None:
    data = numbered(counts=(700, 500), size=6)  # more than one chunk
    small = data.resized(3)
    assert small.image_shape == (2, 3, 3)
    blocks = data.images.view(-1, 2, 3, 2, 3, 2).mean((3, 5))
    torch.testing.assert_close(small.images, blocks)
    assert data.resized(6) is data


@pytest.mark.parametrize("size", [3, 5, 7, 16])
def test_resized_stays_in_range(size: int) -> None:
    data = numbered((3, 2))
    extremes = ImageSet("", data.images.round(), data.labels, data.classes, data.mean, data.std).resized(size).images
    assert extremes.min() >= 0
    assert extremes.max() <= 1
    ones = ImageSet("", torch.ones(5, 2, 4, 4), data.labels, data.classes, data.mean, data.std).resized(size).images
    assert torch.equal(ones, torch.ones(5, 2, size, size))


# --- the registry, on fake data --------------------------------------------------------------------------------------


def write_image(path: Path, mode: str = "RGB", size: tuple[int, int] = (8, 8), seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def fake_folder(root: Path, _: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(["train/ant/1.png", "train/ant/2.png", "train/bee/1.png", "val/ant/1.png"]):
        write_image(root / name, seed=number)
    write_image(root / "val/bee/1.png", seed=9)


def fake_tree(sizes: tuple[tuple[int, int], ...], below: str = "") -> Callable[[Path, pytest.MonkeyPatch], None]:
    """Two classes by WordNet number, of three and two training images and one for testing."""

    def make(root: Path, _: pytest.MonkeyPatch) -> None:
        counts = {"train/n02": 2, "train/n01": 3, "val/n01": 1, "val/n02": 1}
        for seed, (name, count) in enumerate(counts.items()):
            for number in range(count):
                size = sizes[number % len(sizes)]
                write_image(root / below / name / f"{number}.JPEG", size=size, seed=10 * seed + number)

    return make


def idx(array: np.ndarray) -> bytes:
    """The format of MNIST: two zeros, 8 for uint8, the number of dimensions, the dimensions big-endian, the bytes."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def fake_idx(kind: str) -> Callable[[Path, pytest.MonkeyPatch], None]:
    def make(root: Path, _: pytest.MonkeyPatch) -> None:
        raw = root / kind / "raw"
        raw.mkdir(parents=True)
        draw = np.random.default_rng(0)
        for part, n in (("train", 20), ("t10k", 10)):
            pixels = draw.integers(0, 256, (n, 28, 28), dtype=np.uint8)
            (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels))
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(n, dtype=np.uint8) % 10))

    return make


def fake_cifar(kind: str, key: str, num_classes: int) -> Callable[[Path, pytest.MonkeyPatch], None]:
    def make(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        official = getattr(torchvision.datasets, kind)
        place = root / official.base_folder
        place.mkdir(parents=True)
        draw = np.random.default_rng(0)

        def write(name: str, content: dict) -> str:
            (place / name).write_bytes(pickle.dumps(content))
            return hashlib.md5((place / name).read_bytes()).hexdigest()

        for attribute in ("train_list", "test_list"):
            entries = []
            for name, _ in getattr(official, attribute):
                pixels = draw.integers(0, 256, (2 * num_classes, 3072), dtype=np.uint8)
                entries.append([name, write(name, {"data": pixels, key: list(range(num_classes)) * 2})])
            monkeypatch.setattr(official, attribute, entries)
        names = [f"class {number}" for number in range(num_classes)]
        md5 = write(official.meta["filename"], {official.meta["key"]: names})
        monkeypatch.setattr(official, "meta", official.meta | {"md5": md5})

    return make


FAKES: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "digits": lambda _root, _monkeypatch: None,
    "mnist": fake_idx("MNIST"),
    "fashion_mnist": fake_idx("FashionMNIST"),
    "cifar10": fake_cifar("CIFAR10", "labels", 10),
    "cifar100": fake_cifar("CIFAR100", "fine_labels", 100),
    "folder": fake_folder,
    "imagenet": fake_tree(((500, 375), (60, 90))),
    "imagenette": fake_tree(((224, 224), (224, 224))),
    "tiny_imagenet": fake_tree(((64, 64),)),
}
DOWNLOADED = {
    "mnist": "MNIST/raw",
    "fashion_mnist": "FashionMNIST/raw",
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def message(name: str, root: Path, image_size: int | None = None, damaged: str = "refuse") -> str:
    with pytest.raises(InputError) as raised:
        load(name, root, image_size, damaged)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_the_folder_is_the_registry() -> None:
    assert set(DATASETS) == set(FAKES), "a new data set needs a fake here"


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("image_size", [None, 7])
@pytest.mark.parametrize("name", DATASETS)
def test_contract(name: str, image_size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FAKES[name](tmp_path, monkeypatch)
    before = torch.random.get_rng_state()
    train, test = load(name, tmp_path, image_size)
    again, _ = load(name, tmp_path, image_size)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(train.images[:], again.images[:])
    assert torch.equal(train.labels, again.labels)
    assert train.name == test.name == name
    assert (train.classes, train.mean, train.std) == (test.classes, test.mean, test.std)
    assert train.image_shape == test.image_shape
    assert image_size is None or train.image_shape[1:] == (7, 7)
    for part in (train, test):
        pixels = part.images[:]
        assert pixels.shape == part.images.shape
        assert pixels.is_contiguous()
        assert 0 <= pixels.min() < pixels.max() <= 1
        assert (part.labels.bincount(minlength=part.num_classes) > 0).all()


def test_bytes_become_pixels_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixel by pixel what torchvision's own ToTensor makes of the same files."""
    to_tensor = torchvision.transforms.ToTensor()
    for name, kind in (("cifar10", "CIFAR10"), ("mnist", "MNIST")):
        FAKES[name](tmp_path, monkeypatch)
        theirs = getattr(torchvision.datasets, kind)(tmp_path, train=True, transform=to_tensor)
        ours, _ = load(name, tmp_path)
        assert torch.equal(ours.images, torch.stack([image for image, _ in theirs]))
        assert ours.labels.tolist() == [label for _, label in theirs]


def test_unknown_name(tmp_path: Path) -> None:
    assert "unknown data set 'cifer10'; did you mean 'cifar10'?" in message("cifer10", tmp_path)


@pytest.mark.parametrize("image_size", [3, 1025, -8])
def test_image_size_out_of_range(image_size: int, tmp_path: Path) -> None:
    assert f"image size is {image_size}" in message("digits", tmp_path, image_size)


def test_unknown_way_with_damaged_files(tmp_path: Path) -> None:
    text = message("digits", tmp_path, damaged="skp")
    assert text == "unknown value of damaged 'skp'; did you mean 'skip'? Known: refuse, skip"


def test_sets_that_are_no_image_files_have_no_damaged_ones(tmp_path: Path) -> None:
    assert len(load("digits", tmp_path, damaged="skip")[0]) == len(load("digits", tmp_path)[0])


# --- digits ----------------------------------------------------------------------------------------------------------


def test_digits_are_always_the_same(tmp_path: Path) -> None:
    train, test = load("digits", tmp_path / "absent")
    assert train.image_shape == (1, 8, 8)
    assert train.labels.bincount().tolist() == [142, 146, 142, 146, 145, 146, 145, 143, 139, 144]
    assert test.labels.bincount().tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    order = hashlib.sha256(bytes(train.labels.tolist() + test.labels.tolist())).hexdigest()
    assert order[:16] == "c9764c7c88b1befd"
    assert test.images.double().sum().item() * 16 == 111222


def test_digits_are_those_of_scikit_learn(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    expected, found = load_digits(), torch.cat([part.images for part in load("digits", tmp_path)])
    ours, theirs = (np.asarray(x, np.uint8).reshape(-1, 64) for x in (found * 16, expected.data))
    assert sorted(map(bytes, ours)) == sorted(map(bytes, theirs))


def test_digits_constants_are_those_of_the_training_part(tmp_path: Path) -> None:
    train, _ = load("digits", tmp_path)
    pixels = train.images.double()
    assert train.mean == (round(pixels.mean().item(), 4),)
    assert train.std == (round(pixels.std(correction=0).item(), 4),)


# --- sets that torchvision knows -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", DOWNLOADED)
def test_missing_without_network(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = message(name, tmp_path / "data")
    assert f"{name} is not in {tmp_path / 'data'} " in text
    assert "no network" in text
    for part in (f"put {DOWNLOADED[name]}/ there", "--data-dir or DATA_DIR", "digits needs no files"):
        assert part in text
    assert list((tmp_path / "data").iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_missing_where_nothing_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert "the download failed (" in message("mnist", tmp_path / "file" / "data")


def test_a_silent_server_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("distill.data._torchvision._SILENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes the call and says nothing
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"http://127.0.0.1:{server.getsockname()[1]}/x.gz")
        assert "timed out" in message("cifar10", tmp_path)
    assert socket.getdefaulttimeout() is None


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", DOWNLOADED)
def test_damaged_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever file is cut short or empty, the folder to delete is named."""
    FAKES[name](tmp_path, monkeypatch)
    place = tmp_path / DOWNLOADED[name]
    for file in sorted(place.iterdir()):
        whole = file.read_bytes()
        for damaged in (whole[:-1], whole[:5], b"", b"\x00" * 40):
            file.write_bytes(damaged)
            text = message(name, tmp_path)
            assert text.startswith(f"{place} cannot be read as {name} (")
            assert text.endswith("delete that folder and run again")
        file.write_bytes(whole)
    load(name, tmp_path)


class Trap:
    """A pickle that acts when it is read."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("trapped",)


def test_no_foreign_pickle_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FAKES["cifar10"](tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    for name in ("data_batch_3", "test_batch", "batches.meta"):
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(Trap()))
        assert "delete that folder" in message("cifar10", tmp_path)
    assert not (tmp_path / "trapped").exists()


def test_archives_laid_there_by_hand_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None, capfd: pytest.CaptureFixture[str]
) -> None:
    FAKES["mnist"](tmp_path, monkeypatch)
    place, resources = tmp_path / "MNIST/raw", []
    for name, _ in torchvision.datasets.MNIST.resources:
        file = place / name.removesuffix(".gz")
        (place / name).write_bytes(gzip.compress(file.read_bytes()))
        resources.append((name, hashlib.md5((place / name).read_bytes()).hexdigest()))
        file.unlink()
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    train, _ = load("mnist", tmp_path)
    assert len(train) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MNIST"]
    assert capfd.readouterr() == ("", "")

    (place / "train-images-idx3-ubyte").unlink()
    (place / resources[0][0]).write_bytes(b"half")
    assert "the download failed (" in message("mnist", tmp_path)
    assert not (place / "train-images-idx3-ubyte").exists()


# --- folder ----------------------------------------------------------------------------------------------------------


def test_folder_reads_every_kind_of_image(tmp_path: Path) -> None:
    modes = {"grey": "L", "alpha": "RGBA", "palette": "P", "plain": "RGB", "bits": "1"}
    for part in ("train", "test"):
        for name, mode in modes.items():
            write_image(tmp_path / part / "one" / f"{name}.png", mode, seed=len(name))
        write_image(tmp_path / part / "two" / "a.png")
    clear = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    clear.save(tmp_path / "train/one/transparent.png", transparency=b"\x00\x80")
    train, test = load("folder", tmp_path)
    assert train.images.shape == (7, 3, 8, 8)
    assert len(test) == 6
    with Image.open(tmp_path / "train/one/plain.png") as plain:
        expected = torch.from_numpy(np.array(plain)).permute(2, 0, 1) / 255
    assert torch.equal(train.images[4], expected)  # sorted by name: alpha bits grey palette plain transparent
    assert torch.equal(train.images[2, 0], train.images[2, 2])  # grey


def test_folder_normalises_by_its_training_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_folder(tmp_path, monkeypatch)
    train, test = load("folder", tmp_path)
    pixels = train.images.double()
    torch.testing.assert_close(torch.tensor(train.mean, dtype=torch.float64), pixels.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(train.std, dtype=torch.float64), pixels.std((0, 2, 3), correction=0))
    assert (train.classes, train.labels.tolist(), test.labels.tolist()) == (("ant", "bee"), [0, 0, 1], [0, 1])


def test_folder_takes_the_central_square(tmp_path: Path) -> None:
    """A wide and a tall picture whose central square is white below its upper half, black outside."""
    square = np.zeros((8, 8, 3), dtype=np.uint8)
    square[4:] = 255
    for part in ("train", "val"):
        for name, border in (("wide", ((0, 0), (3, 4), (0, 0))), ("tall", ((6, 6), (0, 0), (0, 0)))):
            write_image(tmp_path / part / name / "noise.png", size=(8, 8))
            Image.fromarray(np.pad(square, border)).save(tmp_path / part / name / "a.png")
    train, _ = load("folder", tmp_path, 4)
    expected = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(1, 4, 1).expand(3, 4, 4)
    assert torch.equal(train.images[0], expected)
    assert torch.equal(train.images[2], expected)


def test_folder_of_unequal_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_folder(tmp_path, monkeypatch)
    write_image(tmp_path / "val/bee/1.png", size=(12, 9))
    assert "there are 8x8 and 12x9 pixels: give --image-size N" in message("folder", tmp_path)
    assert load("folder", tmp_path, 6)[1].image_shape == (3, 6, 6)


def test_folder_of_oblong_images(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png"):
        write_image(tmp_path / name, size=(8, 6))
    assert "there are 8x6 pixels: give --image-size N" in message("folder", tmp_path)


def test_folder_that_does_not_fit_stays_in_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_folder(tmp_path, monkeypatch)
    memory = load("folder", tmp_path, 8)
    monkeypatch.setattr(_folders, "_LIMIT", 5 * 3 * 4 * 8**2)
    assert isinstance(load("folder", tmp_path, 8)[0].images, torch.Tensor)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(_folders, "_LIMIT", 5 * 3 * 4 * 8**2 - 1)
    lazy = load("folder", tmp_path, 8)
    assert "folder: 5 images of 8x8 pixels take more than" in capsys.readouterr().err
    for ours, theirs in zip(lazy, memory, strict=True):
        assert isinstance(ours.images, ImageFiles)
        assert torch.equal(ours.images[:], theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
        assert (ours.mean, ours.std) == (theirs.mean, theirs.std)


def test_large_folders_are_normalised_by_some_of_their_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        name = "ab"[number // 5]
        write_image(tmp_path / f"val/{name}/1.png")
        (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (25 * number, 10 * number, number)).save(tmp_path / f"train/{name}/{number}.png")
    monkeypatch.setattr(_folders, "_LIMIT", 0)
    monkeypatch.setattr(folder, "_ENOUGH", 4)
    few = torch.tensor([0, 2, 5, 7], dtype=torch.float64)
    train, _ = load("folder", tmp_path)
    assert train.mean == pytest.approx((few.mean() * torch.tensor([25, 10, 1]) / 255).tolist(), abs=1e-6)
    assert train.std[0] == pytest.approx(few.std(correction=0).item() * 25 / 255, abs=1e-6)


def test_files_are_brought_into_memory_where_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png"):
        write_image(tmp_path / name)
    here, _ = load("folder", tmp_path)
    monkeypatch.setattr(_folders, "_LIMIT", 0)
    there, _ = load("folder", tmp_path)
    assert not isinstance(there.images, torch.Tensor)
    assert torch.equal(there.in_memory().images, here.images)
    assert here.in_memory() is here
    monkeypatch.setattr(imageset, "LIMIT", 4 * here.images.numel() - 1)
    with pytest.raises(InputError, match="this step needs all images of folder in memory"):
        there.in_memory()


@pytest.mark.parametrize("missing", ["train", "val"])
def test_folder_without_a_part(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_folder(tmp_path, monkeypatch)
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    text = message("folder", tmp_path)
    assert text.startswith(f"{tmp_path / missing} must contain a folder of images for each class (")
    assert "--data-dir" in text


def test_folder_with_an_empty_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_folder(tmp_path, monkeypatch)
    (tmp_path / "val/bee/1.png").rename(tmp_path / "val/bee/1.txt")
    text = message("folder", tmp_path)
    assert text.startswith(f"{tmp_path / 'val/bee'} has no images (.jpg, .jpeg, .png, ")
    assert text.endswith("add images, or remove the class from the training and the test set")
    (tmp_path / "val/ant/1.png").unlink()
    assert "), nor have 1 others: add" in message("folder", tmp_path)


def test_folder_whose_parts_differ_in_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_folder(tmp_path, monkeypatch)
    (tmp_path / "val/bee").rename(tmp_path / "val/wasp")
    assert message("folder", tmp_path).endswith("must have the same classes; only one has bee, wasp")


@pytest.mark.parametrize("image_size", [None, 8])
@pytest.mark.parametrize("damage", [lambda _: b"no image", lambda whole: whole[:-60], lambda _: b""])
def test_folder_with_a_damaged_image(
    damage: Callable[[bytes], bytes], image_size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_folder(tmp_path, monkeypatch)
    file = tmp_path / "train/bee/1.png"
    file.write_bytes(damage(file.read_bytes()))
    assert message("folder", tmp_path, image_size).startswith(f"{file} cannot be read as an image (")


def test_folder_with_many_damaged_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are counted before anything is refused, of both parts, with or without a size."""
    fake_folder(tmp_path, monkeypatch)
    for name in ("train/ant/1.png", "val/ant/1.png"):
        (tmp_path / name).write_bytes(b"")
    for image_size in (None, 8):
        text = message("folder", tmp_path, image_size)
        assert text.startswith("2 of 5 files cannot be read as images: ")
        assert (
            f"{tmp_path / 'train/ant/1.png'} (it is empty), {tmp_path / 'val/ant/1.png'} (it is empty): repair" in text
        )
        assert text.endswith("--damaged skip")
    for name in ("train/ant/2.png", "train/bee/1.png", "val/bee/1.png"):
        (tmp_path / name).write_bytes(b"no image")
    assert message("folder", tmp_path).startswith("5 of 5 files cannot be read as images: ")


@pytest.mark.parametrize("limit", [0, 2**30])
def test_damaged_images_are_left_out_when_asked(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_folder(tmp_path, monkeypatch)
    monkeypatch.setattr(_folders, "_LIMIT", limit)
    whole = load("folder", tmp_path)[0].images[:]
    capsys.readouterr()
    assert len(load("folder", tmp_path, damaged="skip")[0]) == 3
    assert "damaged" not in capsys.readouterr().err
    write_image(tmp_path / "val/bee/2.png")
    for name in ("train/ant/1.png", "val/bee/1.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-80])
    train, test = load("folder", tmp_path, damaged="skip")
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(f"damaged and omitted: 2 of 6 files: {tmp_path / 'train/ant/1.png'} (")
    assert f"{tmp_path / 'val/bee/1.png'} (" in first
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1], [0, 1])
    assert torch.equal(train.images[:], whole[1:])
    (tmp_path / "train/ant/2.png").write_bytes(b"")
    text = message("folder", tmp_path, damaged="skip")
    assert text.startswith(f"all files of class ant in {tmp_path / 'train'} are damaged")


def test_folder_with_deep_grey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was refused."""
    fake_folder(tmp_path, monkeypatch)
    size = load("folder", tmp_path)[0].image_shape[-1]
    Image.fromarray(np.full((size, size), 40000, dtype=np.uint16)).save(tmp_path / "train/bee/1.png")
    train, _ = load("folder", tmp_path)
    assert torch.equal(train.images[train.labels == 1][0], torch.full((3, size, size), 40000 / 65535))


def test_folder_without_contrast(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    assert "nothing to learn" in message("folder", tmp_path)


@pytest.mark.parametrize("limit", [0, 2**30])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_folder_of_grey_images_has_one_channel(
    ending: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory or in files; one image with colours in either part makes all of them RGB."""
    monkeypatch.setattr(_folders, "_LIMIT", limit)
    modes = {"train/ant/1": "L", "train/bee/2": "L", "val/ant/1": "L", "val/bee/1": "L"}
    if ending == "png":
        modes |= {"train/bee/1": "1", "val/bee/2": "LA"}
    for seed, (name, mode) in enumerate(modes.items()):
        write_image(tmp_path / f"{name}.{ending}", mode, size=(12, 8), seed=seed)
    for size in (8, 4):
        grey = load("folder", tmp_path, size)
        colour = []
        for part in grey:
            assert isinstance(part.images, torch.Tensor) == bool(limit)
            assert part.image_shape == (1, size, size)
            assert len(part.mean) == len(part.std) == 1
        write_image(tmp_path / "val/bee/9.png", size=(8, 8))
        colour = load("folder", tmp_path, size)
        assert colour[0].image_shape == (3, size, size)
        assert torch.equal(colour[0].images[:], grey[0].images[:].expand(-1, 3, -1, -1))
        (tmp_path / "val/bee/9.png").unlink()
    if limit == 0:
        assert grey[0].images.decode(0).shape == (1, 8, 12)
        assert grey[0].images.take(torch.tensor([1])).resized(6).to("cpu")[:].shape == (1, 1, 6, 6)


@pytest.mark.parametrize("name", ["folder", "imagenet", "imagenette", "tiny_imagenet"])
def test_one_class_is_refused_before_anything_is_read(name: str, tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_image(tmp_path / part / "only" / "1.png")
        (tmp_path / part / "only" / "1.png").write_bytes(b"no image")
    assert "has one class, only, but at least two are needed" in message(name, tmp_path)
    with pytest.raises(InputError, match="has one class"):
        fingerprint(name, tmp_path)


def test_folder_with_what_is_no_regular_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_folder(tmp_path, monkeypatch)
    os.mkfifo(tmp_path / "train/ant/3.png")
    (tmp_path / "train/bee/3.png").symlink_to("/dev/zero")
    text = message("folder", tmp_path)
    assert "3.png (it is a named pipe, not a regular file)" in text
    assert "3.png (it is a device, not a regular file)" in text
    assert len(load("folder", tmp_path, damaged="skip")[0]) == 3
    assert len(fingerprint("folder", tmp_path)) == 64


# --- folders of ImageNet's kind ---------------------------------------------------------------------------------------

PLACES = {
    "imagenet": ("imagenet", "ILSVRC2012", "imagenet-1k"),
    "imagenette": ("imagenette2", "imagenette2-320", "imagenette2-160", "imagenette-224", "imagenette"),
    "tiny_imagenet": ("tiny-imagenet-200", "tiny-imagenet", "tiny-imagenet-10"),
}
EACH = [(name, below) for name, places in PLACES.items() for below in places]


@pytest.mark.parametrize(("name", "below"), EACH, ids=lambda value: value)
def test_found_in_the_data_folder_or_in_its_own(
    name: str, below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_tree(((64, 64),), below)(tmp_path, None)
    direct, _ = load(name, tmp_path / below)
    train, test = load(name, tmp_path)
    assert torch.equal(train.images[:], direct.images[:])
    assert train.classes == ("n01", "n02")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 0, 0, 1, 1], [0, 1])
    assert capsys.readouterr().err == ""


def test_the_first_of_several_places_is_taken_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for below in ("imagenette2-160", "imagenette2", ""):
        fake_tree(((64, 64),), below)(tmp_path, None)
    train, _ = load("imagenette", tmp_path)
    assert os.fsdecode(train.images.paths[0]).startswith(str(tmp_path / "imagenette2" / "train"))
    line = f"imagenette is read from {tmp_path}/imagenette2; there is also {tmp_path}/imagenette2-160, {tmp_path}\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("name", PLACES)
def test_what_is_brought_by_the_user_and_missing(name: str, tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    text = message(name, tmp_path)
    assert text.startswith(f"{name} is not in {tmp_path}: neither this folder nor {', '.join(PLACES[name])} below it ")
    for part in ("train/CLASS/*.JPEG and val/CLASS/*.JPEG", "get ", "--data-dir or DATA_DIR"):
        assert part in text
    assert ("image-net.org, whose terms apply" in text) == (name == "imagenet")


@pytest.mark.parametrize("name", PLACES)
def test_parts_that_do_not_belong_together(name: str, tmp_path: Path) -> None:
    fake_tree(((64, 64),))(tmp_path, None)
    (tmp_path / "val/n02").rename(tmp_path / "val/n03")
    assert message(name, tmp_path).endswith("must have the same classes; only one has n02, n03")
    (tmp_path / "val").rename(tmp_path / "away")
    assert message(name, tmp_path).startswith(
        f"{tmp_path / 'val'} must contain a folder of images for each class (No such"
    )
    (tmp_path / "val").mkdir()
    assert message(name, tmp_path).endswith("must contain a folder of images for each class (it is empty)")


def test_imagenet_s_validation_part_as_in_its_archive(tmp_path: Path) -> None:
    fake_tree(((64, 64),))(tmp_path, None)
    (tmp_path / "val").rename(tmp_path / "away")
    for number in range(3):
        write_image(tmp_path / f"val/ILSVRC2012_val_{number:08d}.JPEG")
    text = message("imagenet", tmp_path)
    assert text.startswith(
        f"{tmp_path / 'val'} contains 3 images but no class folders: sort them into {tmp_path}/val/CLASS/"
    )


def test_imagenet_is_decoded_when_used_and_cropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FAKES["imagenet"](tmp_path, monkeypatch)
    (tmp_path / "train/n01/1.JPEG").write_bytes(b"damaged, but nobody looks")
    train, test = load("imagenet", tmp_path)
    assert (train.image_shape, train.mean, train.std) == ((3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (train.images.view, test.images.view) == ("crop", "crop")
    file = tmp_path / "train/n01/1.JPEG"
    with pytest.raises(InputError) as raised:
        train.sample(0, 3, generator())
    assert str(raised.value).startswith(f"{file} cannot be read as an image (it is not an image)")
    assert load("imagenet", tmp_path, damaged="skip")[0].labels.tolist() == [0, 0, 1, 1]
    assert load("imagenet", tmp_path, 96)[0].image_shape == (3, 96, 96)


def test_files_are_told_by_their_names_in_any_depth(tmp_path: Path) -> None:
    for name in ("b.jpeg", "a.JPEG", "c.PNG", "deep/er/a.webp", "._a.JPEG", ".hidden/a.png", ".b.jpg"):
        write_image(tmp_path / "train/n01" / name)
    (tmp_path / "train/n01/n01_boxes.txt").write_text("a.JPEG 0 0 1 1")
    (tmp_path / "train/.cache").mkdir()
    (tmp_path / "train/readme.md").write_text("no class")
    found = _folders.listing(tmp_path / "train")
    names = [os.fsdecode(path).removeprefix(f"{tmp_path}/train/n01/") for path in found.paths]
    assert names == ["a.JPEG", "b.jpeg", "c.PNG", "deep/er/a.webp"]
    assert found.classes == ("n01",)


def test_listing_opens_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million files: neither their bytes nor their inodes are looked at."""
    fake_tree(((64, 64),))(tmp_path, None)
    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, None)
    monkeypatch.setattr("builtins.open", None)
    found = _folders.listing(tmp_path / "train")
    monkeypatch.undo()
    assert len(found.paths) == 5
    assert found.paths.dtype.kind == "S"


def archive_layout(root: Path) -> None:
    """Of the re-sorted layout that of the archive: train/WNID/images/*, val/images/* and a list of labels."""
    lines = []
    for name in ("n01", "n02"):
        folder = root / "train" / name
        files = list(folder.iterdir())
        (folder / "images").mkdir()
        for file in files:
            file.rename(folder / "images" / file.name)
        (folder / f"{name}_boxes.txt").write_text("0.JPEG\t0\t0\t62\t62\n")
        (root / "val/images").mkdir(exist_ok=True)
        for file in (root / "val" / name).iterdir():
            file.rename(root / "val/images" / f"val_{name}{file.name}")
            lines.append(f"val_{name}{file.name}\t{name}\t0\t32\t44\t62\n")
        (root / "val" / name).rmdir()
    (root / "val/val_annotations.txt").write_text("".join(reversed(lines)))


def test_tiny_imagenet_in_both_layouts(tmp_path: Path) -> None:
    fake_tree(((64, 64),), "tiny-imagenet")(tmp_path, None)
    place = tmp_path / "tiny-imagenet"
    sorted_ = load("tiny_imagenet", tmp_path)
    assert sorted_[0].mean == (0.4802, 0.4481, 0.3975)
    archive_layout(place)
    for ours, theirs in zip(load("tiny_imagenet", tmp_path), sorted_, strict=True):
        assert isinstance(ours.images, torch.Tensor)
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)

    labels = place / "val/val_annotations.txt"
    text = labels.read_text()
    labels.write_text(text + "val_9.JPEG\tn99\t0\t0\t1\t1\n\n")  # of a class that this subset lacks
    assert len(load("tiny_imagenet", tmp_path)[1]) == 2
    labels.write_text(text + "val_9.JPEG\tn02\t0\t0\t1\t1\n")
    assert message("tiny_imagenet", tmp_path).startswith(
        f"{place}/val/images/val_9.JPEG cannot be read as an image (No"
    )
    labels.write_text(text.replace("n02\t", "n03\t"))
    assert message("tiny_imagenet", tmp_path).startswith(f"{labels} names no image of class n02, which {place}/train")
    for damage in ("no tabs at all\n", "\xff"):
        labels.write_bytes(damage.encode("latin1"))
        assert message("tiny_imagenet", tmp_path).endswith("must have a file's name, a tab and its class on each line")


def test_tiny_imagenet_with_val_images_in_folders_of_their_own(tmp_path: Path) -> None:
    fake_tree(((64, 64),))(tmp_path, None)
    (tmp_path / "val/n01/images").mkdir()
    (tmp_path / "val/n01/0.JPEG").rename(tmp_path / "val/n01/images/0.JPEG")
    (tmp_path / "val/val_annotations.txt").write_text("left behind")
    assert load("tiny_imagenet", tmp_path)[1].labels.tolist() == [0, 1]


@pytest.mark.parametrize(("size", "view"), [(32, "square"), (64, "square"), (80, "crop")])
def test_tiny_imagenet_at_other_sizes(
    size: int, view: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_tree(((64, 64),))(tmp_path, None)
    memory, _ = load("tiny_imagenet", tmp_path, size)
    monkeypatch.setattr(_folders, "_LIMIT", 0)
    lazy, _ = load("tiny_imagenet", tmp_path, size)
    assert lazy.images.view == view
    assert torch.equal(lazy.images[:], memory.images)
    assert "tiny_imagenet: 7 images" in capsys.readouterr().err


# --- the real files, where DATA_DIR has them -------------------------------------------------------------------------

REAL = {
    "mnist": ((60000, 1, 28, 28), 10000, 0.1307),
    "fashion_mnist": ((60000, 1, 28, 28), 10000, 0.2861),
    "cifar10": ((50000, 3, 32, 32), 10000, 0.4914),
    "cifar100": ((50000, 3, 32, 32), 10000, 0.5071),
}
DATA_DIR = Path(os.environ["DATA_DIR"]) if "DATA_DIR" in os.environ else None
FOUND = [name for name in REAL if DATA_DIR and (DATA_DIR / DOWNLOADED[name]).is_dir()]

if FOUND:  # an empty list of parameters would be a skipped test

    @pytest.mark.usefixtures("offline")
    @pytest.mark.parametrize("name", FOUND)
    def test_real(name: str) -> None:
        shape, tests, mean = REAL[name]
        train, test = load(name, DATA_DIR)
        assert (tuple(train.images.shape), len(test)) == (shape, tests)
        assert train.images[:, 0].mean(dtype=torch.float64).item() == pytest.approx(mean, abs=1e-4)
        assert train.num_classes * test.labels.bincount().max() <= 1.2 * tests
