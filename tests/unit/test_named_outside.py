"""Losses and attacks of somebody else's package: `package.module:name`."""

import sys
from pathlib import Path

import pytest
import torch

from robust import Loss, Threat, attack_named, loss_named
from robust.losses import written
from robust.spec import split_spec

MODULE = """
from dataclasses import dataclass
from typing import ClassVar

import torch
from robust import Loss, Traits
from robust.threat import Threat


@dataclass(frozen=True)
class Scaled(Loss):
    traits: ClassVar[Traits] = Traits(strength="weight")
    weight: float = 1.0
    draws: int = 3

    def __call__(self, model, inputs, targets):
        return (1 + self.weight) * torch.nn.functional.cross_entropy(model(inputs), targets)


@dataclass(frozen=True)
class InBall(Loss):
    traits: ClassVar[Traits] = Traits("pixels", threat=True)
    threat: Threat
    steps: int = 1

    def __call__(self, model, inputs, targets):
        return torch.nn.functional.cross_entropy(model(inputs + self.threat.eps), targets)


@dataclass(frozen=True)
class Brighter:
    threat: Threat
    share: float = 1.0

    def __call__(self, model, images, targets, *, generator=None):
        return (images + self.share * self.threat.eps).clamp(0, 1)


@dataclass(frozen=True)
class Undeclared(Loss):
    weight: float = 1.0


NUMBER = 3
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "__init__.py").write_text("")
    (tmp_path / "outside" / "found.py").write_text(MODULE)
    (tmp_path / "outside" / "broken.py").write_text("import torch\ntorch.no_such_name\n")
    (tmp_path / "outside" / "stops.py").write_text("raise RuntimeError('no licence' + chr(10) + 'here')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "outside"]:
        del sys.modules[name]


def test_only_a_dot_before_the_colon_makes_a_package() -> None:
    assert split_spec("outside.found:Scaled") == ("outside.found:Scaled", {})
    assert split_spec("outside.found:Scaled:weight=3,draws=2")[1] == {"weight": "3", "draws": "2"}
    assert split_spec("resnet18.a1_in1k:norm=batch") == ("resnet18.a1_in1k", {"norm": "batch"})
    with pytest.raises(ValueError, match="is not field=value"):
        split_spec("found:Scaled")


def test_a_loss_of_a_package_is_a_loss() -> None:
    loss = loss_named("outside.found:Scaled:weight=3")
    assert isinstance(loss, Loss)
    assert (loss.weight, loss.draws, loss.passes, loss.at(0)) == (3.0, 3, 1.0, loss)
    model = torch.nn.Linear(4, 3)
    x, y = torch.randn(5, 4), torch.arange(5) % 3
    assert loss(model, x, y).item() == pytest.approx(4 * torch.nn.functional.cross_entropy(model(x), y).item())
    assert written(loss) == "outside.found:Scaled:weight=3"
    for spec in ("outside.found:InBall@2/255", "outside.found:InBall:steps=7@l2:0.5", "outside.found:Scaled"):
        assert written(loss_named(spec)) == spec
    assert loss_named("outside.found:InBall", "mnist").threat == Threat("linf", 0.3)


def test_an_attack_of_a_package_is_an_attack() -> None:
    attack = attack_named("outside.found:Brighter:share=0.5", Threat("linf", 0.2))
    assert torch.allclose(attack(None, torch.full((1, 2), 0.5), None), torch.full((1, 2), 0.6))


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("outside.found:Scaled:size=3", "loss outside.found:Scaled has no field 'size'; choose from weight, draws"),
        ("outside.found:Scaled:draws=x", "draws of loss outside.found:Scaled is 'x'; it takes a whole number"),
        ("outside.found:Nothing", "loss 'outside.found:Nothing' cannot be imported: the module has no 'Nothing'"),
        ("outside.absent:Scaled", "cannot be imported: ModuleNotFoundError: No module named 'outside.absent'"),
        ("outside.broken:Scaled", "cannot be imported: .*no_such_name"),
        ("outside.stops:Scaled", "cannot be imported: RuntimeError: no licence$"),
        ("outside.found:Brighter", "is not a loss: it must be a frozen dataclass that subclasses robust.Loss"),
        ("outside.found:Undeclared", "is not a loss: .* declares its traits"),
        ("outside.found:NUMBER", "is not a loss"),
    ],
)
def test_what_is_no_loss_is_one_line(spec: str, line: str) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        loss_named(spec)
    assert "\n" not in str(caught.value)


def test_what_is_no_attack_is_one_line() -> None:
    lines = {"Scaled": "is no attack: it must be a frozen dataclass with a field threat", "No": "has no 'No'"}
    for name, line in lines.items():
        with pytest.raises(ValueError, match=line):
            attack_named(f"outside.found:{name}", Threat("linf", 0.2))
    with pytest.raises(ValueError, match=r"unknown attack 'found'; choose from .*, or write package.module:name"):
        attack_named("found", Threat("linf", 0.2))
