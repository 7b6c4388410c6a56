"""CAFE: its two losses against the paper's formulas, both loops and their ends, resuming, recipes, the command line."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from baselines.cafe import alignment
from baselines.cafe import method as cafe
from baselines.cafe.alignment import Weights, align
from baselines.cafe.method import Config, distill, weights, work
from baselines.cafe.recipes import METHODS
from baselines.cafe.watched import accuracy_of
from distill.app.main import main
from distill.data import facts_named, label
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.models import build
from distill.runs.run import Run
from distill.training.augment import augmentation
from distill.training.features import embedding, taps
from robust import CrossEntropy, CurvatureRegularizedLoss
from tests.toy import toy, write_toy

RECIPES = {method.name: method.recipes for method in METHODS}

GUARD = CurvatureRegularizedLoss(weight=0.5, h=1.0)
LOSSES = {"cafe": CrossEntropy(), "guard_cafe": GUARD}
STRATEGY = "color_crop_cutout_flip_scale_rotate"
WEIGHTS = Weights((0.3, 0.7, 2.0), 0.05)
SMALL = Config(
    CrossEntropy(),
    backbone="convnet:width=4,depth=2",
    iterations=3,
    max_steps=4,
    max_epochs=3,
    window=2,
    batch_watch=5,
    batch_real=6,
    lr_img=0.01,
)


def case(backbone: str = "convnet:width=5,depth=3") -> tuple[nn.Module, torch.Tensor, list[torch.Tensor]]:
    """Return a network of three classes, two images of each, and real batches of unequal size, in float64."""
    generator = torch.Generator().manual_seed(3)
    network = build(backbone, channels=3, image_size=8, num_classes=3, generator=generator).double().eval()
    images = torch.randn(3, 2, 3, 8, 8, generator=generator, dtype=torch.float64)
    batches = [torch.randn(5 + c, 3, 8, 8, generator=generator, dtype=torch.float64) for c in range(3)]
    return network, images, batches


def seeded(class_: int) -> torch.Generator:
    return torch.Generator().manual_seed(class_)


# --- the losses --------------------------------------------------------------------------------------------------


def layers_of_convnet(network: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """Return what each block's ReLU gives and what the classifier sees, layer by layer by hand, of one image."""
    found, x = [], image[None]
    for layer in network.features:
        x = layer(x.clone())
        if isinstance(layer, nn.ReLU):
            found.append(x.clone())
    return [*found, x]


def curved(loss_at: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """Equation 8 of GUARD with weight 0.5 and h 1 at one image."""
    image = image.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss_at(image), image, create_graph=True)
    (moved,) = torch.autograd.grad(loss_at(image + (g / g.norm()).detach()), image, create_graph=True)
    return loss_at(image) + 0.5 * (moved - g).square().sum()


