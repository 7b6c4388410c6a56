"""FKD's soft labels: stores written as the official code does, from its description, and what students see of them."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from torchvision.transforms import functional as TF

from distill.data.pictures import picture_folders, read_all_pictures
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.published.fkd import agreement, orders, with_labels
from distill.published.unpickled import read_pickle
from distill.runs.run import Run
from distill.training.crop_labels import Labels, digest
from sre2l import pipeline
from sre2l.precision import Compute
from sre2l.relabel import view
from sre2l.validate import Validate

SIZE, K, EACH, BATCH, EPOCHS = 16, 4, 3, 5, 3
NAMES = ("a", "b", "c", "d")
MEAN, STD = (0.4,) * 3, (0.25,) * 3
SETTINGS = MethodTraining(validate=dict(vars(Validate())), compute=dict(vars(Compute())))
Edit = Callable[[list], list]


def teacher(x: Tensor) -> Tensor:
    """Tell classes by their hue: the nearest of four colours."""
    colours = torch.tensor([[0.8, 0.2, 0.2], [0.2, 0.8, 0.2], [0.2, 0.2, 0.8], [0.8, 0.8, 0.2]])
    return -50 * (x.mean((2, 3))[:, None] - colours).square().sum(2)


def write_images(folder: Path, suffix: str = "png") -> list[tuple[Path, int]]:
    """Write pictures as SRe2L names them; return files and classes in the order of ImageFolder."""
    generator, samples = torch.Generator().manual_seed(0), []
    colours = [(204, 51, 51), (51, 204, 51), (51, 51, 204), (204, 204, 51)]
    for number, colour in enumerate(colours):
        (folder / f"new{number:03d}").mkdir(parents=True)
        for index in range(EACH):
            noise = torch.randint(-40, 41, (SIZE, SIZE, 3), generator=generator)
            pixels = (torch.tensor(colour) + noise).clamp(0, 255).byte().numpy()
            path = folder / f"new{number:03d}" / f"class{number:03d}_id{index:03d}.{suffix}"
            Image.fromarray(pixels).save(path, quality=100)
            samples.append((path, number))
    return samples


def drawn_crop(rng: np.random.Generator) -> tuple[int, int, int, int]:
    h, w = rng.integers(8, SIZE + 1, 2)
    return int(rng.integers(0, SIZE - h + 1)), int(rng.integers(0, SIZE - w + 1)), int(h), int(w)


def official_mixture(x: Tensor, kind: str, config: list) -> Tensor:
    """Mix a batch as the official code does."""
    _, _, index, lam, box, _ = config
    if kind == "mixup":
        return lam * x + (1 - lam) * x[index]
    if kind == "cutmix":
        x1, y1, x2, y2 = box
        x = x.clone()
        x[:, :, x1:x2, y1:y2] = x[index][:, :, x1:x2, y1:y2]
    return x


def write_store(
    folder: Path,
    samples: list[tuple[Path, int]],
    kind: str = "cutmix",
    epochs: int = EPOCHS,
    skipped: int = 0,
    half: bool = True,
) -> list[list[tuple[list[int], list, Tensor]]]:
    """Write labels as the official code does, with torch's own sampler and loader and PIL's own crops.

    Args:
        folder: of the epochs.
        samples: files and classes in ImageFolder's order.
        kind: of mixture.
        epochs: to write.
        skipped: epochs that the sampler gave before the first.
        half: whether logits are stored as float16.

    Returns:
        of each batch of each epoch the images' indices, what was stored, and what the teacher saw, (n, C, H, H).
    """
    rng, generator = np.random.default_rng(1), torch.Generator().manual_seed(42)
    everything = TensorDataset(torch.arange(len(samples)))
    sampler = RandomSampler(everything, generator=generator)
    loader = DataLoader(everything, batch_size=BATCH, sampler=sampler)
    for _ in range(skipped):
        list(loader)
    whole = []
    for epoch in range(epochs):
        (folder / f"epoch_{epoch}").mkdir(parents=True)
        whole.append([])
        for number, (who,) in enumerate(loader):
            crops, flips, seen = [], [], []
            for index in who.tolist():
                i, j, h, w = drawn_crop(rng)
                image = Image.open(samples[index][0])
                picture = TF.resized_crop(image, i, j, h, w, [SIZE, SIZE], TF.InterpolationMode.BILINEAR)
                flips.append(bool(rng.random() < 0.5))
                picture = TF.hflip(picture) if flips[-1] else picture
                crops.append(torch.FloatTensor((i / SIZE, j / SIZE, h / SIZE, w / SIZE)))
                seen.append(TF.to_tensor(picture))
            config = [torch.stack(crops), torch.tensor(flips), None, None, None, None]
            if kind != "none":
                config[2] = torch.from_numpy(rng.permutation(len(who)))
                config[3] = float(rng.beta(1.0, 1.0))
            if kind == "cutmix":
                side = int(SIZE * np.sqrt(1.0 - config[3]))
                cx, cy = rng.integers(0, SIZE, 2)
                corners = (cx - side // 2, cy - side // 2, cx + side // 2, cy + side // 2)
                config[4] = [np.clip(int(at), 0, SIZE) for at in corners]
                assert type(config[4][0]) is np.int64  # as it is in published files
            x = official_mixture(torch.stack(seen), kind, config)
            config[5] = teacher(x).half() if half else teacher(x)
            torch.save(config, folder / f"epoch_{epoch}" / f"batch_{number}.tar")
            whole[-1].append((who.tolist(), config, x))
    return whole


def set_of(folder: Path) -> DistilledSet:
    files = [file for files in picture_folders(folder).values() for file in files]
    images, labels = read_all_pictures(files), torch.arange(K).repeat_interleave(EACH)
    return DistilledSet(images, labels, "toy", NAMES, MEAN, STD, backbone="convnet:width=4,depth=2", method="sre2l")


def taken(tmp_path: Path, store: Path) -> tuple[DistilledSet, list[str]]:
    said: list[str] = []
    return with_labels(set_of(tmp_path / "syn"), store, tmp_path / "ours", said.append, SETTINGS), said


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("kind", ["cutmix", "mixup", "none"])
def test_students_see_what_the_teacher_saw(kind: str, half: bool, tmp_path: Path) -> None:
    """By torch's sampler, PIL's crops (to their rounding) and exact ones (to that of floats), and the official mix."""
    samples = write_images(tmp_path / "syn")
    whole = write_store(tmp_path / "FKD", samples, kind, half=half)
    found, said = taken(tmp_path, tmp_path / "FKD")
    labels = Labels(tmp_path / "ours" / found.training.labels, digest(found.images))
    assert (labels.epochs, labels.batch_size, labels.mix) == (EPOCHS, BATCH, kind)
    assert f"3 epochs in batches of 5, mixed by {kind}" in said[0]
    for epoch, batches in enumerate(whole):
        ours = list(labels.epoch(epoch))
        assert len(ours) == len(batches) == 3
        for batch, (who, config, x) in zip(ours, batches, strict=True):
            assert batch.who.tolist() == who
            assert torch.equal(batch.logits, config[5])
            assert batch.logits.dtype == (torch.float16 if half else torch.float32)
            seen = view(found.images, batch, kind)
            assert (seen - x).abs().max() < 1.6 / 255
            exact = []
            for index, (top, left, height, width), flip in zip(who, config[0] * SIZE, config[1], strict=True):
                rows, columns = (slice(int(a), int(a + b)) for a, b in ((top, height), (left, width)))
                part = found.images[index : index + 1, :, rows, columns]
                part = F.interpolate(part, SIZE, mode="bilinear", align_corners=False)[0]
                exact.append(part.flip(2) if flip else part)
            torch.testing.assert_close(seen, official_mixture(torch.stack(exact), kind, config), atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 7, 32, 1000])
def test_the_order_is_that_of_torch_s_sampler(count: int) -> None:
    sampler = RandomSampler(range(count), generator=torch.Generator().manual_seed(42))
    ours = orders(count, 2)
    for _ in range(4):
        assert next(ours).tolist() == list(sampler)


def test_an_order_of_one_permutation_an_epoch_is_found(tmp_path: Path) -> None:
    """As a torch whose sampler draws no second one leaves them: epoch E has permutation E."""
    samples = write_images(tmp_path / "syn")
    generator = torch.Generator().manual_seed(42)
    expected = [torch.randperm(len(samples), generator=generator) for _ in range(4)]
    for epoch, order in enumerate(expected):
        # An unmixed store of each order, each of which is the first of its own sampler, is put together.
        shuffled = [samples[index] for index in order[next(orders(len(samples), 2)).argsort()]]
        write_store(tmp_path / f"part{epoch}", shuffled, "none", epochs=1)
        (tmp_path / "FKD").mkdir(exist_ok=True)
        (tmp_path / f"part{epoch}" / "epoch_0").rename(tmp_path / "FKD" / f"epoch_{epoch}")
    found, said = taken(tmp_path, tmp_path / "FKD")
    assert "permutations drawn an epoch: 1" in said[0]
    labels = Labels(tmp_path / "ours" / "fkd", digest(found.images))
    for epoch, order in enumerate(expected):
        assert torch.cat([batch.who for batch in labels.epoch(epoch)]).equal(order)


@pytest.mark.parametrize("kind", ["cutmix", "mixup", "none"])
def test_another_order_is_refused(kind: str, tmp_path: Path) -> None:
    samples = write_images(tmp_path / "syn")
    write_store(tmp_path / "FKD", samples, kind, skipped=1, epochs=6)
    with pytest.raises(InputError, match="these labels do not belong to these images in this order") as error:
        taken(tmp_path, tmp_path / "FKD")
    assert "\n" not in str(error.value)
    (tmp_path / "syn" / "new000").rename(tmp_path / "syn" / "new009")  # classes in another order than the teacher's
    write_store(tmp_path / "other", samples_in(tmp_path / "syn"), kind, epochs=6)
    with pytest.raises(InputError, match="do not belong"):
        taken(tmp_path, tmp_path / "other")


def samples_in(folder: Path) -> list[tuple[Path, int]]:
    places = sorted(folder.iterdir())
    return [(path, number) for number, place in enumerate(places) for path in sorted(place.iterdir())]


def test_an_epoch_of_another_order_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.published.fkd.MANY", 10)
    monkeypatch.setattr("distill.published.fkd.EARLY", 3)
    samples = write_images(tmp_path / "syn")
    write_store(tmp_path / "FKD", samples, "none", epochs=8)
    assert "100.0% of 96 labels" in taken(tmp_path, tmp_path / "FKD")[1][0]
    for path in (tmp_path / "FKD" / "epoch_6").iterdir():
        content = torch.load(path, weights_only=False)
        torch.save([*content[:5], content[5].roll(1, 1)], path)
    with pytest.raises(InputError, match=r"epoch_6: these labels do not belong"):
        taken(tmp_path, tmp_path / "FKD")


def test_few_labels_are_taken_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "syn" / "new000").mkdir(parents=True)
    images = torch.full((2, 3, SIZE, SIZE), 0.2)
    images[0, 0], images[1, 1] = 0.8, 0.8
    torch_set = DistilledSet(images, torch.tensor([0, 1]), "toy", NAMES, MEAN, STD)
    (tmp_path / "FKD" / "epoch_0").mkdir(parents=True)
    config = [torch.tensor([[0.0, 0, 1, 1]] * 2), torch.zeros(2).bool(), None, None, None, teacher(images).half()]
    torch.save(config, tmp_path / "FKD" / "epoch_0" / "batch_0.tar")
    said: list[str] = []
    with_labels(torch_set, tmp_path / "FKD", tmp_path / "ours", said.append, SETTINGS)
    assert said[1] == "warning: 2 labels are too few to tell whether they belong to these images in this order"


def test_students_train_on_them_without_a_teacher(tmp_path: Path) -> None:
    samples = write_images(tmp_path / "syn")
    write_store(tmp_path / "FKD" / "toy" / "99", samples, epochs=30)  # GUARD's code has two folders more
    found, _ = taken(tmp_path, tmp_path / "FKD")
    assert found.method == "sre2l"
    found = replace(found, training=replace(found.training, validate=vars(Validate(lr=0.05))))  # 90 steps
    own = pipeline.protocol(found, tmp_path / "ours", Run(tmp_path / "run", None))
    assert (own.teacher, own.epochs) == (None, 30)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, K))
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    x = (found.images - 0.4) / 0.25
    own.train(network, "0")
    assert (network(x).argmax(1) == found.labels).float().mean() > 0.9
    with pytest.raises(InputError, match="belong to other images"):
        pipeline.protocol(set_of_noise(found), tmp_path / "ours", Run(tmp_path / "other", None))


def set_of_noise(found: DistilledSet) -> DistilledSet:
    return DistilledSet(**found.__dict__ | {"images": torch.rand_like(found.images)})


def test_a_set_without_labels_has_no_own_way(tmp_path: Path) -> None:
    write_images(tmp_path / "syn")
    with pytest.raises(InputError, match="no labels of a teacher: give --fkd FOLDER"):
        pipeline.protocol(set_of(tmp_path / "syn"), tmp_path, Run(tmp_path / "run", None))


class Evil:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("epoch", [0, 2])
def test_nothing_is_run(at: int, epoch: int, tmp_path: Path) -> None:
    write_store(tmp_path / "FKD", write_images(tmp_path / "syn"))
    path, marker = tmp_path / "FKD" / f"epoch_{epoch}" / "batch_1.tar", tmp_path / "marker"
    config = torch.load(path, weights_only=False)
    config[at] = Evil(marker)
    torch.save(config, path)
    with pytest.raises(InputError, match=r"batch_1\.tar is refused: .*nothing was run"):
        taken(tmp_path, tmp_path / "FKD")
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()


def edited(at: int, change: Callable) -> Edit:
    return lambda config: [change(each) if number == at else each for number, each in enumerate(config)]


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda config: config[:5], r"batch_1\.tar is no batch of FKD's: expected \[coords"),
        (lambda config: {"coords": config[0]}, "is no batch of FKD's"),
        (edited(0, lambda x: x[:, :3]), r"coords, flips and logits are \(5, 3\), \(5,\), \(5, 4\)"),
        (edited(0, lambda x: x + 0.51 / SIZE), "do not end at whole pixels of 16: of images of another size"),
        (edited(0, lambda x: x + 1), "crops reach beyond the image"),
        (edited(0, lambda x: x * torch.nan), "not finite"),
        (edited(1, lambda x: x[:3]), "coords, flips and logits are"),
        (edited(2, lambda x: x + 1), "partners are no 5 positions"),
        (edited(2, lambda _: None), "partners is no plain tensor"),
        (edited(3, lambda _: 1.5), "lambda is no number from 0 to 1"),
        (edited(3, lambda _: "a"), "lambda is no number from 0 to 1"),
        (edited(4, lambda x: x[:3]), "no four whole numbers"),
        (edited(4, lambda _: [0, 0, 17, 4]), r"\[0, 0, 17, 4\] of CutMix is not in 16 pixels"),
        (edited(4, lambda _: None), "batches of 5 mixed by mixup, the first epoch others"),
        (edited(5, lambda x: x[:, :3]), "has logits of 3 classes, the set 4: of another teacher"),
        (edited(5, lambda x: x + float("inf")), "not finite"),
    ],
)
def test_damaged_batches_are_named(edit: Edit, line: str, tmp_path: Path) -> None:
    write_store(tmp_path / "FKD", write_images(tmp_path / "syn"), epochs=2)
    path = tmp_path / "FKD" / "epoch_1" / "batch_1.tar"
    torch.save(edit(torch.load(path, weights_only=False)), path)
    with pytest.raises(InputError, match=line) as error:
        taken(tmp_path, tmp_path / "FKD")
    assert "\n" not in str(error.value)
    assert "epoch_1" in str(error.value)


@pytest.mark.parametrize("kind", ["empty", "truncated", "garbage", "folder"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_files_that_are_no_archives_are_named(kind: str, epoch: int, tmp_path: Path) -> None:
    write_store(tmp_path / "FKD", write_images(tmp_path / "syn"), epochs=2)
    path = tmp_path / "FKD" / f"epoch_{epoch}" / "batch_1.tar"
    content = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        path.write_bytes({"empty": b"", "truncated": content[: len(content) // 2], "garbage": content[::-1]}[kind])
    with pytest.raises(InputError, match=rf"epoch_{epoch}/batch_1\.tar") as error:
        taken(tmp_path, tmp_path / "FKD")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_missing_and_extra_files_are_named(tmp_path: Path) -> None:
    store, whole = tmp_path / "FKD", write_images(tmp_path / "syn")
    write_store(store, whole)
    batch, last = store / "epoch_1" / "batch_1.tar", store / "epoch_1" / "batch_2.tar"
    content, end = batch.read_bytes(), last.read_bytes()
    batch.unlink()
    refused(tmp_path, r"epoch_1 lacks batch_1\.tar")
    batch.write_bytes(content[:200])
    refused(tmp_path, r"epoch_1/batch_1\.tar is not a whole file")
    batch.write_bytes(content)
    last.unlink()
    refused(tmp_path, r"epoch_1 has labels of 10 images \(2 batches of 5\), the set 12: a batch is missing or extra")
    last.write_bytes(content)
    refused(tmp_path, r"labels of 15 images \(3 batches of 5\), the set 12")
    batch.write_bytes(end)
    refused(tmp_path, r"epoch_1/batch_1\.tar has 2 labels, batch_0\.tar 5")
    batch.write_bytes(content)
    last.write_bytes(end)
    (store / "epoch_1").rename(store / "gone")
    refused(tmp_path, "FKD lacks epoch_1")
    (store / "epoch_1").write_bytes(content)
    refused(tmp_path, r"epoch_1 cannot be read \(Not a directory\)")
    (store / "epoch_1").unlink()
    (store / "gone").rename(store / "epoch_1")
    assert len(taken(tmp_path, store)[1]) == 1
    write_store(tmp_path / "two" / "a", whole, epochs=1)
    write_store(tmp_path / "two" / "b", whole, epochs=1)
    with pytest.raises(InputError, match=r"several stores of FKD labels: give one of .*two/a, .*two/b"):
        taken(tmp_path, tmp_path / "two")
    with pytest.raises(InputError, match=r"syn has no FKD labels: expected epoch_0/batch_0\.tar"):
        taken(tmp_path, tmp_path / "syn")
    (whole[0][0]).unlink()
    found = set_of_noise(set_of_all_but_one(tmp_path / "syn"))
    with pytest.raises(InputError, match="epoch_0 has labels of 12 images"):
        with_labels(found, store, tmp_path / "ours", print, SETTINGS)


def refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError, match=line) as error:
        taken(tmp_path, tmp_path / "FKD")
    assert "\n" not in str(error.value)


def set_of_all_but_one(folder: Path) -> DistilledSet:
    files = [file for files in picture_folders(folder).values() for file in files]
    labels = torch.arange(K).repeat_interleave(EACH)[1:]
    return DistilledSet(read_all_pictures(files), labels, "toy", NAMES, MEAN, STD)


def test_labels_are_for_sets_of_pictures(tmp_path: Path) -> None:
    write_store(tmp_path / "FKD", write_images(tmp_path / "syn"), epochs=1)
    other = DistilledSet(**set_of(tmp_path / "syn").__dict__ | {"method": "dc"})
    with pytest.raises(InputError, match="for folders of pictures with classes, not for a set of dc"):
        with_labels(other, tmp_path / "FKD", tmp_path / "ours", print, SETTINGS)


def test_kappa() -> None:
    assert agreement(torch.zeros(3, 3, dtype=torch.long)) == (0.0, 0.0, 0.0, 0.0)
    assert agreement(torch.eye(4, dtype=torch.long) * 25)[:3] == (1.0, 0.25, 1.0)
    assert agreement(torch.ones(4, 4, dtype=torch.long))[2:] == (0.0, 0.0)


def test_numbers_of_numpy_are_read_as_they_are(tmp_path: Path) -> None:
    values = [np.int64(-7), np.int32(5), np.uint8(200), np.float64(0.1), np.float32(0.5), np.bool_(True)]
    values.append(np.array([3], dtype=">i4")[0])
    torch.save(values, tmp_path / "a.pt")
    found = read_pickle(tmp_path / "a.pt")
    assert found == [value.item() for value in values]
    assert [type(value) for value in found] == [int, int, int, float, float, bool, int]
    for kind in (np.datetime64(3, "s"), np.complex64(1j), np.str_("a")):
        torch.save([kind], tmp_path / "b.pt")
        assert type(read_pickle(tmp_path / "b.pt")[0]).__name__ in ("_Nothing", "str")


def test_the_record_of_the_store(tmp_path: Path) -> None:
    write_store(tmp_path / "FKD", write_images(tmp_path / "syn"), epochs=1)
    taken(tmp_path, tmp_path / "FKD")
    facts = json.loads((tmp_path / "ours" / "fkd" / "labels.json").read_text())
    assert {name: facts[name] for name in ("format", "images", "epochs", "batch_size", "mix", "draws")} == {
        **{"format": "guard-labels-1", "images": 12, "epochs": 1, "batch_size": 5, "mix": "cutmix", "draws": 2}
    }
