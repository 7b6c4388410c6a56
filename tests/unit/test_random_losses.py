"""Random losses, and losses of pixels, on the real side of a method: addressed draws, so that a resumed run gives the
same bits, chunk or not."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines import dcc
from baselines.cafe import method as cafe
from baselines.dm import method as dm
from baselines.mtt import method as mtt
from distill.methods import dc
from distill.runs.run import Run
from distill.training.students import train_epochs
from robust import TRADES, AdversarialTraining, CrossEntropy, GaussianNoise, Loss, Normalize, Threat
from robust.losses import InPixels, drawing_from
from tests.toy import toy

BALL = Threat("linf", 0.05)
LOSSES = {"trades": TRADES(BALL, steps=2), "pgd_at": AdversarialTraining(BALL, steps=2), "noise": GaussianNoise(0.1)}
NET = {"backbone": "convnet:width=4,depth=2"}
LOOP = NET | {"iterations": 3, "outer_loop": 2, "inner_loop": 1, "batch_real": 6}
EXPERT = {
    "max_start_epoch": 2,
    "iterations": 3,
    "lr_img": 1.0,
    "lr_lr": 0.0,
    "num_experts": 2,
    "train_epochs": 3,
    "batch_train": 16,
    "syn_steps": 2,
    "expert_epochs": 1,
}
CASES: dict[str, tuple[Callable[..., Any], Callable[[Loss], Any]]] = {
    "dc": (dc.distill, lambda loss: dc.Config(loss, **LOOP)),
    "dsa": (dc.distill, lambda loss: dc.Config(loss, **LOOP, augment="color_crop_flip")),
    "chunks": (dc.distill, lambda loss: dc.Config(loss, **LOOP, chunk=4)),
    "dcc": (dcc.distill, lambda loss: dcc.Config(loss, **LOOP, outer_warmup=1, inner_warmup=1)),
    "cafe": (
        cafe.distill,
        lambda loss: cafe.Config(
            loss, **NET, iterations=3, max_steps=2, max_epochs=2, window=2, batch_watch=4, batch_real=6, lr_img=0.01
        ),
    ),
    "dm": (dm.distill, lambda loss: dm.Config(loss, 2, **NET, iterations=3, batch_real=6, batch_train=16)),
    "mtt": (
        mtt.distill,
        lambda loss: mtt.Config(loss, **NET, **EXPERT),
    ),
    "mtt, whitened": (
        mtt.distill,
        lambda loss: mtt.Config(loss, **NET, **EXPERT, zca=True),
    ),
}


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_with_the_same_bits(
    case: str, loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill, config_of = CASES[case]
    config, log = config_of(LOSSES[loss]), Run.log

    def made(name: str) -> torch.Tensor:
        run = Run(tmp_path / name, config, checkpoint_seconds=0.0, stages=tmp_path / name / "stages").begin()
        return distill(toy(), 1, config, run).images

    whole = made("whole")
    assert whole.isfinite().all()
    plain = Run(tmp_path / "plain", None, stages=tmp_path / "plain" / "stages").begin()
    assert not torch.equal(whole, distill(toy(), 1, config_of(CrossEntropy()), plain).images)

    calls: list[int] = []

    def dies(self: Run, step: int, **scalars: float) -> None:
        calls.append(step)
        if len(calls) == 3:
            raise Killed
        log(self, step, **scalars)

    monkeypatch.setattr(Run, "log", dies)
    with pytest.raises(Killed):
        made("killed")
    monkeypatch.setattr(Run, "log", log)
    torch.manual_seed(99)  # the default generator has no part in it
    assert torch.equal(whole, made("killed"))


def test_a_loss_of_pixels_sees_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts, of normalised and of whitened images, and the real batches of DC."""
    real, seen = toy(), []
    call = GaussianNoise.__call__

    def looks(self: GaussianNoise, model: Any, inputs: torch.Tensor, targets: torch.Tensor, **named: Any) -> Any:
        seen.append(inputs.detach())
        return call(self, model, inputs, targets, **named)

    monkeypatch.setattr(GaussianNoise, "__call__", looks)
    for case in ("dc", "mtt", "mtt, whitened"):
        distill, config_of = CASES[case]
        seen.clear()
        distill(real, 1, config_of(GaussianNoise(0.1)), Run(tmp_path / case, None).begin())
        for image in torch.cat(seen)[:50]:
            assert (real.images - image).abs().amax((1, 2, 3)).min() < 1e-5


def test_students_train_with_the_adapter_that_all_share() -> None:
    real, normalize, loss = toy(), Normalize((0.4,) * 3, (0.25,) * 3), LOSSES["trades"]
    networks = []
    for adapted in (True, False):
        torch.manual_seed(0)
        network, draws = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2)), torch.Generator()
        by_hand = partial(_by_hand, drawing_from(loss, draws), normalize)
        train_epochs(
            network,
            normalize(real.images),
            real.labels,
            torch.optim.SGD(network.parameters(), lr=0.1),
            epochs=2,
            batch_size=16,
            generator=torch.Generator().manual_seed(1),
            loss=drawing_from(InPixels(loss, normalize), draws) if adapted else by_hand,
        )
        networks.append(network)
    assert all(map(torch.equal, networks[0].state_dict().values(), networks[1].state_dict().values()))


def _by_hand(loss: Any, normalize: Normalize, network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
    return loss(torch.nn.Sequential(normalize, network), normalize.inverse(x), y)


def test_the_estimate_times_any_loss() -> None:
    for distill, config_of in CASES.values():
        assert callable(distill)
        config = config_of(LOSSES["trades"])
        work = {dc.Config: dc.work, dcc.Config: dcc.work, cafe.Config: cafe.work, dm.Config: dm.work}
        steps = work.get(type(config), mtt.work)(replace(config, iterations=1), 1, 2, 40)
        assert all(count >= 0 for count, _ in steps)
        network = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(192, 2))
        for _, step in steps:
            step(network, (3, 8, 8))
