"""SRe2L's stages one by one: crops, statistics, units, labels, students, teachers."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from distill.data import FACTS, facts_named
from distill.data.pictures import read_pictures, write_pictures
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.runs.description import describe
from distill.runs.run import Run
from distill.training.crop_labels import Labels, digest
from robust import CurvatureRegularizedLoss, Normalize, RobustTeacher, curvature_penalty
from sre2l.crops import cut, cut_box, cut_same_box, draw_boxes, draw_flips, padded_boxes
from sre2l.pipeline import Config, check, protocol
from sre2l.precision import Compute, has_idle_taps
from sre2l.recipes import METHODS
from sre2l.recover import BatchNormMatch, Recover, least_area, recover, units
from sre2l.relabel import Relabel, relabel, view
from sre2l.squeeze import FILE, Squeeze, _check_batches, squeeze
from sre2l.training import seeded, split_batch
from sre2l.units import read_units
from sre2l.validate import Validate, _optimizer, divergence, images_of_this_process, train
from tests.toy import toy

RECIPES = {method.name: method.recipes for method in METHODS}

TINY = "convnet:width=4,depth=2,norm=batch"
DROPPING = "timm:ghostnet_050"
"""a network with dropout, which is no module of it"""
FLOATS = Compute()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run_in(folder: Path, **options: object) -> Run:
    return Run(folder / "run", None, stages=folder / "stages", **options)


def network(seed: int = 0, num_classes: int = 2, spec: str = TINY) -> nn.Module:
    from distill.models import build

    return build(spec, channels=3, image_size=8, num_classes=num_classes, generator=generator(seed)).eval()


# --- crops -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 33, 64])
def test_crops_are_those_of_torchvision(size: int) -> None:
    images, boxes = torch.rand(20, 3, size, size, generator=generator(1)), draw_boxes(20, size, size, 0.08, generator())
    flips = draw_flips(20, generator(2))
    theirs = [
        TF.resized_crop(x, *box.tolist(), [size, size], antialias=True) for x, box in zip(images, boxes, strict=True)
    ]
    theirs = [x.flip(2) if flip else x for x, flip in zip(theirs, flips, strict=True)]
    assert 0 < flips.sum() < 20
    torch.testing.assert_close(cut(images, boxes, flips), torch.stack(theirs), atol=1e-5, rtol=0)
    for box, flip in zip(boxes[:3], flips[:3], strict=True):
        alike = cut(images, box.expand(20, -1), flip.expand(20))
        torch.testing.assert_close(cut_same_box(images, box, bool(flip)), alike, atol=1e-5, rtol=0)


def test_a_crop_of_all_images_has_the_gradient_of_interpolation() -> None:
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    box = torch.tensor([3, 1, 9, 12])
    (ours,) = torch.autograd.grad((weights * cut_same_box(images, box, False)).sum(), images)
    theirs = F.interpolate(images[:, :, 3:12, 1:13], (16, 16), mode="bilinear")
    (expected,) = torch.autograd.grad((weights * theirs).sum(), images)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_padded_crops_are_black_outside() -> None:
    images = torch.rand(9, 1, 8, 8, generator=generator())
    boxes = padded_boxes(9, 8, 2, generator())
    padded = F.pad(images, (2, 2, 2, 2))
    theirs = [x[:, t + 2 : t + 10, le + 2 : le + 10] for x, (t, le, _, _) in zip(padded, boxes.tolist(), strict=True)]
    torch.testing.assert_close(
        cut(images, boxes, torch.zeros(9, dtype=torch.bool)), torch.stack(theirs), atol=1e-5, rtol=0
    )
    assert boxes[:, :2].min() == -2
    assert boxes[:, :2].max() == 2


def test_boxes_have_the_area_and_ratio_asked_for_and_lie_inside() -> None:
    boxes = draw_boxes(5000, 100, 80, 0.25, generator()).double()
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 100).all()
    assert (left + width <= 80).all()
    area, ratio = height * width / 8000, width / height
    assert 0.23 < area.min() < 0.3
    assert 0.45 < area.mean() < 0.65
    assert ratio.min() > 0.7
    assert ratio.max() < 1.4
    thin = draw_boxes(50, 10, 100, 1.0, generator())  # no crop of the whole area has a valid ratio
    assert thin.unique(dim=0).tolist() == [[0, 43, 10, 13]]


def test_the_box_of_cutmix_has_its_share() -> None:
    for share in (0.0, 0.3, 1.0):
        boxes = torch.tensor([cut_box(64, share, generator(seed)) for seed in range(400)])
        height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        side = 2 * (int(64 * math.sqrt(1 - share)) // 2)
        assert height.max() <= side
        assert width.max() <= side
        assert ((height == side) & (width == side)).any()  # a box that no edge cuts
        assert boxes.min() >= 0
        assert boxes.max() <= 64


# --- squeeze ---------------------------------------------------------------------------------------------------------

SMALL = Squeeze(epochs=2, batch_size=8, lr=0.05, augment="padded_crop")


def test_a_teacher_is_trained_once_and_shared(tmp_path: Path) -> None:
    real = toy()
    first, name = squeeze(real, TINY, SMALL, FLOATS, run_in(tmp_path))
    path = tmp_path / "stages" / name / FILE
    before = path.stat().st_mtime_ns
    again, same = squeeze(real, TINY, SMALL, FLOATS, Run(tmp_path / "other", "another run", stages=tmp_path / "stages"))
    assert same == name
    assert path.stat().st_mtime_ns == before
    assert not (tmp_path / "stages" / name / "state.pt").exists()
    for ours, theirs in zip(first.network.state_dict().values(), again.network.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert not any(p.requires_grad for p in first.network.parameters())
    normalized = Normalize(real.mean, real.std)(real.images)
    assert (first.network(normalized).argmax(1) == real.labels).double().mean() > 0.9
    for other in (replace(SMALL, epochs=1), replace(SMALL, loss="guard:weight=1,h=1")):
        assert run_in(tmp_path).stage("squeeze", {"squeeze": describe(other)}).folder.name != name


@pytest.mark.parametrize(
    ("loss", "backbone"),
    [
        *(("cross_entropy", TINY), ("guard:weight=0.1,h=0.5,fraction=0.5", TINY), ("pgd_at:steps=2@2/255", TINY)),
        ("cross_entropy", DROPPING),
    ],
)
@pytest.mark.long
def test_a_killed_squeeze_continues_to_the_same_bits(
    loss: str, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, config = toy(), replace(SMALL, loss=loss, accumulate=2, statistics=2)
    whole, name = squeeze(real, backbone, config, FLOATS, run_in(tmp_path / "a"))

    import sre2l.squeeze as module

    calls, step = [0], module.step

    def dying(*arguments: object, **options: object) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 8:
            raise KeyboardInterrupt
        return step(*arguments, **options)

    monkeypatch.setattr(module, "step", dying)
    with pytest.raises(KeyboardInterrupt):  # in the middle of the second epoch
        squeeze(real, backbone, config, FLOATS, run_in(tmp_path / "b", checkpoint_seconds=0.0))
    assert (tmp_path / "b" / "stages" / name / "state.pt").exists()
    resumed, same = squeeze(real, backbone, config, FLOATS, run_in(tmp_path / "b", checkpoint_seconds=0.0))
    assert same == name
    metrics = [(tmp_path / run / "stages" / name / "metrics.jsonl").read_text() for run in ("a", "b")]
    assert len(metrics[0].splitlines()) == 2
    assert metrics[0] == metrics[1]  # the mean loss of an epoch counts the steps before the kill too
    for ours, theirs in zip(whole.network.state_dict().values(), resumed.network.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_step_is_that_of_the_textbook() -> None:
    """One step of SGD on equation 8, written out."""
    from sre2l.squeeze import _Loss, step

    real, normalize = toy(8), Normalize((0.4,) * 3, (0.25,) * 3)
    loss = CurvatureRegularizedLoss(weight=0.5, h=1.0)
    ours, theirs = network().train(), network().train()
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    value = step(
        _Loss(ours, normalize, loss),
        real.images,
        real.labels,
        optimizer,
        FLOATS.scaler(torch.device("cpu")),
        1,
        FLOATS,
        0,
        generator(),
    )
    x = normalize(real.images)
    theirs.eval()
    points = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(theirs(points), real.labels, reduction="sum"), points, create_graph=True)
    z = g.detach() / g.detach().flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    moved = (x + z).requires_grad_()
    (h,) = torch.autograd.grad(F.cross_entropy(theirs(moved), real.labels, reduction="sum"), moved, create_graph=True)
    penalty = (h - g).flatten(1).square().sum(1).mean()
    theirs.train()
    whole = F.cross_entropy(theirs(x), real.labels) + 0.5 * penalty
    gradients = torch.autograd.grad(whole, list(theirs.parameters()))
    torch.testing.assert_close(value, whole.detach())
    for p, q, g in zip(ours.parameters(), theirs.parameters(), gradients, strict=True):
        torch.testing.assert_close(p, q - 0.1 * g, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("start", ["scratch", "file"])
def test_batchnorm_starts_from_the_data_s_statistics(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `statistics` the first step sees the mean of four batches' statistics; weights of a file keep theirs."""
    import sre2l.squeeze as module

    real = toy()
    seen: list[dict[str, torch.Tensor]] = []

    def watching(objective: module._Loss, *arguments: object, **options: object) -> torch.Tensor:
        state = objective.network.state_dict()
        seen.append({name: tensor.clone() for name, tensor in state.items()})
        return step(objective, *arguments, **options)

    step = module.step
    monkeypatch.setattr(module, "step", watching)
    config = replace(SMALL, statistics=4, augment="none", flip=False, epochs=1)
    if start == "file":
        kept = network(3).state_dict()
        kept["features.1.running_mean"] += 0.5
        save_file(kept, tmp_path / "t.safetensors")
        squeeze(real, TINY, replace(config, start=str(tmp_path / "t.safetensors")), FLOATS, run_in(tmp_path))
        assert all(torch.equal(kept[name], tensor) for name, tensor in seen[0].items())
        return
    _, name = squeeze(real, TINY, config, FLOATS, run_in(tmp_path))
    stage = json.loads((tmp_path / "stages" / name / "experiment.json").read_text())["experiment"]
    same = Run(tmp_path / "again", None, seed=stage["seed"])
    order = torch.randperm(40, generator=same.generator("squeeze", "order", 0))[:32].view(4, 8)
    from distill.models import build

    shape = {"channels": 3, "image_size": 8, "num_classes": 2}
    theirs = build(TINY, **shape, generator=same.generator("teacher"))
    means, variances = [], []
    layer = theirs.features[0]
    for batch in order:
        out = layer(Normalize(real.mean, real.std)(real.images[batch])).transpose(0, 1).flatten(1)
        means.append(out.mean(1))
        variances.append(out.var(1))
    torch.testing.assert_close(seen[0]["features.1.running_mean"], torch.stack(means).mean(0))
    torch.testing.assert_close(seen[0]["features.1.running_var"], torch.stack(variances).mean(0))
    assert seen[0]["features.1.num_batches_tracked"] == 0
    assert seen[1]["features.1.num_batches_tracked"] == 1
    for key, tensor in theirs.state_dict().items():
        assert "running" in key or torch.equal(seen[0][key], tensor)

    seen.clear()
    assert Squeeze().statistics == 0
    squeeze(real, TINY, replace(config, statistics=0), FLOATS, run_in(tmp_path))
    assert (seen[0]["features.1.running_mean"] == 0).all()


