"""One iteration of DC and GUARD-DC against the textbook loop, class by class with a DataLoader in the inner loop."""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from distill.data import ImageSet
from distill.methods.dc import Config, distill
from distill.models import build
from distill.runs.run import Run
from distill.training.matching import layerwise
from robust import CompiledGradients, CrossEntropy
from tests.bench.curvature import LOSS, released
from tests.bench.side_by_side import Row, compare

COMPILED_PIXELS = 16
"""the case that is compiled too: the four programs of each case take a minute"""
CASES = (  # ipc, pixels, width, real batch, matchings, epochs between
    (1, 32, 64, 64, 1, 1),
    (10, 16, 32, 64, 2, 10),
)

SECONDS = 12.0
"""of the rounds of a case"""
PASSES = {"dc": (3, 3), "guard_dc": (17, 12)}
"""of a real image, in the textbook loop and in ours (docs/cost.md)"""

COMPILED = CompiledGradients()  # a run compiles once, not in every iteration


def bench() -> list[Row]:
    """Return times of DC and GUARD-DC in each case."""
    rows = []
    for ipc, size, width, batch, outer, inner in CASES:
        data = random_set(size, 20 * batch)
        for name, loss in (("dc", CrossEntropy()), ("guard_dc", LOSS)):
            config = Config(
                loss,
                backbone=f"convnet:width={width}",
                iterations=1,
                outer_loop=outer,
                inner_loop=inner,
                batch_real=batch,
            )
            compiling = Config(**{**vars(config), "compile": True})
            ways: dict[str, Callable[[], object]] = {
                "textbook loop": lambda d=data, i=ipc, c=config: textbook(d, i, c),
                "ours": lambda d=data, i=ipc, c=config: ours(d, i, c),
                "ours, compiled": lambda d=data, i=ipc, c=compiling: ours(d, i, c),
            }
            if size != COMPILED_PIXELS:
                del ways["ours, compiled"]
            sizes = f"ipc {ipc}, {size} px, width {width}, real batch {batch}, {outer} x {inner} loops"
            rows += compare(
                f"{name}: an iteration, {sizes}", ways, repeats=3, seconds=SECONDS, goals=floors(name, ipc, config)
            )
    return rows


def floors(name: str, ipc: int, config: Config) -> dict[str, str]:
    """Return the ratio of the passes of ours to the textbook loop's, for each way of ours."""
    inner = (config.outer_loop - 1) * config.inner_loop * ipc * 3
    textbook, least = (config.outer_loop * (config.batch_real * r + ipc * 12) + inner for r in PASSES[name])
    return dict.fromkeys(("ours", "ours, compiled"), f"floor {least / textbook:.2f}")


def random_set(size: int, n: int) -> ImageSet:
    """Return n random images of ten classes: times do not depend on what they show."""
    images = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))
    names = tuple(str(c) for c in range(10))
    return ImageSet("random", images, torch.arange(n) % 10, names, (0.5,) * 3, (0.25,) * 3)


def ours(data: ImageSet, ipc: int, config: Config) -> None:
    """One iteration as `bash run.sh` runs it, its files included."""
    folder = Path(tempfile.mkdtemp())
    try:
        with redirect_stderr(StringIO()), patch("distill.methods.dc._compiler", lambda device: COMPILED):
            distill(data, ipc, config, Run(folder, None).begin())
    finally:
        shutil.rmtree(folder)


def textbook(data: ImageSet, ipc: int, config: Config) -> None:
    """One iteration as the algorithm is usually coded."""
    shape = {"channels": 3, "image_size": data.image_shape[1], "num_classes": 10}
    network = build(config.backbone, **shape, generator=torch.Generator().manual_seed(0))
    parameters = list(network.parameters())
    network.train()
    images = torch.randn(10 * ipc, *data.image_shape, requires_grad=True)
    labels = torch.arange(10).repeat_interleave(ipc)
    of_images = torch.optim.SGD([images], lr=0.1, momentum=0.5)
    of_network = torch.optim.SGD(parameters, lr=0.01)
    normalised = (data.images - 0.5) / 0.25
    for step in range(config.outer_loop):
        total = torch.zeros(())
        for c in range(10):
            who = (data.labels == c).nonzero().flatten()
            x = normalised[who[torch.randperm(len(who))[: config.batch_real]]]
            y = torch.full((len(x),), c)
            if isinstance(config.real_loss, CrossEntropy):
                real = torch.autograd.grad(F.cross_entropy(network(x), y), parameters)
            else:
                real = released(network, x, y)
            real = [g.detach().clone() for g in real]
            output = network(images[c * ipc : (c + 1) * ipc])
            loss = F.cross_entropy(output, torch.full((ipc,), c))
            total = total + layerwise(torch.autograd.grad(loss, parameters, create_graph=True), real)
        of_images.zero_grad()
        total.backward()
        of_images.step()
        total.item()
        if step == config.outer_loop - 1:
            break
        for _ in range(config.inner_loop):
            pairs = TensorDataset(images.detach().clone(), labels)
            for x, y in DataLoader(pairs, batch_size=256, shuffle=True):
                of_network.zero_grad()
                F.cross_entropy(network(x), y).backward()
                of_network.step()
