"""The contract of a loss: what every loss in `robust/losses` declares, and that the declaration is true."""

import inspect
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from pkgutil import iter_modules
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robust.losses
from robust import AdversarialTraining, CrossEntropy, CurvatureRegularizedLoss, Loss, RobustTeacher, Threat, loss_named
from robust.losses import InPixels, Traits, drawing_from, on_inputs, written
from robust.losses.named import LOSSES
from robust.preprocess import Normalize

THREAT = Threat("linf", 0.05)
NORMALIZE = Normalize([0.4, 0.5, 0.45], [0.25, 0.2, 0.3])


def classes() -> Iterator[tuple[str, type]]:
    """Yield the losses of the folder, whatever NAMED has of them: (module, class)."""
    for info in iter_modules(robust.losses.__path__):
        module = import_module(f"robust.losses.{info.name}")
        for kind in vars(module).values():
            ours = inspect.isclass(kind) and kind.__module__ == module.__name__
            if ours and is_dataclass(kind) and kind not in (Traits, InPixels):
                yield info.name, kind


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(6, 3, 8, 8, generator=generator), torch.arange(6) % 3


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_folder_is_the_registry() -> None:
    named = {type(make(THREAT)) for make in LOSSES.values()}
    assert named == {kind for _, kind in classes()}
    for file, kind in classes():
        assert kind in {type(make(THREAT)) for make in vars(import_module(f"robust.losses.{file}"))["NAMED"].values()}


