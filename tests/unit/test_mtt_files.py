"""A set of MTT in several files, several sets in a folder, and the card with its learned rate."""

import json
from pathlib import Path

import pytest
import torch

from distill.errors import InputError
from distill.published.reading import Reading, import_set
from distill.published.recognise import recognised_source
from robust import Normalize
from tests.unit.test_published import CLASSES, REAL, drawn, read, save_mtt, taken


def pixels(images: torch.Tensor) -> torch.Tensor:
    return Normalize(REAL.mean, REAL.std).inverse(images)


def test_parts_with_other_images_are_one_set(tmp_path: Path) -> None:
    """Sets of 50 images a class are published so; one part was judged as the set, or all were refused as several."""
    parts = [drawn(4, 3, 8, 8, seed=seed) for seed in range(3)]
    for number, part in enumerate(parts):
        save_mtt(tmp_path, part, which=str(number))
    assert recognised_source(tmp_path) == "mtt"
    found, said = taken(tmp_path, space="normalised")
    assert found.labels.tolist() == [0] * 6 + [1] * 6
    expected = torch.cat([part[:2] for part in parts] + [part[2:] for part in parts])
    assert torch.allclose(found.images, pixels(expected), atol=1e-6)
    assert "images_0.pt to images_2.pt, 3 parts of one set, with labels_0.pt" in said[0]
    _, said = taken(tmp_path / "images_1.pt", space="normalised")
    assert said[1] == (
        "warning: images_0.pt, images_2.pt beside it may be parts of the same set: give the folder to read all of them"
    )


def test_parts_with_other_classes_are_one_set(tmp_path: Path) -> None:
    x = drawn(4, 3, 8, 8)
    save_mtt(tmp_path, x[:2], CLASSES[:2], "0")
    save_mtt(tmp_path, x[2:], CLASSES[2:], "1")
    found, said = taken(tmp_path, space="normalised")
    assert torch.allclose(found.images, pixels(x), atol=1e-6)
    assert len(said) == 1


def test_iterations_of_one_set_are_no_parts(tmp_path: Path) -> None:
    x = drawn(4, 3, 8, 8)
    for number in range(2):
        save_mtt(tmp_path, x + 0.01 * drawn(4, 3, 8, 8, seed=number), which=str(number))
    with pytest.raises(InputError, match=r"images_0\.pt to images_1\.pt, whose images are alike.*or --parts"):
        taken(tmp_path, space="normalised")
    found, _ = taken(tmp_path, space="normalised", parts=True)
    assert len(found.images) == 8
    save_mtt(tmp_path, x, which="best")  # then they are states of it
    assert len(taken(tmp_path, space="normalised")[0].images) == 4
    assert len(taken(tmp_path / "images_0.pt", space="normalised")[1]) == 1
    with pytest.raises(InputError, match=r"--parts is for images_0\.pt, images_1\.pt, \.\.\.; .* has images_best\.pt"):
        taken(tmp_path, space="normalised", parts=True)
    with pytest.raises(InputError, match=r"--parts is for a folder"):
        taken(tmp_path / "images_0.pt", space="normalised", parts=True)


def test_parts_of_other_shapes_are_refused(tmp_path: Path) -> None:
    save_mtt(tmp_path, drawn(4, 3, 8, 8), which="0")
    save_mtt(tmp_path, drawn(4, 3, 4, 4), which="1")
    with pytest.raises(InputError, match="differ in the shape"):
        taken(tmp_path, space="normalised")


def test_parts_with_other_rates_need_one(tmp_path: Path) -> None:
    for number in range(2):
        save_mtt(tmp_path, drawn(4, 3, 8, 8, seed=number), which=str(number))
        torch.save(torch.tensor(0.1 + number), tmp_path / f"lr_{number}.pt")
    with pytest.raises(InputError, match="other learning rates each: give --lr"):
        taken(tmp_path, space="normalised")
    assert taken(tmp_path, space="normalised", lr=0.2)[0].training.lr == 0.2


def test_parts_are_another_reading_and_no_parts_the_one_of_before(tmp_path: Path) -> None:
    for number in range(2):
        save_mtt(tmp_path, drawn(4, 3, 8, 8), which=str(number))
    hows = [Reading(space="normalised", parts=True), Reading(source="mtt", space="normalised")]
    places = [
        import_set(path, how, "toy", "data", tmp_path / "runs", lambda size: REAL.resized(size), read)
        for path, how in zip((tmp_path, tmp_path / "images_0.pt"), hows, strict=True)
    ]
    assert places[0].name != places[1].name


@pytest.mark.parametrize(
    "card",
    [
        {"space": "normalised"},
        *({"lr": lr, "space": "normalised"} for lr in ("abc", [1], True, -1, 0, float("nan"), float("inf"), {})),
        {"lr": 0.1, "space": ["normalised"]},
        {"lr": 0.1, "space": "normalised", "mean": [0.1] * 3},
        {"lr": 0.1, "space": "normalised", "mean": [0.1] * 3, "std": [0.0] * 3},
        {"lr": 0.1, "space": "normalised", "mean": [10**400] * 3, "std": [0.1] * 3},
        {"lr": 10**400, "space": "normalised"},
        [],
        None,
    ],
    ids=lambda card: str(card)[:40],
)
def test_a_card_with_anything_else_is_one_line(card: object, tmp_path: Path) -> None:
    save_mtt(tmp_path, drawn(4, 3, 8, 8))
    (tmp_path / "learned_lr.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match=r"learned_lr\.json is damaged; delete it and give --lr and --space"):
        taken(tmp_path)


def test_a_card_nested_without_end_is_one_line(tmp_path: Path) -> None:
    save_mtt(tmp_path, drawn(4, 3, 8, 8))
    (tmp_path / "learned_lr.json").write_text("[" * 200_000)
    with pytest.raises(InputError, match="is damaged"):
        taken(tmp_path)
    (tmp_path / "learned_lr.json").write_text(json.dumps({"lr": None, "space": "normalised"}))
    assert taken(tmp_path)[0].training.to_json() == {}
