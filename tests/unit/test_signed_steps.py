"""VMI-FGSM and Jitter: closed forms, torchattacks with the same random numbers, and what every attack guarantees."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from robust import PGD, VMIFGSM, Expected, Jitter, Threat, attack_named, withstands
from robust.attacks.jitter import scaled_distance

BOX = Threat("linf", 0.09)
ATTACKS = {"vmifgsm": VMIFGSM(BOX, neighbours=3), "jitter": Jitter(BOX)}
TEXTBOOK = {name: replace(attack, iterate="last") for name, attack in ATTACKS.items()}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network that is right on most digits, and 40 images that it was not trained on."""
    data = load_digits()
    images, targets = torch.tensor(data.images / 16.0).float().unsqueeze(1), torch.tensor(data.target)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(15):
        for who in torch.randperm(1200).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(images[who]), targets[who]).backward()
            optimizer.step()
    return network.eval(), images[1200:1240], targets[1200:1240]


def stands(network: nn.Module, points: Tensor, targets: Tensor) -> Tensor:
    with torch.no_grad():
        return network(points).argmax(1) == targets


def linear(points: Tensor) -> Tensor:
    """Two classes with the boundary where the values sum to 2; a step in linf changes the sum by 4 eps."""
    total = points.flatten(1).sum(1)
    return torch.stack([total, 4 - total], 1)


@pytest.mark.parametrize("make", [VMIFGSM, Jitter])
@pytest.mark.parametrize("iterate", ["worst", "last"])
def test_a_linear_model_is_fooled_exactly_where_eps_exceeds_the_margin(make, iterate) -> None:
    images, targets = torch.tensor([[0.6, 0.6, 0.5, 0.5]]), torch.tensor([0])  # linf margin 0.05
    for eps, right in ((0.049, True), (0.051, False)):
        attack = make(Threat("linf", eps), iterate=iterate, **({} if make is VMIFGSM else {"std": 0.0}))
        found = attack(linear, images, targets, generator=rng())
        if iterate == "last":
            torch.testing.assert_close(found, images - eps)
        assert (linear(found).argmax(1) == targets).all() == right


@pytest.mark.parametrize("calm", [{"neighbours": 0}, {"radius": 0.0}])
def test_without_variance_vmi_fgsm_is_mi_fgsm(digits, calm) -> None:
    """`mim` is PGD from the image with momentum 1."""
    network, images, targets = digits
    for iterate in ("worst", "last"):
        ours = VMIFGSM(BOX, steps=7, step_size=0.02, iterate=iterate, **calm)(network, images, targets, generator=rng())
        mim = PGD(BOX, steps=7, step_size=0.02, random_start=False, momentum=1.0, iterate=iterate)
        assert torch.equal(ours, mim(network, images, targets))


def test_neighbours_change_nothing_where_gradients_have_one_direction() -> None:
    """On a linear model of two classes; on other models they do."""
    images, targets = torch.rand(5, 4, generator=rng()), torch.tensor([0, 1, 0, 1, 0])
    box = Threat("linf", 0.1)
    weights = torch.randn(4, 2, generator=rng(1))

    def margins(points: Tensor) -> Tensor:
        return points @ weights

    def bent(points: Tensor) -> Tensor:
        return torch.sin(20 * points) @ weights

    for model in (margins, bent):
        few = VMIFGSM(box, neighbours=0, iterate="last")(model, images, targets)
        many = VMIFGSM(box, neighbours=9, iterate="last")(model, images, targets, generator=rng())
        assert torch.equal(few, many) == (model is margins)


def test_jitter_without_noise_ascends_the_scaled_distance(digits) -> None:
    """One step from the image by hand; the loss is that of logits of any scale."""
    network, images, targets = digits
    right = stands(network, images, targets)
    images, targets = images[right], targets[right]
    points = images.clone().requires_grad_()
    logits = network(points)
    probabilities = (7 * logits / logits.abs().amax(1, keepdim=True)).softmax(1)
    loss = (probabilities - F.one_hot(targets, 10)).square().sum(1).sqrt()  # Euclidean, as in the paper
    (slope,) = torch.autograd.grad(loss.sum(), points)
    expected = (images + (0.03 * slope.sign()).clamp(-0.09, 0.09)).clamp(0, 1)
    attack = Jitter(BOX, steps=1, step_size=0.03, scale=7.0, std=0.0, random_start=False, iterate="last")
    found = attack(network, images, targets)
    assert (found - expected).abs().gt(1e-6).float().mean() < 1e-3  # slopes of rounding's size may change their sign
    louder = attack(lambda x: 1000 * network(x), images, targets)
    assert (found - louder).abs().gt(1e-6).float().mean() < 1e-3
    assert torch.allclose(scaled_distance(logits, targets, 7.0), loss.square() / 10)


