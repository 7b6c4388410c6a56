"""What the paper recipes cost on 1, 8 and 64 devices: arithmetic, printed as the tables of docs/scale.md.

A recipe is a list of parts. A part has a number of FLOPs, a number of units that processes divide, and the bytes that a
process receives from the others. FLOPs are images x passes x FLOPs of a forward pass of one image (docs/cost.md), which
`count` counts; the passes are counted in tests/unit/test_scale.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from baselines.frepo.features import CHUNK
from baselines.kip.tiles import UNITS
from baselines.mtt import matching
from baselines.mtt.matching import Gradient, match
from distill.app.registry import find_methods
from distill.data import Facts, facts_named
from distill.methods.dc import GROUP, loops
from distill.models import build
from distill.runs.divided import blocks
from robust import CrossEntropy, Loss, loss_named
from tests.bench.side_by_side import Row

PLAIN = CrossEntropy()
DEVICES = (1, 8, 64)
FLOPS = 5e12
"""FLOP/s of a device; an assumption"""
LINK = 10e9
"""bytes/s between two devices; an assumption"""
MEMORY_BANDWIDTH = 2e12
"""bytes/s of a device's memory; an assumption, for KIP's kernel"""

TRAINING, GUARD, GUARD_TRAINING = 3, 12, 15
"""passes of an image: cross-entropy; GUARD's loss in evaluation mode; GUARD's loss in training mode"""
MATCHING = 12
"""passes of a synthetic image in gradient matching"""
UNROLLED: dict[Gradient, int] = {"replayed": 12, "unrolled": 9, "tesla": 12}
"""passes of a synthetic image in a step of MTT"""
LABEL = 17
"""bytes of a soft label beside its logits: order, box, flip, partner (distill/training/crop_labels.py)"""

SMALL = ("dc", "dsa", "guard_dc", "dm", "mtt", "tesla", "frepo", "kip")
CASES = (
    *((method, "cifar10", ipc) for method in SMALL for ipc in (1, 10, 50)),
    *((method, "cifar100", 10) for method in SMALL),
    *((method, "tiny_imagenet", 10) for method in ("dsa", "guard_dc", "dm", "mtt", "tesla", "frepo")),
    *((method, "imagenet", ipc) for method in ("sre2l", "cda", "guard_sre2l") for ipc in (10, 50, 200)),
)


@dataclass(frozen=True)
class Part:
    """A part of a distillation."""

    name: str
    seconds: float
    """on one device"""
    units: int = 1
    """independent units that the processes divide; 1: the main process does the part alone"""
    received: Callable[[int], float] = lambda processes: 0.0
    """number of processes -> bytes that each receives during the part"""

    def time(self, devices: int) -> float:
        """Return the seconds on several devices, one process each: of the process with the most units."""
        exchange = self.received(devices) / LINK if devices > 1 else 0.0
        return self.seconds * ceil(self.units / devices) / self.units + exchange


@dataclass(frozen=True)
class Cost:
    """The cost of a distillation."""

    parts: tuple[Part, ...]
    memory: float
    """bytes of the largest graph of a process on one device"""
    disk: float
    """bytes of the files"""

    def time(self, devices: int) -> float:
        """Return the seconds on several devices."""
        return sum(part.time(devices) for part in self.parts)

    def received(self, devices: int) -> float:
        """Return the bytes that each process receives."""
        return sum(part.received(devices) for part in self.parts) if devices > 1 else 0.0


# --- counting ----------------------------------------------------------------------------------------------------


class FlopCounter(TorchDispatchMode):
    """Counts the FLOPs of convolutions and matrix products in `total`; unlike torch's, also of second derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        found = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=found)
        return found


def count(work: Callable[[], object]) -> int:
    """Return the FLOPs of a call."""
    with FlopCounter() as counter:
        work()
    return counter.total


def saved(work: Callable[[], object]) -> int:
    """Return the most bytes that a call has saved for backward passes at once."""
    import weakref

    now, most = [0], [0]

    class Kept:
        def __init__(self, tensor: Tensor):
            self.tensor = tensor
            now[0] += tensor.nbytes
            most[0] = max(most[0], now[0])
            weakref.finalize(self, free, tensor.nbytes)

    def free(size: int) -> None:
        now[0] -= size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        work()
    return most[0]


