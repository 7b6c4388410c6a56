import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robust import PGD, Threat, correct, withstands
from robust.attacks.pgd import pgd
from robust.evaluation.checks import (
    AttackResult,
    ImpossibleResult,
    check_adversarial,
    check_report,
    suspect_results,
    verdict,
)
from robust.evaluation.short_attacks import unbounded
from robust.evaluation.sign_test import sign_test
from robust.evaluation.suspicion import suspect_model
from robust.network.batches import images_at_once

BOX = Threat("linf", 0.1)
RANDOM = "random: two passes differ: average attacks over the randomness, use autoattack:version=rand"
DYNAMIC = "takes gradients inside its forward pass: needs an attack of its own"
CONSTANT = "logits do not depend on the image: no attack can act"


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def bools(*text):
    """Return bools written as 1 and 0."""
    found = [torch.tensor([letter == "1" for letter in word]) for word in text]
    return found if len(found) > 1 else found[0]


def standing(k, n=100):
    """The first k of n withstand."""
    return torch.arange(n) < k


def fit(net, images, targets, *, eps=0.0, epochs=15, lr=5e-3):
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    threat = Threat("linf", eps)
    for _ in range(epochs):
        for who in torch.randperm(len(images)).split(64):
            x, y = images[who], targets[who]
            x = pgd(net, x, y, threat=threat, steps=4, step_size=eps / 2, generator=rng()) if eps else x
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.eval()


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images / 16.0).float().unsqueeze(1), torch.tensor(data.target)


@pytest.fixture(scope="module")
def nets(digits):
    """Ordinary networks: none of them hides anything."""
    images, targets = digits[0][:1200], digits[1][:1200]
    torch.manual_seed(0)
    conv = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2)]
    return {
        "undefended": fit(mlp(), images, targets),
        "confident": fit(mlp(), images, targets, epochs=60),
        "conv": fit(nn.Sequential(*conv, nn.Linear(72, 10)), images, targets),
        "adversarial": fit(mlp(), images, targets, eps=0.1, epochs=8),
        "linear": fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), images, targets),
        "untrained": mlp().eval(),
        "two classes": fit(nn.Sequential(mlp(), nn.ReLU(), nn.Linear(10, 2)), images, targets % 2),
    }


@pytest.fixture(scope="module")
def net(nets):
    return nets["undefended"]


@pytest.fixture(scope="module")
def test_set(digits):
    return digits[0][1200:1400], digits[1][1200:1400]


# Rows that cannot be


def test_possible_rows_pass():
    clean, pgd_, square = bools("11110", "11000", "10100")
    curve = [(0.2, bools("10000")), (0.0, clean), (0.1, pgd_)]
    report = {"pgd": pgd_, "square": square, "autoattack": pgd_ & square}
    check_report(clean, report, ensembles={"autoattack": ["pgd", "square"]}, curves={"pgd": curve})
    check_report(clean, {})


@pytest.mark.parametrize(
    ("attacks", "options", "message"),
    [
        (
            {"a": "1000", "pgd": "1011"},
            {},
            "pgd: 2 of 4 examples withstand it but are misclassified clean, first index 2",
        ),
        (
            {"pgd": "1000", "square": "1100", "aa": "1100"},
            {"ensembles": {"aa": ["square", "pgd"]}},
            "aa: 1 of 4 examples withstand it but not its member pgd, first index 1",
        ),
        (
            {},
            {"curves": {"pgd": [(0.3, "0100"), (0.1, "1100"), (0.2, "1000")]}},
            "pgd at eps 0.3: 1 of 4 examples withstand it but not eps 0.2, first index 1",
        ),
        (
            {},
            {"curves": {"pgd": [(0.1, "0001")]}},
            "pgd at eps 0.1: 1 of 4 examples withstand it but are misclassified clean, first index 3",
        ),
        (
            {},
            {"curves": {"pgd": [(0.0, "1000")]}},
            "pgd at eps 0: 1 of 4 examples are misclassified, but not clean, first index 1",
        ),
    ],
)
def test_an_impossible_row_is_refused_by_name_count_and_index(attacks, options, message):
    attacks = {name: bools(word) for name, word in attacks.items()}
    if "curves" in options:
        options = {"curves": {"pgd": [(eps, bools(word)) for eps, word in options["curves"]["pgd"]]}}
    with pytest.raises(ImpossibleResult) as error:
        check_report(bools("1100"), attacks, **options)
    assert str(error.value) == message


