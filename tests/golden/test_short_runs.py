"""Five iterations of each method on the toy set, pinned: a change of these numbers is an entry in the CHANGELOG."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from baselines.dd import method as dd
from baselines.dd.recipes import METHODS as OF_DD
from baselines.kip import method as kip
from baselines.mtt import method as mtt
from distill.data import facts_named
from distill.methods.dc import Config, distill
from distill.runs.run import Run
from robust import CrossEntropy, CurvatureRegularizedLoss
from tests.toy import toy

GUARD = CurvatureRegularizedLoss(weight=3.0, h=1.0)
SIAMESE = {"init": "real", "augment": "color_crop_cutout_flip_scale_rotate"}
METHODS = {
    "dc": Config(CrossEntropy()),
    "dsa": Config(CrossEntropy(), **SIAMESE),
    "guard_dc": Config(GUARD),
    "guard_dsa": Config(GUARD, **SIAMESE),
}

GOLDEN = {  # (distance, loss of the real batches) of each iteration; torch 2.14, CPU, float32
    "dc": [(13.06201, 0.69778), (13.70407, 0.62067), (10.96361, 0.77015), (11.74414, 0.80271), (11.81282, 0.66369)],
    "dsa": [(4.35973, 0.66273), (3.83036, 0.57944), (3.41266, 0.73290), (3.55275, 0.76496), (4.01173, 0.59690)],
    "guard_dc": [
        (13.17806, 0.71141),
        (13.72511, 0.62821),
        (10.97717, 0.78903),
        (11.88751, 0.82567),
        (11.99284, 0.70055),
    ],
    "guard_dsa": [(4.31886, 0.67725), (3.82465, 0.58876), (3.57895, 0.75248), (4.61702, 0.79897), (3.93945, 0.62585)],
}


@pytest.mark.parametrize("method", METHODS)
def test_losses_are_what_they_were(method: str, tmp_path: Path) -> None:
    small = {"backbone": "convnet:width=8,depth=2", "iterations": 5, "outer_loop": 3, "inner_loop": 2, "batch_real": 8}
    distill(toy(), 2, replace(METHODS[method], **small), Run(tmp_path, None).begin())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = [(row["loss"], row["real_loss"]) for row in rows]
    for pair, expected in zip(found, GOLDEN[method], strict=True):
        assert pair == pytest.approx(expected, rel=2e-4)


TRAJECTORIES = mtt.Config(
    CrossEntropy(),
    backbone="convnet:width=8,depth=2",
    num_experts=2,
    train_epochs=3,
    lr_expert=0.1,
    batch_train=8,
    iterations=5,
    syn_steps=4,
    expert_epochs=2,
    max_start_epoch=2,
    batch_syn=3,
    lr_img=30.0,
    lr_lr=1e-3,
    lr_init=0.2,
    augment="color_crop_cutout_flip_scale_rotate",
)
OF_TRAJECTORIES = {
    "mtt": TRAJECTORIES,
    "mtt --zca": replace(TRAJECTORIES, zca=True),
    "guard_mtt": replace(TRAJECTORIES, expert_loss=GUARD),
    "tesla": replace(TRAJECTORIES, gradient="tesla"),
}
GOLDEN_TRAJECTORIES = {  # (loss, learned learning rate) of each iteration; as above
    "mtt": [
        (0.143840, 0.199345),
        (0.900054, 0.189962),
        (0.194622, 0.184552),
        (0.406507, 0.177534),
        (0.902919, 0.167918),
    ],
    "mtt --zca": [
        (0.931696, 0.190294),
        (1.239807, 0.171286),
        (0.740927, 0.154424),
        (0.521846, 0.142566),
        (0.663535, 0.133253),
    ],
    "guard_mtt": [
        (0.128098, 0.199565),
        (0.896526, 0.190278),
        (0.180689, 0.185138),
        (0.427608, 0.177871),
        (0.838383, 0.168804),
    ],
    "tesla": [
        (0.143840, 0.199034),
        (0.893714, 0.189931),
        (0.212310, 0.184202),
        (0.455075, 0.177042),
        (0.698217, 0.168166),
    ],
}


@pytest.mark.parametrize("method", OF_TRAJECTORIES)
def test_trajectories_are_what_they_were(method: str, tmp_path: Path) -> None:
    mtt.distill(toy(), 2, OF_TRAJECTORIES[method], Run(tmp_path, None).begin())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = [(row["loss"], row["lr"]) for row in rows]
    for pair, expected in zip(found, GOLDEN_TRAJECTORIES[method], strict=True):
        assert pair == pytest.approx(expected, rel=2e-4)


DD = {  # loss after the distilled steps in each iteration; torch 2.14, CPU, float32
    "dd": [0.791437, 0.669598, 0.611348, 0.190499, 0.364081],
    "sldd": [0.791437, 0.681129, 0.632392, 0.178525, 0.31562],
}


@pytest.mark.parametrize("method", DD)
def test_losses_after_distilled_steps_are_what_they_were(method: str, tmp_path: Path) -> None:
    labels = {each.name: each for each in OF_DD}[method].recipes["quick"](facts_named("folder"), 2).config.labels
    config = dd.Config("convnet:width=8,depth=2", labels=labels, epochs=1, epoch_iterations=5, lr=0.1, batch_size=16)
    dd.distill(toy(), 2, config, Run(tmp_path, None).begin())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == pytest.approx(DD[method], rel=2e-4)


OF_KERNELS = {
    "fc": kip.Config(kernel="fc"),
    "convnet": kip.Config(prepend=False),
    "learned": kip.Config(kernel="fc", depth=2, labels="learned", zca=True, init="noise"),
}
KIP = {  # loss of the regression in each iteration; torch 2.14, CPU, float64
    "fc": [0.006975882, 0.004832773, 0.004543374, 0.003234268, 0.002049444],
    "convnet": [0.00246154, 0.0007969876, 0.0006844277, 0.0003951288, 0.0003050729],
    "learned": [0.1232872, 0.1210441, 0.1212837, 0.1189291, 0.1176068],
}


@pytest.mark.parametrize("method", OF_KERNELS)
def test_losses_of_regressions_are_what_they_were(method: str, tmp_path: Path) -> None:
    kip.distill(toy(), 2, replace(OF_KERNELS[method], iterations=5, target_batch=10), Run(tmp_path, None).begin())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == pytest.approx(KIP[method], rel=1e-5)
