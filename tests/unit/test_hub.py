"""Sets for the Hugging Face Hub: opened by the library itself, with a card that it understands."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import pil_to_tensor

from distill.app.export import export
from distill.data import FACTS
from distill.distilled import DistilledSet
from distill.published.card import card

datasets = pytest.importorskip("datasets")

CLASSES = ("a cat", "dog", 'ship: "big"')
LABELS = torch.tensor([0, 1, 2, 1])


def made(labels: torch.Tensor = LABELS, **other: Any) -> DistilledSet:
    images = torch.rand(len(labels), 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = DistilledSet(images, labels, "cifar10", CLASSES, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), method="dc")
    return replace(found, **other)


@pytest.mark.parametrize("soft", [False, True])
def test_the_library_opens_it_as_it_is(soft: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    ours = made(F.one_hot(LABELS).float() * 0.7 + 0.1 if soft else LABELS)
    lines = export(ours, tmp_path, "hub", tmp_path / "set")
    assert "distilled.safetensors is exact" in lines[0]
    assert not [line for line in lines if "unfinished" in line]  # the folder in which it is written first
    found = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    assert found.features["label"].names == list(CLASSES)
    assert found["label"] == LABELS.tolist()
    pixels = torch.stack([pil_to_tensor(image) for image in found["image"]])
    assert torch.equal(pixels, (ours.images[:] * 255).round().byte())
    assert ("soft_label" in found.column_names) == soft
    if soft:
        torch.testing.assert_close(torch.tensor(found["soft_label"]), ours.labels)
    exact = DistilledSet.load(tmp_path / "set" / "distilled.safetensors")
    assert torch.equal(exact.images[:], ours.images[:])


def test_the_hub_reads_the_front_matter_of_the_card(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    (tmp_path / "table.md").write_text("| method | clean |\n|---|---|\n| dc | 45.3 |\n")
    export(made(teacher="pgd_at@4/255", method="mtt_robust_labels"), tmp_path, "hub", tmp_path / "set")
    found = hub.DatasetCard.load(tmp_path / "set" / "README.md")
    assert found.data.license == "unknown"
    assert found.data.task_categories == ["image-classification"]
    assert found.data.to_dict()["configs"][0]["data_files"][0]["split"] == "train"
    text = found.text
    assert "| dc | 45.3 |" in text
    assert "a teacher trained by pgd_at@4/255" in text
    assert "xue2025guard" in text
    assert "no stated licence" in text


def test_an_image_folder_has_a_card_too(tmp_path: Path) -> None:
    export(made(), tmp_path, "imagefolder", tmp_path / "set")
    text = (tmp_path / "set" / "README.md").read_text()
    assert text.startswith("---\nlicense: unknown\n")
    assert "Students were not evaluated here." in text


def test_every_data_set_has_terms_or_says_that_they_are_unknown() -> None:
    assert all(facts.terms for facts in FACTS.values())
    assert "not known to this program" in card(replace(made(), dataset="folder"), Path("nowhere"), "")