@dataclass(frozen=True)
class Network:
    """A network for the images of a data set, counted."""

    backbone: str
    facts: Facts

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.facts.channels, self.facts.size, self.facts.size

    @property
    def image(self) -> int:
        """Bytes of an image."""
        return 4 * self.facts.channels * self.facts.size**2

    def built(self) -> nn.Module:
        """Return the network."""
        sizes = {"channels": self.facts.channels, "image_size": self.facts.size, "num_classes": self.facts.classes}
        return build(self.backbone, **sizes, generator=torch.Generator())

    @cache  # noqa: B019  # of frozen records
    def forward(self) -> int:
        """Return the FLOPs of a forward pass of one image."""
        network = self.built().eval()
        with torch.no_grad():
            return count(lambda: network(torch.zeros(1, *self.shape)))

    @cache  # noqa: B019
    def parameters(self) -> int:
        """Return the number of parameters."""
        return sum(p.numel() for p in self.built().parameters())

    @cache  # noqa: B019
    def features(self) -> int:
        """Return the number of inputs of the classifier."""
        return [layer for layer in self.built().modules() if isinstance(layer, nn.Linear)][-1].in_features

    @cache  # noqa: B019
    def graph(self, loss: Loss = PLAIN) -> float:
        """Return the bytes per image that the gradient of a loss by the parameters saves."""
        network = self.built().train()

        def gradient(images: int) -> None:
            x, y = torch.zeros(images, *self.shape), torch.arange(images)
            torch.autograd.grad(loss(network, x, y).mean(), list(network.parameters()))

        return saved(lambda: gradient(3)) - saved(lambda: gradient(2))

    @cache  # noqa: B019
    def unrolled(self) -> float:
        """Return the bytes per image and step that MTT's matching saves through all steps."""
        network = self.built()
        start = parameters_to_vector(network.parameters()).detach()

        def matched(images: int) -> None:
            x, y = torch.zeros(images, *self.shape), torch.arange(images)
            match(network, start, start + 0.1, x, torch.tensor(0.1), lambda _, x: (x, y), 1, "unrolled")

        return saved(lambda: matched(3)) - saved(lambda: matched(2))


def padded(units: int, processes: int) -> int:
    """Return the rows that `distill.runs.divided.gathered` receives for units of one row each."""
    return processes * max(len(each) for each in blocks(range(units), processes))


# --- the methods -------------------------------------------------------------------------------------------------


def cost(method: str, dataset: str, ipc: int) -> Cost:
    """Return the cost of the recipe `paper` of a method, without students (SRe2L's and CDA's: with them)."""
    facts = facts_named(dataset)
    config = find_methods()[method].recipes["paper"](facts, ipc).config
    family = next(name for name in FAMILIES if method.endswith(name))
    return FAMILIES[family](config, Network(config.backbone, facts), ipc)


def bytes_of_matching(network: Network, ipc: int, processes: int, groups: int) -> int:
    """Return the bytes that each process receives in a step of gradient matching.

    Args:
        network: that is matched; the main process hands it out.
        ipc: images per class.
        processes: number of processes.
        groups: of classes whose synthetic gradients are computed together.
    """
    classes, parameters = network.facts.classes, network.parameters()
    sizes = [len(each) for each in torch.arange(classes).split(ceil(classes / groups))]
    rows = processes * max(sum(each) for each in blocks(sizes, processes))
    found = 4 * parameters + rows * (ipc * network.image + 8)
    if groups < processes:  # real gradients are divided by class, and exchanged
        found += padded(classes, processes) * 4 * (1 + parameters)
    return found


def gradient_matching(config: Any, network: Network, ipc: int) -> Cost:
    """Return the cost of DC, DSA and GUARD on both, on a GPU."""
    (outer, inner), classes = loops(config, ipc), network.facts.classes
    steps, forward, groups = config.iterations * outer, network.forward() / FLOPS, ceil(classes / GROUP)
    robust = bool(config.real_loss.traits.strength)
    passes = GUARD if robust else TRAINING
    epochs = config.iterations * (outer - 1) * inner
    return Cost(
        (
            Part("real", steps * classes * config.batch_real * passes * forward, classes),
            Part(
                "synthetic",
                steps * classes * ipc * MATCHING * forward,
                groups,
                lambda n: steps * bytes_of_matching(network, ipc, n, groups),
            ),
            Part("network", epochs * classes * ipc * TRAINING * forward),
        ),
        config.batch_real * network.graph(config.real_loss if robust else PLAIN),
        classes * ipc * network.image,
    )


