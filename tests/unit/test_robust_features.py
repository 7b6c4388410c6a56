"""Robust features: what inversion minimises, its start, its stage, and the methods that use the images."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from baselines.robust_features import inversion
from baselines.robust_features.inversion import RobustFeatures, inverted, robust_images
from baselines.robust_features.method import featured
from distill.app.registry import find_methods, method_named
from distill.data import FACTS, ImageSet
from distill.errors import InputError
from distill.runs.run import Run
from distill.training.features import embedding
from robust import Normalize
from tests.toy import toy

SIZE = 4


def network_of() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(3 * SIZE**2, 8), nn.Linear(8, 3)
    return nn.Sequential(*layers).eval().requires_grad_(False)


def pixels_of(images: ImageSet) -> Tensor:
    assert isinstance(images.images, Tensor)
    return images.images


def real_set(count: int = 24) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, 8, 8, generator=generator)
    return ImageSet("toy", images, torch.arange(count) % 2, ("a", "b"), (0.5,) * 3, (0.25,) * 3)


def quick(**fields) -> RobustFeatures:
    settings = {"teacher": "cross_entropy", "teacher_epochs": 1, "teacher_batch_size": 8, "features_steps": 2}
    return RobustFeatures(**settings | fields)


def test_features_come_near_and_the_rest_of_the_start_stays() -> None:
    network, normalize = network_of(), Normalize((0.5,) * 3, (0.25,) * 3)
    generator = torch.Generator().manual_seed(1)
    pixels, start = (0.3 + 0.4 * torch.rand(5, 3, SIZE, SIZE, generator=generator) for _ in range(2))
    found = inverted(network, pixels, start, normalize, 300, 0.01)

    def distance(x: Tensor) -> Tensor:
        return (embedding(network, normalize(x)) - embedding(network, normalize(pixels))).norm(dim=1)

    assert (distance(found) < 0.05 * distance(start)).all()
    # directions that the features do not see keep the start's values: the null space of the linear layer
    layer = dict(network.named_parameters())["1.weight"] / 0.25  # of pixels
    seen = torch.linalg.qr(layer.T).Q
    blind = torch.eye(len(seen)) - seen @ seen.T
    assert ((found - start).flatten(1) @ blind).abs().max() < 1e-4
    assert (found - pixels).flatten(1).norm(dim=1).min() > 0.5


def test_a_step_is_a_unit_gradient_and_pixels_stay_in_range() -> None:
    network, normalize = network_of(), Normalize((0.5,) * 3, (0.25,) * 3)
    pixels, start = torch.rand(4, 3, SIZE, SIZE), torch.full((4, 3, SIZE, SIZE), 0.5)
    moved = inverted(network, pixels, start, normalize, 1, 0.1) - start
    assert moved.flatten(1).norm(dim=1).tolist() == pytest.approx([0.1] * 4, rel=1e-5)
    far = inverted(network, pixels, torch.rand(4, 3, SIZE, SIZE), normalize, 20, 5.0)
    assert far.min() >= 0
    assert far.max() <= 1


def test_images_are_a_stage_with_the_labels_of_their_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inversion, "PART", 5)
    real, config = real_set(), quick(features_images=7)
    backbone = "convnet:width=4,depth=1"

    def made(folder: str, config: RobustFeatures = config) -> ImageSet:
        run = Run(tmp_path / folder, {"toy": folder}, stages=tmp_path / "stages").begin()
        return robust_images(real, backbone, config, run)

    first = made("one")
    assert first.labels.tolist() == [0] * 7 + [1] * 7
    assert pixels_of(first).min() >= 0
    assert pixels_of(first).max() <= 1
    assert first.identity() != real.identity()
    calls: list[int] = []
    original = inversion.inverted
    monkeypatch.setattr(inversion, "inverted", lambda *a, **o: calls.append(1) or original(*a, **o))
    assert torch.equal(pixels_of(made("two")), pixels_of(first))
    assert calls == []  # read from the stage
    part = next((tmp_path / "stages").glob("robust_features-*/00001.safetensors"))
    part.unlink()
    assert torch.equal(pixels_of(made("three")), pixels_of(first))
    assert calls == [1]  # only the missing part
    own = made("four", quick(features_images=7, features_start="own", features_steps=1, features_step=1e-9))
    apart = (pixels_of(own)[:, None] - pixels_of(real)[None]).abs().flatten(2).amax(2)
    assert apart.amin(1).max() < 1e-6
    assert own.labels.tolist() == real.labels[apart.argmin(1)].tolist()


def test_every_method_has_this_form() -> None:
    methods = find_methods()
    found = method_named("mtt_robust_features", methods)
    assert found is not None
    config = found.recipes["quick"](FACTS["cifar10"], 10).config
    assert config.method == methods["mtt"].recipes["quick"](FACTS["cifar10"], 10).config
    assert config.features.features_images == 200
    assert found.recipes["paper"](FACTS["cifar10"], 1).evaluation.attacks.endswith(",autoattack@linf")
    assert method_named("nothing_robust_features", methods) is None
    assert featured(methods["full"]).name == "full_robust_features"


@pytest.mark.parametrize("name", ["random", "rome", "rded"])
def test_too_few_robust_images_are_refused_before_the_work(name: str) -> None:
    found = method_named(f"{name}_robust_features", find_methods())
    assert found is not None
    assert found.check is not None
    config = found.recipes["smoke"](FACTS["cifar10"], 4).config
    part = config.method.select if name == "rded" else config.method
    config = replace(config, features=replace(config.features, features_images=8))
    packed = replace(part, factor=2, candidates=16) if name == "rded" else replace(part, factor=2)
    config = replace(config, method=replace(config.method, select=packed) if name == "rded" else packed)
    with pytest.raises(InputError, match=r"--features-images is 8: .*16"):
        found.check(toy(), 4, config, 1)
    enough = replace(config, features=replace(config.features, features_images=16))
    found.check(toy(), 4, enough, 1)


def test_recipes_make_as_many_robust_images_as_the_method_packs() -> None:
    rome = method_named("rome_robust_features", find_methods())
    assert rome is not None
    assert rome.recipes["quick"](FACTS["cifar10"], 60).config.features.features_images == 240


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="features are those of one network"):
        quick(teacher="pgd_at@2/255,cross_entropy")
    with pytest.raises(ValueError, match="unknown loss 'gaurd'"):
        quick(teacher="gaurd")
