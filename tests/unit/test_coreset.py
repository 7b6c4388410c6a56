"""Coresets: the greedy choices against a search over all, real images and nothing else, the same again after a kill."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from baselines.coreset import METHODS, Config, distill, finite_cover, herding, k_center, work
from distill.app.main import main
from distill.data import facts_named
from distill.distilled import DistilledSet
from distill.evaluation.row_files import find_rows
from distill.runs.description import describe
from distill.runs.from_json import from_json
from distill.runs.run import Run
from distill.training.packing import packed, unpacked
from tests.toy import toy, write_toy

RECIPES = {method.name: method.recipes for method in METHODS}

FEATURES = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_herding_takes_the_best_next_image_each_time() -> None:
    chosen = herding(FEATURES, 8).tolist()
    assert len(set(chosen)) == 8
    for k in range(8):
        others = [i for i in range(30) if i not in chosen[:k]]
        means = {i: (FEATURES[[*chosen[:k], i]].mean(0) - FEATURES.mean(0)).norm().item() for i in others}
        assert means[chosen[k]] == pytest.approx(min(means.values()))
    assert sorted(herding(FEATURES, 30).tolist()) == list(range(30))


def test_k_center_covers() -> None:
    chosen = k_center(FEATURES, 8).tolist()
    distances = torch.cdist(FEATURES, FEATURES)
    for k in range(1, 8):
        reach = distances[:, chosen[:k]].amin(1)
        assert reach[chosen[k]].item() == pytest.approx(reach.max().item())
    assert sorted(k_center(FEATURES, 30).tolist()) == list(range(30))
    assert sorted(k_center(torch.zeros(5, 2), 5).tolist()) == list(range(5))  # all equal


def covering_radius(points: torch.Tensor, centres: list[int]) -> float:
    return torch.cdist(points, points[centres]).amin(1).max().item()


def test_balls_of_the_smallest_radius_cover() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(40, 3, generator=generator)
    for n in (1, 3, 8):
        chosen = finite_cover(points, n).tolist()
        assert len(set(chosen)) == n
        radius = covering_radius(points, chosen)
        random_ones = [torch.randperm(40, generator=generator)[:n].tolist() for _ in range(200)]
        best = min(covering_radius(points, each) for each in random_ones)
        assert radius <= 1.1 * best
    assert finite_cover(points, 1).item() == torch.cdist(points, points).amax(1).argmin().item()  # the 1-centre
    assert sorted(finite_cover(points, 40).tolist()) == list(range(40))
    assert len(set(finite_cover(torch.zeros(5, 2), 3).tolist())) == 3  # all equal: one ball suffices, two fill up


def test_a_greedy_cover_takes_the_fullest_ball_first() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0], [11.0]])
    assert finite_cover(points, 2).tolist() == [1, 4]  # radius 2: the ball around 1 has four points


@pytest.mark.parametrize("choice", ["random", "herding", "kcenter", "mfc"])
def test_the_images_are_real_of_their_class_and_chosen_again(choice: str, tmp_path: Path) -> None:
    real, config = toy(), Config(choice, "convnet:width=4", extractor_epochs=2, batch_train=16)
    found = distill(real, 3, config, Run(tmp_path / "a", None).begin())
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for image, label in zip(found.images, found.labels.tolist(), strict=True):
        same = (real.images == image).flatten(1).all(1)
        assert real.labels[same].tolist() == [label]
    assert len(found.images.unique(dim=0)) == 6
    assert torch.equal(found.images, distill(real, 3, config, Run(tmp_path / "b", None).begin()).images)
    other = distill(real, 3, config, Run(tmp_path / "c", None, seed=1).begin())
    assert choice != "random" or not torch.equal(found.images, other.images)


def test_an_extractor_is_trained_once_and_a_killed_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from baselines import coreset

    calls: list[int] = []
    train = coreset.train_epochs

    def counted(*arguments: object, **options: object) -> None:
        if len(calls) == dies_at:
            raise KeyboardInterrupt
        calls.append(1)
        train(*arguments, **options)

    monkeypatch.setattr(coreset, "train_epochs", counted)
    options = {"backbone": "convnet:width=4", "extractor_epochs": 3, "batch_train": 16}

    def chosen(choice: str, folder: str, ipc: int, stages: Path) -> torch.Tensor:
        run = Run(tmp_path / folder, None, stages=stages, checkpoint_seconds=0.0).begin()
        return distill(toy(), ipc, Config(choice, **options), run).images

    dies_at = -1
    whole = chosen("herding", "a", 3, tmp_path / "one")
    assert len(calls) == 3
    chosen("kcenter", "b", 2, tmp_path / "one")
    assert len(calls) == 3
    dies_at = 5
    with pytest.raises(KeyboardInterrupt):
        chosen("herding", "c", 3, tmp_path / "two")
    dies_at = -1
    assert torch.equal(chosen("herding", "c", 3, tmp_path / "two"), whole)
    assert len(calls) == 6
    files = [sorted((tmp_path / name).glob("*/extractor.safetensors")) for name in ("one", "two")]
    assert [len(found) for found in files] == [1, 1]
    assert files[0][0].read_bytes() == files[1][0].read_bytes()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_and_their_work(name: str) -> None:
    for dataset in ("digits", "cifar10"):
        for ipc in (1, 10):
            quick, paper = (RECIPES[name][recipe](facts_named(dataset), ipc) for recipe in ("quick", "paper"))
            assert quick.config.choice == paper.config.choice == name
            assert (paper.evaluation.students, quick.evaluation.students) == (50, 3)
            counts = [count for count, _ in work(quick.config, ipc, 10, 1600)]
            assert counts == ([] if name in ("random", "mfc") else [5 * 1600 / 32 / 5])


def test_values_out_of_range_are_refused() -> None:
    for options, line in (
        ({"choice": "best"}, "choice is 'best'; choose from random, herding, kcenter"),
        ({"choice": "random", "extractor_epochs": 0}, "extractor_epochs is 0"),
        ({"choice": "random", "lr_net": 0.0}, "lr_net is 0.0"),
    ):
        with pytest.raises(ValueError, match=line):
            Config(**options)


# --- several images in the storage of one


def test_packing_is_what_idcs_decoder_reads() -> None:
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    stored = packed(images, 2)
    assert stored.shape == (2, 3, 8, 8)
    assert torch.allclose(stored[1, :, :4, 4:], F.interpolate(images[3:4], 4, mode="area")[0])  # the second of its kind
    small = F.interpolate(images, 4, mode="area")
    found, labels = unpacked(stored, torch.tensor([5, 5]), 2)
    assert torch.allclose(found, F.interpolate(small, 8, mode="bilinear"), atol=1e-6)
    assert labels.tolist() == [5] * 8
    for count, factor in ((7, 2), (9, 3)):
        with pytest.raises(ValueError, match="do not fill stored images"):
            packed(images[:1].expand(count, -1, -1, -1), factor)


@pytest.mark.parametrize("choice", ["random", "herding", "kcenter"])
def test_a_factor_selects_more_images_of_fewer_pixels(choice: str, tmp_path: Path) -> None:
    real, options = toy(), {"backbone": "convnet:width=4", "extractor_epochs": 2, "batch_train": 16}
    run = Run(tmp_path / "a", None, stages=tmp_path / "stages").begin()
    whole = distill(real, 8, Config(choice, **options), run)
    found = distill(real, 2, Config(choice, **options, factor=2), run)
    assert (whole.ipc, whole.stored_ipc, found.ipc, found.stored_ipc) == (8, 8, 8, 2)
    assert found.labels.tolist() == [0] * 8 + [1] * 8
    small = F.interpolate(whole.images, 4, mode="area")
    assert torch.allclose(found.images, F.interpolate(small, 8, mode="bilinear"), atol=1e-6)
    found.save(tmp_path / "set.safetensors")
    assert DistilledSet.load(tmp_path / "set.safetensors").stored_ipc == 2


def test_a_factor_that_does_not_fit_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["random", "folder", "--recipe", "smoke", "--runs", str(tmp_path / "runs")]
    words += ["--data-dir", str(write_toy(tmp_path / "data"))]
    for flags, line in (
        (["--factor", "3"], "--factor is 3; for images of 8 px it is one of 1, 2, 4, 8"),
        (["--factor", "2", "--ipc", "6"], "--factor 2 with ipc 6 takes 24 images of each class; the smallest"),
        (["--factor", "0"], "in [1, 16]"),
    ):
        assert main([*words, *flags]) == 2
        error = capsys.readouterr().err
        assert line in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_the_table_counts_storage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--runs", str(tmp_path / "runs"), "--data-dir", str(write_toy(tmp_path / "data"))]
    assert main(["random", "folder", "--recipe", "smoke", "--factor", "2", "--ipc", "2", *places]) == 0
    (folder,) = (path.parent for path in (tmp_path / "runs").rglob("distilled.safetensors"))
    flags = ["--recipe", "quick", "--student.epochs", "2", "--attacks", "linf", "--backbone", "mlp"]
    assert main(["evaluate", str(folder), *flags, *places]) == 0
    assert {row.ipc for row in find_rows([tmp_path / "runs"])} == {2}
    assert len(DistilledSet.load(folder).labels) == 16
    capsys.readouterr()


def test_a_run_of_whole_images_is_the_run_of_an_earlier_version() -> None:
    assert "factor" not in describe(Config("random"))
    assert from_json(Config, describe(Config("random"))) == Config("random")
    assert from_json(Config, describe(Config("random", factor=2))) == Config("random", factor=2)
