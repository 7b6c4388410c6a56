from dataclasses import dataclass

import pytest
import torch
from torch import nn

from robust import (
    CW,
    JSMA,
    PAPER_THREATS,
    PGD,
    Report,
    Threat,
    accuracy,
    correct,
    evaluate,
    least_distances,
    paper_attacks,
    robust_accuracy,
    withstands,
)
from robust.evaluation.checks import ImpossibleResult


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(216, 4)]
    return nn.Sequential(*layers).double()


@pytest.fixture
def data(net):
    """Images of which the net gets two thirds right."""
    images = torch.rand(30, 1, 8, 8, generator=rng(1), dtype=torch.float64)
    net.eval()
    targets = net(images).argmax(1)
    net.train()
    targets[::3] = (targets[::3] + 1) % 4
    return images, targets


ATTACKS = {
    "linf": PGD(Threat("linf", 0.08), steps=3),
    "l2": PGD(Threat("l2", 0.5), steps=3, iterate="last"),
    "none": PGD(Threat("linf", 0.0)),
}


def test_clean_and_robust_accuracy_are_in_percent(net, data):
    images, targets = data
    assert correct(net, images, targets).tolist() == [i % 3 != 0 for i in range(30)]
    assert accuracy(net, images, targets) == pytest.approx(200 / 3)
    bools = withstands(net, images, targets, ATTACKS["linf"], generator=rng())
    found = robust_accuracy(net, images, targets, ATTACKS["linf"], generator=rng())
    assert found == pytest.approx(100 * bools.sum().item() / 30)
    assert 0 < found < 200 / 3


def test_robust_is_at_most_clean_for_every_example(net, data):
    report = evaluate(net, *data, ATTACKS, generator=rng())
    assert list(report.attacks) == list(ATTACKS)
    for name, robust in report.attacks.items():
        assert robust.dtype == torch.bool
        assert (robust <= report.clean).all()
        assert 0 < report.accuracy(name) <= report.accuracy()
    assert report.accuracy("linf") < report.accuracy()
    assert torch.equal(report.attacks["none"], report.clean)
    assert torch.equal(report.clean, correct(net, *data))


def test_an_attack_that_undoes_a_mistake_earns_nothing():
    def net(images):
        return torch.cat([images, 1 - images], 1)

    images, targets = torch.tensor([[0.2], [0.7]]), torch.tensor([0, 0])  # wrong, right

    def helpful(model, images, targets, *, generator=None):
        return images * 0 + 0.9

    report = evaluate(net, images, targets, {"helpful": helpful})
    assert report.clean.tolist() == report.attacks["helpful"].tolist() == [False, True]
    assert robust_accuracy(net, images, targets, helpful) == 50


def test_a_report_averages_and_takes_the_worst():
    clean = torch.tensor([True, True, True, False])
    a, b = torch.tensor([True, True, False, False]), torch.tensor([False, True, True, False])
    report = Report(clean, {"a": a, "b": b})
    assert [report.accuracy(), report.accuracy("a"), report.accuracy("b")] == [75, 50, 50]
    assert report.worst().tolist() == [False, True, False, False]
    assert Report(clean, {}).worst().tolist() == clean.tolist()
    with pytest.raises(KeyError, match="c"):
        report.accuracy("c")


def test_a_model_that_is_always_wrong(net, data):
    images, _ = data
    net.eval()
    targets = (net(images).argmax(1) + 1) % 4
    report = evaluate(net, images, targets, ATTACKS, generator=rng())
    assert report.accuracy() == report.accuracy("linf") == robust_accuracy(net, images, targets, ATTACKS["linf"]) == 0


def test_only_the_standing_are_attacked(net, data):
    images, targets = data
    seen = []

    def attack(model, images, targets, *, generator):
        seen.append(images)
        return images

    standing = torch.zeros(30, dtype=torch.bool)
    standing[[4, 7, 8]] = True
    found = withstands(net, images, targets, attack, standing=standing, batch_size=2)
    assert torch.equal(found, standing)
    assert [len(x) for x in seen] == [2, 1]
    assert torch.equal(torch.cat(seen), images[standing])
    seen.clear()
    withstands(net, images, targets, attack)
    assert torch.equal(torch.cat(seen), images[correct(net, images, targets)])


@dataclass
class Shift:
    """An attack that adds a constant and says that it stays within its threat."""

    threat: Threat
    by: float

    def __call__(self, model, images, targets, *, generator=None):
        return images + self.by


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_that_leaves_its_ball_is_refused(net, data, norm):
    images, targets = data[0] / 2, data[1]
    length = 0.1 if norm == "linf" else 0.8  # of the shift, on 64 pixels
    everyone = torch.ones(30, dtype=torch.bool)
    withstands(net, images, targets, Shift(Threat(norm, length), 0.1), standing=everyone)
    with pytest.raises(ValueError, match=f"are outside {norm} {length - 0.01:.2g}, up to {length:.1g}.* far"):
        withstands(net, images, targets, Shift(Threat(norm, length - 0.01), 0.1), standing=everyone)


