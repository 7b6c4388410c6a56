"""Gradient matching that starts from another distilled set, and the sets that it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from baselines import dcc
from baselines.cafe import recipes as cafe
from baselines.dm import recipes as dm
from baselines.kip import recipes as kip
from baselines.mtt import label_recipes as labels
from baselines.mtt import recipes as mtt
from distill.data import ImageSet, facts_named
from distill.distilled import DistilledSet, digest_of
from distill.errors import InputError
from distill.methods import dc_recipes as dc
from distill.methods.dc import Config, distill
from distill.methods.initial import check_initial, init_with_digest
from distill.runs.run import Run
from robust import CrossEntropy
from tests.toy import toy

METHODS = (*dc.METHODS, *dcc.METHODS, *dm.METHODS, *cafe.METHODS)
"""methods whose images have a learning rate lr_img"""
STARTING = (*METHODS, *kip.METHODS, *mtt.METHODS, *labels.METHODS)
SMALL = Config(CrossEntropy(), backbone="convnet:width=4", iterations=1, outer_loop=1, inner_loop=1, batch_real=6)


def saved(folder: Path, real: ImageSet, ipc: int = 2, seed: int = 0) -> tuple[Path, torch.Tensor]:
    """Write a set whose images are sorted in no way; return its folder and its images by class, (K, ipc, C, H, W)."""
    images = torch.rand(2 * ipc, *real.image_shape, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(2 * ipc) % 2
    folder.mkdir(exist_ok=True)
    DistilledSet.of(real, images, labels).save(folder / "distilled.safetensors")
    return folder, torch.stack([images[labels == c] for c in range(2)])


@pytest.mark.parametrize("method", STARTING, ids=lambda method: method.name)
def test_a_run_starts_from_the_images_of_a_set(tmp_path: Path, method) -> None:
    real = toy()
    folder, images = saved(tmp_path / "set", real)
    smoke = method.recipes["smoke"](facts_named("cifar10"), 2).config
    step = "lr" if method in kip.METHODS else "lr_img"
    config = replace(smoke, init=str(folder), **{step: 1e-9})
    made = method.distill(real, 2, config, Run(tmp_path / "run", None).begin())
    torch.testing.assert_close(made.images, images.flatten(0, 1), rtol=0, atol=1e-6)
    assert made.image_classes.tolist() == [0, 0, 1, 1]


def test_a_run_on_whitened_images_starts_from_the_pixels_of_a_set(tmp_path: Path) -> None:
    real = toy()
    folder, images = saved(tmp_path / "set", real)
    smoke = mtt.METHODS[0].recipes["smoke"](facts_named("cifar10"), 2).config
    config = replace(smoke, init=str(folder), lr_img=1e-9, zca=True)
    made = mtt.METHODS[0].distill(real, 2, config, Run(tmp_path / "run", None).begin())
    torch.testing.assert_close(made.images, images.flatten(0, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", [dc.METHODS[0], kip.METHODS[0], mtt.METHODS[0]], ids=lambda method: method.name)
def test_a_class_with_fewer_real_images_than_the_set_needs_is_refused(tmp_path: Path, method) -> None:
    config = replace(method.recipes["smoke"](facts_named("cifar10"), 2).config, init="real")
    with pytest.raises(InputError, match="ipc is 21; the smallest class of toy has 20 images; take --init noise"):
        method.distill(toy(), 21, config, Run(tmp_path, None).begin())


def test_a_killed_run_needs_the_set_no_more(tmp_path: Path) -> None:
    real = toy()
    folder, _ = saved(tmp_path / "set", real)
    config = replace(SMALL, init=str(folder), iterations=2)
    whole = distill(real, 2, config, Run(tmp_path / "whole", None).begin())
    distill(real, 2, replace(config, iterations=1), Run(tmp_path / "part", None).begin())
    (folder / "distilled.safetensors").unlink()
    resumed = distill(real, 2, config, Run(tmp_path / "part", None).begin())
    torch.testing.assert_close(resumed.images, whole.images, rtol=0, atol=0)


def test_another_set_under_the_same_path_is_another_experiment(tmp_path: Path) -> None:
    real = toy()
    folder, _ = saved(tmp_path / "set", real)
    first = replace(SMALL, init=str(folder))
    assert first.init == f"{folder}@{digest_of(folder / 'distilled.safetensors')[:12]}"
    assert replace(first, iterations=2).init == first.init
    saved(folder, real, seed=1)
    assert replace(SMALL, init=str(folder)) != first
    with pytest.raises(InputError, match="has changed since"):
        check_initial(real, 2, first, 1)


def test_sets_that_do_not_fit_are_refused_before_the_work(tmp_path: Path) -> None:
    real = toy()
    check = METHODS[0].check
    assert check is not None
    config = replace(SMALL, init=str(saved(tmp_path / "a", real)[0]))
    check(real, 2, config, 1)
    with pytest.raises(InputError, match=r"it has 2 images per class; --ipc is 1"):
        check(real, 1, config, 1)
    grey = toy(channels=1)
    with pytest.raises(InputError, match=r"its images are 3x8x8, those of toy here 1x8x8; see --image-size"):
        check(grey, 2, config, 1)
    with pytest.raises(InputError, match=r"a set of toy; its classes are not those of other"):
        check(replace(real, name="other", classes=("left", "right")), 2, config, 1)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("", "init is empty; it takes noise, real, or the folder of a distilled set"),
        ("zeros", "init is zeros; it takes noise"),
        ("empty", "there is no file .*; `evaluate` reads a published set"),
        ("set.pt", "init: .*set.pt"),
    ],
)
def test_what_is_no_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "set.pt").write_bytes(b"PK")
    with pytest.raises(ValueError, match=message):
        replace(SMALL, init=made)
    assert init_with_digest("noise") == "noise"
