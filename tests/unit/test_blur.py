"""Blur of the training images: the kernel, its borders, its identity, and images that stay in their files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch

from distill.app.main import main
from distill.app.start import real_data
from distill.data.blur import blurred
from distill.data.image_files import ImageFiles
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.experiment import Evaluation, Experiment
from distill.runs.from_json import from_json
from distill.runs.run import describe
from tests.toy import toy, write_toy

WORDS = ["random", "folder", "--ipc", "2", "--recipe", "smoke"]


@pytest.mark.parametrize(("sigma", "size"), [(0.5, 8), (0.75, 8), (1.5, 16)])
def test_a_blur_is_scipys(sigma: float, size: int) -> None:
    images = torch.rand(3, 2, size, size, generator=torch.Generator().manual_seed(0))
    radius = max(1, int(np.ceil(4 * sigma)))
    expected = scipy.ndimage.gaussian_filter(
        images.double().numpy(), (0, 0, sigma, sigma), mode="mirror", radius=(0, 0, radius, radius)
    )
    assert np.abs(blurred(images, sigma).numpy() - expected).max() < 1e-5
    assert torch.equal(blurred(images[0], sigma), blurred(images[:1], sigma)[0])


def test_a_constant_image_stays_and_pixels_stay_in_range() -> None:
    for value in (0.0, 0.3, 1.0):
        flat = torch.full((1, 3, 8, 8), value)
        assert torch.allclose(blurred(flat, 1.0), flat, atol=1e-6)
        assert blurred(flat, 1.0).max() <= 1


def test_a_blurred_set_has_another_identity_and_the_same_constants() -> None:
    real = toy()
    one, other = real.blurred(0.75), real.blurred(0.5)
    assert real.blurred(0.0) is real
    assert len({each.digest for each in (real, one, other)}) == 3
    assert one.digest == toy().blurred(0.75).digest
    assert (one.mean, one.std) == (real.mean, real.std)
    assert torch.equal(one.images, blurred(real.images, 0.75))
    with pytest.raises(InputError, match=r"--blur is 2; for images of 8 px it must be at most 1\.75"):
        real.blurred(2.0)


def test_images_in_files_are_blurred_as_those_in_memory(tmp_path: Path) -> None:
    train, _ = real_data("folder", write_toy(tmp_path), None, "test")
    paths = np.array([str(path) for path in sorted((tmp_path / "train").rglob("*.png"))])
    lazy = replace(train, images=ImageFiles(paths, 8, "square"))
    found, expected = lazy.blurred(0.75), train.blurred(0.75)
    assert isinstance(found.images, ImageFiles)
    assert torch.allclose(found.images[:], expected.images, atol=1e-6)
    assert torch.allclose(found.images[3], expected.images[3], atol=1e-6)
    assert torch.allclose(found.in_memory().images, expected.images, atol=1e-6)
    assert torch.allclose(found.subset(6).images[:], expected.subset(6).images, atol=1e-6)
    assert found.digest == expected.digest != lazy.digest
    with pytest.raises(InputError, match="must be at most"):
        lazy.blurred(2.0)
    with pytest.raises(ValueError, match="blur is -1"):
        ImageFiles(paths, 8, "square", blur=-1.0)


def test_crops_of_files_that_are_blurred_are_cut_from_the_blurred_image(tmp_path: Path) -> None:
    from sre2l.loading import _Crops

    write_toy(tmp_path)
    paths = np.array([str(path) for path in sorted((tmp_path / "train").rglob("*.png"))])
    sharp, soft = ImageFiles(paths, 8, "square"), ImageFiles(paths, 8, "square", blur=0.75)
    first, second = (_Crops(files, "resized_crop", flip=False)[3, 7].float() for files in (sharp, soft))
    roughness = [(image[:, 1:] - image[:, :-1]).abs().mean().item() for image in (first, second)]
    assert roughness[1] < 0.8 * roughness[0]


@pytest.mark.parametrize("split", ["test", "validation"])
def test_images_for_evaluation_are_not_blurred(split: str, tmp_path: Path) -> None:
    root = write_toy(tmp_path)
    (train, test), (soft, same) = (real_data("folder", root, None, split, blur=blur) for blur in (0.0, 0.75))
    assert torch.equal(test.images, same.images)
    assert test.digest == same.digest
    assert torch.equal(soft.images, blurred(train.images, 0.75))


def test_names_have_the_blur() -> None:
    made = Experiment("random", "cifar10", None, Evaluation(), image_size=16)
    names = [replace(made, blur=blur, split=split) for blur in (0.0, 0.75) for split in ("test", "validation")]
    assert [each.data_name(Path("data")) for each in names] == [
        "cifar10-16px",
        "cifar10-16px-validation",
        "cifar10-16px-blur0.75",
        "cifar10-16px-blur0.75-validation",
    ]
    with pytest.raises(ValueError, match="blur is -1"):
        replace(made, blur=-1.0)


def test_a_run_without_blur_is_the_run_of_an_earlier_version() -> None:
    plain = Experiment("random", "cifar10", None, Evaluation())
    soft = replace(plain, blur=0.75)
    assert "blur" not in describe(plain)
    assert describe(soft)["blur"] == 0.75
    for made in (plain, soft):
        description = describe(made)
        description["evaluation"] |= made.evaluation.columns
        assert from_json(Experiment, description) == made


def test_a_blurred_run_from_the_flag_to_the_rerun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_toy(tmp_path / "data")
    places = ["--data-dir", str(root), "--runs", str(tmp_path / "runs")]
    assert main([*WORDS, *places]) == main([*WORDS, "--blur", "0.75", *places]) == 0
    plain, soft = sorted(path.parent for path in (tmp_path / "runs").rglob("experiment.json"))
    assert soft.parts[-3] == f"{plain.parts[-3]}-blur0.75"
    sets = [DistilledSet.load(folder).images for folder in (plain, soft)]
    assert torch.allclose(sets[1], blurred(sets[0], 0.75), atol=1e-6)
    rows = [json.loads((folder / "results.jsonl").read_text().splitlines()[0]) for folder in (plain, soft)]
    assert rows[0]["test"] == rows[1]["test"]
    assert rows[1]["dataset"] == soft.parts[-3]

    assert main(["rerun", str(soft), "--data-dir", str(root)]) == 0
    (again,) = (path.parent for path in (tmp_path / "reruns").rglob("table.csv"))
    assert (again / "table.csv").read_bytes() == (soft / "table.csv").read_bytes()
    words = ["--recipe", "quick", "--student.epochs", "2", "--attacks", "linf"]
    assert main(["evaluate", str(soft), *words, *places]) == 0
    (judged,) = (path.parent for path in (tmp_path / "runs" / "evaluate").rglob("results.jsonl"))
    data = [json.loads((folder / "experiment.json").read_text())["data"] for folder in (plain, soft, judged)]
    assert data[0] == data[2] != data[1]


def test_a_blur_that_is_too_wide_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--data-dir", str(write_toy(tmp_path / "data")), "--runs", str(tmp_path / "runs")]
    assert main([*WORDS, "--blur", "3", *places]) == 2
    assert "--blur is 3; for images of 8 px it must be at most 1.75" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
