"""Models that hide their gradients, each by another means, and models that hide nothing: what is said of each.

On scikit-learn's digits at 8 pixels, so that no data is needed.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import robust.evaluation.short_attacks
from robust import PGD, Square, Threat, attack_named, bpda, evaluate, withstands
from robust.evaluation.advice import advised, concerns, remedy
from robust.evaluation.suspicion import not_finite, suspect_model

BOX = Threat("linf", 0.1)
UNPREDICTED = "the input gradient does not predict the margin"
WEAK = "cross-entropy PGD is weak here: the margin loss breaks more, "
ZERO = "input gradient is zero on "


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, targets = torch.tensor(digits.images / 16.0).float().unsqueeze(1), torch.tensor(digits.target)
    return images[:1200], targets[:1200], images[1200:1400], targets[1200:1400]


class WinnersTakeAll(nn.Module):
    """k-winners-take-all (arXiv 1905.10510): an example's largest tenth of all activations; the others are zero."""

    def forward(self, x):
        flat = x.flatten(1)
        least = flat.topk(flat.shape[1] // 10, 1).values[:, -1:]
        return (flat * (flat >= least)).view_as(x)


def network(activation=nn.ReLU, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 16, 3, padding=1), activation(), nn.Conv2d(16, 16, 3, padding=1), activation()]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 10))


def fit(net, images, targets, epochs=10, see=lambda x: x, loss=F.cross_entropy):
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(epochs):
        for who in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            loss(net(see(images[who])), targets[who]).backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def net(data):
    return fit(network(), *data[:2])


class Wrong(torch.autograd.Function):
    """The identity, with a backward pass that permutes the pixels or flips 40 % of the signs."""

    @staticmethod
    def forward(ctx, x, kind):
        ctx.kind = kind
        return x.clone()

    @staticmethod
    def backward(ctx, gradients):
        flat = gradients.flatten(1)
        if ctx.kind == "permuted":
            wrong = flat[:, torch.randperm(flat.shape[1], generator=rng())]
        else:
            wrong = torch.where(torch.rand(flat.shape[1], generator=rng()) < 0.4, -flat, flat)
        return wrong.view_as(gradients), None


def blocks(x):
    """Like JPEG: quantised coefficients of a cosine transform; there is no derivative."""
    i = torch.arange(8.0)
    cosines = torch.cos((2 * i[:, None] + 1) * i * torch.pi / 16) * torch.where(i == 0, 0.125**0.5, 0.5)
    return cosines @ (4 * (cosines.T @ x @ cosines)).round() / 4 @ cosines.T


def median(x):
    return F.pad(x, (1, 1, 1, 1), mode="reflect").unfold(2, 3, 1).unfold(3, 3, 1).flatten(4).median(-1).values


MASKED = {
    "x 100": (lambda net: lambda x: 100 * net(x), "cross-entropy gradient vanishes on 1", "pgd_ce_margin"),
    "x 1e4": (lambda net: lambda x: 1e4 * net(x), "cross-entropy gradient vanishes on 1", "pgd_ce_margin"),
    "x 0.1": (lambda net: lambda x: 0.1 * net(x), WEAK, "pgd_ce_margin"),
    "x 1e-5": (lambda net: lambda x: 1e-5 * net(x), WEAK, "pgd_ce_margin"),
    "8 levels": (lambda net: lambda x: net((x * 7).round() / 7), ZERO, "square"),
    "softmax": (lambda net: lambda x: net(x).softmax(1), "outputs are probabilities: give logits", "pgd_ce_margin"),
    "sigmoid": (lambda net: lambda x: net(x).sigmoid(), "outputs lie in [0, 1]: give logits", "pgd_ce_margin"),
    "tanh": (lambda net: lambda x: net(x).tanh(), WEAK, "pgd_ce_margin"),
    "binary input": (lambda net: lambda x: net((x > 0.5).float()), ZERO, "square"),
    "blocks": (lambda net: lambda x: net(blocks(x)), ZERO, "square"),
    "permuted gradient": (lambda net: lambda x: net(Wrong.apply(x, "permuted")), UNPREDICTED, "square"),
    "signs flipped": (lambda net: lambda x: net(Wrong.apply(x, "signs")), UNPREDICTED, "square"),
    "no path": (lambda net: lambda x: net(x).detach(), ZERO, "square"),
    "dropout on": (
        lambda net: lambda x: net[-1](F.dropout(net[:-1](x), 0.5, training=True)),
        "random: two passes differ",
        "autoattack:version=rand",
    ),
    "noise": (
        lambda net: lambda x: net(x + 0.3 * torch.randn_like(x)),
        "random: two passes differ",
        "autoattack:version=rand",
    ),
}


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_model_is_suspected_and_the_advice_can_be_typed(net, data, name):
    masked, sign, spec = MASKED[name]
    reasons = suspect_model(masked(net), *data[2:], threat=BOX, generator=rng())
    assert any(reason.startswith(sign) for reason in reasons)
    assert advised(reasons) == spec
    assert advised(f"suspicious: {'; '.join(reasons)}") == spec
    if spec is not None:
        attack_named(spec, BOX)