def test_an_attack_that_leaves_the_unit_cube_is_refused(net, data):
    images, targets = data
    for by in (0.5, -0.5, float("nan")):
        with pytest.raises(ImpossibleResult, match=r"are outside \[0, 1\], first index 0"):
            withstands(net, images, targets, Shift(Threat("linf", 1.0), by))


def test_images_outside_the_unit_cube_are_refused(net, data):
    images, targets = data
    for wrong in (images + 0.5, images - 0.5):
        for call in (accuracy, correct):
            with pytest.raises(ValueError, match="attacks take pixels"):
                call(net, wrong, targets)
        with pytest.raises(ValueError, match="attacks take pixels"):
            evaluate(net, wrong, targets, {})


def test_targets_of_another_shape_are_refused(net):
    for targets in (torch.eye(2), torch.zeros(1, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"they must be class indices \(3,\)"):
            correct(net, torch.rand(3, 3, 8, 8), targets)


def test_the_batch_size_changes_nothing(net, data):
    whole = evaluate(net, *data, ATTACKS, generator=rng())
    assert 0 < whole.worst().sum() < whole.clean.sum()
    for size in (1, 7, 30):
        report = evaluate(net, *data, ATTACKS, generator=rng(), batch_size=size)
        assert torch.equal(report.clean, whole.clean)
        for name in ATTACKS:
            assert torch.equal(report.attacks[name], whole.attacks[name])


def test_the_model_is_evaluated_in_evaluation_mode_and_left_as_it_was(net, data):
    net[1].eval()
    modes, state = [m.training for m in net.modules()], {k: v.clone() for k, v in net.state_dict().items()}
    seen = []
    net.register_forward_pre_hook(lambda module, _: seen.extend(m.training for m in module.modules()))
    first, second = (evaluate(net, *data, ATTACKS, generator=rng()) for _ in range(2))
    assert torch.equal(first.clean, second.clean)  # no dropout
    assert not any(seen)
    assert [m.training for m in net.modules()] == modes
    torch.testing.assert_close(net.state_dict(), state, rtol=0, atol=0)
    assert all(p.grad is None for p in net.parameters())

    def fails(model, images, targets, *, generator):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        withstands(net, *data, fails)
    assert [m.training for m in net.modules()] == modes


def test_evaluation_under_no_grad_is_the_same_and_draws_from_the_generator_alone(net, data):
    state = torch.get_rng_state()
    expected = evaluate(net, *data, ATTACKS, generator=rng())
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        found = evaluate(net, *data, ATTACKS, generator=rng())
    assert torch.equal(found.worst(), expected.worst())


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("mnist", {"linf_star": ("linf", 0.3, 0.1), "linf": ("linf", 0.1, 0.03), "l2": ("l2", 1.0, 0.3)}),
        (
            "cifar10",
            {
                "linf_star": ("linf", 8 / 255, 2 / 255),
                "linf": ("linf", 2 / 255, 0.5 / 255),
                "l2": ("l2", 0.2, 0.05),
            },
        ),
    ],
)
def test_the_papers_attacks_have_the_papers_numbers(family, expected):
    found = paper_attacks(family)
    assert {n: (a.threat.norm, a.threat.eps, a.step_size) for n, a in found.items()} == expected
    for attack in found.values():
        assert (attack.steps, attack.restarts, attack.random_start, attack.iterate) == (10, 1, True, "worst")
    assert {name: attack.threat for name, attack in found.items()} == PAPER_THREATS[family]


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no threats for 'cifar100'; choose from mnist, cifar10"):
        paper_attacks("cifar100")


@pytest.mark.long
def test_who_a_minimum_norm_attack_has_to_move_further_than_eps_withstands(net, data):
    images, targets = data
    clean = correct(net, images, targets)
    far = least_distances(net, images, targets, CW(Threat("l2", 1.0)))
    assert (far[~clean] == 0).all()
    assert (far[clean] > 0).all()
    for eps in (0.3, 1.0, 3.0):
        bools = withstands(net, images, targets, CW(Threat("l2", eps)))
        assert torch.equal(bools, clean & (far > eps))
    jsma = JSMA(gamma=0.1)
    changed = least_distances(net, images, targets, jsma)
    assert torch.equal(withstands(net, images, targets, jsma), clean & (changed > 0.1))
