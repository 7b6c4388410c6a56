"""The estimate counts what a run does."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from distill.app.estimate import STEPS, _seconds, estimate
from distill.experiment import Evaluation, Recipe
from distill.methods import dc
from distill.runs.run import Run
from distill.training.students import Training
from robust import CrossEntropy, RobustTeacher
from tests.toy import toy


def test_seconds_are_counts_times_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr("distill.app.estimate._seconds", lambda step, network, shape: seen.append(1.0) or 2.0)
    config = dc.Config(CrossEntropy(), backbone="convnet:width=4")
    evaluation = Evaluation(3, test_images=320, attacks="linf,l2", student=Training(epochs=10))
    total = estimate(Recipe(config, evaluation), lambda *_: [(7.0, None)], 1, (3, 8, 8), 10, 5000, 1000)
    training = 3 * 11 * 10 / 10 / STEPS
    attacking = 3 * 320 * 11 * 2 * 0.6 / 32
    assert total == pytest.approx(2.0 * (7 + training + attacking))
    how = {"distils": 2, "evaluates": 4}
    total = estimate(Recipe(config, evaluation), lambda *_: [(7.0, None)], 1, (3, 8, 8), 10, 5000, 1000, **how)
    assert total == pytest.approx(2.0 * (7 / 2 + training / 3 + attacking / 4))
    assert len(seen) == 2 * 3


def test_dc_counts_its_steps(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the loop itself: real gradients, matchings, training steps of the network."""
    config = dc.Config(
        CrossEntropy(), backbone="convnet:width=4", iterations=2, outer_loop=3, inner_loop=4, batch_real=6
    )
    (real, _), (matchings, _), (training, _) = dc.work(config, 2, 2, 40)
    calls = {"real": 0, "training": 0}
    plain, epochs = RobustTeacher.value_and_gradients, dc.train_epochs

    def counted(teacher: RobustTeacher, *batch: torch.Tensor, **named: object) -> object:
        calls["real"] += 1
        return plain(teacher, *batch, **named)

    def counted_epochs(network: nn.Module, *arguments: object, **named: object) -> None:
        calls["training"] += named["epochs"]
        epochs(network, *arguments, **named)

    monkeypatch.setattr(RobustTeacher, "value_and_gradients", counted)
    monkeypatch.setattr(dc, "train_epochs", counted_epochs)
    dc.distill(toy(), 2, config, Run(tmp_path, None).begin())
    assert calls == {"real": real, "training": round(training * STEPS)}
    assert real == 2 * 3 * 2
    assert matchings == 2 * 3  # both classes at once


@pytest.mark.parametrize("ipc", [1, 10])
def test_the_steps_run(ipc: int) -> None:
    config = dc.Config(CrossEntropy(), backbone="convnet:width=4,depth=2")
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
    for count, step in dc.work(config, ipc, 10, 100):
        step(network, (3, 8, 8))
        assert count >= 0


def test_an_import_in_the_first_step_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, lasting = [0.0], iter([1.5])

    def step(network: nn.Module, shape: tuple[int, int, int]) -> None:
        clock[0] += next(lasting, 0.01)

    monkeypatch.setattr("distill.app.estimate.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert _seconds(step, nn.Identity(), (1, 8, 8)) == pytest.approx(0.01)