def test_what_is_no_result_is_refused():
    clean, robust = bools("1100", "1000")
    for wrong in (robust[:3], robust.float(), robust[None]):
        with pytest.raises(ValueError, match=r"pgd: torch.* results are torch.bool \(4,\)"):
            check_report(clean, {"pgd": wrong})
        with pytest.raises(ValueError, match=r"pgd at eps 0.1: torch.* results are torch.bool \(4,\)"):
            check_report(clean, {}, curves={"pgd": [(0.1, wrong)]})
        with pytest.raises(ValueError, match=r"results are torch.bool \(4,\)"):
            suspect_results(clean, [AttackResult("pgd", wrong, BOX, "white")])
    with pytest.raises(ValueError, match=r"clean: torch\.float32"):
        check_report(clean.float(), {})
    with pytest.raises(ValueError, match="ensemble aa: no results of 'fab'; choose from pgd, aa"):
        check_report(clean, {"pgd": robust, "aa": robust}, ensembles={"aa": ["pgd", "fab"]})
    with pytest.raises(ValueError, match=r"eps 0\.1 is given twice"):
        check_report(clean, {}, curves={"pgd": [(0.1, robust), (0.1, robust)]})


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.8)])
def test_adversarial_images_stay_in_their_ball_and_in_the_unit_cube(norm, eps):
    images, threat = 0.5 * torch.ones(5, 1, 8, 8), Threat(norm, eps)
    shift = torch.full_like(images, eps if norm == "linf" else eps / 8)
    check_adversarial("pgd", images, images + (1 + 0.9e-5) * shift, threat)
    images[0], images[1] = 0.0, 1.0
    check_adversarial("pgd", images, images + torch.tensor([-0.9e-5, 0.9e-5, 0, 0, 0]).view(5, 1, 1, 1), threat)
    check_adversarial("jsma", images, 1 - images, None)
    check_adversarial("pgd", images[:0], images[:0], threat)
    found = images.clone()
    found[3:] += 1.1 * shift[3:]
    where = f"are outside {norm} {eps}, up to {1.1 * eps:.6g} far, first index 3"
    with pytest.raises(ImpossibleResult, match=f"pgd: 2 of 5 examples {where}"):
        check_adversarial("pgd", images, found, threat)
    for number in (-2e-5, 1 + 2e-5, float("nan")):
        found = images.clone()
        found[2, 0, 4, 4] = number
        with pytest.raises(ImpossibleResult, match=r"pgd: 1 of 5 examples are outside \[0, 1\], first index 2"):
            check_adversarial("pgd", images, found, None)
    with pytest.raises(ValueError, match="returned images"):
        check_adversarial("pgd", images, found[:4], threat)


# Models: nothing is said of ordinary ones