def distribution_matching(config: Any, network: Network, ipc: int) -> Cost:
    """Return the cost of DM, whose classes are divided."""
    classes, forward = network.facts.classes, config.iterations * network.forward() / FLOPS
    groups = ceil(classes / GROUP)

    def received(processes: int) -> float:
        features = padded(classes, processes) * 4 * network.features() if groups < processes else 0
        rows = processes * ceil(groups / processes) * GROUP
        return config.iterations * (rows * ipc * network.image + 4 * padded(groups, processes) + features)

    return Cost(
        (
            Part("real", classes * config.batch_real * forward, classes),
            Part("synthetic", classes * ipc * 2 * forward, groups, received),
        ),
        GROUP * ipc * network.graph(),
        classes * ipc * network.image,
    )


def bytes_of_trajectory(network: Network, steps: int, processes: int, groups: Sequence[int]) -> int:
    """Return the bytes that each process receives in an iteration of MTT's matching.

    Args:
        network: of the experts.
        steps: N.
        processes: number of processes.
        groups: numbers of images of the groups of a step.
    """
    if len(groups) == 1:  # the work of the main process
        return 8 + groups[0] * network.image
    rows = padded(len(groups), processes)
    largest = processes * max(sum(each) for each in blocks(groups, processes))
    parameters = network.parameters()
    first = 4 * rows * (steps * parameters + 1 + (steps - 1) * (1 + parameters))
    return first + steps * largest * network.image


def trajectory_matching(config: Any, network: Network, ipc: int) -> Cost:
    """Return the cost of MTT, TESLA and GUARD on MTT, on a GPU."""
    facts, forward = network.facts, network.forward() / FLOPS
    robust = bool(config.expert_loss.traits.strength)
    shown = min(config.expert_images or facts.examples, facts.examples)
    experts = config.num_experts * config.train_epochs * shown * (GUARD_TRAINING if robust else TRAINING) * forward
    images = min(config.batch_syn or ipc * facts.classes, ipc * facts.classes)
    size = max(ceil(matching.SMALLEST_GROUP["cuda"] / facts.size**2), ceil(images / matching.MOST_GROUPS))
    groups = [min(size, images - begin) for begin in range(0, images, size)]
    matched = config.iterations * config.syn_steps * images * UNROLLED[config.gradient] * forward
    exchanged = lambda n: config.iterations * bytes_of_trajectory(network, config.syn_steps, n, groups)  # noqa: E731
    return Cost(
        (Part("experts", experts, config.num_experts), Part("matching", matched, len(groups), exchanged)),
        groups[0] * network.unrolled() + (config.syn_steps + 1) * 4 * network.parameters(),
        config.num_experts * (config.train_epochs + 1) * 4 * network.parameters(),
    )


def frepo(config: Any, network: Network, ipc: int) -> Cost:
    """Return the cost of FRePo, whose processes divide chunks of images, on a GPU."""
    images, forward = ipc * network.facts.classes, config.iterations * network.forward() / FLOPS
    copies, batch = 2 if config.use_flip else 1, min(config.batch_real, network.facts.examples)
    chunks = [ceil(each / CHUNK) for each in (batch, copies * images)]

    def received(processes: int) -> float:
        rows = [
            processes * ceil(each / processes) * min(CHUNK, n)
            for each, n in zip(chunks, (batch, copies * images), strict=True)
        ]
        handed_out = 4 * network.parameters() + images * (network.image + 4 * network.facts.classes)
        return config.iterations * (sum(rows) * 4 * network.features() + rows[1] * network.image + handed_out)

    return Cost(
        (
            Part("real", batch * forward, chunks[0]),
            Part("synthetic", 2 * copies * images * forward, chunks[1], received),
            Part("network", TRAINING * min(images, 500) * forward),
        ),
        copies * images * network.graph(),
        images * (network.image + 4 * network.facts.classes),
    )


KERNEL = 2 * 2 * 40 * 225 * 8
"""bytes that a pixel of a pair of images moves at 32 px: 225 offsets in float64, 40 tensors (baselines/kip/kernels.py),
each written and read, in a kernel that is computed twice"""


