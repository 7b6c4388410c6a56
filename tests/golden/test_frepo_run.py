"""Five iterations of FRePo on the toy set, pinned: a change of these numbers is an entry in the CHANGELOG."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from baselines.frepo import method as frepo
from distill.runs.run import Run
from tests.toy import toy

SMALL = frepo.Config(
    "frepo_convnet:width=8,depth=2",
    iterations=5,
    batch_real=16,
    lr_img=0.02,
    lr_net=0.01,
    num_nn_state=2,
    max_online_updates=2,
)
CONFIGS = {"plain": SMALL, "zca, use_flip": replace(SMALL, zca=True, use_flip=True)}
GOLDEN = {  # loss of the regression in each iteration; torch 2.14, CPU, float32
    "plain": [0.364853, 0.227628, 0.23894, 0.218098, 0.168797],
    "zca, use_flip": [0.812389, 0.237229, 0.361747, 0.110602, 0.230958],
}


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_of_the_regression_are_what_they_were(name: str, tmp_path: Path) -> None:
    frepo.distill(toy(), 2, CONFIGS[name], Run(tmp_path, None).begin())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = [row["loss"] for row in rows]
    assert found == pytest.approx(GOLDEN[name], rel=2e-4)
