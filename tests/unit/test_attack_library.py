import copy
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchattacks
from torch import nn

from robust.attacks import jsma as jsma_module
from robust.attacks.apgd import APGD, targeted_difference_of_logits_ratio
from robust.attacks.autoattack import AutoAttack
from robust.attacks.deepfool import DeepFool, deepfool
from robust.attacks.fab import FAB
from robust.attacks.jsma import JSMA, best_pairs, jsma
from robust.attacks.square import Square
from robust.threat import Threat

NORMS = ["linf", "l2"]
THEIRS = {"linf": "Linf", "l2": "L2"}
EPS = {"linf": 0.09, "l2": 0.45}  # a good half of the digits withstands
RADII = {"linf": 0.02, "l2": 0.1}

SHORT = {
    "apgd_ce": lambda threat: APGD(threat, steps=10),
    "apgd_dlr": lambda threat: APGD(threat, loss="dlr", steps=10),
    "apgd_t": lambda threat: APGD(threat, loss="targeted", steps=10, targets=3),
    "fab_t": lambda threat: FAB(threat, steps=10, targets=3),
    "fab": lambda threat: FAB(threat, steps=10, targeted=False, restarts=2),
    "square": lambda threat: Square(threat, queries=50, restarts=2),
}
NEAREST = {"deepfool": lambda _: DeepFool(Threat("l2", 0.5), steps=20), "jsma": lambda _: JSMA(gamma=0.3, goals=3)}


class Cascade(AutoAttack):
    """AutoAttack with members that take a moment."""

    def members(self):
        return tuple(SHORT[name](self.threat) for name in ("apgd_ce", "apgd_t", "fab_t", "square"))


ALL = SHORT | NEAREST | {"cascade": Cascade}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def each(attacks):
    return pytest.mark.parametrize("make", attacks.values(), ids=attacks)


