"""How the cost of a matching step grows, against passes x FLOPs (docs/cost.md)."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from distill.methods.dc import Config, match
from distill.models import build
from robust import CrossEntropy
from tests.bench.curvature import LOSS
from tests.bench.side_by_side import Row, compare

BASE = {"ipc": 10, "classes": 10, "width": 64, "batch": 64}
VARIED = {"ipc": (1, 10, 50), "classes": (10, 100), "width": (32, 64, 128), "batch": (64, 256)}
SECONDS = 4.0
"""of the rounds of a size"""
PASSES = {"dc": 3, "guard_dc": 12}  # of a real image; a synthetic one has 12: the gradient of its gradient


def bench() -> list[Row]:
    """Return a row a method and size: seconds measured, and those of the formula at the speed of the base case."""
    rows = []
    for method, loss in (("dc", CrossEntropy()), ("guard_dc", LOSS)):
        speed = None
        sizes = [BASE] + [
            {**BASE, name: value} for name, values in VARIED.items() for value in values if value != BASE[name]
        ]
        for size in sizes:
            shape = {"channels": 3, "image_size": 32, "num_classes": size["classes"]}
            generator = torch.Generator().manual_seed(0)
            network = build(f"convnet:width={size['width']}", **shape, generator=generator).eval()
            with FlopCounterMode(display=False) as counter:
                network(torch.zeros(1, 3, 32, 32))
            images = torch.randn(size["classes"], size["ipc"], 3, 32, 32)
            batch = torch.randn(size["batch"], 3, 32, 32)
            count = size["classes"] * (size["batch"] * PASSES[method] + size["ipc"] * 12)
            work = count * counter.get_total_flops()

            def step(network=network, images=images, batch=batch, loss=loss) -> None:
                match(
                    network,
                    images,
                    Config(loss),
                    real_batch=lambda c: batch,
                    siamese=None,
                    generator=lambda c: torch.Generator(),
                )

            title = f"{method}: a matching step of all classes, {size}"
            (row,) = compare(title, {"measured": step}, repeats=3, seconds=SECONDS)
            speed = speed or work / row["seconds"]
            rate = work / row["seconds"] / 1e9
            print(f"  {'formula':44s}{work / speed:10.4f} s ({work / 1e9:.0f} GFLOP, {rate:.0f} GFLOP/s)")
            rows.append({**row, **size, "method": method, "flops": work, "formula_seconds": work / speed})
    return rows