def test_noise_changes_the_steps_of_jitter(digits) -> None:
    network, images, targets = digits
    calm, noisy = (replace(TEXTBOOK["jitter"], std=std, random_start=False) for std in (0.0, 1.0))
    assert not torch.equal(calm(network, images, targets), noisy(network, images, targets, generator=rng()))


# Against torchattacks with the same random numbers: both draw k numbers of one stream where they need k


@pytest.fixture
def one_stream(monkeypatch: pytest.MonkeyPatch):
    """Let uniform and normal numbers follow from how many tensors were drawn before, whatever function draws them.

    Returns:
        a function that begins the stream anew.
    """
    count = itertools.count()

    def reset() -> None:
        nonlocal count
        count = itertools.count()

    rand, randn = torch.rand, torch.randn

    def flat(shape) -> tuple[int, ...]:
        return (math.prod(shape),)

    def uniform(shape) -> Tensor:
        return rand(flat(shape), generator=rng(next(count)))

    def normal(shape) -> Tensor:
        return randn(flat(shape), generator=rng(next(count)))

    def in_place(self: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        return self.copy_(low + (high - low) * uniform(self.shape).view(self.shape))

    def shape_of(size) -> tuple[int, ...]:
        return tuple(size) if isinstance(size, (tuple, torch.Size)) else (size,)

    monkeypatch.setattr(torch, "rand", lambda size, **_: uniform(shape_of(size)).view(shape_of(size)))
    monkeypatch.setattr(torch, "randn", lambda size, **_: normal(shape_of(size)).view(shape_of(size)))
    # torchattacks fills the neighbours by uniform_ after randn_like, so its randn_like draws for probabilities alone
    monkeypatch.setattr(torch, "randn_like", lambda x: normal(x.shape).view(x.shape) if x.ndim == 2 else x.clone())
    monkeypatch.setattr(Tensor, "uniform_", in_place)
    return reset


@pytest.mark.parametrize(
    ("name", "settings", "theirs"),
    [
        ("VMIFGSM", {"neighbours": 5}, {}),
        ("VMIFGSM", {"neighbours": 2, "radius": 0.5, "momentum": 0.3}, {"N": 2, "beta": 0.5, "decay": 0.3}),
        ("Jitter", {}, {}),
        ("Jitter", {"scale": 3.0, "std": 0.5, "random_start": False}, {"scale": 3, "std": 0.5, "random_start": False}),
    ],
)
def test_points_are_those_of_torchattacks(digits, name, settings, theirs, one_stream) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    network, images, targets = digits
    make = {"VMIFGSM": VMIFGSM, "Jitter": Jitter}[name]
    ours = make(BOX, steps=6, step_size=0.02, iterate="last", **settings)
    reference = getattr(torchattacks, name)(network, eps=0.09, alpha=0.02, steps=6, **theirs)
    fooled = differing = 0
    for image, target in zip(images.split(1), targets.split(1), strict=True):
        one_stream()
        found = ours(network, image, target, generator=rng())
        one_stream()
        expected = reference(image, target)
        fooled += not stands(network, found, target).all()
        differing += not torch.allclose(found, expected, atol=1e-6)
    assert fooled > 5
    assert differing == 0


def test_a_batch_of_torchattacks_leaves_the_same_images_right(digits) -> None:
    """With other random numbers: at most 2 of 40 images may differ."""
    torchattacks = pytest.importorskip("torchattacks")
    network, images, targets = digits
    both = {"VMIFGSM": VMIFGSM(BOX, step_size=0.02, neighbours=5), "Jitter": Jitter(BOX, step_size=0.02)}
    for name, ours in both.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            expected = getattr(torchattacks, name)(network, eps=0.09, alpha=0.02, steps=10)(images, targets)
        found = replace(ours, iterate="last")(network, images, targets, generator=rng())
        mine, other = stands(network, found, targets), stands(network, expected, targets)
        assert 0 < mine.sum() < 35
        assert (mine != other).sum() <= 2


# What every attack guarantees


@pytest.mark.parametrize("attack", [*ATTACKS.values(), *TEXTBOOK.values()], ids=str)
def test_points_are_in_the_ball_and_follow_from_the_generator(digits, attack) -> None:
    network, images, targets = digits
    found = attack(network, images, targets, generator=rng(3))
    assert found.min() >= 0
    assert found.max() <= 1
    assert BOX.distance(found, images).max() <= BOX.eps + 1e-6
    assert torch.equal(found, attack(network, images, targets, generator=rng(3)))
    assert not torch.equal(found, attack(network, images, targets, generator=rng(4)))
    assert stands(network, found, targets).sum() < stands(network, images, targets).sum()


@pytest.mark.parametrize("attack", [*ATTACKS.values(), *TEXTBOOK.values()], ids=str)
def test_the_result_does_not_depend_on_the_batch(digits, attack) -> None:
    network, images, targets = digits
    together = attack(network, images, targets, generator=rng())
    generator, parts = rng(), []
    for x, y in zip(images.split(7), targets.split(7), strict=True):
        parts.append(attack(network, x, y, generator=generator))
    assert torch.allclose(torch.cat(parts), together, atol=1e-6)


@pytest.mark.parametrize("name", ATTACKS)
def test_images_that_are_misclassified_from_the_start_stay_and_the_rest_only_gain_by_it(digits, name) -> None:
    network, images, targets = digits
    wrong = ~stands(network, images, targets.roll(1))
    found = ATTACKS[name](network, images, targets.roll(1), generator=rng())
    assert torch.equal(found[wrong], images[wrong])
    worst, last = (a[name](network, images, targets, generator=rng()) for a in (ATTACKS, TEXTBOOK))
    assert (stands(network, worst, targets) <= stands(network, last, targets)).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_to_do(digits, name) -> None:
    network, images, targets = digits
    none = replace(ATTACKS[name], threat=Threat("linf", 0.0))(network, images, targets)
    assert torch.equal(none, images)
    assert ATTACKS[name](network, images[:0], targets[:0]).shape == (0, 1, 8, 8)
    flat = ATTACKS[name](lambda x: 0 * x.flatten(1)[:, :3], images, 0 * targets, generator=rng())  # no direction
    assert flat.isfinite().all()


@pytest.mark.parametrize("name", ATTACKS)
def test_random_answers_are_attacked_through_their_mean(digits, name) -> None:
    network, images, targets = digits
    noisy = nn.Sequential(network, nn.Dropout(0.1)).train()
    found = ATTACKS[name](Expected(noisy, 4), images, targets, generator=rng())
    assert stands(network, found, targets).sum() < stands(network, images, targets).sum()


@pytest.mark.parametrize(
    ("spec", "threat", "words"),
    [
        ("vmifgsm", "l2", "vmifgsm: norm is 'l2'; it steps by signs, write a linf threat such as 8/255"),
        ("jitter", "l2", "jitter: norm is 'l2'"),
        ("vmifgsm:iterate=best", "linf", "iterate is 'best'; choose from worst, last"),
        ("jitter:iterate=best", "linf", "iterate is 'best'; choose from worst, last"),
        ("vmifgsm:neighbours=-1", "linf", "neighbours is -1; it must be >= 0"),
        ("jitter:scale=0", "linf", "scale is 0.0; it must be > 0"),
    ],
)
def test_what_is_wrong_is_said(spec, threat, words) -> None:
    with pytest.raises(ValueError, match=words):
        attack_named(spec, Threat(threat, 0.1))


def test_the_library_evaluates_them(digits) -> None:
    network, images, targets = digits
    pgd = withstands(network, images, targets, PGD(BOX), generator=rng())
    for attack in ATTACKS.values():
        found = withstands(network, images, targets, attack, generator=rng())
        assert abs(int(found.sum()) - int(pgd.sum())) <= 4
