"""The distilled set's file, and its picture."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.utils import save_image

from distill.distilled import FORMAT, DistilledSet
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.reports.class_names import readable
from distill.reports.grid import picture, save_grid
from distill.runs.files import read_tensors, write_tensors

SET = DistilledSet(
    images=torch.linspace(-0.5, 1.5, 6 * 3 * 4 * 4).view(6, 3, 4, 4),
    labels=torch.tensor([0, 0, 1, 1, 2, 2]),
    dataset="toy",
    classes=("a", "b", "c"),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.2),
    augment="flip",
    backbone="convnet:width=8",
    method="dc",
)


def test_a_set_comes_back_unclamped(tmp_path: Path) -> None:
    SET.save(tmp_path / "distilled.safetensors")
    for path in (tmp_path, tmp_path / "distilled.safetensors"):
        back = DistilledSet.load(path)
        assert torch.equal(back.images, SET.images)
        assert torch.equal(back.labels, SET.labels)
        assert replace(back, images=SET.images, labels=SET.labels) == SET
    assert SET.ipc == 2


def test_soft_labels_come_back(tmp_path: Path) -> None:
    soft = replace(SET, labels=torch.rand(6, 3).softmax(1))
    soft.save(tmp_path / "s")
    assert torch.equal(DistilledSet.load(tmp_path / "s").labels, soft.labels)


def test_the_class_that_an_image_was_made_for_comes_back(tmp_path: Path) -> None:
    """A label can find another class more probable than the one that the image is of."""
    labels = torch.tensor([[0.2, 0.7, 0.1]] * 6)
    unknown, known = replace(SET, labels=labels), replace(SET, labels=labels, made_for=(0, 0, 1, 1, 2, 2))
    assert unknown.image_classes.tolist() == [1] * 6
    known.save(tmp_path / "s")
    back = DistilledSet.load(tmp_path / "s")
    assert back.image_classes.tolist() == [0, 0, 1, 1, 2, 2]
    assert back.image_classes.dtype == torch.int64
    assert picture(back).size[1] == 3 * picture(unknown).size[1] - 4  # three rows with two lines between them
    SET.save(tmp_path / "hard")
    assert "made_for" not in read_tensors(tmp_path / "hard", key=FORMAT)[1]  # the bytes of earlier versions


@pytest.mark.parametrize("made_for", [(0, 1), (0, 0, 1, 1, 2, 3), (0, 0, 1, 1, 2, 0.5), ("a",) * 6])
def test_classes_that_do_not_fit_are_refused(made_for: Any, tmp_path: Path) -> None:
    soft = replace(SET, labels=torch.rand(6, 3).softmax(1))
    for one, fields in ((soft, {"made_for": made_for}), (SET, {"made_for": (0, 0, 1, 1, 2, 2)})):
        with pytest.raises(ValueError, match="made_for does not name one of 3 classes for each of 6 images"):
            replace(one, **fields)
    soft.save(tmp_path / "s")
    tensors, facts = read_tensors(tmp_path / "s", key=FORMAT)
    write_tensors(tmp_path / "s", tensors, facts | {"made_for": made_for}, FORMAT)
    with pytest.raises(InputError, match="is no distilled set: made_for does not name"):
        DistilledSet.load(tmp_path / "s")


def test_tensors_of_the_methods_own_come_back(tmp_path: Path) -> None:
    own = {"labels": torch.randn(6, 3), "generator.weight": torch.randn(2)}
    replace(SET, training_tensors=own).save(tmp_path / "s")
    back = DistilledSet.load(tmp_path / "s").to("cpu")
    assert back.training_tensors.keys() == own.keys()
    assert all(torch.equal(back.training_tensors[name], own[name]) for name in own)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": torch.zeros(6, 3, 4)}, r"distilled set has float \(N, C, H, H\)"),
        ({"images": torch.zeros(6, 3, 4, 5)}, r"distilled set has float"),
        ({"images": torch.zeros(0, 3, 4, 4), "labels": torch.zeros(0, dtype=torch.long)}, "N >= 1"),
        ({"images": torch.full((6, 3, 4, 4), float("nan"))}, "not finite"),
        ({"labels": torch.tensor([0, 1])}, r"labels are torch.int64 \(2,\)"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2, 3])}, r"range over \[0, 3\]; there are 3 classes"),
        ({"labels": torch.rand(6, 4)}, r"labels are torch.float32 \(6, 4\)"),
        ({"mean": (0.5,)}, "do not fit images of 3 channels"),
        ({"method": "../../x"}, "method is '../../x'; a name has letters"),
        ({"method": ".."}, "method is '..'"),
        ({"dataset": "/tmp/x"}, "dataset is '/tmp/x'"),
        ({"dataset": "."}, "dataset is '.'"),
        ({"dataset": "a\n"}, "dataset is "),
        ({"method": [1]}, r"method is '\[1\]'"),
    ],
)
def test_a_set_of_wrong_shape_is_refused(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(SET, **change)


def test_a_file_of_wrong_content_is_refused(tmp_path: Path) -> None:
    SET.save(tmp_path / "whole")
    fields = {
        "dataset": "toy",
        "augment": "",
        "backbone": "x",
        "method": "",
        "classes": ["a", "b"],
        "mean": [0.5],
        "std": [1],
    }
    key = "guard-distilled-1"
    write_tensors(tmp_path / "other", {"weights": torch.ones(2)})
    write_tensors(tmp_path / "shape", {"images": torch.ones(2, 3), "labels": torch.zeros(2)}, fields, key)
    write_tensors(tmp_path / "keys", {"images": torch.ones(2, 3), "labels": torch.zeros(2)}, {"dataset": "toy"}, key)
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:300])
    for name, words in {
        "other": "no distilled set: it has tensors weights, metadata guard-facts-1",
        "shape": "no distilled set: images are",
        "keys": "no distilled set: it has tensors images, labels, metadata dataset; expected",
        "cut": "not a whole safetensors file",
        "absent": "there is no file",
    }.items():
        with pytest.raises(InputError, match=words):
            DistilledSet.load(tmp_path / name)


@pytest.mark.parametrize(
    ("shape", "labels"),
    [
        ((6, 3, 4, 4), [0, 0, 1, 1, 2, 2]),
        ((6, 1, 28, 28), [0, 1, 1, 1, 2, 2]),
        ((24, 1, 8, 8), [0] * 12 + [1] * 12),
        ((3, 3, 80, 80), [2, 0, 2]),
    ],
)
def test_the_grid_has_the_bytes_of_torchvision(shape: tuple[int, ...], labels: list[int], tmp_path: Path) -> None:
    channels = shape[1]
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    one = (0.5,) * channels
    part = replace(SET, images=images, labels=torch.tensor(labels), mean=one, std=one)
    picture(part).save(tmp_path / "grid.png")
    rows = [images[part.labels == c] for c in part.labels.unique()]
    across = max(map(len, rows))
    scale = max(1, (64 if across <= 10 else 32) // shape[-1])
    white = torch.ones(across, *shape[1:])
    full = torch.cat([torch.cat([row, white])[:across] for row in rows]).clamp(0, 1)
    large = full.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    save_image(large, tmp_path / "torchvision.png", nrow=across)
    assert (tmp_path / "grid.png").read_bytes() == (tmp_path / "torchvision.png").read_bytes()


def test_the_grid_has_a_row_a_class_with_its_name() -> None:
    grid = picture(SET)
    assert grid.size == (2 * (64 + 2) + 2, 3 * (64 + 2) + 2)
    assert grid.getpixel((34, 34)) != grid.getpixel((34, 34 + 2 * 66))  # class a is dark, class c light


def test_wordnet_s_numbers_are_shown_as_words(tmp_path: Path) -> None:
    save_grid(replace(SET, classes=("n01440764", "n02979186", "c")), tmp_path / "numbers.png")
    save_grid(replace(SET, classes=("tench", "cassette player", "c")), tmp_path / "words.png")
    assert (tmp_path / "numbers.png").read_bytes() == (tmp_path / "words.png").read_bytes()


def test_two_classes_of_one_word_keep_their_numbers() -> None:
    two = ["n02012849", "n03126707"]
    assert readable([*two, "n99999999"]) == ("crane n02012849", "crane n03126707", "n99999999")


@pytest.mark.parametrize("names", [("a", "b", "c"), ("a cat", "Füchse", "a very long name of a class")])
def test_names_stand_left_of_the_rows(names: tuple[str, ...], tmp_path: Path) -> None:
    named, grid = replace(SET, classes=names), picture(SET)
    save_grid(named, tmp_path / "grid.png")
    whole = Image.open(tmp_path / "grid.png")
    margin = whole.width - grid.width
    assert whole.crop((margin, 0, whole.width, whole.height)).tobytes() == grid.tobytes()
    for row in range(3):
        beside = whole.crop((0, row * 66, margin, row * 66 + 68)).convert("L")
        assert beside.getextrema()[0] < 128  # a name
        assert beside.crop((0, 0, margin, 15)).getextrema() == (255, 255)  # in the middle of its row


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"width": 4.0}, r"width is 4\.0; it must be a whole number >= 1"),
        ({"epochs": True}, "epochs is True; it must be a whole number"),
        ({"lr": "0.1"}, "lr is '0.1'; it must be a finite number > 0"),
        ({"lr": 0}, "lr is 0; it must be > 0"),
        ({"augment": 3}, "augment of the set's training is 3; it must be a text"),
        ({"whitening": 5}, "whitening of the set's training is 5; it must be a text"),
        ({"lrs": 0.1}, "lrs of the set's training is 0.1; it must be a list"),
        ({"lrs": [0.1, -1]}, r"lrs\[1\] is -1; it must be >= 0"),
        ({"validate": []}, "validate of the set's training is .*; it must be a dict"),
        ([], "training is a list; it must be a dict"),
    ],
)
def test_a_set_with_damaged_settings_of_a_protocol_is_refused(training: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        MethodTraining.from_json(training)
    SET.save(tmp_path / "s")
    tensors, facts = read_tensors(tmp_path / "s", key=FORMAT)
    write_tensors(tmp_path / "s", tensors, facts | {"training": training}, FORMAT)
    with pytest.raises(InputError, match=f"is no distilled set: .*{words}"):
        DistilledSet.load(tmp_path / "s")


def test_settings_of_methods_outside_this_tree_come_back(tmp_path: Path) -> None:
    replace(SET, training=MethodTraining(lr=0.1, extra={"rounds": [1, 2]})).save(tmp_path / "s")
    _, facts = read_tensors(tmp_path / "s", key=FORMAT)
    assert facts["training"] == {"lr": 0.1, "rounds": [1, 2]}
    assert DistilledSet.load(tmp_path / "s").training == MethodTraining(lr=0.1, extra={"rounds": [1, 2]})
    with pytest.raises(ValueError, match="extra has lr, which are fields already"):
        MethodTraining(extra={"lr": 0.1})
