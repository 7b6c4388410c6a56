"""SRe2L's costly stages: what GUARD adds to a step of squeeze, and steps of recover against the textbook loop."""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from distill.data import ImageSet
from distill.models import build
from distill.runs.run import Run
from robust import CrossEntropy, CurvatureRegularizedLoss, RobustTeacher
from sre2l.precision import Compute
from sre2l.recover import Recover, recover
from sre2l.squeeze import step
from tests.bench.curvature import released
from tests.bench.side_by_side import Row, compare, peak_megabytes

BACKBONE = "timm:resnet18:stem=imagenet"
FLOAT, MIXED = (Compute(), "float32"), (Compute("bf16", channels_last=True), "bf16, channels-last")
SQUEEZE = ((32, 64, FLOAT), (32, 64, MIXED))  # images of a step, pixels, arithmetic
RECOVER = ((50, 64), (10, 224))  # images of a unit, pixels
STEPS = 2  # of recover, in each timed call
SECONDS = 15.0
"""of the rounds of a case"""
FLOORS = {  # passes over 3 of cross-entropy: 12 of the penalty, which shares 3 of them if batchnorm=train
    "guard": "floor 5.0",
    "guard, batchnorm=train": "floor 4.0",
    "guard, fraction 0.5": "floor 3.0",
    "guard, fraction 0.25": "floor 2.0",
    "guard, released formulation": "floor 5.7",
}
SAME = dict.fromkeys(("ours, float32", "ours, bf16, channels-last"), "goal < 1: the same passes")


def bench() -> list[Row]:
    """Return times, images or steps a second, and peak memory."""
    rows = [row for case in SQUEEZE for row in squeezing(*case)]
    return rows + [row for case in RECOVER for row in recovering(*case)]


def network_of(size: int) -> nn.Module:
    """Return the untrained network."""
    shape = {"channels": 3, "image_size": size, "num_classes": 10}
    return build(BACKBONE, **shape, generator=torch.Generator().manual_seed(0))


def squeezing(batch: int, size: int, how: tuple[Compute, str]) -> list[Row]:
    """Return rows of a step of squeeze: cross-entropy first, which the ratios are against."""
    x = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))
    y = torch.arange(batch) % 10
    guard = {"weight": 1.0, "h": 3.0}
    losses = {
        "cross-entropy": CrossEntropy(),
        "guard": CurvatureRegularizedLoss(**guard),
        "guard, batchnorm=train": CurvatureRegularizedLoss(**guard, batchnorm="train"),
        "guard, fraction 0.5": CurvatureRegularizedLoss(**guard, fraction=0.5),
        "guard, fraction 0.25": CurvatureRegularizedLoss(**guard, fraction=0.25),
    }
    compute, arithmetic = how
    ways = {name: stepper(loss, x, y, compute) for name, loss in losses.items()}
    if how is FLOAT:
        ways["guard, released formulation"] = textbook_step(x, y)
    title = f"squeeze: a step of ResNet-18, {batch} images of {size} px, {arithmetic}"
    timed = compare(title, ways, repeats=3, seconds=SECONDS, goals=FLOORS)
    return with_rates(timed, ways, batch, "images")


def stepper(loss: object, x: Tensor, y: Tensor, compute: Compute) -> Callable[[], object]:
    """Return a step of squeeze with a loss."""

    class Objective(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = compute.place(network_of(x.shape[-1]), x.device).train()

        def forward(self, x: Tensor, y: Tensor, epoch: int, _: torch.Generator) -> Tensor:
            return RobustTeacher(self.network, loss).training_loss(x, y, epoch)

    objective = Objective()
    optimizer = torch.optim.SGD(objective.parameters(), lr=1e-6, momentum=0.9)
    scale = compute.scaler(x.device)
    return lambda: step(objective, x, y, optimizer, scale, 1, compute, 0, torch.Generator())


def textbook_step(x: Tensor, y: Tensor) -> Callable[[], object]:
    """Return a step with the curvature in the released code's passes (its norms per example, as ours)."""
    network = network_of(x.shape[-1]).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9)

    def take() -> None:
        for parameter, gradient in zip(network.parameters(), released(network, x, y), strict=True):
            parameter.grad = gradient
        optimizer.step()

    return take