@pytest.mark.long
def test_winners_take_all(data):
    model = fit(network(WinnersTakeAll), *data[:2])
    (reason,) = suspect_model(model, *data[2:], threat=BOX, generator=rng())
    assert reason.startswith(UNPREDICTED)
    assert advised([reason]) == "square"


@pytest.mark.parametrize(
    "honest",
    [
        lambda net: net,
        lambda net: lambda x: net(x.half().float()),
        lambda net: lambda x: net(median(x)),
        lambda net: lambda x: net(x).log_softmax(1),
        lambda net: lambda x: net(x) + 1e3,
        lambda net: lambda x: net(bpda(lambda v: (v * 255).round() / 255)(x)),
        lambda net: lambda x: net(x.clamp(0.1, 0.9)),
    ],
    ids=["undefended", "float16 input", "median", "log-probabilities", "shifted", "8 bits straight through", "clamped"],
)
@pytest.mark.long
def test_an_honest_model_is_not(net, data, honest):
    for threat in (BOX, Threat("linf", 0.03), Threat("l2", 0.6)):
        assert suspect_model(honest(net), *data[2:], threat=threat, generator=rng()) == ()


@pytest.mark.long
def test_students_of_little_data_and_of_random_labels_are_not(data):
    images, targets, *test = data
    ten = torch.stack([(targets == k).nonzero()[0, 0] for k in range(10)])
    guessed = torch.randint(10, (300,), generator=rng())
    for seed in range(3):
        few = fit(network(seed=seed), images[ten], targets[ten], epochs=100)
        assert suspect_model(few, *test, threat=BOX, generator=rng()) == ()
        by_heart = fit(network(seed=seed), images[:300], guessed, epochs=30)
        assert suspect_model(by_heart, *test, threat=BOX, generator=rng()) == ()


@pytest.mark.long
def test_centred_targets_and_mean_squares_leave_small_logits(data):
    """As FRePo and KIP train: cross-entropy's gradient is weak on them, the margin's is not."""
    centred = lambda logits, y: (logits - F.one_hot(y, 10) + 0.1).square().sum(1).mean()  # noqa: E731
    model = fit(network(), *data[:2], loss=centred)
    stand = {
        name: int(withstands(model, *data[2:], attack_named(name, BOX), generator=rng()).sum())
        for name in ("pgd", "pgd_ce_margin")
    }
    assert stand["pgd_ce_margin"] <= stand["pgd"] - 7
    (reason,) = suspect_model(model, *data[2:], threat=BOX, generator=rng())
    assert reason.startswith(WEAK)


def test_a_black_box_that_breaks_what_pgd_does_not(net, data, monkeypatch):
    """The gradient is that of a network nearby, and predicts small changes; the steps of PGD are led to a wall."""

    class Wall(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, near):
            ctx.near = near
            return x.clone()

        @staticmethod
        def backward(ctx, gradients):
            return gradients * ctx.near, None

    images, targets = data[2:]

    def model(x):
        """Right on the clean images' neighbourhood, and useless further away."""
        distance = torch.cdist(x.flatten(1), images.flatten(1), p=float("inf")).amin(1)
        return net(Wall.apply(x, (distance < 0.015).float().view(-1, 1, 1, 1)))

    threat = Threat("linf", 0.2)
    assert suspect_model(net, images, targets, threat=threat, generator=rng()) == ()
    (reason,) = suspect_model(model, images, targets, threat=threat, generator=rng())
    assert reason.startswith("noise breaks ")
    monkeypatch.setattr(robust.evaluation.short_attacks, "Noise", missing)
    (reason,) = suspect_model(model, images, targets, threat=threat, generator=rng())
    assert reason.startswith("black-box square breaks ")
    assert reason.endswith("images that withstand PGD: use BPDA (robust.bpda) or square")
    monkeypatch.setattr(robust.evaluation.short_attacks, "Square", missing)
    assert suspect_model(model, images, targets, threat=threat, generator=rng()) == ()  # as with torch alone


def missing(threat, **options):
    def attack(*arguments, **options):
        raise ModuleNotFoundError("Square needs torchattacks")

    return attack


