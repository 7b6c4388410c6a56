"""RDED: selection against loops, strips, labels, recipes; and what an adversarially trained teacher sees."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import resized_crop

from distill.data import FACTS, ImageSet, facts_named
from distill.data.image_files import ImageFiles
from distill.errors import InputError
from distill.runs.description import describe
from distill.runs.from_json import from_json
from distill.runs.run import Run
from distill.training.crop_labels import Labels, digest, epoch_file
from robust import Normalize, RobustTeacher, loss_named
from sre2l import rded_recipes, recipes
from sre2l.crops import cut, draw_boxes, draw_strips, shuffled
from sre2l.precision import Compute
from sre2l.rded import Config, check, distill
from sre2l.relabel import Relabel, label_missing_epochs, relabel, view
from sre2l.select import Select, _crops_of, scores, select, stitched
from sre2l.squeeze import Squeeze, _Loss
from sre2l.units import read_units
from sre2l.validate import Validate
from tests.toy import toy, write_toy

TINY = "convnet:width=4,depth=2,norm=batch"
FLOATS = Compute()
FEW = Select(candidates=12, crops=3, factor=2)
RECIPES = {method.name: method.recipes for method in (*recipes.METHODS, *rded_recipes.METHODS)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run_in(folder: Path) -> Run:
    return Run(folder / "run", None, stages=folder / "stages")


def network(seed: int = 0) -> nn.Module:
    from distill.models import build

    return build(TINY, channels=3, image_size=8, num_classes=2, generator=generator(seed)).eval()


def teacher() -> RobustTeacher:
    return RobustTeacher(network().requires_grad_(False), loss_named("cross_entropy"))


def selected(folder: Path, real: ImageSet, ipc: int = 2, config: Select = FEW) -> Path:
    return select(teacher(), "t", real, ipc, config, FLOATS, run_in(folder))


# --- selection -------------------------------------------------------------------------------------------------------


def by_loops(real: ImageSet, class_: int, ipc: int, config: Select, run: Run) -> torch.Tensor:
    """The images of a class, crop by crop."""
    net, normalize, size = network(), Normalize(real.mean, real.std), real.image_shape[-1]
    side = size // config.factor
    draws = run.generator("select", class_)
    members = [n for n in range(len(real)) if real.labels[n] == class_]
    order = torch.randperm(len(members), generator=draws)[: config.candidates].tolist()
    seeds = torch.randint(2**62, (len(order),), generator=draws).tolist()
    found = []
    for place, seed in zip(order, seeds, strict=True):
        image = real.images[members[place]]
        boxes = draw_boxes(config.crops, size, size, 0.08, generator(seed), (1.0, 1.0)).tolist()
        best = None
        for top, left, height, width in boxes:
            assert height == width
            crop = resized_crop(image, top, left, height, width, [side, side], antialias=True)
            framed = torch.zeros(1, 3, size, size)
            at = (size - side) // 2
            framed[0, :, at : at + side, at : at + side] = normalize(crop)
            loss = -net(framed).log_softmax(1)[0, class_].item()
            best = (loss, crop) if best is None or loss < best[0] else best
        found.append(best)
    found.sort(key=lambda pair: pair[0])
    images = torch.zeros(ipc, 3, size, size)
    for rank, (_, crop) in enumerate(found[: config.factor**2 * ipc]):
        row, column = divmod(rank // ipc, config.factor)
        images[rank % ipc, :, row * side : (row + 1) * side, column * side : (column + 1) * side] = crop
    return images


@pytest.mark.parametrize("config", [FEW, Select(candidates=9, crops=4, factor=1), Select(candidates=300, crops=1)])
def test_the_selection_is_that_of_loops(config: Select, tmp_path: Path) -> None:
    real = toy()
    images = read_units(selected(tmp_path, real, config=config))[:]
    assert images.shape == (4, 3, 8, 8)
    for class_ in (0, 1):
        expected = by_loops(real, class_, 2, config, run_in(tmp_path))
        assert torch.equal(images[2 * class_ : 2 * class_ + 2], expected)


def test_other_crops_are_classified_with_less_confidence(tmp_path: Path) -> None:
    real, alone = toy(), Select(candidates=20, crops=5, factor=1)
    normalize, net = Normalize(real.mean, real.std), network()
    best = read_units(selected(tmp_path, real, 2, alone))[:]
    for class_ in (0, 1):
        ours = scores(net, normalize(best[2 * class_ : 2 * class_ + 2]), class_, 8, FLOATS)
        others = scores(net, normalize(real.images[real.labels == class_]), class_, 8, FLOATS)
        assert ours.max() < others.median()


def test_crops_are_scored_inside_the_mean_colour() -> None:
    crops = torch.rand(2, 3, 3, 3, generator=generator())
    framed = torch.zeros(2, 3, 8, 8)
    framed[:, :, 2:5, 2:5] = crops
    targets = torch.tensor([1, 1])
    expected = F.cross_entropy(network()(framed), targets, reduction="none")
    torch.testing.assert_close(scores(network(), crops, 1, 8, FLOATS), expected)


def test_a_size_that_the_factor_does_not_divide() -> None:
    crops = torch.arange(9.0).view(9, 1, 1, 1).expand(9, 1, 2, 2)
    (image,) = stitched(crops, 1, 3, 8)
    assert image.shape == (1, 8, 8)
    assert image[0, :, 0].tolist() == [0, 0, 0, 3, 3, 3, 6, 6]
    assert image[0, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_classes_are_made_once_and_again_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = selected(tmp_path, toy())
    first, second = sorted(folder.glob("unit-*.safetensors"))
    before, time = second.read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    assert selected(tmp_path, toy()) == folder
    assert second.read_bytes() == before
    assert first.stat().st_mtime_ns == time
    assert selected(tmp_path, toy(), config=replace(FEW, crops=2)) != folder
    assert selected(tmp_path, toy(seed=1)) != folder
    monkeypatch.setattr("sre2l.select.every_nth", lambda units: units[1::2])  # the second of two processes
    other = selected(tmp_path / "other", toy())
    assert [path.name for path in other.glob("unit-*")] == [second.name]
    assert load_file(other / second.name)["images"].equal(load_file(second)["images"])


def test_files_are_cut_as_they_are(tmp_path: Path) -> None:
    root = write_toy(tmp_path / "toy")
    paths = sorted(root.glob("train/*/*.png"), key=lambda path: path.name)
    files = ImageFiles(np.array([str(path) for path in paths]), 8, "square")
    in_files = replace(toy(), images=files, source="files")
    in_memory = replace(toy(), images=files[:])
    images = read_units(selected(tmp_path / "a", in_files))[:]
    assert torch.equal(images, read_units(selected(tmp_path / "b", in_memory))[:])
    small = replace(in_files, images=files.resized(4))  # at 4 px the crops are still of the pictures of 8 px
    crops = _crops_of(small, torch.arange(3), torch.arange(3), Select(crops=1, factor=1))
    for number, crop in enumerate(crops):
        box = draw_boxes(1, 8, 8, 0.08, generator(number), (1.0, 1.0))[0].tolist()
        assert torch.equal(crop[0], resized_crop(in_memory.images[number], *box, [4, 4], antialias=True))


@pytest.mark.parametrize(
    ("config", "ipc", "line"),
    [
        (FEW, 4, "select.candidates is 12; 4 images per class of 2 x 2 crops need 16; give --select.candidates 16"),
        (
            Select(),
            6,
            "class above of toy has 20 images; 6 images per class of 2 x 2 crops need 24; give a smaller --s",
        ),
        (
            Select(factor=1),
            21,
            "class above of toy has 20 images; 21 images per class of 1 x 1 crops need 21; give a s",
        ),
        (Select(factor=9), 1, "select.factor is 9; images of 8 px have no 9 crops a side"),
    ],
)
def test_too_few_images_are_told_before_any_work(config: Select, ipc: int, line: str) -> None:
    settings = Config(Squeeze(batch_size=16), config, Relabel(batch_size=2), backbone=TINY)
    with pytest.raises(InputError) as caught:
        check(toy(), ipc, settings, 1)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("factor", 0), ("crops", 0), ("candidates", 0), ("crop_min", 0.0)])
def test_bad_values_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is "):
        Select(**{name: value})


def test_a_teacher_whose_logits_are_not_finite_selects_nothing(tmp_path: Path) -> None:
    broken = teacher()
    for parameter in broken.network.parameters():
        parameter.fill_(float("nan"))
    with pytest.raises(InputError, match=r"selection of class above diverged .*--squeeze.lr"):
        select(broken, "t", toy(), 2, FEW, FLOATS, run_in(tmp_path))
    assert not list(tmp_path.rglob("unit-*"))


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "parts"), [(8, 2), (8, 3), (5, 2), (4, 1)])
def test_strips_are_cut_and_joined(size: int, parts: int) -> None:
    images = torch.rand(6, 3, size, size, generator=generator())
    strips = draw_strips(6, parts, generator(1))
    width = size // parts
    ends = [*(width * n for n in range(parts)), size]
    for image, found, (rows, columns) in zip(images, shuffled(images, strips), strips.tolist(), strict=True):
        joined = torch.cat([image[:, ends[n] : ends[n + 1]] for n in rows], 1)
        assert torch.equal(found, torch.cat([joined[:, :, ends[n] : ends[n + 1]] for n in columns], 2))


STRIPS = Relabel(epochs=2, batch_size=4, crop_min=0.5, strips=2)


def labelled(folder: Path, config: Relabel = STRIPS) -> tuple[torch.Tensor, Path, Normalize]:
    images, normalize = toy(10).images, Normalize((0.4,) * 3, (0.25,) * 3)
    return images, relabel(teacher(), "t", images, normalize, config, FLOATS, run_in(folder)), normalize


def test_labels_are_of_images_whose_strips_are_shuffled(tmp_path: Path) -> None:
    images, folder, normalize = labelled(tmp_path)
    moved = 0
    for epoch in range(2):
        for batch in Labels(folder, digest(images)).epoch(epoch):
            x = view(images, batch, "cutmix")
            torch.testing.assert_close(batch.logits, network()(normalize(x)).half(), atol=1e-3, rtol=1e-2)
            ours = cut(shuffled(images[batch.who], batch.strips), batch.boxes, batch.flips)
            assert torch.equal(view(images, batch, "none"), ours)
            moved += int((batch.strips != torch.arange(2)).any((1, 2)).sum())
    assert 5 < moved < 20
    again = epoch_file(folder, 1).read_bytes()
    epoch_file(folder, 1).unlink()
    label_missing_epochs(folder, network(), images, normalize, run_in(tmp_path))
    assert epoch_file(folder, 1).read_bytes() == again


def test_strips_that_are_no_order_are_refused(tmp_path: Path) -> None:
    images, folder, _ = labelled(tmp_path)
    path = epoch_file(folder, 0)
    tensors = load_file(path)
    whole = {name: tensor for name, tensor in tensors.items() if name != "strips"}
    for strips in (torch.zeros_like(tensors["strips"]), tensors["strips"][:, :1].contiguous(), None):
        save_file(whole if strips is None else whole | {"strips": strips}, path)
        with pytest.raises(InputError, match="has not the labels of epoch 0"):
            list(Labels(folder, digest(images)).epoch(0))


def test_the_rate_of_rded_ends_at_half() -> None:
    assert Validate(horizon=2.0).lr_at(300, 300) == pytest.approx(0.5e-3)
    assert Validate().lr_at(300, 300) == pytest.approx(0)
    with pytest.raises(ValueError, match=r"horizon is 0\.5"):
        Validate(horizon=0.5)


def test_fields_of_this_version_keep_the_runs_of_earlier_ones() -> None:
    assert "strips" not in describe(Relabel())
    assert "horizon" not in describe(Validate())
    for value in (Relabel(strips=2), Validate(horizon=2.0), Relabel(), Validate()):
        assert from_json(type(value), describe(value)) == value


def test_the_set_has_the_teachers_probabilities_or_classes(tmp_path: Path) -> None:
    real, squeeze = toy(), Squeeze("pgd_at:steps=1@4/255", epochs=1, batch_size=16, augment="none")
    config = Config(squeeze, FEW, Relabel(2, 2), backbone=TINY, pictures=False)
    soft = distill(real, 2, config, run_in(tmp_path))
    (path,) = (tmp_path / "stages").glob("squeeze-*/teacher.safetensors")
    net = network()
    net.load_state_dict(load_file(path))
    normalize = Normalize(real.mean, real.std)
    torch.testing.assert_close(soft.labels, net(normalize(soft.images[:])).softmax(1))
    assert soft.teacher == "pgd_at:steps=1@4/255"
    hard = distill(real, 2, replace(config, labels="classes"), run_in(tmp_path))
    assert hard.labels.tolist() == [0, 0, 1, 1]
    assert hard.teacher == ""
    assert torch.equal(hard.images[:], soft.images[:])
    assert hard.training == soft.training


# --- teachers and recipes --------------------------------------------------------------------------------------------


class Recorder(nn.Module):
    """Remembers what it is called with, and in which mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3 * 64, 2)
        self.seen: list[tuple[bool, torch.Tensor]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((self.training, x.detach().clone()))
        return self.head(self.norm(x).flatten(1))


@pytest.mark.parametrize(("spec", "passes"), [("pgd_at:steps=3@4/255", 1), ("trades:steps=3@1/255", 2)])
def test_a_teacher_is_attacked_in_pixels_and_in_evaluation_mode(spec: str, passes: int) -> None:
    """The training passes are the last ones; BatchNorm's statistics move in these alone."""
    eps = float(spec.rpartition("@")[2].partition("/")[0]) / 255
    net, normalize, pixels = Recorder().train(), Normalize((0.4,) * 3, (0.25,) * 3), toy().images.clone()
    pixels[:, :, :2], pixels[:, :, 2:4] = 0.0, 1.0  # a clamp of normalised images would move these
    objective = _Loss(net, normalize, loss_named(spec))
    objective(pixels, toy().labels, 0, generator()).backward()
    modes = [training for training, _ in net.seen]
    assert modes == sorted(modes)
    assert sum(modes) == passes == int(net.norm.num_batches_tracked)
    assert modes.count(False) >= 3
    attacked = normalize.inverse(net.seen[-1][1])
    assert -1e-6 <= attacked.min() <= attacked.max() <= 1 + 1e-6
    assert (attacked - pixels).abs().max() == pytest.approx(eps, rel=1e-3)


ROBUST = {"guard": "guard:", "at": "pgd_at:", "robust": "pgd_at:", "trades": "trades:"}


@pytest.mark.parametrize("dataset", FACTS)
@pytest.mark.parametrize("method", ["at_sre2l", "trades_sre2l", "robust_rded", "guard_rded"])
def test_robust_methods_differ_in_the_loss_alone(method: str, dataset: str) -> None:
    kind, _, plain = method.partition("_")
    for name in {"pair", "quick"} & set(RECIPES[method]) | {"quick"}:
        ours, theirs = (RECIPES[each][name](FACTS[dataset], 10) for each in (method, plain))
        assert ours.evaluation == theirs.evaluation
        loss = ours.config.squeeze.loss
        assert loss.startswith(ROBUST[kind])
        loss_named(loss)
        assert replace(ours.config, squeeze=replace(ours.config.squeeze, loss="cross_entropy")) == theirs.config


def test_radii_of_teachers() -> None:
    def loss(method: str, dataset: str, size: int | None = None) -> str:
        return RECIPES[method]["paper"](FACTS[dataset].resized(size), 10).config.squeeze.loss

    assert loss("at_sre2l", "cifar10") == "pgd_at:steps=10@4/255"
    assert loss("trades_sre2l", "imagenette") == "trades:steps=3@1/255"
    assert loss("robust_rded", "imagenette", 64) == "pgd_at:steps=3@1/255"
    imagenet = RECIPES["at_sre2l"]["paper"](facts_named("imagenet"), 10).config.squeeze
    assert (imagenet.start, imagenet.epochs) == ("scratch", 50)


def test_settings_of_the_official_scripts() -> None:
    def config(dataset: str, ipc: int) -> Config:
        return RECIPES["rded"]["paper"](facts_named(dataset), ipc).config

    small = config("cifar10", 10)
    assert (small.select.factor, small.select.candidates, small.select.crops) == (1, 300, 5)
    assert (small.relabel.epochs, small.relabel.batch_size, small.relabel.mix) == (300, 50, "cutmix")
    assert (small.relabel.crop_min, small.relabel.strips) == (1.0, 1)  # the whole image, mirrored
    assert (small.validate.temperature, small.validate.lr, small.validate.horizon) == (20.0, 1e-3, 2.0)
    large = config("imagenette", 10)
    assert (large.select.factor, large.relabel.strips, large.relabel.crop_min) == (2, 2, 0.5)
    assert config("imagenet", 10).squeeze.start == "pretrained:tv_in1k"
    sizes = {("cifar10", 1): 10, ("cifar10", 50): 100, ("cifar100", 10): 100, ("tiny_imagenet", 1): 100}
    assert {key: config(*key).relabel.batch_size for key in sizes} == sizes
    assert config("imagenet", 100).select.candidates == 400