NAMES = ["undefended", "confident", "conv", "adversarial", "linear", "untrained", "two classes"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.long
def test_an_ordinary_model_is_not_suspected(nets, test_set, name):
    images, targets = test_set
    targets = targets % 2 if name == "two classes" else targets
    threats = [Threat("linf", eps) for eps in (0, 1e-3, 0.1, 0.5)] + [Threat("l2", eps) for eps in (0.1, 2)]
    for seed, threat in enumerate(threats):
        assert suspect_model(nets[name], images, targets, threat=threat, generator=rng(seed)) == ()
    double = copy.deepcopy(nets[name]).double()
    assert suspect_model(double, images.double(), targets, threat=BOX, generator=rng()) == ()
    for threat in (BOX, Threat("linf", 0)):
        assert suspect_model(nets[name], images[:1], targets[:1], threat=threat, generator=rng()) == ()
    assert unbounded(nets[name], images, targets, generator=rng()) == ()


def test_a_loss_of_zero_alone_is_not_suspected(nets, test_set):
    """On an overconfident network cross-entropy is exactly 0 on many images, and yet its gradient leads somewhere."""
    images, targets = test_set

    def sharper(x):
        return 2 * nets["confident"](x)

    with torch.no_grad():
        assert (F.cross_entropy(sharper(images), targets, reduction="none") == 0).double().mean() > 0.3
    assert suspect_model(sharper, images, targets, threat=BOX, generator=rng()) == ()
    assert unbounded(sharper, images, targets, generator=rng()) == ()


def test_log_probabilities_are_logits(net, test_set):
    assert suspect_model(lambda x: net(x).log_softmax(1), *test_set, threat=BOX, generator=rng()) == ()


def test_two_images_without_a_gradient_are_not_suspected_and_more_are(net, test_set):
    images = test_set[0].clone()
    images[:, 0, 0, 0] = 0.5
    for dead, expected in ((2, ()), (9, ()), (10, ("input gradient is zero on 10 of 200 images",))):

        def model(x, dead=dead):
            number = (x[:, 0, 0, 0] == 1).view(-1, 1)
            return torch.where(number, net(x).detach(), net(x))

        marked = images.clone()
        marked[:dead, 0, 0, 0] = 1
        right = net(marked).argmax(1)
        assert suspect_model(model, marked, right, threat=Threat("linf", 0.0), generator=rng()) == expected
        if dead == 2:
            assert suspect_model(model, marked[:10], right[:10], threat=Threat("linf", 0.0), generator=rng()) == ()


# Models: each sign


class Sign(nn.Module):
    def forward(self, x):
        return x.sign()


def test_activations_without_a_gradient(nets, test_set, digits):
    torch.manual_seed(0)
    features = nn.Sequential(nn.Flatten(), nn.Linear(64, 300), Sign())
    head = fit(nn.Linear(300, 10), features(digits[0][:1200]).detach(), digits[1][:1200], epochs=5)
    model = nn.Sequential(features, head)
    right = int(correct(model, *test_set).sum())
    assert right > 150
    (reason,) = suspect_model(model, *test_set, threat=BOX, generator=rng())
    assert reason.startswith(f"input gradient is zero on {right} of {right} images, though noise moves the logits of 1")
    (reason,) = unbounded(model, *test_set, generator=rng())
    assert reason.endswith("of 200 images stand at linf 1: masked gradients")


def quantised(net):
    return lambda x: net((x * 4).round() / 4)


def without_graph(net):
    return torch.no_grad()(lambda x: net(x))


def in_inference_mode(net):
    return torch.inference_mode()(lambda x: net(x))


@pytest.mark.parametrize("masked", [quantised, without_graph, in_inference_mode])
def test_a_forward_pass_without_a_derivative(net, test_set, masked):
    frozen = copy.deepcopy(net).requires_grad_(False)
    for model in (masked(net), masked(frozen)):
        (reason,) = suspect_model(model, *test_set, threat=BOX, generator=rng())
        assert "input gradient is zero on 19" in reason
        assert "noise moves the logits of 19" in reason
        assert "BPDA" in reason
        (reason,) = unbounded(model, *test_set, generator=rng())
        assert "stand at linf 1: masked" in reason


@pytest.mark.parametrize(("leak", "size"), [(1e-3, "far too small"), (1e-5, "far too small"), (1e-9, "zero")])
def test_a_gradient_far_below_what_noise_does(net, test_set, leak, size):
    """Nowhere zero, and as far from the truth as if it were."""

    def model(x):
        return net((x * 4).round() / 4) + leak * net(x)

    points = test_set[0].clone().requires_grad_()
    assert torch.autograd.grad(model(points).sum(), points)[0].abs().flatten(1).amax(1).min() > 0
    (reason,) = suspect_model(model, *test_set, threat=BOX, generator=rng())
    assert reason.startswith(f"input gradient is {size} on 1")
    found = suspect_model(lambda x: 1e4 * model(x), *test_set, threat=BOX, generator=rng())
    assert reason in found  # and of who is left, that they are saturated
    assert len(found) == 2 if leak == 1e-3 else found == (reason,)


@pytest.mark.parametrize("scale", [30, 1e4])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_saturated_softmax_names_its_remedy(net, test_set, scale, norm):
    images, targets = test_set

    def model(x):
        return scale * net(x)

    threat = Threat(norm, 0.1 if norm == "linf" else 0.6)
    (reason,) = suspect_model(model, images, targets, threat=threat, generator=rng())
    assert reason.startswith("cross-entropy gradient vanishes on 1")
    assert reason.endswith("(saturated softmax), the margin's does not: attack the margin or DLR, use pgd_ce_margin")
    fallen = {}
    for objective in ("ce", "margin", "dlr"):
        attack = PGD(threat, objective=objective)
        fallen[objective] = 200 - int(withstands(model, images, targets, attack, generator=rng()).sum())
    expected = 200 - int(withstands(net, images, targets, PGD(threat), generator=rng()).sum())
    assert fallen["ce"] < 0.7 * expected
    assert min(fallen["margin"], fallen["dlr"]) > 0.9 * expected
    (reason,) = unbounded(model, images, targets, generator=rng())
    assert "stand at linf 1: masked" in reason


def test_a_random_answer(net, test_set):
    g = rng(7)
    models = [
        lambda x: net[3](F.dropout(net[2](net[1](net[0](x))), 0.3, training=True)),
        lambda x: net(x + 0.02 * torch.randn(x.shape, generator=g)),
        lambda x: net(x) * (1 + 0.05 * torch.randn((), generator=g)),
    ]
    for model in models:
        assert suspect_model(model, *test_set, threat=BOX, generator=rng()) == (RANDOM,)


def test_what_moves_by_itself_is_not_moved_by_noise(net, test_set):
    g = rng(7)

    def model(x):
        return net(x).detach() + 0.1 * torch.randn(len(x), 10, generator=g)

    reason, other = suspect_model(model, *test_set, threat=Threat("linf", 0), generator=rng())
    assert reason == RANDOM
    assert other.startswith("input gradient is zero on 19")
    assert other.endswith(" images")


class Counting(nn.Module):
    """A network that counts its images."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += len(x)
        return self.net(x)


def test_buffers_are_left_as_they_were(net, test_set):
    model = Counting(net)
    assert suspect_model(model, *test_set, threat=BOX, generator=rng()) == ()
    assert model.seen == 0


def test_dropout_in_training_mode_is_not_random(nets, test_set):
    net = copy.deepcopy(nets["conv"]).train()
    net.zero_grad()
    before = copy.deepcopy(net.state_dict())
    assert suspect_model(net, *test_set, threat=BOX, generator=rng()) == ()
    assert unbounded(net, *test_set, generator=rng()) == ()
    assert all(module.training for module in net.modules())
    assert all(p.grad is None for p in net.parameters())
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_an_answer_that_depends_on_the_batch(net, test_set):
    def model(x):
        return F.batch_norm(net(x), None, None, training=True)

    found = suspect_model(model, *test_set, threat=BOX, generator=rng())
    assert found == ("logits depend on the other images of the batch",)


def test_probabilities(net, test_set):
    found = suspect_model(lambda x: net(x).softmax(1), *test_set, threat=BOX, generator=rng())
    assert found == ("outputs are probabilities: give logits, or use pgd_ce_margin",)


def test_logits_that_are_not_finite(net, test_set):
    images, targets = test_set[0].clone(), test_set[1]
    images[:, 0, 0, 0] = 0.5
    images[7] = 0
    for number in (float("nan"), float("inf"), -float("inf")):

        def model(x, number=number):
            dark = (x.flatten(1).sum(1, keepdim=True) == 0) & (torch.arange(10) == 3)
            return net(x).masked_fill(dark, number)

        found = suspect_model(model, images, targets, threat=BOX, generator=rng())
        assert found == ("logits are not finite on 1 of 200 images",)


def test_gradients_that_are_not_finite(net, test_set):
    images, targets = test_set[0].clone(), test_set[1]
    images[5:8] = 0

    def model(x):
        return net(x) * (1 + x.flatten(1).square().sum(1, keepdim=True).sqrt())

    found = suspect_model(model, images, targets, threat=BOX, generator=rng())
    assert found == ("input gradients are not finite on 3 of 200 images",)
    unbounded(model, images, targets, generator=rng())


def purify_with(take):
    """A defence that first moves the image to where the network is surer."""

    def wrap(net):
        def model(x):
            with torch.enable_grad():
                points = x.detach().clone().requires_grad_()
                gradients = take(net(points).logsumexp(1).sum(), points)
            return net(x + 0.01 * gradients.sign())

        return model

    return wrap


def by_backward(loss, points):
    loss.backward(inputs=[points])
    return points.grad


def by_autograd_backward(loss, points):
    torch.autograd.backward([loss], inputs=[points])
    return points.grad


def with_torch_func(net):
    def model(x):
        return net(x + 0.01 * torch.func.grad(lambda points: net(points).logsumexp(1).sum())(x).sign())

    return model


imported_by_name = torch.autograd.grad


@pytest.mark.parametrize(
    "defence",
    [
        purify_with(lambda loss, points: imported_by_name(loss, points)[0]),
        purify_with(by_backward),
        purify_with(by_autograd_backward),
        with_torch_func,
    ],
    ids=["grad", "Tensor.backward", "autograd.backward", "torch.func"],
)
def test_gradients_inside_the_forward_pass(net, test_set, defence):
    assert suspect_model(defence(net), *test_set, threat=BOX, generator=rng())[0] == DYNAMIC


def test_a_model_that_does_not_look(net, test_set):
    bias = torch.arange(10.0).requires_grad_()
    models = [
        lambda x: bias.expand(len(x), -1),
        lambda x: 0 * net(x) + bias,
        lambda x: (0 * net(x) + bias).detach(),
    ]
    for model in models:
        assert suspect_model(model, *test_set, threat=BOX, generator=rng()) == (CONSTANT,)
        (reason,) = unbounded(model, *test_set, generator=rng())
        assert reason == f"{int((test_set[1] == 9).sum())} of 200 images stand at linf 1: masked gradients"


def test_what_cannot_be_looked_at_is_refused(net, test_set):
    images, targets = test_set
    few = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    for model, x, y, message in (
        (few, images, targets, r"targets range over 0\.\.9; the model has classes 0\.\.4"),
        (net, images, targets - 1, r"targets range over -1\.\.8; the model has classes 0\.\.9"),
        (lambda x: net(x)[:, :1], images, 0 * targets, r"gives torch.float32 \(200, 1\); logits are floats"),
        (lambda x: net(x)[0], images, targets, r"gives torch.float32 \(10,\); logits are floats"),
        (lambda x: net(x).argsort(1), images, targets, r"gives torch.int64 \(200, 10\); logits are floats"),
        (net, images + 1, targets, "attacks take pixels"),
        (net, images, targets[1:], "200 images and 199 targets"),
        (net, images[:0], targets[:0], "0 images and 0 targets"),
    ):
        with pytest.raises(ValueError, match=message):
            suspect_model(model, x, y, threat=BOX, generator=rng())


def test_the_few_images_are_spread_over_all_and_the_randomness_is_the_generators(net, digits):
    images, targets = digits[0].repeat(2, 1, 1, 1)[:2001], digits[1].repeat(2)[:2001]
    seen = []

    def model(x):
        seen.append(x.detach().clone())
        return net(x)

    images_at_once(model, images)  # looks at the model twice
    seen.clear()
    state, g = torch.get_rng_state(), rng()
    before = g.get_state()
    assert suspect_model(model, images, targets, threat=BOX, generator=g) == ()
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(g.get_state(), before)
    assert max(len(x) for x in seen) == 182
    assert torch.equal(seen[0], images[::11])
    noisy = seen[1]
    assert 0.09 < BOX.distance(noisy, images[::11]).max() <= 0.1 + 1e-6
    again, seen[:] = seen[:], []
    suspect_model(model, images, targets, threat=BOX, generator=rng())
    assert all(torch.equal(a, b) for a, b in zip(again, seen, strict=True))
    suspect_model(model, images, targets, threat=BOX, generator=rng(1))
    assert not torch.equal(seen[len(again) + 1], noisy)


# Rows that look too good


def judged(name, stands, kind="white", threat=BOX, **options):
    return AttackResult(name, standing(stands) if isinstance(stands, int) else stands, threat, kind, **options)


def suspected(*rows, clean=None):
    """Return the reasons of those that have any."""
    found = suspect_results(standing(100) if clean is None else clean, rows)
    assert list(found) == list(dict.fromkeys(row.name for row in rows))
    backwards = suspect_results(standing(100) if clean is None else clean, rows[::-1])
    assert {name: sorted(reasons) for name, reasons in found.items()} == {
        name: sorted(reasons) for name, reasons in backwards.items()
    }
    return {name: reasons for name, reasons in found.items() if reasons}


def test_the_sign_test_is_the_binomial_tail():
    for wins in range(12):
        for losses in range(12):
            n = wins + losses
            expected = sum(math.comb(n, k) for k in range(wins, n + 1)) / 2**n
            assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-14)
    assert 0.01 > sign_test(7, 0) > 0.001
    assert sign_test(6, 0) > 0.01
    assert 0.4 < sign_test(5000, 5000) < 0.6
    assert sign_test(2200, 2000) == pytest.approx(0.5 * math.erfc((200 - 1) / math.sqrt(2 * 4200)), rel=0.01)


def test_a_plausible_table_is_ok():
    found = suspected(
        judged("fgsm", 60, "single_step"),
        judged("pgd", 45, family="pgd", strength=10),
        judged("pgd100", 42, family="pgd", strength=100),
        judged("square", 55, "black"),
        judged("noise", 93, "noise"),
        judged("autoattack", 41, "ensemble"),
    )
    assert found == {}
    assert suspect_results(standing(100), []) == {}


@pytest.mark.parametrize(
    ("rows", "name", "reason"),
    [
        ([("pgd", 80, "white"), ("square", 60, "black")], "pgd", "black-box square beats it, 20 to 0"),
        ([("pgd", 80, "white"), ("fgsm", 70, "single_step")], "pgd", "single-step fgsm beats it, 10 to 0"),
        ([("aa", 64, "ensemble"), ("pgd", 57, "white")], "aa", "single attack pgd beats it, 7 to 0"),
        ([("aa", 64, "ensemble"), ("square", 50, "black")], "aa", "single attack square beats it, 14 to 0"),
        ([("pgd", 80, "white"), ("noise", 80, "noise")], "pgd", "noise breaks as many, 20 to 20"),
        ([("square", 79, "black"), ("noise", 80, "noise")], "square", "noise breaks as many, 20 to 21"),
        ([("fgsm", 99, "single_step"), ("noise", 80, "noise")], "fgsm", "noise breaks as many, 20 to 1"),
    ],
)
def test_a_row_that_a_weaker_attack_beats(rows, name, reason):
    assert suspected(*(judged(*row) for row in rows)) == {name: (reason,)}


def test_a_weaker_variant_of_the_same_attack():
    weak, strong = judged("pgd", 50, family="pgd", strength=10), judged("pgd100", 60, family="pgd", strength=100)
    assert suspected(weak, strong) == {"pgd100": ("weaker pgd beats it, 10 to 0",)}
    assert suspected(judged("pgd", 50, strength=10), judged("fab", 60, strength=100)) == {}
    assert suspected(weak, judged("fab", 60, family="fab", strength=100)) == {}
    assert suspected(weak, judged("pgd'", 60, family="pgd", strength=10)) == {}
    few, many = (judged(f"square{n}", k, "black", family="square", strength=n) for n, k in ((100, 50), (5000, 60)))
    assert suspected(few, many) == {"square5000": ("weaker square100 beats it, 10 to 0",)}


def test_the_other_way_round_is_as_it_should_be():
    assert suspected(judged("pgd", 20), judged("square", 60, "black"), judged("fgsm", 60, "single_step")) == {}
    assert suspected(judged("square", 80, "black"), judged("fgsm", 60, "single_step")) == {}
    assert suspected(judged("aa", 20, "ensemble"), judged("pgd", 60)) == {}
    assert suspected(judged("pgd", 60), judged("aa", 20, "ensemble")) == {}
    assert suspected(judged("aa", 60, "ensemble"), judged("aa with fab", 20, "ensemble")) == {}


APART = "attacks break different images: 0 of 100 withstand all of them, 25 the strongest"


def broken(*parts, n=100):
    """All but these slices withstand."""
    found = torch.ones(n, dtype=torch.bool)
    for part in parts:
        found[part] = False
    return found


def test_attacks_that_break_different_images():
    pgd_, square = broken(slice(0, 40)), broken(slice(0, 25), slice(40, 55))
    reason = "attacks break different images: 45 of 100 withstand all of them, 60 the strongest"
    rows = [judged("pgd", pgd_), judged("square", square, "black"), judged("noise", broken(slice(70, 80)), "noise")]
    assert suspected(*rows) == {"pgd": (reason,), "square": (reason,)}
    assert suspected(*rows, judged("pgd", broken(), threat=Threat("l2", 1.0))) == dict.fromkeys(
        ("pgd", "square"), (f"{reason} at linf 0.1",)
    )
    nine = broken(slice(0, 25), slice(40, 49))
    assert suspected(judged("pgd", pgd_), judged("square", nine, "black")) == {}
    assert suspected(judged("fgsm", pgd_, "single_step"), judged("transfer", square, "black")) == {}  # both are weak
    assert suspected(judged("pgd", pgd_), judged("noise", broken(slice(40, 60)), "noise")) == {}  # noise is no attack
    assert suspect_results(standing(100), rows[:2], random=True) == {"pgd": (), "square": ()}  # by chance
    few = [judged("pgd", broken(slice(0, 8), n=20)), judged("square", broken(slice(6, 12), n=20), "black")]
    assert suspected(*few, clean=standing(20, 20)) == {}  # six images more: a fifth of them, and may be chance


@pytest.mark.parametrize(
    ("kind", "other"), [("white", "black"), ("white", "single_step"), ("ensemble", "white"), ("white", "noise")]
)
def test_a_few_lucky_examples_are_chance(kind, other):
    """One or two, up to six to none; thirty to twenty-five (which are apart, but not one above the other); and nothing
    that noise does to a handful.
    """
    for luck in range(1, 7):
        assert suspected(judged("a", 100, kind), judged("b", 100 - luck, other)) == {}
    balanced = torch.zeros(100, dtype=torch.bool)
    balanced[:25], balanced[25:55] = False, True
    flipped = torch.zeros(100, dtype=torch.bool)
    flipped[:25] = True
    if other != "noise":
        assert suspected(judged("a", balanced, kind), judged("b", flipped, other)) == dict.fromkeys("ab", (APART,))
        clearly = balanced.clone()
        clearly[55:80] = True
        found = suspected(judged("a", clearly, kind), judged("b", flipped, other))
        assert [name for name, reasons in found.items() if set(reasons) - {APART}] == ["a"]


def test_equally_strong_attacks_are_seldom_told_apart():
    g, flagged = rng(), 0
    for _ in range(1000):
        lucky = torch.rand(2, 200, generator=g) < 0.5  # of 80 examples near the border each is broken by half of them
        lucky[:, :60], lucky[:, 140:] = False, True
        white, black = (judged(n, b, k) for n, b, k in (("w", lucky[0], "white"), ("b", lucky[1], "black")))
        reasons = suspect_results(standing(200, 200), [white, black])
        flagged += any("beats it" in reason for found in reasons.values() for reason in found)
    assert 0 < flagged <= 15


def test_noise_that_breaks_less_or_everything_says_nothing():
    assert suspected(judged("pgd", 80), judged("noise", 83, "noise")) == {}
    assert suspected(judged("pgd", 0), judged("noise", 0, "noise")) == {}
    clean = standing(90)
    assert suspected(judged("pgd", 88), judged("noise", 88, "noise"), clean=clean) == {}
    assert suspected(judged("pgd", 88), judged("noise", 80, "noise"), clean=clean) == {
        "pgd": ("noise breaks as many, 10 to 2",)
    }
    assert suspected(judged("noise", 80, "noise"), judged("noise 2", 50, "noise")) == {}


def test_only_rows_of_the_same_threat_are_compared():
    box, ball = Threat("linf", 0.05), Threat("l2", 0.1)
    for threat in (box, ball):
        rows = [judged(name, 60, kind, threat) for name, kind in (("square", "black"), ("fgsm", "single_step"))]
        assert suspected(judged("pgd", 80), *rows) == {}
    rows = [judged("pgd", 80), judged("square", 60, "black"), judged("pgd", 90, threat=box)]
    assert suspected(*rows) == {"pgd": ("black-box square beats it, 20 to 0 at linf 0.1",)}


def curve(name, points, kind="white", norm="linf"):
    return [judged(name, k, kind, Threat(norm, eps)) for eps, k in points.items()]


@pytest.mark.parametrize("kind", ["white", "ensemble"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_that_gains_nothing_by_a_larger_ball(kind, norm):
    flat = curve("pgd", {0.1: 60, 0.2: 57, 0.4: 54}, kind, norm)
    assert suspected(*flat) == {"pgd": (f"breaks no more at {norm} 0.4 than at {norm} 0.1",)}
    worse = curve("pgd", {0.1: 60, 0.2: 70}, kind, norm)
    assert suspected(*worse) == {
        "pgd": (f"breaks fewer at {norm} 0.2 than at {norm} 0.1", f"breaks no more at {norm} 0.2 than at {norm} 0.1")
    }


def test_curves_that_are_as_they_should_be():
    assert suspected(*curve("pgd", {0.0: 100, 0.1: 60, 0.2: 30, 0.4: 2})) == {}
    assert suspected(*curve("pgd", {0.01: 100, 0.02: 98, 0.04: 97})) == {}  # robust to so little
    assert suspected(*curve("pgd", {0.1: 4, 0.2: 3, 0.4: 2})) == {}  # hardly anybody is left
    assert suspected(*curve("pgd", {0.1: 60, 0.15: 57})) == {}  # not twice as large
    assert suspected(*curve("fgsm", {0.1: 60, 0.2: 57, 0.4: 70}, "single_step")) == {}  # a long step overshoots
    assert suspected(*curve("pgd", {0.1: 60}), *curve("pgd", {0.4: 60}, norm="l2")) == {}


def test_nothing_withstands_grey():
    assert suspected(*curve("pgd", {0.5: 90})) == {
        "pgd": ("90 of 100 stand at linf 0.5, where every image can be made grey",)
    }
    assert suspected(*curve("pgd", {0.49: 90})) == {}
    assert suspected(*curve("pgd", {0.5: 45})) == {}  # one class of two
    assert suspected(*curve("pgd", {2.0: 90}, norm="l2")) == {}
    assert suspected(*curve("noise", {0.5: 90}, "noise")) == {}
    assert suspected(*curve("pgd", {0.5: 6}), clean=standing(8)) == {}


def test_what_is_no_row_is_refused():
    with pytest.raises(ValueError, match="pgd: kind is 'grey'; choose from white, black, noise, single_step, ensemble"):
        judged("pgd", 80, "grey")
    with pytest.raises(ValueError, match=r"pgd at linf 0\.1 is given twice"):
        suspect_results(standing(100), [judged("pgd", 80), judged("pgd", 70)])


def test_the_verdict_is_a_cell_of_a_table():
    assert verdict(()) == "ok"
    assert verdict(("a", "b")) == "suspicious: a; b"


# Whole evaluations


def noise(threat):
    def attack(model, images, targets, *, generator):
        streams = [torch.Generator().manual_seed(i) for i in range(len(images))]
        return threat.random_start(images, streams)

    return attack


def evaluated(model, substitute, images, targets):
    """Judge a model by PGD, FGSM, noise and what fools the substitute, over threats of two norms."""
    clean, rows = correct(model, images, targets), []
    for threat in [Threat("linf", eps) for eps in (0.02, 0.1, 0.2, 0.5)] + [Threat("l2", eps) for eps in (0.2, 0.6, 2)]:

        def transfer(_, x, y, *, generator, threat=threat):
            return PGD(threat)(substitute, x, y, generator=generator)

        step = PGD(threat, steps=1, step_size=threat.eps, random_start=False)
        for name, attack, kind, strength in (
            ("pgd", PGD(threat), "white", 10),
            ("pgd40", PGD(threat, steps=40), "white", 40),
            ("fgsm", step, "single_step", 0),
            ("noise", noise(threat), "noise", 0),
            ("transfer", transfer, "black", 0),
        ):
            found = withstands(model, images, targets, attack, standing=clean, generator=rng())
            family = "pgd" if strength else ""
            rows.append(AttackResult(name, found, threat, kind, family=family, strength=strength))
    return suspect_results(clean, rows)


@pytest.mark.parametrize("name", ["undefended", "confident", "conv", "adversarial", "linear"])
def test_the_evaluation_of_an_ordinary_model_is_ok(nets, test_set, name):
    substitute = nets["confident" if name == "undefended" else "undefended"]
    found = evaluated(nets[name], substitute, *test_set)
    assert found == dict.fromkeys(["pgd", "pgd40", "fgsm", "noise", "transfer"], ())


def test_the_evaluation_of_a_masked_model_is_not(net, test_set):
    found = evaluated(quantised(net), net, *test_set)
    for name in ("pgd", "pgd40"):
        assert any(reason.startswith("black-box transfer beats it, ") for reason in found[name])
        assert any(reason.startswith("noise breaks as many, ") for reason in found[name])
        assert any(reason.endswith("stand at linf 0.5, where every image can be made grey") for reason in found[name])
    assert found["transfer"] == found["noise"] == ()
