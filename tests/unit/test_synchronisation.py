"""Inner loops never wait for a device: neither for a number from it (`item`, `nonzero`, ...) nor for a copy to it.

No GPU is at hand. Where a step reads no result, its tensors are on torch's `meta` device, whose values nothing can
read. Where an attack drops the fooled images, and so reads results, the tensors are on the CPU and the reads are
counted.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from baselines.dm import method as dm
from baselines.mtt import matching as mtt
from baselines.mtt import method as mtt_method
from distill.methods.dc import Config, match
from distill.models import build
from distill.runs.run import Run
from distill.training.augment import STRATEGIES, augmentation
from distill.training.augment_dc import DC_GROUPS
from distill.training.students import Training, train_epochs, train_student, train_together
from robust import (
    APGD,
    CW,
    PGD,
    VMIFGSM,
    CrossEntropy,
    CurvatureRegularizedLoss,
    Jitter,
    Normalize,
    RobustTeacher,
    Threat,
    loss_named,
)
from robust.attacks import deepfool
from robust.losses import drawing_from
from sre2l import recover
from sre2l.crops import cut, draw_crops
from sre2l.precision import Compute
from sre2l.recover import Recover
from sre2l.squeeze import _Loss, step
from tests.toy import toy

META, CPU = torch.device("meta"), torch.device("cpu")
READS = {"_local_scalar_dense", "nonzero", "nonzero_static", "equal", "is_nonzero", "masked_select", "unique_dim"}
READS |= {"_unique2", "unique_consecutive", "repeat_interleave", "argwhere"}
"""operations whose result, or whose size of it, the host needs"""


class Waits(TorchDispatchMode):
    """While entered, counts the operations at which the host would wait for the device."""

    def __init__(self, device: torch.device = META):
        super().__init__()
        self.device, self.found = device, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        here = [each.device.type == self.device.type for each in tensors]
        waits = name in READS and any(here)
        if name in ("index", "index_put", "index_put_", "_unsafe_index") and here[0]:
            indices = [each for each in tree_leaves(args[1]) if isinstance(each, Tensor)]
            waits = any(each.dtype in (torch.bool, torch.uint8) or each.device != tensors[0].device for each in indices)
        result = None
        if name in ("_to_copy", "copy_"):
            result = func(*args, **(kwargs or {}))
            source = tensors[1] if name == "copy_" else tensors[0]
            waits = source.device != result.device and not _is_asynchronous(name, args, kwargs or {})
        if waits:
            self.found[name] += 1
        return func(*args, **(kwargs or {})) if result is None else result

    def total(self) -> int:
        return self.found.total()


def _is_asynchronous(name: str, args: Any, kwargs: Any) -> bool:
    return bool(kwargs.get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """Counts in a test, at whose end none must have been found."""
    mode, enabled, autocast = Waits(), torch.is_autocast_enabled, torch.autocast
    # torch refuses both on this device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind != "meta" and enabled(kind))
    monkeypatch.setattr(
        torch, "autocast", lambda kind, *a, **k: nullcontext() if kind == "meta" else autocast(kind, *a, **k)
    )
    with mode:
        yield mode
    assert not mode.found


# --- the counter itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.masked_fill_(x > 0, 0)[[True, False, True]],
        lambda x: (x > 0).nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: x.unique(),
    ],
)
def test_reads_are_counted(wait: Callable[[Tensor], object]) -> None:
    with Waits(CPU) as mode:
        wait(torch.arange(3.0))
    assert mode.total() >= 1


@pytest.mark.parametrize(
    ("copy", "count"),
    [
        (lambda x: x.to(META), 1),
        (lambda x: x.to(META, non_blocking=True), 0),
        (lambda x: torch.zeros(3, device=META).copy_(x), 1),
        (lambda x: torch.zeros(3, device=META).copy_(x, non_blocking=True), 0),
        (lambda x: torch.zeros(3, device=META)[x.long()], 1),
        (lambda x: torch.zeros(3, device=META)[0], 0),
        (lambda x: torch.zeros(3, device=META) + 1, 0),
    ],
)
def test_copies_to_the_device_are_counted(copy: Callable[[Tensor], object], count: int) -> None:
    with Waits() as mode:
        copy(torch.arange(3.0))
    assert mode.total() == count


# --- on the meta device: nothing is read ------------------------------------------------------------------------------


def network(spec: str = "convnet:width=4,depth=2", device: torch.device = META, classes: int = 3) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    return build(spec, channels=3, image_size=8, num_classes=classes, generator=generator).to(device)


def numbered(*address: object) -> torch.Generator:
    return torch.Generator().manual_seed(crc32(repr(address).encode()))


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(),
        CurvatureRegularizedLoss(1.0, 0.5),
        CurvatureRegularizedLoss(1.0, 0.5, direction="sign", penalty="norm", fraction=0.5, batchnorm="train"),
        CurvatureRegularizedLoss(1.0, 0.5, penalty="loss_difference"),
    ],
    ids=["cross_entropy", "guard", "cure", "guard_released"],
)
@pytest.mark.parametrize("chunk", [None, 2])
def test_gradients_of_a_robust_loss(loss: Any, norm: str, chunk: int | None, waits: Waits) -> None:
    model = network(f"convnet:width=4,depth=2,norm={norm}")
    x, y = torch.zeros(4, 3, 8, 8, device=META), torch.zeros(4, dtype=torch.long, device=META)
    waits.found.clear()
    if chunk is None:
        loss(model.train(), x, y).backward()
    RobustTeacher(model.eval(), loss, chunk).value_and_gradients(x, y)


POLICIES = [None, *STRATEGIES, *(f"dc:{group}" for group in DC_GROUPS), "dc:crop_scale_rotate"]


@pytest.mark.parametrize("policy", POLICIES)
def test_training_on_a_small_set(policy: str | None, waits: Waits) -> None:
    augment = None if policy is None else augmentation(policy)
    students = [network() for _ in range(2)]
    images, labels = torch.zeros(6, 3, 8, 8, device=META), torch.zeros(6, dtype=torch.long, device=META)
    training = Training(epochs=2, batch_size=4)
    optimizer = torch.optim.SGD(students[0].parameters(), lr=0.1, momentum=0.9)
    waits.found.clear()
    options = {"epochs": 2, "batch_size": 4, "generator": numbered(0), "augmentation": augment}
    train_epochs(students[0], images, labels, optimizer, **options)
    train_student(students[0], images, labels, training, numbered(0), augment)
    train_together(students, images, labels, training, [numbered(0), numbered(1)], augment)


@pytest.mark.parametrize("policy", [None, *STRATEGIES])
@pytest.mark.parametrize("width", [4, 5])
def test_a_matching_step_of_dc(policy: str | None, width: int, waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    """All classes at once, and one after another."""
    monkeypatch.setattr("distill.methods.dc.overhead_bound", lambda images: width == 4)
    model = network(f"convnet:width={width},depth=2").eval()
    config = Config(CurvatureRegularizedLoss(1.0, 0.5))
    real = torch.zeros(5, 3, 8, 8, device=META)
    images = torch.zeros(3, 2, 3, 8, 8, device=META)
    options = {"siamese": None if policy is None else augmentation(policy), "generator": numbered}
    waits.found.clear()
    match(model, images, config, real_batch=lambda c: real, **options)
    # the labels of a group of classes are copied, once for a group
    assert waits.found.pop("_to_copy", 0) <= (1 if width == 4 else 3)


@pytest.mark.parametrize("policy", [None, "color_crop_cutout_flip_scale_rotate"])
def test_a_matching_step_of_dm(policy: str | None, waits: Waits) -> None:
    model = dm._frozen_random(network("convnet:width=4,depth=2,norm=batch"))
    real, images = torch.zeros(5, 3, 8, 8, device=META), torch.zeros(3, 2, 3, 8, 8, device=META)
    siamese = None if policy is None else augmentation(policy)
    waits.found.clear()
    dm.match(model, images, real_batch=lambda c: real, siamese=siamese, generator=numbered)


@pytest.mark.parametrize("gradient", ["unrolled", "replayed", "tesla"])
def test_a_matching_of_mtt(gradient: mtt.Gradient, waits: Waits) -> None:
    model = network()
    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    images, lr = torch.zeros(6, 3, 8, 8, device=META), torch.zeros((), device=META)
    labels = torch.zeros(6, dtype=torch.long, device=META)
    siamese = augmentation("color_crop_cutout_flip_scale_rotate")
    order = mtt_method._order(6, 4, 3, numbered("order"))
    waits.found.clear()

    def batch(step: int, x: Tensor) -> tuple[Tensor, Tensor]:
        return mtt_method._batch(order, labels, siamese, numbered, step, x)

    mtt.match(model, start, start, images, lr, batch, 3, gradient)


# --- SRe2L -----------------------------------------------------------------------------------------------------------


def test_a_step_of_squeeze_and_of_validate(waits: Waits) -> None:
    """Random resized crops, GUARD's loss, accumulated parts; float16's scaler reads once whether to skip a step."""
    model = network("convnet:width=4,depth=2,norm=batch").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    objective = _Loss(model, nn.Identity(), CurvatureRegularizedLoss(1.0, 0.5))  # pyright: ignore[reportArgumentType]
    x, y = torch.zeros(4, 3, 8, 8, device=META), torch.zeros(4, dtype=torch.long, device=META)
    waits.found.clear()
    x = cut(x, *draw_crops("resized_crop", True, 4, 8, 8, 0.08, numbered("crops")))
    step(objective, x, y, optimizer, Compute().scaler(META), 2, Compute(), 0, numbered("loss"))


@pytest.mark.parametrize("crop", [True, False])
def test_steps_of_recover(crop: bool, waits: Waits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """More steps wait no more often: a unit copies its classes and its noise, and checks the loss every 100 steps."""
    checks = []
    monkeypatch.setattr(recover.DivergenceMonitor, "check", lambda self, *states: checks.append(self.last))
    model = network("convnet:width=4,depth=2,norm=batch").eval().requires_grad_(False)
    run, bar = Run(tmp_path, None, device=META), SimpleNamespace(update=lambda *_: None)
    normalize = Normalize((0.5,) * 3, (0.2,) * 3).to(META)
    found = []
    for iterations in (2, 7):
        config = Recover(iterations=iterations, crop=crop)
        waits.found.clear()
        with recover.BatchNormMatch(model, 10.0) as statistics:
            unit = (model, statistics, torch.arange(3), 0, normalize, toy(), config, Compute(), run, bar)
            recover._recover_unit(*unit)  # pyright: ignore[reportArgumentType]
        found.append(Counter(waits.found))
    assert found[0] == found[1]
    assert found[0].total() == 2
    assert checks == [1, 6]
    waits.found.clear()


# --- attacks: a step looks which examples are fooled, to drop them, and which points are better, to store them -------


def reads_per_step(attack: Any) -> Counter[str]:
    """Return what five more steps read, on images that no attack fools."""
    model, found = network(device=CPU).eval(), []
    images = torch.rand(4, 3, 8, 8, generator=numbered("images"))
    with torch.no_grad():
        targets = model(images).argmax(1)
    for steps in (8, 3):
        with Waits(CPU) as mode:
            replace(attack, steps=steps)(model, images, targets, generator=numbered("attack"))
        found.append(mode.found)
    more = found[0] - found[1]
    assert not found[1] - found[0]
    assert all(count % 5 == 0 for count in more.values())
    return Counter({name: count // 5 for name, count in more.items()})


@pytest.mark.parametrize(
    ("attack", "per_step"),
    [
        (PGD(Threat("linf", 1e-6)), 2),
        (PGD(Threat("l2", 1e-6), momentum=1.0), 2),
        (PGD(Threat("linf", 1e-6), objective="ce+margin"), 4),  # two objectives, each with its steps
        (PGD(Threat("linf", 1e-6), objective="dlr"), 2),
        (PGD(Threat("linf", 1e-6), eot=3), 2),
        (PGD(Threat("linf", 1e-6), iterate="last"), 0),
    ],
    ids=str,
)
def test_a_step_of_pgd_reads_which_examples_stand_and_which_are_better(attack: PGD, per_step: int) -> None:
    """The examples that are fooled leave the batch, so the host must know how many are left; nothing else is read."""
    assert reads_per_step(attack).total() == per_step


def test_steps_of_other_attacks() -> None:
    box = Threat("linf", 1e-6)
    for attack in (VMIFGSM(box, neighbours=2), Jitter(box)):
        # beside one `tolist`, which this mode does not see: whose random numbers are drawn
        assert reads_per_step(attack) == {"nonzero": 2}
        assert not reads_per_step(replace(attack, iterate="last"))
    assert reads_per_step(APGD(Threat("linf", 1e-6))) == {"nonzero": 3}  # in torchattacks
    # Adam's counter is on the host; for each of nine constants
    assert reads_per_step(CW(Threat("l2", 1e-6))) == {"_local_scalar_dense": 9}


def test_rivals_of_deepfool(waits: Waits) -> None:
    """A move compares the boundaries to all rivals; only who is left is read, once for a move."""
    points, targets = torch.zeros(4, 3, 8, 8, device=META), torch.zeros(4, dtype=torch.long, device=META)
    model = network(classes=10).eval()
    waits.found.clear()
    deepfool._to_the_nearest_boundary(model, points, targets, torch.zeros(4, 9, dtype=torch.long, device=META))
    assert not waits.found


@pytest.mark.parametrize("text", ["pgd_at@2/255", "trades@2/255", "gradient_norm", "noise"])
def test_adversarial_training_reads_nothing(text: str) -> None:
    loss, model = drawing_from(loss_named(text), numbered("loss")), network(device=CPU)
    images, targets = torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)
    with Waits(CPU) as mode:
        loss(model, images, targets).backward()
    assert not mode.found
