"""Memory of each paper recipe on a device, counted and not measured (docs/gpu.md).

Each kind of step of a recipe (`work` of the method, by which times are estimated) runs at the recipe's sizes on torch's
meta device, whose tensors have sizes but no memory. Counted is the largest sum of bytes of all tensors that exist at
one time: weights, gradients, optimizer state, images, and what autograd saves. Not counted: the CUDA context, the work
space of cuDNN and cuBLAS, and free blocks that the allocator holds. A number of float32 takes 4 bytes.

Not in the table: dd, sldd, dim and kip, whose steps read numbers and so do not run on that device; dcc, cafe and frepo,
whose steps of the time estimate hold fewer images at once than those of the run.
"""

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distill.app.registry import find_methods
from distill.data import FACTS, Facts
from distill.experiment import Evaluation
from distill.methods import dc
from distill.models import build
from distill.training import work as work_module
from distill.training.students import TOGETHER, Training, train_together
from distill.training.work import Step
from tests.bench.side_by_side import Row

META = torch.device("meta")
RECIPES = [(name, "cifar10", ipc) for name in ("dc", "guard_dc") for ipc in (1, 10, 50)]
RECIPES += [(name, "cifar10", 10) for name in ("dsa", "dm", "guard_dm", "mtt", "guard_mtt", "tesla")]
RECIPES += [(name, data, 10) for name in ("sre2l", "guard_sre2l") for data in ("cifar10", "tiny_imagenet", "imagenet")]
"""method, data set, images per class of the rows"""


class Peak(TorchDispatchMode):
    """While entered, adds up the bytes of the meta tensors that exist; `most` is the largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most = 0, 0
        self._existing: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the results of an operation."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device == META:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._existing:  # else a view, or changed in place
            self._existing.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._existing.discard(key)
        self.now -= size


class _DrawnOnMeta(TorchFunctionMode):
    """Images, labels and learning rates that steps make are meta tensors; random numbers of a generator are not."""

    MADE = (torch.randn, torch.rand, torch.zeros, torch.ones, torch.tensor)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Add the device."""
        kwargs = kwargs or {}
        if func in self.MADE and not {"device", "generator"} & set(kwargs):
            kwargs = {**kwargs, "device": META}
        return func(*args, **kwargs)


@contextmanager
def _at_full_size() -> Iterator[None]:
    """Steps of the time estimate take at most PROBE images; here as many as the recipe."""
    modules = [module for module in list(sys.modules.values()) if getattr(module, "PROBE", 0) == work_module.PROBE]
    patches = [patch.object(module, "PROBE", 10**9) for module in modules]
    enabled, autocast = torch.is_autocast_enabled, torch.autocast  # torch refuses both on this device
    patches += [patch.object(torch, "is_autocast_enabled", lambda kind: kind != "meta" and enabled(kind))]
    unless_meta = lambda kind, *a, **k: nullcontext() if kind == "meta" else autocast(kind, *a, **k)  # noqa: E731
    patches += [patch.object(torch, "autocast", unless_meta)]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


def peak(step: Step, facts: Facts, backbone: str) -> int:
    """Return the largest number of bytes of a step on an untrained network."""
    shape = (facts.channels, facts.size, facts.size)
    sizes = {"channels": facts.channels, "image_size": facts.size, "num_classes": facts.classes}
    network = build(backbone, **sizes, generator=torch.Generator().manual_seed(0))
    with Peak() as counter, _at_full_size():
        network = network.to(META)
        with _DrawnOnMeta():
            step(network, shape)
    return counter.most


def memory(method: str, dataset: str, ipc: int) -> dict[str, int]:
    """Return bytes: `data`, the training images; `distil` and `students`, the largest step of each."""
    facts, record = FACTS[dataset], find_methods()[method]
    recipe = record.recipes["paper"](facts, ipc)
    config, backbone = recipe.config, recipe.config.backbone
    with _at_full_size():
        distil = record.work(config, ipc, facts.classes, facts.examples)
        own = recipe.evaluation.protocol == "own" and record.student_work
        students = own(config, ipc, facts.classes) if own else [(1, _together(facts, recipe.evaluation, ipc))]
    if record.distill is dc.distill:  # between its groups of classes more is left than the estimate's single group has
        distil = [*distil, (1, _matching(facts, config, ipc))]
    images = facts.examples * facts.channels * facts.size**2 * 4
    found = {"data": 0 if facts.files else images}
    for name, steps in (("distil", distil), ("students", students)):
        found[name] = max(peak(step, facts, backbone) for count, step in steps if count)
    # matching by trajectories keeps the weights of each step, of which a step of the estimate has one
    shape = {"channels": facts.channels, "image_size": facts.size, "num_classes": facts.classes}
    network = build(backbone, **shape, generator=torch.Generator())
    found["distil"] += getattr(config, "syn_steps", 0) * 4 * sum(p.numel() for p in network.parameters())
    return found


def _matching(facts: Facts, config: dc.Config, ipc: int) -> Step:
    """Return a step of gradient matching with all classes."""

    def step(network: nn.Module, shape: tuple[int, ...]) -> None:
        dc.match(
            network.eval(),
            torch.randn(facts.classes, ipc, *shape),
            config,
            real_batch=lambda class_: torch.randn(config.batch_real, *shape),
            siamese=None,
            generator=lambda class_: torch.Generator(),
        )

    return step


def _together(facts: Facts, evaluation: Evaluation, ipc: int) -> Step:
    """Return a step of the standard protocol, in which a GPU trains several students at once."""
    batch = min(evaluation.student.batch_size, ipc * facts.classes)

    def step(network: nn.Module, shape: tuple[int, ...]) -> None:
        images, labels = torch.randn(batch, *shape), torch.zeros(batch, dtype=torch.long)
        generators = [torch.Generator() for _ in range(TOGETHER)]
        train_together([network] * TOGETHER, images, labels, Training(epochs=2), generators)

    return step


def line(row: Row) -> str:
    """Return the line of a row in the table of docs/gpu.md, in units of 10^9 bytes."""
    sizes = [f"{row[name] / 1e9:.2f}" if row[name] else "in files" for name in ("data", "distil", "students")]
    return f"| `{row['method']}` | `{row['dataset']}` | {row['ipc']} | {' | '.join(sizes)} |"


def bench() -> list[Row]:
    """Print the lines of the table, and return a row a recipe."""
    rows = []
    for method, dataset, ipc in RECIPES:
        rows.append({"method": method, "dataset": dataset, "ipc": ipc, **memory(method, dataset, ipc)})
        print(line(rows[-1]))
    return rows