def test_images_that_square_does_not_take(net, data):
    flat = data[2].flatten(1)
    assert suspect_model(lambda x: net(x.view(-1, 1, 8, 8)), flat, data[3], threat=BOX, generator=rng()) == ()
    large = F.interpolate(data[2], size=12)
    model = lambda x: net(F.avg_pool2d(F.interpolate(x, size=16), 2))  # noqa: E731
    assert suspect_model(model, large, data[3], threat=Threat("l2", 0.5), generator=rng()) == ()


def test_logits_that_are_not_finite(net, data):
    broken = lambda x: net(x) / (x.flatten(1).sum(1, keepdim=True) > 18)  # noqa: E731
    share = int((data[2].flatten(1).sum(1) <= 18).sum())
    assert share > 20
    assert not_finite(broken, data[2]) == (f"logits are not finite on {share} of 200 images",)
    assert not_finite(net, data[2]) == not_finite(net, data[2][:0]) == ()


# What a reason is a reason to doubt


def test_who_heeds_the_advice_is_not_in_doubt():
    weak = f"{WEAK}33 to 0: attack the margin or DLR, use pgd_ce_margin"
    zero = f"{ZERO}20 of 20 images, though noise moves the logits of 20: use BPDA (robust.bpda) or square"
    astray = f"{UNPREDICTED} (correlation 0.13): use BPDA (robust.bpda) or square"
    random = "random: two passes differ: average attacks over the randomness, use autoattack:version=rand"
    heed = {
        weak: "pgd:objective=margin pgd_ce_margin jitter apgd_dlr apgd_t fab square autoattack noise",
        zero: "square noise",
        astray: "noise",
        random: "pgd:eot=20 apgd_ce:eot=5 autoattack:version=rand",
    }
    doubted = {
        weak: "pgd pgd100 mim vmifgsm fgsm apgd_ce",
        astray: "pgd pgd_ce_margin square autoattack",  # Square may be the weakest of them
        zero: "pgd pgd_ce_margin vmifgsm jitter apgd_t fab autoattack fgsm",
        random: "pgd square autoattack noise",
    }
    for reason, specs in heed.items():
        assert not any(concerns(reason, attack_named(spec, BOX)) for spec in specs.split())
    for reason, specs in doubted.items():
        assert all(concerns(reason, attack_named(spec, BOX)) for spec in specs.split())
        assert concerns(reason, lambda model, x, y, generator: x)  # somebody's own attack
    assert concerns("logits are not finite on 3 of 20 images", Square(BOX))


def test_the_advice_of_several_reasons_is_one_attack():
    assert advised("ok") is None
    assert advised(()) is None
    assert advised(["logits are not finite on 3 of 20 images"]) is None
    assert remedy("7 of 100 images stand at linf 1: masked gradients") == "square"
    vanished = "cross-entropy gradient vanishes on 9 of 9 images (saturated softmax), the margin's does not: "
    vanished += "attack the margin or DLR, use pgd_ce_margin"
    assert advised([vanished, "7 of 100 images stand at linf 1: masked gradients"]) == "pgd_ce_margin"
    assert advised(["black-box square beats it, 20 to 0"]) == "square"


@pytest.mark.long
def test_following_the_advice_comes_near_the_truth(net, data):
    """The truth is what the undefended network withstands; PGD on the masked ones is far above it."""
    truth = int(withstands(net, *data[2:], PGD(BOX, steps=50, objective="ce+margin"), generator=rng()).sum())
    coarse = lambda x: net((x * 7).round() / 7)  # noqa: E731
    followed = {
        "x 1e4": (MASKED["x 1e4"][0](net), attack_named("pgd_ce_margin", BOX)),
        "x 1e-5": (MASKED["x 1e-5"][0](net), attack_named("pgd_ce_margin", BOX)),
        "no path": (MASKED["no path"][0](net), PGD(BOX, steps=20, objective="ce+margin", bpda=net)),
        "permuted": (MASKED["permuted gradient"][0](net), PGD(BOX, steps=20, objective="ce+margin", bpda=net)),
    }
    for model, attack in followed.values():
        assert int(withstands(model, *data[2:], attack, generator=rng()).sum()) <= truth + 8
    straight = lambda x: net(bpda(lambda v: (v * 7).round() / 7)(x))  # noqa: E731
    report = evaluate(coarse, *data[2:], {"pgd": PGD(BOX), "square": Square(BOX, queries=300)}, generator=rng())
    by_bpda = int(withstands(straight, *data[2:], PGD(BOX, steps=20), generator=rng()).sum())
    assert by_bpda < int(report.attacks["square"].sum()) < int(report.attacks["pgd"].sum()) - 20
    assert report.verdicts["pgd"].startswith("suspicious: black-box square beats it, ")
    assert report.verdicts["square"] == report.verdicts["clean"] == "ok"
