"""Five iterations of each method on the toy set, pinned: a change of these numbers is an entry in the CHANGELOG."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from distill.methods.dc import Config, distill
from distill.run import Run
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
