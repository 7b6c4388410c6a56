"""Label smoothing as a field of the plain loss: its value, its text, and students that are trained with it."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from distill.app.main import main
from distill.runs.description import describe
from distill.runs.from_json import from_json
from robust import CrossEntropy, cross_entropy, loss_named, smoothed
from robust.losses import written
from tests.toy import write_toy

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(6) % 4


def identity(x: torch.Tensor) -> torch.Tensor:
    return x


def test_smoothed_classes_and_probabilities() -> None:
    loss = CrossEntropy(smoothing=0.1)
    expected = cross_entropy(LOGITS, smoothed(CLASSES, 4, 0.1)).mean()
    assert torch.allclose(loss(identity, LOGITS, CLASSES), expected)
    soft = torch.softmax(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), 1)
    mixed = 0.9 * soft + 0.1 / 4
    assert torch.allclose(loss(identity, LOGITS, soft), cross_entropy(LOGITS, mixed).mean())
    plain = F.cross_entropy(LOGITS, CLASSES, reduction="none").mean()
    assert torch.equal(CrossEntropy()(identity, LOGITS, CLASSES), plain)


def test_the_text_of_a_smoothed_loss() -> None:
    for units in ("pixels", "inputs"):
        loss = loss_named("cross_entropy:smoothing=0.1", units=units)
        assert loss == CrossEntropy(smoothing=0.1)
        assert written(loss, units) == "cross_entropy:smoothing=0.1"
    assert written(CrossEntropy()) == written(loss_named("cross_entropy:smoothing=0")) == "cross_entropy"
    for value in ("1", "-0.1", "nan"):
        with pytest.raises(ValueError, match=r"smoothing is .*in \[0, 1\)"):
            loss_named(f"cross_entropy:smoothing={value}")


def test_a_run_without_smoothing_is_the_run_of_an_earlier_version() -> None:
    assert describe(CrossEntropy()) == {"class": "CrossEntropy"}
    assert from_json(CrossEntropy, {"class": "CrossEntropy"}) == CrossEntropy()
    smooth = CrossEntropy(smoothing=0.2)
    assert describe(smooth) == {"class": "CrossEntropy", "smoothing": 0.2}
    assert from_json(CrossEntropy, describe(smooth)) == smooth


def test_students_are_trained_on_smoothed_labels(tmp_path: Path) -> None:
    places = ["--data-dir", str(write_toy(tmp_path / "data")), "--attacks", "linf", "--students", "1"]
    words = ["random", "folder", "--recipe", "smoke", "--student.epochs", "20", *places]
    weights = []
    for number, flags in enumerate(([], ["--student.loss", "cross_entropy:smoothing=0.5"])):
        assert main([*words, *flags, "--runs", str(tmp_path / str(number))]) == 0
        (path,) = (tmp_path / str(number)).rglob("results.jsonl")
        row = json.loads(path.read_text().splitlines()[0])
        assert row["loss"] == ("cross_entropy:smoothing=0.5" if flags else "cross_entropy")
        weights.append((path.parent / "students" / "0.safetensors").read_bytes())
    assert weights[0] != weights[1]