def recovering(images: int, size: int) -> list[Row]:
    """Return rows of some steps of recover of one unit: the textbook loop first."""
    noise = torch.rand(10, 3, size, size, generator=torch.Generator().manual_seed(1))
    names = tuple(str(c) for c in range(10))
    real = ImageSet("random", noise, torch.arange(10), names, (0.5,) * 3, (0.25,) * 3)
    config = Recover(STEPS, jitter=(0, size // 7), batch_size=images)
    network = network_of(size).eval().requires_grad_(False)
    ways: dict[str, Callable[[], object]] = {"textbook loop": lambda: textbook_recover(network, config, size)}
    for compute, arithmetic in (FLOAT, MIXED):
        ways[f"ours, {arithmetic}"] = lambda c=compute: ours(network, real, images // 10, config, c)
    title = f"recover: {STEPS} steps of ResNet-18, {images} images of {size} px"
    timed = compare(title, ways, repeats=3, seconds=SECONDS, goals=SAME)
    return with_rates(timed, ways, STEPS, "steps")


def ours(network: nn.Module, real: ImageSet, ipc: int, config: Recover, compute: Compute) -> None:
    """Recover a unit as `bash run.sh` does, its files included."""
    folder = Path(tempfile.mkdtemp())
    try:
        with redirect_stderr(StringIO()):
            teacher = RobustTeacher(network, CrossEntropy())
            recover(teacher, "bench", real, ipc, config, compute, Run(folder, None, stages=folder))
    finally:
        shutil.rmtree(folder)


def textbook_recover(network: nn.Module, config: Recover, size: int) -> None:
    """Recover a unit as the published loop does: torchvision's transforms, statistics by hooks, clipping by channel."""
    found: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        x = inputs[0]
        mean = x.mean([0, 2, 3])
        variance = x.permute(1, 0, 2, 3).contiguous().reshape(x.shape[1], -1).var(1, unbiased=False)
        found[layer] = torch.norm(layer.running_var - variance, 2) + torch.norm(layer.running_mean - mean, 2)

    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    augment = v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])
    images = torch.randn(config.batch_size, 3, size, size, requires_grad=True)
    targets = torch.arange(config.batch_size) % 10
    optimizer = torch.optim.Adam([images], lr=config.lr, betas=(0.5, 0.9), eps=1e-8)
    for _ in range(config.iterations):
        down, across = torch.randint(0, config.jitter[1] + 1, (2,)).tolist()
        seen = torch.roll(augment(images), (down, across), (2, 3))
        optimizer.zero_grad()
        loss = F.cross_entropy(network(seen), targets)
        scales = [config.first_bn, *[1.0] * (len(layers) - 1)]
        loss = loss + config.r_bn * sum(w * found[layer] for w, layer in zip(scales, layers, strict=True))
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for channel in range(3):
                images[:, channel] = images[:, channel].clamp(-2.0, 2.0)
    for hook in hooks:
        hook.remove()


def with_rates(rows: list[Row], ways: dict[str, Callable[[], object]], count: int, what: str) -> list[Row]:
    """Add to rows how many images or steps each way does in a second, and its peak memory; print both."""
    for row in rows:
        row[f"{what}_per_second"] = count / row["seconds"]
        row["peak_megabytes"] = peak_megabytes(ways[row["way"]])
        rate, peak = row[f"{what}_per_second"], row["peak_megabytes"]
        print(f"  {row['way']:44s}{rate:10.2f} {what}/s {peak:8.0f} MB", flush=True)
    return rows