def trained(classes):
    """A net trained on the first 1200 of scikit-learn's digits below `classes`, and some of the rest to attack."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images, targets = torch.tensor(data.images / 16.0).float().unsqueeze(1), torch.tensor(data.target)
    images, targets = images[targets < classes], targets[targets < classes]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes))
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    n = 2 * len(images) // 3
    for _ in range(15 if classes > 3 else 8):
        for who in torch.randperm(n).split(64):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(net(images[who]), targets[who]).backward()
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return net.eval(), images[n : n + 40], targets[n : n + 40]


@pytest.fixture(scope="module")
def digits():
    return trained(10)


@pytest.fixture(scope="module", params=[2, 3])
def few_digits(request):
    return trained(request.param)


@torch.no_grad()
def stands(net, adversarial, targets):
    return net(adversarial).argmax(1) == targets


# Known answers


def linear(classes, norm, distance, n=8):
    """A linear model, and images that are all this far from their nearest boundary."""
    weights = torch.randn(classes, 1, 8, 8, generator=rng(3))
    weights[:, :, -1], weights[:, :, :, -1] = 0, 0  # where Square never puts a small square
    weights = weights.flatten(1).double()
    images = 0.45 + 0.1 * torch.rand(n, 64, generator=rng(4), dtype=torch.float64)
    bias = -(images.mean(0) @ weights.T)
    targets = torch.arange(n) % classes

    def margins(points):
        logits = points @ weights.T + bias
        gaps = logits.gather(1, targets[:, None]) - logits
        lengths = (weights[targets][:, None] - weights).norm(p=1 if norm == "linf" else 2, dim=2)
        return (gaps / lengths).nan_to_num(torch.inf).amin(1)

    inwards = weights[targets] - weights.mean(0)
    low, high = torch.full((n, 1), -0.05).double(), torch.full((n, 1), 0.05).double()
    for _ in range(60):
        middle = (low + high) / 2
        near = (margins(images + middle * inwards) < distance)[:, None]
        low, high = torch.where(near, middle, low), torch.where(near, high, middle)
    images = images + high * inwards
    assert torch.allclose(margins(images), torch.full((n,), distance, dtype=torch.float64), atol=1e-6)
    assert images.min() > 0.1
    assert images.max() < 0.9
    return lambda x: x.flatten(1) @ weights.T + bias, images.view(n, 1, 8, 8), targets


EXACT = {  # attack, how many classes
    "ce": (lambda threat: APGD(threat, steps=40), 2),
    "ce for dlr": (lambda threat: APGD(threat, loss="dlr", steps=40), 2),
    "targeted": (lambda threat: APGD(threat, loss="targeted", steps=40), 5),
    "fab_t": (lambda threat: FAB(threat, steps=20), 5),
    "fab": (lambda threat: FAB(threat, steps=20, targeted=False), 5),
    "autoattack": (AutoAttack, 5),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.long
def test_a_linear_model_falls_exactly_when_eps_crosses_the_margin(norm, name):
    make, classes = EXACT[name]
    model, images, targets = linear(classes, norm, RADII[norm])
    for ratio, standing in ((1.01, 0), (0.99, len(images))):
        if (name, norm, ratio) == ("autoattack", "l2", 0.99):
            continue  # nothing new, and seconds of Square
        found = make(Threat(norm, ratio * RADII[norm]))(model, images, targets, generator=rng())
        assert stands(model, found, targets).sum() == standing


@pytest.mark.parametrize(("norm", "enough"), [("linf", 1.01), ("l2", 1.8)])
@pytest.mark.long
def test_square_on_a_linear_model(norm, enough):
    """In linf small squares reach every corner of the ball; in l2 a sum of windows only nears a noisy direction."""
    model, images, targets = linear(2, norm, RADII[norm])
    for ratio, standing in ((0.99, len(images)), (enough, 0)):
        found = Square(Threat(norm, ratio * RADII[norm]), queries=3000 if norm == "linf" else 1000)(
            model, images, targets, generator=rng()
        )
        assert stands(model, found, targets).sum() == standing


def test_deepfool_overshoots_the_nearest_boundary_of_a_linear_model():
    model, images, targets = linear(5, "l2", 0.1)
    for overshoot in (0.0, 0.5):
        attack = DeepFool(Threat("l2", 0.0), overshoot=overshoot)  # finds them whatever eps
        found = attack(model, images, targets)
        assert not stands(model, found, targets).any()
        length = attack.threat.distance(found, images)
        assert torch.allclose(length, length.new_tensor((0.1 + 1e-4) * (1 + overshoot)), atol=1e-6)
        late = attack(model, images, targets.roll(1))
        assert torch.equal(late, images)  # misclassified from the start


def test_the_targeted_ratio_is_that_of_the_paper():
    logits = torch.randn(30, 6, dtype=torch.float64, generator=rng())
    targets, goals = torch.arange(30) % 6, (torch.arange(30) + 2) % 6
    found = targeted_difference_of_logits_ratio(logits, targets, goals)
    for row, y, t, value in zip(logits.tolist(), targets.tolist(), goals.tolist(), found.tolist(), strict=True):
        ranked = sorted(row, reverse=True)
        assert value == pytest.approx(-(row[y] - row[t]) / (ranked[0] - (ranked[2] + ranked[3]) / 2))


# Against torchattacks, given the same arguments


def seed_of(generator):
    return int(torch.randint(2**31, (), generator=generator))


def theirs(attack, net, images, targets, **options):
    made = getattr(torchattacks, attack)(net, **options)
    with torch.random.fork_rng():
        return made(images, targets)


COMPONENTS = {
    "ce": (APGD, {}, "APGD", {"steps": 100}),
    "dlr": (APGD, {"loss": "dlr", "restarts": 2}, "APGD", {"steps": 100, "loss": "dlr", "n_restarts": 2}),
    "targeted": (APGD, {"loss": "targeted", "targets": 4}, "APGDT", {"steps": 100, "n_classes": 5}),
    "fab_t": (FAB, {"steps": 40, "targets": 4}, "FAB", {"steps": 40, "multi_targeted": True, "n_classes": 5}),
    "fab": (FAB, {"steps": 40, "targeted": False}, "FAB", {"steps": 40}),
    "square": (Square, {"queries": 500}, "Square", {"n_queries": 500, "resc_schedule": False}),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", COMPONENTS)
@pytest.mark.long
def test_each_agrees_with_torchattacks(digits, norm, name):
    net, images, targets = digits[0], digits[1][:24], digits[2][:24]
    make, settings, attack, options = COMPONENTS[name]
    options = options | {"norm": THEIRS[norm], "eps": EPS[norm], "seed": seed_of(rng(5))}
    ours = make(Threat(norm, EPS[norm]), **settings)(net, images, targets, generator=rng(5))
    expected = theirs(attack, net, images, targets, **options)
    ours_stand, they_stand = stands(net, ours, targets), stands(net, expected, targets)
    assert 0 < ours_stand.sum() < stands(net, images, targets).sum()
    assert (ours_stand <= they_stand).all()
    if "fab" in name:  # projecting its points on the ball finds a few more
        assert they_stand.sum() - ours_stand.sum() <= 2
    else:
        assert torch.equal(ours_stand, they_stand)
    if attack != "FAB" and (attack, norm) != ("APGDT", "l2"):  # that one has the step sizes of the first example
        assert torch.allclose(ours[~ours_stand], expected[~ours_stand], atol=1e-6)


@pytest.mark.long
def test_targeted_apgd_in_l2_agrees_on_batches_of_one(digits):
    net, images, targets = digits
    for image, target in zip(images[:8].split(1), targets[:8].split(1), strict=True):
        ours = APGD(Threat("l2", 0.45), loss="targeted", steps=30, targets=3)(net, image, target, generator=rng(5))
        expected = theirs("APGDT", net, image, target, norm="L2", eps=0.45, steps=30, n_classes=4, seed=seed_of(rng(5)))
        assert torch.allclose(ours, expected, atol=1e-6)


@pytest.mark.long
def test_autoattack_leaves_who_withstands_each_component_of_torchattacks(digits):
    net, images, targets = digits
    images, targets = images[:8], targets[:8]
    common = {"norm": "Linf", "eps": EPS["linf"]}
    they_stand = stands(net, images, targets)
    for attack, options in (
        ("APGD", {"steps": 100}),
        ("APGDT", {"steps": 100}),
        ("FAB", {"steps": 100, "multi_targeted": True}),
        ("Square", {"n_queries": 5000, "resc_schedule": False}),
    ):
        they_stand &= stands(net, theirs(attack, net, images, targets, **common, **options), targets)
    found = AutoAttack(Threat("linf", EPS["linf"]))(net, images, targets, generator=rng())
    assert 0 < they_stand.sum() < len(images)
    assert torch.equal(stands(net, found, targets), they_stand)


def test_deepfool_is_that_of_torchattacks_where_no_pixel_is_cut(digits):
    net, images, _ = digits
    images = 0.45 + 0.1 * images
    net = nn.Sequential(Affine(10.0, -4.5), net)
    targets = net(images).argmax(1)
    expected = theirs("DeepFool", net, images, targets)
    found = DeepFool(Threat("l2", 1.0))(net, images, targets)
    assert min(found.min(), 1 - found.max()) > 0
    assert not stands(net, found, targets).any()
    assert (expected - images).flatten(1).norm(dim=1).min() > 0.002
    assert (found - expected).flatten(1).norm(dim=1).max() < 5e-4  # its moves are 1e-4 longer


@pytest.mark.long
def test_deepfool_crosses_boundaries_that_torchattacks_stops_at(digits):
    net, images, targets = digits[0], digits[1][:20], digits[2][:20]
    assert not stands(net, DeepFool(Threat("l2", 1.0))(net, images, targets), targets).any()
    assert stands(net, theirs("DeepFool", net, images, targets), targets).any()


class Affine(nn.Module):
    def __init__(self, scale, shift):
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x):
        return self.scale * x + self.shift


# AutoAttack


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.long
def test_autoattack_is_a_cascade_of_its_members(digits, norm):
    net, images, targets = digits
    attack = Cascade(Threat(norm, EPS[norm]))
    expected, generator, counts = images.clone(), rng(), []
    for member in attack.members():
        standing = stands(net, expected, targets)
        counts.append(int(standing.sum()))
        expected[standing] = member(net, expected[standing], targets[standing], generator=generator)
    found = attack(net, images, targets, generator=rng())
    assert torch.equal(found, expected)
    assert 0 < counts[-1] < counts[0]
    alone = [stands(net, member(net, images, targets, generator=rng()), targets) for member in attack.members()]
    assert all((stands(net, found, targets) <= other).all() for other in alone)


def test_autoattack_is_the_standard_version():
    threat = Threat("linf", 0.1)
    assert AutoAttack(threat).members() == (
        APGD(threat, "ce", 100, 1),
        APGD(threat, "targeted", 100, 1, 9),
        FAB(threat, 100, 1, True, 9),
        Square(threat, 5000, 1),
    )
    assert [field.name for field in fields(AutoAttack)] == ["threat", "version"]
    assert AutoAttack(threat).version == "standard"


class Counting(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.passes = inner, 0

    def forward(self, x):
        self.passes += 1
        return self.inner(x)


def test_nobody_left_ends_it(digits):
    net, images, targets = digits
    counting = Counting(net)
    AutoAttack(Threat("linf", 0.09))(counting, images, (net(images).argmax(1) + 1) % 10)
    assert counting.passes == 1  # all wrong
    counting.passes = 0
    AutoAttack(Threat("linf", 0.9))(counting, images, targets, generator=rng())
    assert counting.passes < 110  # the first member fells all


# Few classes


@each(ALL)
def test_two_and_three_classes(few_digits, make):
    net, images, targets = few_digits
    threat = Threat("linf", 0.5)
    found = make(threat)(net, images, targets, generator=rng())
    assert stands(net, images, targets).sum() > 35
    assert stands(net, found, targets).sum() < (35 if make is NEAREST["jsma"] else 20)
    assert threat.distance(found, images).max() < 0.5 + 1e-6 or make in NEAREST.values()


@pytest.mark.parametrize("loss", ["dlr", "targeted"])
def test_below_four_classes_ratios_are_cross_entropy(few_digits, loss):
    found, expected = (
        APGD(Threat("linf", 0.15), loss=name, steps=10)(*few_digits, generator=rng()) for name in (loss, "ce")
    )
    assert torch.equal(found, expected)


def test_restarts_go_elsewhere():
    waves, heads = torch.randn(64, 20, generator=rng()), torch.randn(20, 3, generator=rng(1))
    net, threat = lambda x: torch.sin(3 * x.flatten(1) @ waves) @ heads, Threat("linf", 0.03)
    images = torch.rand(40, 1, 8, 8, generator=rng(2))
    targets = net(images).argmax(1)
    for make in (
        lambda n: APGD(threat, steps=1, restarts=n),
        lambda n: FAB(threat, steps=1, restarts=n, targets=1),
        lambda n: FAB(threat, steps=1, restarts=n, targeted=False),
        lambda n: Square(threat, queries=3, restarts=n),
    ):
        once, often = (stands(net, make(n)(net, images, targets, generator=rng()), targets) for n in (1, 3))
        assert (often <= once).all()
        assert often.sum() < once.sum()


def test_eps_zero_asks_the_model_nothing(digits):
    counting = Counting(digits[0])
    for make in [*SHORT.values(), AutoAttack]:
        make(Threat("l2", 0.0))(counting, *digits[1:])
    assert counting.passes == 0


def test_targets_are_no_more_than_the_wrong_classes(digits):
    net, images, targets = digits
    small = Counting(lambda x: net(x)[:, :4])
    images = images[targets < 4]
    targets = small(images).argmax(1)
    tiny = Threat("linf", 1e-6)  # nobody falls
    for make in (lambda n: APGD(tiny, "targeted", steps=5, targets=n), lambda n: FAB(tiny, steps=5, targets=n)):
        passes = []
        for n in (1, 2, 3, 9):
            small.passes = 0
            make(n)(small, images, targets, generator=rng())
            passes.append(small.passes - 1)
        assert passes == [passes[0], 2 * passes[0], 3 * passes[0], 3 * passes[0]]


# Borders


@each(ALL)
def test_the_model_and_all_randomness_are_left_as_they_were(make, capsys):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    net.append(nn.Linear(144, 5)).train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net[5].bias.grad = torch.ones(5)
    images = torch.rand(6, 1, 8, 8, generator=rng()).requires_grad_()
    with torch.no_grad():
        targets = copy.deepcopy(net).eval()(images).argmax(1)
    before = copy.deepcopy(net)
    state, numpys = torch.get_rng_state(), np.random.get_state()
    found = make(Threat("linf", 0.02))(net, images, targets, generator=rng())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpys, strict=True))
    torch.testing.assert_close(net.state_dict(), before.state_dict(), rtol=0, atol=0)
    assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in before.parameters()]
    assert [p.grad is None for p in net.parameters()] == [True, True, True, True, True, False]
    assert torch.equal(net[5].bias.grad, torch.ones(5))
    assert images.grad is None
    assert not found.requires_grad
    assert "".join(capsys.readouterr()) == ""
    assert torch.equal(make(Threat("linf", 0.02))(before.eval(), images, targets, generator=rng()), found)


@each(ALL)
def test_the_generator_is_all_the_randomness(digits, make):
    net, images, targets = digits
    images, targets = images[:6], targets[:6]
    attack = make(Threat("linf", 0.12))
    first = attack(net, images, targets, generator=rng(1))
    torch.rand(7)
    again = attack(net, images, targets, generator=rng(1))
    assert torch.equal(first, again)
    assert not torch.equal(first, images)
    if isinstance(attack, APGD | Square):
        assert not torch.equal(first, attack(net, images, targets, generator=rng(2)))


@each(ALL)
def test_the_wrong_and_the_none(digits, make):
    net, images, targets = digits
    images, targets = images[:4], targets[:4].clone()
    attack = make(Threat("linf", 0.5))
    targets[1] = (targets[1] + 1) % 10
    found = attack(net, images, targets, generator=rng())
    assert torch.equal(found[1], images[1])
    assert not torch.equal(found, images)
    alone = attack(net, images[:1], targets[:1], generator=rng())
    assert alone.shape == (1, 1, 8, 8)
    assert not torch.equal(alone, images[:1])
    assert torch.equal(attack(net, images, (net(images).argmax(1) + 1) % 10, generator=rng()), images)
    none = attack(net, images[:0], targets[:0], generator=rng())
    assert none.shape == (0, 1, 8, 8)


@each(ALL)
def test_functions_layouts_and_precisions(digits, make):
    net, images, targets = digits
    images, targets = images[:5], targets[:5]
    attack = make(Threat("linf", 0.15))
    expected = attack(net, images, targets, generator=rng())
    assert torch.equal(attack(lambda x: net(x), images, targets, generator=rng()), expected)
    strided = images.expand(5, 2, 8, 8).contiguous(memory_format=torch.channels_last)
    grey = lambda x: net(x.mean(1, keepdim=True))  # noqa: E731
    for norm, eps in (("linf", 0.15), ("l2", 1.0)):
        found = make(Threat(norm, eps))(grey, strided, targets, generator=rng())
        assert torch.equal(found, make(Threat(norm, eps))(grey, strided.contiguous(), targets, generator=rng()))
    double = attack(copy.deepcopy(net).double(), images.double(), targets, generator=rng())
    assert double.dtype == torch.float64
    assert torch.equal(stands(net, double.float(), targets), stands(net, expected, targets))


@each({name: make for name, make in ALL.items() if name not in ("square", "cascade")})
def test_inputs_of_any_shape(digits, make):
    net, images, targets = digits
    attack = make(Threat("linf", 0.15))
    expected = attack(net, images, targets, generator=rng())
    found = attack(net, images.flatten(1), targets, generator=rng())
    assert torch.allclose(found.view_as(images), expected, atol=1e-6)


@each(SHORT | {"cascade": Cascade})
@pytest.mark.parametrize("norm", NORMS)
def test_points_stay_in_the_ball_and_in_the_unit_cube(digits, norm, make):
    net, images, targets = digits
    images, targets = images[:5], targets[:5]
    for eps in (0.0, 0.1, 1.0 if norm == "linf" else 2.0):
        threat = Threat(norm, eps)
        found = make(threat)(net, images, targets, generator=rng())
        assert found.min() >= 0
        assert found.max() <= 1
        assert threat.distance(found, images).max() <= eps + 1e-6
        assert found.data_ptr() != images.data_ptr()
        assert torch.equal(found, images) or eps > 0
        moved = (found != images).flatten(1).any(1)
        assert torch.equal(moved, ~stands(net, found, targets) & stands(net, images, targets))


LAST = torch.tensor([0.0, 0, 0, 0, 1])
WAYLESS = {
    "constant": lambda x: LAST.repeat(len(x), 1),
    "dead": lambda x: LAST + 0 * x.flatten(1)[:, :5],
    "nan": lambda x: (
        LAST + (0 * x.flatten(1)[:, :5]).sqrt()
    ),  # the gradient is, and so the logits of points that took it
    "single": lambda x: x.flatten(1).sum(1, keepdim=True),
}


@each(ALL)
@pytest.mark.parametrize("name", WAYLESS)
@pytest.mark.long
def test_models_without_a_way(make, name):
    model, images = WAYLESS[name], torch.rand(3, 1, 8, 8, generator=rng())
    targets = model(images).argmax(1)
    for norm in NORMS:
        found = make(Threat(norm, 0.1))(model, images, targets, generator=rng())
        assert torch.equal(found, images)


@each(ALL)
def test_images_that_are_not_pixels_are_refused(digits, make):
    net, images, targets = digits
    for wrong in (images + 0.1, images - 0.1, images.masked_fill(images > 0.9, float("nan"))):
        with pytest.raises(ValueError, match="attacks take pixels"):
            make(Threat("linf", 0.1))(net, wrong, targets)


def test_square_leaves_the_logits_that_a_model_returns():
    kept = torch.tensor([[1.0, 0.0, 0.0]])
    Square(Threat("linf", 0.1), queries=5)(lambda _: kept, torch.rand(1, 1, 8, 8), torch.tensor([0]))
    assert torch.equal(kept, torch.tensor([[1.0, 0.0, 0.0]]))


@pytest.mark.long
def test_square_refuses_what_torchattacks_cannot_cut():
    square, targets = Square(Threat("l2", 0.1), queries=1), torch.tensor([0])
    refused, crashed = [], []
    for size in range(3, 40):
        net = nn.Sequential(nn.Flatten(), nn.Linear(size * size, 2))
        nn.init.zeros_(net[1].weight)
        nn.init.eye_(net[1].bias.data.view(1, 2))  # always class 0
        images = torch.full((1, 1, size, size), 0.5)
        try:
            square(net, images, targets, generator=rng())
        except ValueError:
            refused.append(size)
        try:
            theirs("Square", net, images, targets, norm="L2", n_queries=1)
        except (RuntimeError, ZeroDivisionError):
            crashed.append(size)
    assert refused == crashed == [3, 4, 12, 14, 18, 19, 24]
    with pytest.raises(ValueError, match="images are 32x16"):
        square(lambda x: x, torch.zeros(1, 1, 32, 16), targets)
    for attack in (square, AutoAttack(Threat("linf", 0.1))):
        with pytest.raises(ValueError, match=r"images are \(2, 64\); Square takes \(N, C, H, W\)"):
            attack(lambda x: x, torch.rand(2, 64), torch.tensor([0, 0]))


@each(SHORT | {"cascade": Cascade})
def test_torchattacks_missing_is_said_in_a_line(digits, make, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(ImportError, match=r"needs torchattacks: pip install --no-deps torchattacks$"):
        make(Threat("linf", 0.1))(*digits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: APGD(t, loss="margin"), "loss is 'margin'; choose from ce, dlr, targeted"),
        (lambda t: APGD(t, steps=0), "steps is 0"),
        (lambda t: APGD(t, restarts=0), "restarts is 0"),
        (lambda t: FAB(t, targets=0), "targets is 0"),
        (lambda t: Square(t, queries=0), "queries is 0"),
        (lambda t: DeepFool(t), "norm is 'linf'"),
        (lambda _: DeepFool(Threat("l2", 1.0), steps=0), "steps is 0"),
        (lambda _: DeepFool(Threat("l2", 1.0), classes=1), "classes is 1"),
        (lambda _: DeepFool(Threat("l2", 1.0), overshoot=-1.0), "overshoot is -1.0"),
        (lambda _: JSMA(theta=0.0), "theta is 0.0"),
        (lambda _: JSMA(gamma=1.5), "gamma is 1.5"),
        (lambda _: JSMA(goals=0), "goals is 0"),
    ],
)
def test_a_field_out_of_range_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make(Threat("linf", 0.1))


# DeepFool and JSMA


@each(NEAREST)
def test_minimum_norm_attacks_do_not_depend_on_the_batch(digits, make):
    net, images, targets = digits
    attack = make(None)
    whole = attack(net, images, targets)
    parts = [attack(net, x, y) for x, y in zip(images.split(3), targets.split(3), strict=True)]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-4)
    assert attack.minimum_norm
    assert "minimum_norm" not in [field.name for field in fields(attack)]


def test_deepfool_skips_a_rival_of_the_same_gradient():
    """torchattacks divides 0 by 0 here."""
    images, targets = torch.full((2, 3), 0.5), torch.tensor([0, 0])
    model = lambda x: torch.stack([x[:, 0], x[:, 0] - 0.1, x[:, 1] - 0.2], 1)  # noqa: E731
    found = deepfool(model, images, targets)
    assert (model(found).argmax(1) == 2).all()
    assert torch.allclose(found[:, 2], images[:, 2])


def test_deepfool_looks_at_the_classes_of_the_highest_logits(digits):
    net, images, targets = digits
    by_classes = [(deepfool(net, images, targets, classes=n) - images).flatten(1).norm(dim=1) for n in (2, 10)]
    assert torch.allclose(by_classes[1], deepfool_norms(net, images, targets))
    assert by_classes[0].mean() > by_classes[1].mean()


def deepfool_norms(net, images, targets):
    return (deepfool(net, images, targets, classes=1000) - images).flatten(1).norm(dim=1)


def pair_by_search(rise, fall):
    best, pair = 0.0, None
    for p in range(len(rise)):
        for q in range(p):
            a, c = rise[p] + rise[q], fall[p] + fall[q]
            if a > 0 and c > 0 and a * c > best:
                best, pair = a * c, {p, q}
    return best, pair


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("slope", [-1.0, 0.0, 1.0])
def test_the_best_pair_is_that_of_a_search_over_all(rounded, slope, monkeypatch):
    for case in range(40):
        size = 2 + case % 11
        rise = torch.randn(5, size, generator=rng(case), dtype=torch.float64)
        fall = slope * rise + 0.3 * torch.randn(5, size, generator=rng(100 + case), dtype=torch.float64)
        if rounded:  # ties
            rise, fall = rise.round(), fall.round()
        banned = torch.rand(5, size, generator=rng(200 + case)) < 0.2
        rise, fall = rise.masked_fill(banned, -torch.inf), fall.masked_fill(banned, -torch.inf)
        monkeypatch.setattr(jsma_module, "PAIRS", 2**24 if case % 2 else 10)
        pairs, ways = best_pairs(rise, fall)
        for a, c, (p, q), way in zip(rise.tolist(), fall.tolist(), pairs.tolist(), ways.tolist(), strict=True):
            best, pair = pair_by_search(a, c)
            assert way == (pair is not None)
            if way:
                assert p != q
                assert (a[p] + a[q]) * (c[p] + c[q]) == pytest.approx(best)
                assert {p, q} == pair or rounded


def textbook_jsma(net, image, target, goal, theta, pairs):
    """Algorithms 2 and 3 of Papernot et al. for one image and one goal: the misclassified point and its pairs."""
    x = image.clone()
    for number in range(1, pairs + 1):
        jacobian = torch.autograd.functional.jacobian(lambda v: net(v[None])[0], x)
        sign = 1 if theta > 0 else -1
        rise, fall = sign * jacobian[goal], -sign * (jacobian.sum(0) - jacobian[goal])
        movable = x < 1 if theta > 0 else x > 0
        rise, fall = (t.masked_fill(~movable, -torch.inf).tolist() for t in (rise, fall))
        _, pair = pair_by_search(rise, fall)
        if pair is None:
            break
        for p in pair:
            x[p] = min(1.0, max(0.0, x[p] + theta))
        if net(x[None]).argmax() != target:
            return number, x
    return pairs + 1, image


@pytest.mark.parametrize(("theta", "gamma"), [(1.0, 0.6), (-1.0, 0.6), (0.3, 0.9)])
def test_jsma_is_the_textbooks_towards_its_nearest_goal(theta, gamma, monkeypatch):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(14, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    images = torch.rand(12, 14, generator=rng(), dtype=torch.float64)
    targets = net(images).argmax(1)
    found = jsma(net, images, targets, theta=theta, gamma=gamma)
    pairs, fallen = int(gamma * 14 / 2), 0
    for image, target, point in zip(images, targets.tolist(), found, strict=True):
        goals = net(image[None])[0].argsort(descending=True)[1:].tolist()
        results = [textbook_jsma(net, image, target, goal, theta, pairs) for goal in goals]
        expected = min(results, key=lambda result: result[0])  # the first of equals is the likeliest goal
        assert torch.allclose(point, expected[1])
        fallen += expected[0] <= pairs
    assert fallen > 4
    monkeypatch.setattr(jsma_module, "ROWS", 4)
    assert torch.allclose(jsma(net, images, targets, theta=theta, gamma=gamma), found)


def test_jsma_keeps_its_budget_and_counts_it(digits):
    net, images, targets = digits
    standing = []
    for gamma in (0.0, 0.02, 0.05, 0.1, 0.3):
        attack = JSMA(gamma=gamma)
        found = attack(net, images, targets)
        assert attack.eps == gamma
        shares = attack.distance(found, images)
        assert torch.allclose(shares, (found != images).sum((1, 2, 3)) / 64)
        assert shares.max() <= gamma
        assert (found >= images).all()
        assert not hasattr(attack, "threat")
        standing.append(int(stands(net, found, targets).sum()))
    assert standing == sorted(standing, reverse=True)
    assert standing[0] == standing[1] == stands(net, images, targets).sum()  # 0.02 of 64 is no pair
    assert standing[-1] == 0