@pytest.mark.parametrize("name", LOSSES)
def test_the_traits_are_true(name: str, net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    loss = LOSSES[name](THREAT)
    assert isinstance(loss, Loss)
    assert loss.__dataclass_params__.frozen
    names = {field.name for field in fields(loss)}
    assert loss.traits.threat == ("threat" in names)
    assert loss.traits.random == ("generator" in inspect.signature(type(loss).__call__).parameters)
    assert (loss.traits.strength in names) == (type(loss) is not CrossEntropy)
    assert loss.at(3) == loss
    assert not loss.scheduled
    assert not loss.only_in_training

    state = torch.get_rng_state()
    value = drawing_from(loss, rng())(net, *batch)
    assert value.ndim == 0
    assert torch.equal(torch.get_rng_state(), state)  # all randomness comes from the generator
    assert drawing_from(loss, rng())(net, *batch).item() == value.item()
    assert (drawing_from(loss, rng(1))(net, *batch).item() != value.item()) == loss.traits.random


@pytest.mark.parametrize("name", LOSSES)
def test_without_its_strength_a_loss_is_cross_entropy(name: str, net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    loss = LOSSES[name](THREAT)
    plain = CrossEntropy()(net, *batch)
    if loss.traits.strength:
        assert not torch.isclose(drawing_from(loss, rng())(net, *batch), plain, rtol=1e-7, atol=0)
        loss = replace(loss, **{loss.traits.strength: Threat("linf", 0.0) if loss.traits.strength == "threat" else 0.0})
    torch.testing.assert_close(drawing_from(loss, rng())(net, *batch), plain)
    assert loss.passes == 1


@pytest.mark.parametrize("name", LOSSES)
def test_passes_count_the_forward_passes(name: str, net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """A plain step is a forward pass and a backward pass of twice its cost; an inner step of an attack costs 2 / 3."""
    calls: list[int] = []
    net.register_forward_hook(lambda *_: calls.append(1))
    loss = LOSSES[name](THREAT)
    stepped = [replace(loss, steps=n) for n in (2, 5)] if "steps" in {field.name for field in fields(loss)} else [loss]
    for this in stepped:
        calls.clear()
        this(net, *batch)
        assert this.passes >= len(calls) / 3 + 2 / 3
        assert this.passes <= 5 * len(calls)
    assert stepped[-1].passes - stepped[0].passes == pytest.approx(0 if len(stepped) == 1 else 3 * 2 / 3)


def test_passes_follow_the_fields() -> None:
    assert AdversarialTraining(THREAT, steps=20).passes > 1.5 * AdversarialTraining(THREAT, steps=10).passes
    whole, part = CurvatureRegularizedLoss(), CurvatureRegularizedLoss(fraction=0.25)
    assert whole.passes == 7
    assert part.passes == 2.5
    assert replace(whole, batchnorm="train").passes < whole.passes
    assert replace(whole, penalty="loss_difference").passes < whole.passes
    assert InPixels(AdversarialTraining(THREAT), NORMALIZE).passes == AdversarialTraining(THREAT).passes


def test_schedules_and_fields_of_training_are_declared() -> None:
    warm = CurvatureRegularizedLoss(h_warmup=(0.1, 1.0))
    assert warm.scheduled
    assert warm.only_in_training == "h_warmup"
    assert replace(warm, batchnorm="train").only_in_training == "h_warmup and batchnorm=train"
    assert InPixels(warm, NORMALIZE).scheduled
    assert InPixels(warm, NORMALIZE).at(1).loss.h == 1.0


# The grammar


def changed(loss: Any, draw: Random) -> Any:
    """Return a loss with random values in random fields."""
    values: dict[str, Any] = {
        "weight": draw.choice([0.0, 3.0, 1e30, 0.1 + 0.2, draw.random()]),
        "h": draw.choice([1e-3, 3.0, 0.75, draw.random() + 1e-9]),
        "direction": draw.choice(["grad", "sign"]),
        "penalty": draw.choice(["squared", "norm", "loss_difference"]),
        "batchnorm": draw.choice(["eval", "train"]),
        "fraction": draw.choice([1.0, 0.25, 1 / 3]),
        "h_warmup": draw.choice([(), (0.1,), (0.1, 1.0, 1e-5)]),
        "squared": draw.random() < 0.5,
        "sigma": draw.random(),
        "beta": draw.choice([6.0, 1.0, draw.random()]),
        "steps": draw.randint(1, 10**6),
        "step_size": draw.choice([1 / 255, draw.random() + 1e-9]),
        "random_start": draw.random() < 0.5,
        "threat": Threat(draw.choice(["linf", "l2"]), draw.choice([0.0, 8 / 255, 0.3, draw.random()])),
    }
    names = [field.name for field in fields(loss) if field.name in values]
    return replace(loss, **{name: values[name] for name in names if draw.random() < 0.6})


@pytest.mark.parametrize("units", ["pixels", "inputs"])
@pytest.mark.parametrize("name", LOSSES)
def test_what_is_written_is_read_again(name: str, units: Any) -> None:
    assert written(loss_named(name, units=units), units) in (name, f"{name}@8/255")
    draw = Random(name)
    for _ in range(200):
        loss = changed(loss_named(name, units=units), draw)
        again = loss_named(written(loss, units), units=units)
        assert again == loss
        assert type(again) is type(loss)
        assert list(map(type, vars(again).values())) == list(map(type, vars(loss).values()))


def test_the_shortest_text_is_written() -> None:
    assert written(CurvatureRegularizedLoss(10.0, h=3.0)) == "guard:weight=10,h=3"
    assert written(CurvatureRegularizedLoss(10.0, h=3.0), "inputs") == "guard:weight=10"
    assert written(CurvatureRegularizedLoss(h=0.75, h_warmup=(0.1, 1.0))) == "guard:h_warmup=0.1:1.0"
    assert written(loss_named("fast_at@2/255")) == "fast_at@2/255"
    assert written(loss_named("trades:beta=1,steps=3@l2", "mnist")) == "trades:beta=1,steps=3@l2:1"
    with pytest.raises(ValueError, match="cannot be written"):
        written(InPixels(CrossEntropy(), NORMALIZE))


def test_units_decide_the_defaults_of_h_alone() -> None:
    for name, make in LOSSES.items():
        on_pixels, of_inputs = make(Threat("linf", 8 / 255)), loss_named(name, units="inputs")
        assert loss_named(name) == on_pixels
        if name in ("guard", "cure", "guard_released"):
            assert (on_pixels.h, of_inputs.h) == (0.75, 3.0)
            of_inputs = replace(of_inputs, h=0.75)
        assert of_inputs == on_pixels


# Pixels and inputs


@pytest.mark.parametrize("name", LOSSES)
def test_the_adapter_is_the_model_of_pixels(name: str, net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    (x, y), loss = batch, LOSSES[name](THREAT)
    expected = drawing_from(loss, rng())(nn.Sequential(NORMALIZE, net), x, y)
    adapted = InPixels(loss, NORMALIZE)
    torch.testing.assert_close(drawing_from(adapted, rng())(net, NORMALIZE(x), y), expected)
    torch.testing.assert_close(drawing_from(adapted, rng())(lambda z: net(z), NORMALIZE(x), y), expected)
    assert torch.equal(adapted.of_pixels(net, x, y, generator=rng()), expected)
    assert isinstance(on_inputs(loss, NORMALIZE), InPixels) == (loss.traits.units == "pixels")
    assert adapted.traits == replace(loss.traits, units="inputs")


def test_the_adapter_leaves_the_mode_and_the_buffers_as_the_loss_leaves_them() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3)).train()
    InPixels(AdversarialTraining(THREAT, steps=2), NORMALIZE)(net, torch.rand(6, 3, 8, 8), torch.arange(6) % 3)
    assert all(module.training for module in net.modules())
    assert net[1].num_batches_tracked == 1


# Random losses in a teacher


@pytest.mark.parametrize("name", ["trades", "pgd_at", "noise"])
def test_chunks_of_a_random_loss_draw_from_its_generator(
    name: str, net: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    loss = on_inputs(LOSSES[name](THREAT), NORMALIZE)
    teacher, state = RobustTeacher(net, loss, chunk=4), torch.get_rng_state()
    one, same = (teacher.value_and_gradients(*batch, generator=rng()) for _ in range(2))
    other, _ = teacher.value_and_gradients(*batch, generator=rng(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert one[0].item() == same[0].item() != other.item()
    assert all(torch.equal(a, b) for a, b in zip(one[1], same[1], strict=True))
    generator, parts = rng(), []
    for x, y in zip(batch[0].split(4), batch[1].split(4), strict=True):
        parts.append(len(x) / 6 * drawing_from(loss, generator)(net, x, y).item())
    assert math.isclose(one[0].item(), sum(parts), rel_tol=1e-5)


def test_a_random_loss_is_not_compiled(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    teacher = RobustTeacher(net, LOSSES["noise"](THREAT), compiled=robust.CompiledGradients("eager"))
    with pytest.raises(ValueError, match="GaussianNoise is random; a compiled program would repeat its first draws"):
        teacher.gradients(*batch)