@pytest.mark.parametrize("spec", ["convnet:width=16,norm=batch", "timm:test_resnet"])
def test_the_first_step_s_penalty_is_that_of_training_mode(spec: str, tmp_path: Path) -> None:
    """Without `statistics` it is less than a fiftieth of that, which docs/sre2l.md says."""
    from distill.models import build
    from sre2l.squeeze import _estimate_statistics

    real = toy(64)
    net = build(spec, channels=3, image_size=8, num_classes=2, generator=generator())
    normalize = Normalize(real.mean, real.std)
    x, y = normalize(real.images[:32]), real.labels[:32]

    def penalty() -> float:
        return curvature_penalty(net, x, y, h=3.0)[1].mean().item()

    net.eval()
    fresh = penalty()
    net.train()
    _estimate_statistics(net, real, normalize, replace(SMALL, batch_size=32, statistics=4), FLOATS, run_in(tmp_path))
    assert all(module.training for module in net.modules())
    net.eval()
    warm = penalty()
    net.train()
    wanted = penalty()
    assert fresh < 0.02 * wanted
    assert wanted / 3 < warm < 3 * wanted


def test_accumulated_parts_have_the_gradient_of_the_batch() -> None:
    from sre2l.squeeze import _Loss, step

    real, normalize = toy(12), Normalize((0.4,) * 3, (0.25,) * 3)
    nets = [network(), network()]  # in evaluation mode, as parts have statistics of their own
    for net, parts in zip(nets, (1, 3), strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        objective = _Loss(net, normalize, CurvatureRegularizedLoss(weight=0.5, h=1.0))
        scale = FLOATS.scaler(torch.device("cpu"))
        step(objective, real.images, real.labels, optimizer, scale, parts, FLOATS, 0, generator())
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_lower_precision_is_near(amp: str, tmp_path: Path) -> None:
    real, config = toy(), replace(SMALL, loss="guard:weight=0.1,h=0.5", epochs=4)
    teacher, _ = squeeze(real, TINY, config, Compute(amp, channels_last=True), run_in(tmp_path))
    assert all(p.dtype == torch.float32 for p in teacher.network.parameters())
    normalized = Normalize(real.mean, real.std)(real.images)
    assert (teacher.network(normalized).argmax(1) == real.labels).double().mean() > 0.9


IDLE = """
import torch
from torch import nn
from robust import CurvatureRegularizedLoss
from sre2l.precision import Compute

for kernel, stride in ((3, 2), (5, 1)):
    torch.manual_seed(0)
    last = nn.Conv2d(64, 128, kernel, stride, kernel // 2)
    net = nn.Sequential(nn.Conv2d(3, 64, 3, 2, 1), nn.Softplus(), last, nn.Softplus(), nn.Flatten(), nn.Linear(128, 2))
    x, y = torch.randn(8, 3, 2, 2), torch.arange(8) % 2
    gradients = []
    for amp in ("bf16", "none"):
        compute = Compute(amp, channels_last=True)
        compute.place(net, torch.device("cpu")).zero_grad()
        with compute.autocast(torch.device("cpu")):
            loss = CurvatureRegularizedLoss(weight=10.0, h=1.0)(net, x, y)
        loss.backward()
        gradients.append(last.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=0.05 * gradients[1].abs().max().item(), rtol=0)
    middle = kernel // 2
    gradients[0][:, :, middle, middle] = 0
    assert (gradients[0] == 0).all()
"""


@pytest.mark.long
def test_taps_on_padding_alone_have_no_gradient_in_bfloat16() -> None:
    """Memory that oneDNN leaves uninitialised is filled with bytes that make huge numbers."""
    environment = os.environ | {"MALLOC_PERTURB_": "165", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", IDLE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


QUICK = """
import hashlib
import torch
from torch import nn
from distill.models import build
from distill.data import facts_named
from sre2l.recipes import METHODS

quick = next(method for method in METHODS if method.name == "sre2l").recipes["quick"]
for dataset, size in (("digits", 8), ("folder", 16), ("folder", 32)):  # to 1 x 1 before a convolution of stride 2
    config = quick(facts_named(dataset).resized(size), 1).config
    shape = {"channels": 1, "image_size": size, "num_classes": 10}
    network = build(config.backbone, **shape, generator=torch.Generator().manual_seed(0))
    config.compute.place(network, torch.device("cpu")).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    x, y = torch.randn(8, 1, size, size, generator=torch.Generator().manual_seed(1)), torch.arange(8)
    for _ in range(2):
        optimizer.zero_grad()
        with config.compute.autocast(torch.device("cpu")):
            loss = nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
    whole = hashlib.sha256()
    for tensor in network.state_dict().values():
        assert tensor.isfinite().all()
        whole.update(tensor.numpy().tobytes())
    print(dataset, size, whole.hexdigest())
"""


@pytest.mark.long
def test_the_quick_recipe_s_bits_do_not_depend_on_what_was_in_memory() -> None:
    said = []
    for value in ("165", "90"):
        environment = os.environ | {"MALLOC_PERTURB_": value, "OMP_NUM_THREADS": "1"}
        options = {"env": environment, "capture_output": True, "text": True, "check": False}
        done = subprocess.run([sys.executable, "-c", QUICK], **options)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1]


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_idle_taps_are_those_that_no_image_reaches(kernel: int, stride: int) -> None:
    for size, dilation, padding in ((1, 1, 1), (1, 2, 2), (2, 1, 1), (3, 1, 2), (4, 1, 0), (5, 2, 3), (6, 1, "same")):
        if padding == "same" and (stride > 1 or kernel == 2):  # torch refuses the first and warns of the second
            continue
        options = {"stride": stride, "padding": padding, "dilation": dilation}
        weight = torch.zeros(1, 1, kernel, kernel, requires_grad=True)
        x = torch.ones(1, 1, size, size)
        try:
            out = F.conv2d(x, weight, **options)
        except RuntimeError:  # the kernel is larger than the padded image
            continue
        (met,) = torch.autograd.grad(out.sum(), weight)  # how many pixels each tap meets
        assert has_idle_taps(x, weight, None, **options) == bool((met == 0).any())


def test_weights_of_a_file(tmp_path: Path) -> None:
    real, config = toy(), Squeeze(epochs=0, start=str(tmp_path / "t.safetensors"))
    save_file(network(3).state_dict(), tmp_path / "t.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in network(3).state_dict().items()}}, tmp_path / "t.pth")
    for name in ("t.safetensors", "t.pth"):
        teacher, _ = squeeze(
            real, TINY, replace(config, start=str(tmp_path / name)), FLOATS, run_in(tmp_path / name[2:])
        )
        for ours, theirs in zip(teacher.network.state_dict().values(), network(3).state_dict().values(), strict=True):
            assert torch.equal(ours, theirs)


def test_other_weights_in_the_same_file_are_another_teacher(tmp_path: Path) -> None:
    real, path = toy(), tmp_path / "t.safetensors"
    names = []
    for seed in (3, 4, 3):
        save_file(network(seed).state_dict(), path)
        teacher, name = squeeze(real, TINY, Squeeze(epochs=0, start=str(path)), FLOATS, run_in(tmp_path))
        for ours, theirs in zip(
            teacher.network.state_dict().values(), network(seed).state_dict().values(), strict=True
        ):
            assert torch.equal(ours, theirs)
        names.append(name)
    assert names[0] == names[2] != names[1]


def test_a_teacher_of_no_file_is_found_where_it_was(tmp_path: Path) -> None:
    """The name of a stage made before the contents of files counted is what it was."""
    _, name = squeeze(toy(), TINY, SMALL, FLOATS, run_in(tmp_path))
    facts = json.loads((tmp_path / "stages" / name / "experiment.json").read_text())["experiment"]
    assert set(facts["config"]) == {"data", "backbone", "squeeze", "compute"}


@pytest.mark.parametrize(("start", "name"), [("pretrained", "resnet18"), ("pretrained:tv_in1k", "resnet18.tv_in1k")])
@pytest.mark.long
def test_weights_of_timm_by_tag(start: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    make, asked = timm.create_model, []

    def offline(model: str, *, pretrained: bool, **options: object) -> nn.Module:
        if pretrained:
            asked.append(model)
        return make(model, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    assert timm.is_model(name)
    config = Squeeze(epochs=1, start=start, batch_size=40, lr=1e-4)
    teacher, _ = squeeze(toy(), "timm:resnet18:stem=imagenet", config, FLOATS, run_in(tmp_path))
    assert asked == [name]
    assert teacher.network.fc.out_features == 2


def test_unknown_tags_are_told_before_anything_is_written(tmp_path: Path) -> None:
    for backbone, start, line in (
        ("timm:resnet18", "pretrained:torchvision", r"'torchvision'. Known: a1_in1k, .*tv_in1k$"),
        ("resnet18.a1_in1k:stem=stride2", "pretrained:", r"for resnet18 ''. Known: a1_in1k, .*tv_in1k$"),
        (TINY, "pretrained:tv_in1k", "for convnet 'tv_in1k'. Known: none"),
    ):
        with pytest.raises(InputError, match=line):
            squeeze(toy(), backbone, Squeeze(start=start), FLOATS, run_in(tmp_path))
        assert not (tmp_path / "stages").exists()


def test_a_classifier_that_would_stay_untrained_is_refused() -> None:
    """Before anything is downloaded: ImageNet's 1,000 classes are not the two of the data."""
    for start in ("pretrained", "pretrained:tv_in1k"):
        config = Config(Squeeze(epochs=0, start=start), relabel=Relabel(batch_size=5))
        with pytest.raises(InputError, match=r"are of 1000 classes, the data have 2: .* would stay untrained; give "):
            check(toy(), 5, config, 1)
        check(toy(), 5, replace(config, squeeze=Squeeze(epochs=1, start=start, batch_size=8)), 1)
    with pytest.raises(InputError, match="are of 1000 classes"):  # the stage itself
        squeeze(toy(), "timm:resnet18", config.squeeze, FLOATS, Run(Path("nowhere"), None))


@pytest.mark.parametrize("wrap", ["module.{}", "_orig_mod.{}", "module._orig_mod.{}", "_orig_mod.module.{}", "inner"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_names_that_wrappers_give_are_taken_off(wrap: str, ending: str, tmp_path: Path) -> None:
    """As DistributedDataParallel and torch.compile save the network that they wrap, or a part of it."""
    path = tmp_path / f"weights.{ending}"
    state = network(3).state_dict()
    if wrap == "inner":
        named = {name.replace("features.", "features._orig_mod.module."): tensor for name, tensor in state.items()}
    else:
        named = {wrap.format(name): tensor for name, tensor in state.items()}
    assert set(named) != set(state)
    (save_file if ending == "safetensors" else torch.save)(named, path)
    teacher, _ = squeeze(toy(), TINY, Squeeze(epochs=0, start=str(path)), FLOATS, run_in(tmp_path))
    for ours, theirs in zip(teacher.network.state_dict().values(), state.values(), strict=True):
        assert torch.equal(ours, theirs)


def test_weights_that_are_not_finite_are_refused_as_such(tmp_path: Path) -> None:
    state = network(3).state_dict()
    name = next(iter(state))
    state[name][0] = float("nan")
    save_file(state, tmp_path / "t.safetensors")
    config = Config(Squeeze(epochs=0, start=str(tmp_path / "t.safetensors")), relabel=Relabel(batch_size=5))
    with pytest.raises(InputError, match=rf"t.safetensors, are unsound: {name} has values that are not finite"):
        check(toy(), 5, replace(config, backbone=TINY), 1)


class _Malicious:
    def __reduce__(self) -> tuple:
        return (print, ("unpickled",))


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = toy()

    def refused(path: Path, message: str) -> None:
        with pytest.raises(InputError, match=message) as raised:
            squeeze(real, TINY, Squeeze(epochs=0, start=str(path)), FLOATS, run_in(tmp_path / "r"))
        assert "\n" not in str(raised.value)

    refused(tmp_path / "none.pt", "no such file")
    save_file(network(0, num_classes=5).state_dict(), tmp_path / "classes.safetensors")
    refused(
        tmp_path / "classes.safetensors", r"do not fit the network: 2 tensors differ, .* is \(5, .* there and \(2, "
    )
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors", "do not fit")
    (tmp_path / "text.pt").write_text("no weights")
    refused(tmp_path / "text.pt", "no file of weights")
    torch.save(_Malicious(), tmp_path / "evil.pt")
    refused(tmp_path / "evil.pt", "no file of weights")
    assert "unpickled" not in capsys.readouterr().out
    with pytest.raises(InputError, match="batch_size is 64; toy has 40"):
        squeeze(real, TINY, replace(SMALL, batch_size=64), FLOATS, run_in(tmp_path / "r"))
    with pytest.raises(InputError, match="multiple of 1 processes times accumulate 3"):
        squeeze(real, TINY, replace(SMALL, accumulate=3), FLOATS, run_in(tmp_path / "r"))
    with pytest.raises(InputError, match=r"smaller --squeeze\.lr"):
        squeeze(real, TINY, replace(SMALL, lr=1e30), FLOATS, run_in(tmp_path / "r"))


def test_schedules() -> None:
    config = Squeeze(lr=1.0, epochs=12, warmup_epochs=2)
    rates = [config.lr_at(epoch) for epoch in range(12)]
    assert rates[:3] == pytest.approx([0.1, 0.55, 1.0])
    assert rates[7] == pytest.approx(0.5)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert Validate(lr=2.0).lr_at(5, 10) == pytest.approx(1.0)
    rates = [Validate(lr=2.0, warmup_epochs=2).lr_at(epoch, 10) for epoch in range(3)]
    assert rates == pytest.approx([0.02, 1.01, 2.0])  # torchvision's LinearLR from 0.01


# --- recover ---------------------------------------------------------------------------------------------------------


def test_units_hold_every_image_once_and_one_index_where_classes_are_many() -> None:
    for classes, ipc, batch in ((10, 3, 100), (10, 3, 4), (250, 2, 100), (1, 5, 2)):
        whole = units(classes, ipc, batch)
        assert torch.cat(whole).sort().values.tolist() == list(range(classes * ipc))
        assert max(map(len, whole)) <= batch
        if classes > batch:
            assert all(len((unit % ipc).unique()) == 1 for unit in whole)


def test_batchnorm_match_is_the_formula() -> None:
    net = network()
    layers = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for number, layer in enumerate(layers):
        layer.running_mean.copy_(torch.randn(4, generator=generator(number)))
        layer.running_var.copy_(torch.rand(4, generator=generator(number)) + 0.5)
    seen: list[torch.Tensor] = []
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.randn(5, 3, 8, 8, generator=generator())
    with BatchNormMatch(net, 10.0) as match:
        net(x)
        net_hooks = sum(len(layer._forward_pre_hooks) for layer in layers)
    assert len(layers) == 2
    expected = 0.0
    for weight, layer, inputs in zip((10.0, 1.0), layers, seen, strict=True):
        flat = inputs.transpose(0, 1).flatten(1)
        mean = flat.mean(1)
        variance = (flat - mean[:, None]).square().mean(1)
        expected += weight * ((variance - layer.running_var).norm() + (mean - layer.running_mean).norm())
    torch.testing.assert_close(match.distance, expected)
    assert sum(len(layer._forward_pre_hooks) for layer in layers) == net_hooks - 2  # ours are gone
    with pytest.raises(InputError, match="has no BatchNorm"):
        BatchNormMatch(nn.Linear(2, 2), 10.0)


def teacher_of(seed: int = 0) -> RobustTeacher:
    return RobustTeacher(network(seed).requires_grad_(False))


FACTS_OF = FACTS | {"folder": facts_named("folder").resized(224)}
COUNTS = {name: facts.classes for name, facts in FACTS_OF.items()}
"""classes of the data sets that recipes know"""
SHORT = Recover(iterations=30, lr=0.1, jitter=(-1, 1), batch_size=3)


def test_recovered_images_are_classified_valid_and_exact(tmp_path: Path) -> None:
    real, config = toy(), replace(SHORT, r_bn=0.0, iterations=60)
    squeezed, name = squeeze(real, TINY, SMALL, FLOATS, run_in(tmp_path))
    folder = recover(squeezed, name, real, 3, config, FLOATS, run_in(tmp_path))
    images = read_units(folder)
    assert images.shape == (6, 3, 8, 8)
    assert images.min() >= 0
    assert images.max() <= 1
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert (squeezed.network(Normalize(real.mean, real.std)(images)).argmax(1) == labels).all()
    assert torch.equal(read_units(recover(squeezed, name, real, 3, config, FLOATS, run_in(tmp_path))), images)


def test_a_unit_is_the_textbook_loop(tmp_path: Path) -> None:
    """The official loop in a few lines, on our draws: Adam by hand, statistics by hooks, one crop and roll a step."""
    real, config = toy(), replace(SHORT, iterations=5, batch_size=2, r_bn=0.3, milestone=0.6, flip=False)
    teacher = teacher_of()
    run = run_in(tmp_path)
    images = read_units(recover(teacher, "t", real, 1, config, FLOATS, run))
    stage = run.stages / next(path.name for path in run.stages.iterdir())
    settings = json.loads((stage / "experiment.json").read_text())["experiment"]
    same = Run(tmp_path / "again", None, seed=settings["seed"])

    normalize, net = Normalize(real.mean, real.std), teacher.network
    x = torch.randn(2, 3, 8, 8, generator=same.generator("noise", 0)).requires_grad_()
    drawn = same.generator("recover", 0)
    boxes = [draw_boxes(1, 8, 8, least_area(config, step), drawn)[0] for step in range(5)]
    draw_flips(5, drawn)
    shifts = torch.randint(-1, 2, (5, 2), generator=drawn)
    layers, seen = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)], []
    for layer in layers:
        layer.register_forward_pre_hook(lambda layer, inputs: seen.append((layer, inputs[0])))
    first = second = torch.zeros_like(x)
    for step in range(5):
        seen.clear()
        view_ = TF.resized_crop(x, *boxes[step].tolist(), [8, 8], antialias=True)
        loss = F.cross_entropy(net(torch.roll(view_, shifts[step].tolist(), (2, 3))), torch.tensor([0, 1]))
        for number, (layer, inputs) in enumerate(seen):
            var, mean = inputs.var((0, 2, 3), unbiased=False), inputs.mean((0, 2, 3))
            far = (var - layer.running_var).norm(2) + (mean - layer.running_mean).norm(2)
            loss = loss + 0.3 * (10.0 if number == 0 else 1.0) * far
        (g,) = torch.autograd.grad(loss, x)
        first, second = 0.5 * first + 0.5 * g, 0.9 * second + 0.1 * g * g
        lr = 0.1 * (1 + math.cos(math.pi * step / 5)) / 2
        update = lr * (first / (1 - 0.5 ** (step + 1))) / ((second / (1 - 0.9 ** (step + 1))).sqrt() + 1e-8)
        low, high = normalize(torch.zeros(3, 1, 1)), normalize(torch.ones(3, 1, 1))
        x = torch.minimum(torch.maximum((x - update).detach(), low), high).requires_grad_()
    torch.testing.assert_close(images, normalize.inverse(x.detach()), atol=1e-4, rtol=0)


def test_a_killed_recovery_continues_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, teacher = toy(), teacher_of()
    whole = read_units(recover(teacher, "t", real, 3, SHORT, FLOATS, run_in(tmp_path / "a")))
    calls, roll = [0], torch.roll

    def dying(*arguments: object) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 45:  # in the second unit
            raise KeyboardInterrupt
        return roll(*arguments)

    monkeypatch.setattr(torch, "roll", dying)
    with pytest.raises(KeyboardInterrupt):
        recover(teacher, "t", real, 3, SHORT, FLOATS, run_in(tmp_path / "b", checkpoint_seconds=0.0))
    (stage,) = (tmp_path / "b" / "stages").iterdir()
    assert {path.name for path in stage.glob("unit*")} == {"unit-00000.safetensors", "unit-00001.pt"}
    resumed = read_units(recover(teacher, "t", real, 3, SHORT, FLOATS, run_in(tmp_path / "b", checkpoint_seconds=0.0)))
    assert torch.equal(whole, resumed)
    assert not list(stage.glob("*.pt"))
    assert calls[0] == 45 + 60 - 44  # no step of what was saved is taken again


def test_curriculum() -> None:
    at = [
        least_area(Recover(iterations=10, milestone=1.0, curriculum=name), 5) for name in ("cosine", "linear", "step")
    ]
    assert at == pytest.approx([0.54, 0.54, 1.0])
    assert least_area(Recover(iterations=10), 0) == 0.08


def test_many_images_stay_in_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import distill.distilled
    import sre2l.units

    real, teacher = toy(), teacher_of()
    folder = recover(teacher, "t", real, 3, SHORT, FLOATS, run_in(tmp_path))
    images = read_units(folder)
    monkeypatch.setattr(sre2l.units, "LIMIT", 100)
    lazy = read_units(folder)
    assert not isinstance(lazy, torch.Tensor)
    assert torch.equal(lazy[:], images)
    assert torch.equal(lazy[torch.tensor([5, 0])], images[[5, 0]])
    assert torch.equal(lazy[-1], images[-1])
    assert torch.equal(torch.cat(list(lazy.split(4))), images)
    assert digest(lazy) == digest(images)
    monkeypatch.setattr(distill.distilled, "SHARD", 4 * images[0].numel() * 4)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    made = DistilledSet(lazy, labels, "toy", real.classes, real.mean, real.std, training=MethodTraining(lr=0.5))
    made.save(tmp_path / "distilled.safetensors")
    assert len(list(tmp_path.glob("distilled*"))) == 3
    again = DistilledSet.load(tmp_path / "distilled.safetensors")
    assert torch.equal(again.images[:], images)
    assert again.training == MethodTraining(lr=0.5)
    (tmp_path / "distilled-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="00002"):
        DistilledSet.load(tmp_path / "distilled.safetensors")


# --- relabel and validate --------------------------------------------------------------------------------------------

CROPS = Relabel(epochs=3, batch_size=4, crop_min=0.3)


def labelled(tmp_path: Path, config: Relabel = CROPS, count: int = 10) -> tuple[torch.Tensor, Path, Normalize]:
    images, normalize = toy(count).images, Normalize((0.4,) * 3, (0.25,) * 3)
    return images, relabel(teacher_of(), "t", images, normalize, config, FLOATS, run_in(tmp_path)), normalize


@pytest.mark.parametrize("mix", ["cutmix", "mixup", "none"])
def test_labels_are_the_teacher_s_of_what_students_see(mix: str, tmp_path: Path) -> None:
    images, folder, normalize = labelled(tmp_path, replace(CROPS, mix=mix))
    labels = Labels(folder, digest(images))
    seen = []
    for epoch in range(labels.epochs):
        batches = list(labels.epoch(epoch))
        assert torch.cat([batch.who for batch in batches]).sort().values.tolist() == list(range(10))
        assert [len(batch.who) for batch in batches] == [4, 4, 2]
        for batch in batches:
            x = view(images, batch, mix)
            seen.append(x)
            logits = network()(normalize(x)).detach()
            torch.testing.assert_close(batch.logits, logits.half(), atol=1e-3, rtol=1e-2)
    assert not torch.equal(seen[0], seen[3])


def test_mixtures_are_what_they_say(tmp_path: Path) -> None:
    images, folder, _ = labelled(tmp_path, replace(CROPS, epochs=20))
    regions = 0
    for epoch in range(20):
        for batch in Labels(folder, digest(images)).epoch(epoch):
            alone = cut(images[batch.who], batch.boxes, batch.flips)
            top, left, bottom, right = batch.mixed
            mask = torch.zeros(8, 8, dtype=torch.bool)
            mask[top:bottom, left:right] = True
            expected = torch.where(mask, alone[batch.partners], alone)
            assert torch.equal(view(images, batch, "cutmix"), expected)
            blend = batch.share * alone + (1 - batch.share) * alone[batch.partners]
            torch.testing.assert_close(view(images, batch, "mixup"), blend)
            regions += int(mask.any())
    assert regions > 30


def test_shares_are_of_the_beta_distribution() -> None:
    from scipy.stats import beta, kstest

    from sre2l.relabel import _beta

    for alpha in (0.8, 1.0):
        assert kstest(_beta(alpha, 4000, generator()).numpy(), beta(alpha, alpha).cdf).pvalue > 0.01


def test_a_store_is_continued_and_belongs_to_its_images(tmp_path: Path) -> None:
    images, folder, _ = labelled(tmp_path)
    before = (folder / "epoch-0002.safetensors").read_bytes()
    (folder / "epoch-0002.safetensors").unlink()
    with pytest.raises(InputError, match="lacks the labels of 1 epochs, the first 2"):
        Labels(folder, digest(images))
    kept = (folder / "epoch-0001.safetensors").stat().st_mtime_ns
    assert labelled(tmp_path)[1] == folder
    assert (folder / "epoch-0002.safetensors").read_bytes() == before
    assert (folder / "epoch-0001.safetensors").stat().st_mtime_ns == kept
    with pytest.raises(InputError, match=r"belong to other images \(10 of digest"):
        Labels(folder, digest(images + 0.01))
    with pytest.raises(InputError, match="holds no labels"):
        Labels(tmp_path, digest(images))
    with pytest.raises(InputError, match="batch_size is 11, but there are 10"):
        labelled(tmp_path, replace(CROPS, batch_size=11))
    facts = json.loads((folder / "labels.json").read_text())
    (folder / "labels.json").write_text(json.dumps(facts | {"format": "other-2"}))
    with pytest.raises(InputError, match="format other-2"):
        Labels(folder, digest(images))


def test_divergence_is_kullback_and_leibler_s() -> None:
    s, t = torch.randn(2, 5, 3, generator=generator(), dtype=torch.float64)
    p, q = (t / 3).softmax(1), (s / 3).softmax(1)
    torch.testing.assert_close(divergence(s, t, 3.0).double(), (p * (p / q).log()).sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "squared", "decay"), [("adamw", False, "kernels"), ("adamw", False, "all"), ("sgd", True, "all")]
)
def test_a_student_is_the_textbook_s(name: str, squared: bool, decay: str, tmp_path: Path) -> None:
    images, folder, normalize = labelled(tmp_path)
    labels = Labels(folder, digest(images))
    config = Validate(name, 0.01, 0.1, decay, temperature=4.0, squared=squared)
    ours, theirs = network(5), network(5)
    train(ours, images, labels, normalize, config, FLOATS, run_in(tmp_path), "0")
    theirs.train()
    named = list(theirs.named_parameters())
    groups = [
        {"params": [p for _, p in named if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.1 if decay == "all" else 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    if name == "sgd":  # torchvision's training, of which the code of Tiny-ImageNet is made, decays all
        optimizer = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    for epoch in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 + math.cos(math.pi * epoch / 3)) / 2
        for batch in labels.epoch(epoch):
            out = theirs(normalize(view(images, batch, "cutmix")))
            loss = nn.KLDivLoss(reduction="batchmean")((out / 4).log_softmax(1), (batch.logits.float() / 4).softmax(1))
            optimizer.zero_grad()
            (loss * (16 if squared else 1)).backward()
            optimizer.step()
    # Outputs: a bias before BatchNorm has no gradient but rounding, which AdamW makes a step of.
    x = normalize(images)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), atol=1e-3, rtol=1e-3)
    assert (ours(x) - network(5)(x)).abs().max() > 0.05


@pytest.mark.parametrize("spec", [TINY, DROPPING])
@pytest.mark.long
def test_a_killed_student_continues_to_the_same_bits(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sre2l.validate as module

    images, folder, normalize = labelled(tmp_path)
    labels, arguments = Labels(folder, digest(images)), (normalize, Validate(accumulate=2), FLOATS)
    whole, cut_short, resumed = (network(5, spec=spec) for _ in range(3))
    train(whole, images, labels, *arguments, run_in(tmp_path / "a"), "0")
    calls, epoch = [0], module._epoch

    def dying(*inputs: object) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return epoch(*inputs)

    monkeypatch.setattr(module, "_epoch", dying)
    run = run_in(tmp_path / "b", checkpoint_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        train(cut_short, images, labels, *arguments, run, "0")
    train(resumed, images, labels, *arguments, run, "0")
    assert calls[0] == 4
    for p, q in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(p, q)
    assert not list((run.folder / "students").glob("*.pt"))


def test_parts_of_processes_make_up_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    for processes in (1, 2, 3, 8):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        for count in (1, 2, 5, 15, 16, 17, 50, 100):
            images, weights = torch.zeros(count), torch.zeros(count)
            for rank in range(processes):
                monkeypatch.setenv("RANK", str(rank))
                mine, weight = images_of_this_process(count)
                images[mine] += 1
                weights[mine] += weight / processes  # the mean over processes
                assert len(images[mine]) >= min(2, count)
            torch.testing.assert_close(weights, torch.full((count,), 1 / count))
            assert set(images.tolist()) <= ({1} if count >= 2 * processes else {processes})


@pytest.mark.parametrize("method", RECIPES)
@pytest.mark.parametrize("name", ["quick", "paper"])
def test_eight_processes_may_run_every_recipe(method: str, name: str) -> None:
    for dataset, count in COUNTS.items():
        real = replace(toy(), classes=tuple(map(str, range(count))))
        for ipc in (1, 10, 50):
            config = replace(RECIPES[method][name](FACTS_OF[dataset], ipc).config, backbone=TINY)
            squeeze = replace(config.squeeze, start="scratch", epochs=1, batch_size=config.squeeze.batch_size)
            real = replace(real, images=real.images[:1].expand(256, -1, -1, -1), labels=torch.zeros(256).long())
            check(real, ipc, replace(config, squeeze=squeeze), 8)


def test_what_a_network_draws_is_the_generator_s() -> None:
    net, x, cpu = network(spec=DROPPING).train(), toy(6).images, torch.device("cpu")
    before = torch.get_rng_state()
    seen = []
    for seed in (0, 1, 0):
        with seeded(generator(seed), cpu):
            seen.append(net(x))
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(torch.get_rng_state(), before)


POINT = "timm:resnet10t"
"""a network that reaches 1 x 1 on images of 8 px: BatchNorm then needs two images"""


def test_what_a_stage_would_refuse_is_told_before_any_work() -> None:
    def said(config: Config, ipc: int = 5, processes: int = 1) -> str:
        try:
            check(toy(), ipc, config, processes)
        except InputError as error:
            return str(error)
        return ""

    plain = Config(SMALL, relabel=Relabel(batch_size=5), backbone="convnet:width=4,depth=2")
    assert "has no BatchNorm with statistics" in said(plain)
    assert said(replace(plain, recover=Recover(r_bn=0.0))) == ""
    assert said(replace(plain, recover=Recover(images="nowhere"))) == "recover.images is nowhere: no such folder"

    for batch_size in (1, 3, 9):
        config = Config(SMALL, relabel=Relabel(batch_size=batch_size), backbone=POINT)
        assert f"cannot train on one image: relabel.batch_size is {batch_size}, of 10 images" in said(config)
        assert said(replace(config, backbone=TINY)) == ""  # two layers leave 2 x 2 pixels
    assert said(Config(SMALL, relabel=Relabel(batch_size=4), backbone=POINT)) == ""

    plain = Config(SMALL, relabel=Relabel(batch_size=5), backbone=TINY)
    assert said(plain, processes=8) == ""
    assert "multiple of 3 processes times accumulate 1" in said(plain, processes=3)
    assert "batch_size is 64; toy has 40 images" in said(replace(plain, squeeze=replace(SMALL, batch_size=64)))
    assert said(replace(plain, squeeze=replace(SMALL, sync_batchnorm=True)), processes=2) == ""
    assert "nowhere.pt: no such file" in said(replace(plain, squeeze=replace(SMALL, start="nowhere.pt")))


def test_a_batch_of_one_image_is_refused_in_training(tmp_path: Path) -> None:
    images, folder, normalize = labelled(tmp_path, replace(CROPS, batch_size=3))  # 3, 3, 3, 1
    labels, run = Labels(folder, digest(images)), run_in(tmp_path)
    student = network(spec=POINT)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with pytest.raises(InputError, match="one image: 10 images are labelled in batches of 3; take another --backbone"):
        train(student, images, labels, normalize, Validate(), FLOATS, run, "0")
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())
    train(network(5), images, labels, normalize, Validate(), FLOATS, run, "1")
    with pytest.raises(InputError, match=r"one image: squeeze.batch_size is 4 for 1 processes times accumulate 4;"):
        squeeze(toy(), POINT, replace(SMALL, batch_size=4, accumulate=4), FLOATS, run)
    synchronised = replace(SMALL, batch_size=2, sync_batchnorm=True)
    _check_batches(network(spec=POINT), toy(), synchronised, 2)
    with pytest.raises(InputError, match=r"one image: squeeze\.batch_size is 1 for 1 processes"):
        _check_batches(network(spec=POINT), toy(), replace(synchronised, batch_size=1), 1)


def test_parts_of_a_batch_have_two_images_or_more(tmp_path: Path) -> None:
    images, folder, normalize = labelled(tmp_path, replace(CROPS, batch_size=7))  # 7 and 3, which 3 makes 3, 3, 1
    student = network(spec=POINT)
    labels = Labels(folder, digest(images))
    train(student, images, labels, normalize, Validate(accumulate=3), FLOATS, run_in(tmp_path), "0")
    for count in range(1, 12):
        for parts in range(1, 5):
            cut_up = split_batch(torch.arange(count), torch.arange(count), parts)
            assert torch.cat([x for x, _ in cut_up]).tolist() == list(range(count))
            assert min(len(x) for x, _ in cut_up) >= min(2, count)


# --- pictures, recipes, bad values -----------------------------------------------------------------------------------


def test_pictures_are_written_and_read(tmp_path: Path) -> None:
    images = (torch.rand(4, 3, 8, 8, generator=generator()) * 255).round() / 255
    names, labels = ("a fish", "b"), torch.tensor([0, 0, 1, 1])
    write_pictures(images, labels, names, tmp_path / "p")
    assert torch.equal(read_pictures(tmp_path / "p", names, 2, (3, 8, 8)), images)
    with pytest.raises(InputError, match="no folder for class c"):
        read_pictures(tmp_path / "p", ("a fish", "c"), 2, (3, 8, 8))
    with pytest.raises(InputError, match="has 2 images, fewer than ipc 3"):
        read_pictures(tmp_path / "p", names, 3, (3, 8, 8))
    with pytest.raises(InputError, match="has 8x8 pixels, the data set 16x16"):
        read_pictures(tmp_path / "p", names, 2, (3, 16, 16))
    with pytest.raises(InputError, match="no such folder"):
        read_pictures(tmp_path / "q", names, 2, (3, 8, 8))
    (tmp_path / "p" / "b" / "0000.png").write_text("no image")
    with pytest.raises(InputError, match=r"0000\.png cannot be read"):
        read_pictures(tmp_path / "p", names, 2, (3, 8, 8))


def test_published_folders_are_read(tmp_path: Path) -> None:
    from PIL import Image

    for class_ in range(2):
        folder = tmp_path / f"new{class_:03d}"
        folder.mkdir()
        for index in range(2):
            colour = (100 * class_, 50 * index, 7)
            Image.new("RGB", (8, 8), colour).save(folder / f"class{class_:03d}_id{index:03d}.jpg", quality=100)
    images = read_pictures(tmp_path, ("n01", "n02"), 2, (3, 8, 8))
    mean = (255 * images.mean((2, 3))).round()
    assert (mean - torch.tensor([[0, 0, 7], [0, 50, 7], [100, 0, 7], [100, 50, 7.0]])).abs().max() <= 3


@pytest.mark.parametrize("dataset", COUNTS)
@pytest.mark.parametrize("name", ["quick", "paper", "pair"])
def test_guard_is_one_field(name: str, dataset: str) -> None:
    for plain in ("sre2l", "cda"):
        ours, theirs = (RECIPES[method][name](FACTS_OF[dataset], 10) for method in (f"guard_{plain}", plain))
        assert ours.evaluation == theirs.evaluation
        assert ours.config.squeeze.loss.startswith("guard:weight=")
        alike = replace(ours.config, squeeze=replace(ours.config.squeeze, loss="cross_entropy")) == theirs.config
        assert alike == ((name, dataset) != ("paper", "imagenet"))  # there SRe2L takes published weights
    assert RECIPES["cda"][name](FACTS_OF[dataset], 10).config.recover.milestone == 1.0


def test_a_pair_differs_from_the_paper_on_imagenet_alone() -> None:
    for method in RECIPES:
        differing = [
            dataset
            for dataset in COUNTS
            if RECIPES[method]["pair"](FACTS_OF[dataset], 10) != RECIPES[method]["paper"](FACTS_OF[dataset], 10)
        ]
        assert differing == (["imagenet"] if method in ("sre2l", "cda") else [])
    pair = RECIPES["sre2l"]["pair"](facts_named("imagenet"), 10).config
    assert (pair.squeeze.start, pair.squeeze.epochs, pair.squeeze.loss) == ("scratch", 50, "cross_entropy")
    assert (pair.recover.iterations, pair.relabel.batch_size) == (2000, 100)


def test_paper_settings() -> None:
    config = RECIPES["sre2l"]["paper"](facts_named("imagenet"), 10).config
    recover_ = config.recover
    assert (recover_.iterations, recover_.lr, recover_.r_bn, recover_.jitter) == (4000, 0.25, 0.01, (0, 32))
    assert (config.relabel.batch_size, config.relabel.epochs, config.validate.temperature) == (1024, 300, 20.0)
    assert config.squeeze.start == "pretrained:tv_in1k"
    tiny = RECIPES["cda"]["paper"](facts_named("tiny_imagenet"), 50).config
    assert (tiny.recover.lr, tiny.recover.r_bn, tiny.squeeze.lr, tiny.validate.squared) == (0.4, 0.05, 0.2, True)
    assert RECIPES["sre2l"]["paper"](facts_named("cifar10"), 1).config.relabel.batch_size == 10


@pytest.mark.parametrize("name", ["paper", "pair", "quick"])
def test_recovery_sees_what_the_official_codes_see(name: str) -> None:
    """Crop, flip and jitter of recover_cifar.py (SRe2L, GUARD), recover_tiny.py, recover_cda_tiny.py and others."""
    small = {"cifar10", "cifar100", "mnist", "fashion_mnist", "digits"}
    for dataset in COUNTS:
        for method in RECIPES:
            seen, cda = RECIPES[method][name](FACTS_OF[dataset], 10).config.recover, method.endswith("cda")
            mirrors = dataset not in ("mnist", "digits")
            if dataset not in small:
                assert (seen.crop, seen.crop_min, seen.flip) == (True, 0.08, True)
            elif cda:
                assert (seen.crop, seen.crop_min, seen.flip) == (True, 0.4, mirrors)
            else:
                assert (seen.crop, seen.flip) == (False, False)
            if name != "quick":
                shifts = {"imagenet": (0, 32), "imagenette": (0, 32), "folder": (0, 32)}
                shifts["tiny_imagenet"] = (0, 4) if cda else (-4, 4)
                assert seen.jitter == shifts.get(dataset, (0, 4))


def test_what_decays_in_a_student_is_what_decays_officially() -> None:
    """All by relabel_cifar.py's AdamW and by Tiny-ImageNet's SGD (train_kd.py), FKD's groups elsewhere."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    net.register_parameter("position", nn.Parameter(torch.zeros(1, 2, 3)))  # of no kernel, as in a vision transformer
    whole = set(dict(net.named_parameters()))
    expected = {dataset: {"0.weight", "3.weight"} for dataset in COUNTS}
    expected |= dict.fromkeys(["cifar10", "cifar100", "mnist", "fashion_mnist", "digits"], whole)
    expected["tiny_imagenet"] = whole
    cases = [(dataset, method, name) for dataset in COUNTS for method in RECIPES for name in ("paper", "pair")]
    for dataset, method, name in cases:
        config = RECIPES[method][name](FACTS_OF[dataset], 10).config.validate
        optimizer = _optimizer(net, config)
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        found = {key: decays[id(p)] for key, p in net.named_parameters()}
        assert {key for key, decay in found.items() if decay > 0} == expected[dataset]
        assert set(found.values()) <= {0.0, config.weight_decay}
        assert isinstance(optimizer, torch.optim.SGD if config.optimizer == "sgd" else torch.optim.AdamW)


@pytest.mark.parametrize(("optimizer", "decay"), [("sgd", "all"), ("adamw", "kernels")])
def test_students_of_a_set_that_names_no_decay_are_trained_as_before(
    optimizer: str, decay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sre2l.pipeline as module

    images, folder, _ = labelled(tmp_path)
    settings = {name: value for name, value in vars(Validate(optimizer)).items() if name != "decay"}
    kept = MethodTraining(labels=str(folder), validate=settings, compute=vars(FLOATS))
    distilled = DistilledSet.of(toy(), images, torch.arange(10) // 5, backbone=TINY, training=kept)
    seen: list[Validate] = []
    monkeypatch.setattr(module, "train", lambda *arguments: seen.append(arguments[4]))
    protocol(distilled, tmp_path, run_in(tmp_path)).train(network(), "0")
    assert seen == [Validate(optimizer, decay=decay)]


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (Squeeze, "lr", 0),
        (Squeeze, "epochs", -1),
        (Squeeze, "epochs", 0),
        (Squeeze, "batch_size", 0),
        (Squeeze, "accumulate", 0),
        (Squeeze, "statistics", -1),
        (Squeeze, "loss", "nothing"),
        (Squeeze, "loss", "guard:fraction=2"),
        (Recover, "lr", -1.0),
        (Recover, "iterations", 0),
        (Recover, "crop_min", 0),
        (Recover, "milestone", 2),
        (Recover, "r_bn", -1.0),
        (Recover, "jitter", (3, 1)),
        (Recover, "batch_size", 0),
        (Relabel, "epochs", 0),
        (Relabel, "alpha", 0.0),
        (Relabel, "crop_min", 1.5),
        (Validate, "lr", 0.0),
        (Validate, "temperature", -1.0),
        (Validate, "accumulate", 0),
    ],
)
def test_bad_values_are_named(kind: type, field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{field}|nothing|fraction is 2"):
        kind(**{field: value})


def test_every_stage_s_settings_are_in_the_config() -> None:
    assert Config().squeeze == Squeeze()
    assert Config().backbone == "timm:resnet18"