def paper(network: nn.Module, images: torch.Tensor, batches: list, guard: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """CAFE's terms, an image, a layer and a class at a time; of ConvNet-3 with WEIGHTS."""
    alignment_term = images.new_zeros(())
    centres = []
    for ours, real in zip(images, batches, strict=True):
        mine = [layers_of_convnet(network, x) for x in ours]
        theirs = [layers_of_convnet(network, x) for x in real]
        for layer, weight in enumerate((0.3, 0.3, 0.7, 2.0)):
            mean_mine = sum(each[layer] for each in mine) / len(mine)
            mean_theirs = sum(each[layer] for each in theirs) / len(theirs)
            alignment_term = alignment_term + weight * (mean_mine - mean_theirs.detach()).pow(2).sum()
        centres.append(sum(each[-1][0] for each in mine) / len(mine))
    discrimination = images.new_zeros(())
    for class_, real in enumerate(batches):
        for image in real:

            def loss_at(x: torch.Tensor, class_: int = class_) -> torch.Tensor:
                feature = layers_of_convnet(network, x)[-1][0]
                scores = torch.stack([feature @ centre for centre in centres])
                return torch.logsumexp(scores, 0) - scores[class_]

            discrimination = discrimination + 0.05 * (curved(loss_at, image) if guard else loss_at(image))
    return alignment_term, discrimination


@pytest.mark.parametrize("together", [1, 2, 10])  # classes in a pass
@pytest.mark.parametrize("method", LOSSES)
def test_the_losses_are_the_paper_s(method: str, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "GROUP", together)
    monkeypatch.setattr(alignment, "CHUNK", 4)
    network, images, batches = case()
    leaf = images.clone().requires_grad_()
    expected = paper(network, leaf, batches, guard=method == "guard_cafe")
    (by_hand,) = torch.autograd.grad(sum(expected), leaf)
    gradient, terms = align(
        network, images, LOSSES[method], WEIGHTS, real_batch=lambda c: batches[c], siamese=None, generator=seeded
    )
    assert terms.tolist() == pytest.approx([term.item() for term in expected], rel=1e-12)
    assert (gradient - by_hand).abs().max() <= 1e-10 * by_hand.abs().max()


@pytest.mark.parametrize("augment", ["", STRATEGY])
@pytest.mark.parametrize("method", LOSSES)
def test_the_gradient_is_that_of_finite_differences(method: str, augment: str) -> None:
    loss = (
        replace(GUARD, direction="sign") if method == "guard_cafe" else CrossEntropy()
    )  # z is held fixed: so is a sign
    network, images, batches = case("convnet:width=4,depth=2,activation=swish")  # smooth
    options = {"real_batch": lambda c: batches[c], "siamese": augmentation(augment), "generator": seeded}

    def value(at: torch.Tensor) -> tuple[torch.Tensor, float]:
        gradient, terms = align(network, at, loss, WEIGHTS, **options)
        return gradient, terms.sum().item()

    gradient, _ = value(images)
    for seed in range(3):
        direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        high, low = (value(images + step * direction)[1] for step in (1e-5, -1e-5))
        assert (high - low) / 2e-5 == pytest.approx((gradient * direction).sum().item(), rel=1e-6)


def test_equal_images_align() -> None:
    network, images, _ = case()
    gradient, terms = align(
        network,
        images,
        CrossEntropy(),
        Weights((1.0,), 0.0),
        real_batch=lambda c: images[c],
        siamese=None,
        generator=seeded,
    )
    assert terms.tolist() == pytest.approx([0, 0], abs=1e-20)
    assert gradient.abs().max() < 1e-12


def test_both_batches_of_a_class_are_changed_alike() -> None:
    network, images, _ = case()
    _, terms = align(
        network,
        images,
        CrossEntropy(),
        Weights((1.0,), 0.0),
        real_batch=lambda c: images[c],
        siamese=augmentation(STRATEGY),
        generator=seeded,
    )
    assert terms[0] < 1e-20


def test_the_penalty_reaches_the_images() -> None:
    network, images, batches = case()
    options = {"real_batch": lambda c: batches[c], "siamese": None, "generator": seeded}
    plain, without, guard = (
        align(network, images, loss, Weights((0.0,), 1.0), **options)[0]
        for loss in (CrossEntropy(), CurvatureRegularizedLoss(0.0), GUARD)
    )
    assert torch.equal(plain, without)
    assert (guard - plain).norm() > 0.01 * plain.norm()


@pytest.mark.parametrize(
    ("backbone", "size", "count"),
    [("convnet:width=4", 8, 4), ("convnet:width=4,depth=2", 8, 3), ("mlp", 8, 3), ("lenet", 32, 5), ("vgg11", 32, 9)],
)
def test_taps_are_the_activations_and_what_the_classifier_sees(backbone: str, size: int, count: int) -> None:
    network = build(backbone, channels=3, image_size=size, num_classes=5, generator=seeded(0)).eval()
    x = torch.randn(2, 3, size, size, generator=seeded(1))
    found = taps(network, x)
    assert len(found) == count
    assert torch.equal(found[-1], embedding(network, x))
    assert all(len(layer) == 2 and layer.min() >= 0 for layer in found[:-1])  # of ReLU
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_network_without_taps_is_refused() -> None:
    with pytest.raises(InputError, match="no activation layers"):
        taps(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.zeros(1, 3, 2, 2))


def test_the_official_weights_count_from_the_last_layer() -> None:
    official = weights(Config(CrossEntropy()))
    assert official.of(4) == (0.1, 0.1, 1.0, 2.0)  # conv 1, conv 2, conv 3, pooling and its flattened form
    assert official.of(6) == (0.1, 0.1, 0.1, 0.1, 1.0, 2.0)
    assert official.of(2) == (1.0, 2.0)


# --- the loops ---------------------------------------------------------------------------------------------------


def rows(folder: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row.pop("seconds") > 0 for row in found)
    return found


def loops(config: Config, accuracies: Callable[[], float], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list:
    """Return (steps, epochs) of each network in a run with given accuracies."""
    monkeypatch.setattr(cafe, "accuracy_of", lambda *_: accuracies())
    distill(toy(), 1, config, Run(folder, None).begin())
    return [(row["steps"], row["epochs"]) for row in rows(folder)]


def test_criteria_that_are_never_met_end_at_the_caps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = replace(SMALL, lambda_1=0.0, lambda_2=1.0, iterations=2)  # no span is below 0, none above 1
    values = iter(torch.rand(1000, generator=seeded(0)).tolist())
    assert loops(never, lambda: next(values), tmp_path, monkeypatch) == [(4, 3 * 3)] * 2


def test_the_loops_end_at_their_criteria(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SMALL, iterations=1, max_steps=50, max_epochs=50, window=3, lambda_1=0.1, lambda_2=0.2)
    # after a step | after epochs of the training behind it: by hand, the last three of each
    values = [0.1, *(0.1, 0.2, 0.29, 0.38, 0.5)]  # spans .19, .18, .21: five epochs
    values += [0.5, *(0.5, 0.1, 0.5)]  # three epochs
    values += [0.45, *(0.9, 0.9, 0.9, 0.1)]  # steps' span .4: on; four epochs
    values += [0.52]  # span of .5 .45 .52 is .07: the end
    given = iter(values)
    assert loops(config, lambda: next(given), tmp_path, monkeypatch) == [(4, 12)]
    assert next(given, None) is None


def test_each_network_starts_with_no_accuracies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of the last network is not carried into the next: both take `window` steps at a constant accuracy."""
    config = replace(SMALL, iterations=3, max_steps=9, max_epochs=2, window=4)
    assert loops(config, lambda: 0.5, tmp_path, monkeypatch) == [(4, 3 * 2)] * 3


def test_an_accuracy_is_of_real_images_class_by_class() -> None:
    class Says(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.one_hot((x.mean((1, 2, 3)) > 0).long(), 2).float()

    batches = [torch.tensor([-1.0, -1.0, -1.0, 1.0]), torch.tensor([1.0, -1.0])]  # 3 of 4, 1 of 2
    found = accuracy_of(Says(), lambda c: batches[c].view(-1, 1, 1, 1), 2)
    assert found == pytest.approx((0.75 + 0.5) / 2)


def test_the_learning_rate_is_halved_at_fractions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With gradients of one, each iteration of one step moves every pixel by its learning rate times the velocity."""
    monkeypatch.setattr(cafe, "align", lambda network, images, *_, **__: (torch.ones_like(images), torch.zeros(2)))
    saved = []
    monkeypatch.setattr(Run, "save", lambda self, step, state, remedy: saved.append(state))
    config = replace(SMALL, iterations=20, max_steps=1, lr_img=1.0)
    distill(toy(), 1, config, Run(tmp_path, None, checkpoint_seconds=0.0).begin())
    moved = [(a["images"] - b["images"]).mean() / b["velocity"].mean() for a, b in pairwise(saved)]
    expected = [1.0] * 11 + [0.5] * 4 + [0.25] * 2 + [0.125] * 2  # from iterations 12, 16 and 18 of 20
    assert [value.item() for value in moved] == pytest.approx(expected, rel=1e-3)


def test_a_learning_rate_too_large_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"diverged in iteration 0 .*; take a smaller --lr-img or --lr-net"):
        distill(toy(), 1, replace(SMALL, lr_img=1e30), Run(tmp_path, None).begin())


# --- a run -------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("backbone", ["convnet:width=4,depth=2", "convnet:width=4,depth=2,norm=batch"])
@pytest.mark.parametrize("at", [0, 2])
def test_a_killed_run_ends_with_the_same_bits(
    at: int, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, real_loss=GUARD, augment=STRATEGY, backbone=backbone)
    whole = distill(toy(), 2, config, Run(tmp_path / "whole", config).begin())
    log = Run.log

    def dies(self: Run, step: int, **scalars: float) -> None:
        if step == at:
            raise Killed
        log(self, step, **scalars)

    monkeypatch.setattr(Run, "log", dies)
    with pytest.raises(Killed):
        distill(toy(), 2, config, Run(tmp_path / "killed", config, checkpoint_seconds=0.0).begin())
    monkeypatch.setattr(Run, "log", log)
    resumed = Run(tmp_path / "killed", config).begin()
    assert (resumed.restore() or {"iteration": 0})["iteration"] == at
    assert torch.equal(whole.images, distill(toy(), 2, config, resumed).images)
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")


GOLDEN = {  # (alignment, discrimination) of each iteration; torch 2.14, CPU, float32
    "cafe": [(126.19016, 0.09608), (116.05154, 0.09859), (86.56412, 0.08494)],
    "cafe_dsa": [(120.33407, 0.1053), (126.9012, 0.10798), (89.47979, 0.07912)],
    "guard_cafe": [(126.1901, 0.097), (116.05141, 0.09901), (86.56398, 0.08606)],
}


@pytest.mark.parametrize("method", ["cafe", "cafe_dsa", "guard_cafe"])
def test_losses_are_what_they_were(method: str, tmp_path: Path) -> None:
    config = replace(
        SMALL,
        real_loss=GUARD if method == "guard_cafe" else CrossEntropy(),
        augment=STRATEGY if method == "cafe_dsa" else "",
        backbone="convnet:width=8,depth=2",
        batch_real=8,
    )
    distill(toy(), 2, config, Run(tmp_path, None).begin())
    found = [(row["alignment"], row["discrimination"]) for row in rows(tmp_path)]
    for pair, expected in zip(found, GOLDEN[method], strict=True):
        assert pair == pytest.approx(expected, rel=2e-4)


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_steps": 0}, "max_steps is 0; it must be >= 1"),
        ({"max_epochs": -3}, "max_epochs is -3; it must be >= 1"),
        ({"window": 1}, "window is 1"),
        ({"lambda_1": 4.0}, r"lambda_1 is 4\.0; it must be in .0, 1."),
        ({"lr_img": 0.0}, r"lr_img is 0\.0"),
        ({"second_weight": -1.0}, r"second_weight is -1\.0"),
        ({"inner_weight": 0.0, "real_loss": GUARD}, "inner_weight is 0, so real_loss is not used"),
        ({"real_loss": CurvatureRegularizedLoss(h_warmup=(0.1,))}, "h_warmup"),
    ],
)
def test_fields_are_checked(fields: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config(**({"real_loss": CrossEntropy()} | fields))


@pytest.mark.parametrize("method", RECIPES)
@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10", "cifar100", "folder"])
@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_recipes(method: str, dataset: str, ipc: int) -> None:
    full, quick = (RECIPES[method][name](facts_named(dataset), ipc) for name in ("paper", "quick"))
    assert (full.config.iterations, full.config.batch_real, full.evaluation.students) == (2000, 256, 20)
    assert (full.config.lambda_1, full.config.lambda_2, full.config.window) == (0.04, 0.03, 10)
    assert isinstance(full.config.real_loss, CurvatureRegularizedLoss) == method.startswith("guard")
    assert bool(full.config.augment) == (method == "cafe_dsa")
    assert work(quick.config, ipc, 10, 1000)[0][0] < work(full.config, ipc, 10, 1000)[0][0] / 10
    if dataset in ("mnist", "digits"):
        assert "flip" not in full.config.augment
    if method == "guard_cafe":
        plain = RECIPES["cafe"]["quick"](facts_named(dataset), ipc).config
        assert replace(quick.config, real_loss=CrossEntropy()) == plain  # one field


def test_the_estimate_s_steps_run() -> None:
    network = build("convnet:width=4,depth=2", channels=3, image_size=8, num_classes=10, generator=seeded(0))
    for count, step in work(replace(SMALL, real_loss=GUARD), 2, 10, 100):
        step(network, (3, 8, 8))
        assert count > 0


@pytest.mark.long
def test_as_a_user_types_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_toy(tmp_path / "toy")
    small = ["--backbone", "convnet:width=4", "--iterations", "2", "--max-steps", "2", "--max-epochs", "2"]
    small += ["--batch-real", "8", "--batch-watch", "4", "--window", "2", "--students", "1", "--student.epochs", "20"]
    small += ["--attacks", "linf"]
    for method, recipe in (("cafe", "paper"), ("cafe", "quick"), ("cafe_dsa", "quick"), ("guard_cafe", "quick")):
        runs = tmp_path / recipe
        words = [method, "folder", "--data-dir", str(data), "--runs", str(runs), "--recipe", recipe, *small]
        assert main(words) == 0
        folder = runs / method / label("folder", data) / "ipc1" / "seed0"
        assert DistilledSet.load(folder).method == method
        assert (folder / "table.csv").exists()
    capsys.readouterr()
    for flags, line in (
        (["--max-steps", "0"], "--max-steps is 0; it must be >= 1"),
        (["--lambda-2", "3"], "--lambda-2 is 3.0; it must be in [0, 1]"),
        (["--max-epoch", "3"], "--max-epoch"),
        (["--augment", "colour"], "colour"),
        (["--backbone", "resnet"], "resnet"),
    ):
        words = ["cafe", "folder", "--data-dir", str(data), "--runs", str(tmp_path / "bad"), *small, *flags]
        assert main(words) == 2
        err = capsys.readouterr().err
        assert line in err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(("dataset", "policy"), [("mnist", "dc:crop_scale_rotate"), ("toy", "")])
def test_students_are_augmented_as_in_its_code(dataset: str, policy: str, tmp_path: Path) -> None:
    config = replace(SMALL, iterations=1, max_steps=1)
    assert distill(replace(toy(), name=dataset), 1, config, Run(tmp_path, None).begin()).augment == policy