def kip(config: Any, network: Network, ipc: int) -> Cost:
    """Return the cost of KIP with the ConvNet's kernel at 32 px; memory bounds it, not arithmetic."""
    support = ipc * network.facts.classes
    pairs = config.iterations * support * (support + config.target_batch)
    seconds = pairs * network.facts.size**2 * KERNEL / MEMORY_BANDWIDTH
    units = max(UNITS, ceil(support / 3))  # a tile of 1 GiB has three images on a side
    exchanged = lambda _: config.iterations * 8 * support * (support + config.target_batch + network.image / 4)  # noqa: E731
    return Cost((Part("kernel", seconds, units, exchanged),), 2**30, support * network.image)


def squeezed(config: Any, network: Network, ipc: int) -> Cost:
    """Return the cost of SRe2L and CDA with one student."""
    facts, forward, parameters = network.facts, network.forward() / FLOPS, network.parameters()
    images, classes = ipc * facts.classes, facts.classes
    robust = config.squeeze.loss != "cross_entropy"
    squeezing = config.squeeze.epochs * facts.examples
    loss = loss_named(config.squeeze.loss) if robust else PLAIN
    reduced = lambda steps: lambda n: steps * 2 * 4 * parameters * (n - 1) / n  # noqa: E731  # a ring all-reduce
    studied = config.relabel.epochs * images
    graphs = config.squeeze.batch_size * network.graph(loss) if config.squeeze.epochs else 0.0
    return Cost(
        (
            Part(
                "squeeze",
                squeezing * (GUARD_TRAINING if robust else TRAINING) * forward,
                config.squeeze.batch_size,
                reduced(squeezing / config.squeeze.batch_size),
            ),
            Part("recover", config.recover.iterations * images * 2 * forward, ceil(images / config.recover.batch_size)),
            Part("relabel", studied * forward, config.relabel.epochs),
            Part(
                "student",
                studied * TRAINING * forward,
                config.relabel.batch_size,
                reduced(studied / config.relabel.batch_size),
            ),
        ),
        max(graphs, config.recover.batch_size * network.graph(), config.relabel.batch_size * network.graph()),
        images * (network.image + config.relabel.epochs * (2 * classes + LABEL)),
    )


FAMILIES: dict[str, Callable[[Any, Network, int], Cost]] = {
    "dc": gradient_matching,
    "dsa": gradient_matching,
    "dm": distribution_matching,
    "mtt": trajectory_matching,
    "tesla": trajectory_matching,
    "frepo": frepo,
    "kip": kip,
    "sre2l": squeezed,
    "cda": squeezed,
}


# --- the tables --------------------------------------------------------------------------------------------------


def table() -> list[str]:
    """Return the lines of the table in docs/scale.md."""
    lines = [
        "| method | data set | ipc | 1 device | 8 devices | 64 devices | received, of 8 | graph | files |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, dataset, ipc in CASES:
        found = cost(method, dataset, ipc)
        times = " | ".join(hours(found.time(devices)) for devices in DEVICES)
        sizes = " | ".join(size_of(each) for each in (found.received(8), found.memory, found.disk))
        lines.append(f"| `{method}` | {dataset} | {ipc} | {times} | {sizes} |")
    return lines


def hours(seconds: float) -> str:
    """Return a duration in hours with two digits.

    >>> hours(1000), hours(36_000), hours(1e7)
    ('0.28 h', '10 h', '2800 h')
    """
    return f"{float(f'{seconds / 3600:.2g}'):g} h"


def size_of(size: float) -> str:
    """Return a number of bytes with two digits.

    >>> size_of(0), size_of(1.23e6), size_of(5e12)
    ('0', '1.2 MB', '5 TB')
    """
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= length:
            return f"{float(f'{size / length:.2g}'):g} {unit}"
    return f"{float(f'{size / 1e3:.2g}'):g} kB" if size else "0"


def bench() -> list[Row]:
    """Print the table and return its rows."""
    rows = []
    print("\n".join(table()))
    for method, dataset, ipc in CASES:
        found = cost(method, dataset, ipc)
        row = {"title": "scale", "way": method, "dataset": dataset, "ipc": ipc, "disk": found.disk}
        rows.append(row | {"memory": found.memory} | {f"seconds on {n}": found.time(n) for n in DEVICES})
    return rows
