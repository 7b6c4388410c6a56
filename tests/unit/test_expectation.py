"""Models with random answers: the figure is that of the expected answer, and more steps do not look weaker."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robust import (
    APGD,
    PGD,
    AutoAttack,
    Expected,
    Noise,
    Square,
    Threat,
    attack_named,
    correct,
    evaluate,
    expected,
    withstands,
)
from robust.attacks.torchattacks_runner import TorchattacksAttack
from robust.losses import margin
from robust.network.expectation import is_random

pytestmark = pytest.mark.long

BOX = Threat("linf", 0.1)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class AlwaysDropping(nn.Module):
    """Dropout that is on at evaluation too."""

    def __init__(self, net, share=0.5):
        super().__init__()
        self.net, self.share = net, share

    def forward(self, x):
        return self.net[-1](F.dropout(self.net[:-1](x), self.share, training=True))


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    images, targets = torch.tensor(data.images / 16.0).float().unsqueeze(1), torch.tensor(data.target)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(15):
        for who in torch.randperm(1200).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(images[who]), targets[who]).backward()
            optimizer.step()
    return net, images[1200:1400], targets[1200:1400]


def test_who_is_random(digits):
    net, images, _ = digits
    noisy = lambda x: net(x + 0.1 * torch.randn_like(x))  # noqa: E731
    dropout = nn.Sequential(*net[:3], nn.Dropout(0.5), net[3])
    assert is_random(noisy, images)
    assert is_random(AlwaysDropping(net), images)
    assert not is_random(net, images)
    assert not is_random(dropout.train(), images)  # in evaluation mode it is not
    assert dropout.training
    assert not is_random(noisy, images[:0])
    assert not is_random(lambda x: net(x) * (1 + 1e-6 * torch.randn(())), images)  # as sums on a GPU vary
    assert expected(net, images) is net
    assert isinstance(expected(noisy, images), Expected)
    once = expected(noisy, images, passes=3)
    assert expected(once, images) is once
    assert once.passes == 3


def test_the_expected_answer_and_its_gradient_are_those_of_the_mean_probability():
    """Against the mean written out, on a model with a list of answers to give in turn."""
    weights = torch.randn(4, 5, 3, dtype=torch.float64, generator=rng())
    calls = []

    def model(x):
        calls.append(len(x))
        return x @ weights[(len(calls) - 1) % 4]

    x = torch.rand(6, 5, dtype=torch.float64, generator=rng(1)).requires_grad_()
    found = Expected(model, 4)(x)
    mean = torch.stack([(x @ w).softmax(1) for w in weights]).mean(0)
    torch.testing.assert_close(found, mean.log())
    seed = torch.randn(6, 3, dtype=torch.float64, generator=rng(2))
    (gradient,) = torch.autograd.grad(found, x, seed)
    torch.testing.assert_close(gradient, torch.autograd.grad(mean.log(), x, seed)[0])
    torch.testing.assert_close(Expected(lambda x: 300 * x, 5)(x), (300 * x).log_softmax(1))
    with pytest.raises(ValueError, match="passes is 0"):
        Expected(model, 0)


def test_an_expectation_is_in_the_modes_of_its_model(digits):
    dropout = nn.Sequential(*digits[0][:3], nn.Dropout(0.5), digits[0][3]).train()
    model = Expected(dropout, 2)
    assert not model.training
    assert not model.eval().model.training
    assert model.train().model.training
    assert [p.shape for p in model.parameters()] == [p.shape for p in dropout.parameters()]


def _mean_accuracy(model, attack, images, targets):
    """Return the accuracy in percent over many answers, of which `withstands` takes one."""
    adversarial = attack(expected(model, images), images, targets, generator=rng())
    return 5 * sum(correct(model, adversarial, targets).double().mean().item() for _ in range(20))


@pytest.mark.parametrize("random", [AlwaysDropping, lambda net: lambda x: net(x + 0.3 * torch.randn_like(x))])
def test_more_steps_do_not_look_weaker_on_a_random_model(digits, random):
    net, images, targets = digits
    model = random(net)
    few, many = (withstands(model, images, targets, PGD(BOX, steps=steps), generator=rng()) for steps in (5, 30))
    assert many.sum() <= few.sum() + 16
    truth = _mean_accuracy(model, PGD(BOX, steps=30), images, targets)
    assert 50 * many.double().mean().item() * 2 == pytest.approx(truth, abs=8)  # one answer: the deviation is 3 points
    one_by_one = PGD(BOX, steps=30)(model, images, targets, generator=rng())  # stops at the first unlucky answer
    assert 100 * correct(model, one_by_one, targets).double().mean() > truth + 10


def test_an_average_over_passes_changes_nothing_on_a_model_that_is_not_random(digits):
    net, images, targets = digits
    for attack in (PGD, lambda threat, **options: PGD(threat, objective="ce+margin", restarts=2, **options)):
        plain = withstands(net, images, targets, attack(BOX), generator=rng())
        averaged = withstands(net, images, targets, attack(BOX, eot=3), generator=rng())
        assert (plain != averaged).sum() <= 2  # a gradient of zero in one of them, rounding in the other
    found = PGD(BOX, eot=2)(net, images, targets, generator=rng())
    assert BOX.distance(found, images).max() <= 0.1 + 1e-6


def test_gradients_are_averaged_over_that_many_passes(digits):
    _, images, targets = digits
    calls = []
    model = lambda x: calls.append(x.requires_grad) or digits[0](x)  # noqa: E731
    PGD(BOX, steps=3, eot=4, iterate="last")(model, images, targets, generator=rng())
    assert calls == [True] * 12 + [False] * 4
    calls.clear()
    PGD(BOX, steps=3, iterate="last")(Expected(model, 4), images, targets, generator=rng())
    assert calls == [True] * 12 + [False] * 4


@pytest.mark.parametrize(
    "make",
    [lambda **options: APGD(BOX, steps=20, **options), lambda **options: APGD(BOX, loss="dlr", steps=20, **options)],
)
def test_apgd_averages(digits, make):
    net, images, targets = digits
    model = AlwaysDropping(net)
    by_pgd = _mean_accuracy(model, PGD(BOX, steps=20, eot=10), images, targets)
    for attack in (make(eot=10), make(eot=1)):  # of a random model the second is averaged too
        assert _mean_accuracy(model, attack, images, targets) < by_pgd + 8
    plain, averaging = (withstands(net, images, targets, make(eot=eot), generator=rng()) for eot in (1, 2))
    assert (plain != averaging).sum() <= 10
    with pytest.raises(ValueError, match="eot is 0"):
        make(eot=0)


def test_autoattack_for_random_models(digits):
    attack = attack_named("autoattack:version=rand", BOX)
    assert attack == AutoAttack(BOX, version="rand")
    assert attack.members() == (APGD(BOX, eot=20), APGD(BOX, loss="dlr", eot=20))
    assert AutoAttack(BOX).members()[0] == APGD(BOX)
    assert attack.eot == 20
    assert AutoAttack(BOX).eot == 1
    with pytest.raises(ValueError, match="version is 'plus'; choose from standard, rand"):
        AutoAttack(BOX, version="plus")
    net, images, targets = digits
    few = (images[:40].flatten(1), targets[:40])  # no Square in it, so any shape is taken
    model = AlwaysDropping(net, 0.2)
    assert _mean_accuracy(model, attack, *few) < _mean_accuracy(model, PGD(BOX), *few) + 5


@dataclass(frozen=True)
class Runs(TorchattacksAttack):
    """Runs that move every pixel by given shifts, one after another."""

    shifts: tuple[float, ...]
    random: bool = True

    def attacked_model(self, model):
        return Expected(model, 3) if self.random else model

    def single_runs(self, library, network, classes, random):
        for shift in self.shifts:
            yield lambda images, targets, shift=shift: images + shift


def test_a_later_run_or_attack_does_not_replace_a_stronger_point(monkeypatch):
    """The margin is the mean pixel less 0.9, so that no point of the ball is misclassified, and larger is better."""
    monkeypatch.setattr("robust.attacks.torchattacks_runner._torchattacks", lambda name: None)
    images, targets = torch.full((4, 1, 2, 2), 0.5), torch.zeros(4, dtype=torch.long)
    model = lambda x: torch.stack([torch.full((len(x),), 0.9), x.flatten(1).mean(1)], 1)  # noqa: E731
    found = Runs(BOX, (0.02, 0.08, -0.05, 0.04))(model, images, targets, generator=rng())
    assert torch.allclose(found, images + 0.08)

    class Cascade(AutoAttack):
        def members(self):
            return tuple(Runs(BOX, (shift,)) for shift in (0.02, 0.08, -0.05, 0.04))

    found = Cascade(BOX, version="rand")(model, images, targets, generator=rng())
    assert torch.allclose(found, images + 0.08)
    assert torch.equal(Cascade(BOX)(model, images, targets, generator=rng()), images)  # a plain model: none succeeds
    plain = Runs(BOX, (0.02, 0.08), random=False)
    assert torch.equal(plain(model, images, targets, generator=rng()), images)


def test_bpda_averages_over_a_random_model(digits):
    """The gradients of the replacement are averaged too, and a misclassified answer is not final."""
    net, images, targets = digits
    model = AlwaysDropping(net, 0.7)
    direct, replaced = (PGD(BOX, eot=10, bpda=each) for each in (None, model))
    points = [attack(Expected(model, 10), images, targets, generator=rng()) for attack in (direct, replaced)]
    with torch.no_grad():
        mean = [margin(Expected(model, 200)(each), targets).mean() for each in points]
    assert mean[1] > mean[0] - 0.1
    passes = []
    counting = lambda x: passes.append(len(x)) or net(x)  # noqa: E731
    PGD(BOX, steps=2, bpda=net)(Expected(counting, 5), images[:3], targets[:3], generator=rng())
    assert sum(passes) == 3 * 5 * 4  # the image, two steps and the last point, five passes each


def test_black_boxes_see_the_expected_answer(digits):
    """One that stops at the first unlucky answer finds a point that is classified right in the next draw."""
    net, images, targets = digits
    model = AlwaysDropping(net, 0.7)
    for attack in (Square(BOX, queries=50), Noise(BOX, draws=20)):
        seen = []

        def spied(each, x, y, *, generator, attack=attack, seen=seen):
            seen.append(type(each))
            return attack(each, x, y, generator=generator)

        withstands(model, images[:30], targets[:30], spied, generator=rng())
        assert seen == [Expected]


def test_a_report_of_a_random_model(digits):
    net, images, targets = digits
    report = evaluate(
        AlwaysDropping(net), images, targets, {"pgd": PGD(BOX), "pgd, averaged": PGD(BOX, eot=20)}, generator=rng()
    )
    assert (report.attacks["pgd"] <= report.clean).all()
    assert report.verdicts["pgd"].startswith(
        "suspicious: random: two passes differ: average attacks over the randomness"
    )
    assert report.verdicts["clean"] == report.verdicts["pgd, averaged"] == "ok"
    assert abs(int(report.attacks["pgd"].sum()) - int(report.attacks["pgd, averaged"].sum())) <= 20  # both are
