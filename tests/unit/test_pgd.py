import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robust import (
    PGD,
    Normalize,
    SuspiciousModelWarning,
    Threat,
    accuracy,
    cross_entropy,
    pgd,
    robust_accuracy,
    withstands,
)
from robust.attacks.vmi_fgsm import VMIFGSM
from robust.losses import difference_of_logits_ratio as dlr
from robust.losses import margin

NORMS = ["linf", "l2"]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def convnet():
    torch.manual_seed(0)
    layers = [Normalize([0.5], [0.25]), nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(216, 4))


def batch(n=12):
    return torch.rand(n, 1, 8, 8, generator=rng(1), dtype=torch.float64), torch.randint(4, (n,), generator=rng(2))


@pytest.fixture
def net():
    return convnet().double().eval()


@pytest.fixture(scope="module")
def digits():
    """An undefended net, trained on the first 1200 of scikit-learn's digits, and the rest of them to attack."""
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
    return net, images[1200:1500], targets[1200:1500]


# Known answers


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("iterate", ["worst", "last"])
def test_a_linear_model_falls_exactly_when_eps_crosses_the_margin(norm, random_start, iterate):
    model = nn.Linear(30, 2).double()
    flipped = {0.99: 0, 1.01: 0}
    for case in range(16):
        model.weight.data.normal_(generator=rng(case))
        image = 0.4 + 0.2 * torch.rand(1, 30, generator=rng(100 + case), dtype=torch.float64)
        w = (model.weight[0] - model.weight[1]).detach()
        target = torch.tensor([case % 2])
        gap = 0.05 * w.norm() * (1 - 2 * target.item())  # of logit 0 over logit 1 at the image
        model.bias.data = torch.tensor([gap - image[0] @ w, 0.0], dtype=torch.float64)
        margin = (gap.abs() / w.norm(p=1 if norm == "linf" else 2)).item()
        assert model(image).argmax(1) == target
        for ratio in flipped:
            eps = ratio * margin
            options = {"steps": 20, "step_size": eps / 4, "random_start": random_start, "iterate": iterate}
            adversarial = pgd(model, image, target, threat=Threat(norm, eps), generator=rng(), **options)
            flipped[ratio] += (model(adversarial).argmax(1) != target).item()
    assert flipped == {0.99: 0, 1.01: 16}


def torchattacks_pgd(norm, model, images, targets, *, eps, step_size, steps, random_start):
    """Return the adversarial images of torchattacks, and where it started."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its old `requests` warns about the versions it finds
        import torchattacks
    attack = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    attack = attack(model, eps=eps, alpha=step_size, steps=steps, random_start=random_start)
    state = torch.get_rng_state()
    adversarial = attack(images, targets)
    torch.set_rng_state(state)  # to draw its start once more
    start = images
    if random_start and norm == "linf":
        start = (images + torch.empty_like(images).uniform_(-eps, eps)).clamp(0, 1)
    elif random_start:
        delta = torch.empty_like(images).normal_()
        lengths = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        start = (images + delta * (torch.zeros_like(lengths).uniform_(0, 1) / lengths * eps)).clamp(0, 1)
    return adversarial, start


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("linf", 0.6), ("l2", 0.5), ("l2", 4.0)])
@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("random_start", [True, False])
def test_equals_torchattacks_from_an_equal_start(net, norm, eps, steps, random_start):
    images, targets = batch()
    options = {"steps": steps, "step_size": eps / 3}
    expected, start = torchattacks_pgd(norm, net, images, targets, eps=eps, random_start=random_start, **options)
    options |= {"threat": Threat(norm, eps), "iterate": "last", "random_start": False}
    found = pgd(net, images, targets, start=start if random_start else None, **options)
    assert (start - images).abs().max() > 0 or not random_start
    assert (found - images).flatten(1).abs().amax(1).min() > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_an_undefended_net_is_broken(digits):
    assert accuracy(*digits) > 85
    assert robust_accuracy(*digits, PGD(Threat("linf", 0.5)), generator=rng()) == 0
    assert robust_accuracy(*digits, PGD(Threat("l2", 3.0)), generator=rng()) == 0


# Stronger is not weaker


@pytest.mark.parametrize(
    ("norm", "radii"), [("linf", (0, 0.02, 0.05, 0.1, 0.2, 0.5)), ("l2", (0, 0.1, 0.3, 0.6, 1, 3))]
)
@pytest.mark.parametrize("iterate", ["worst", "last"])
def test_accuracy_falls_with_eps(digits, norm, radii, iterate):
    attacks = [PGD(Threat(norm, eps), iterate=iterate) for eps in radii]
    found = [robust_accuracy(*digits, attack, generator=rng()) for attack in attacks]
    assert found[0] == accuracy(*digits)
    assert found == sorted(found, reverse=True)
    assert len(set(found)) >= 5


def reached(net, images, targets, **options):
    """Who is fooled, and the loss, after a weak attack that leaves some standing."""
    options = {"threat": Threat("linf", 0.06), "steps": 2, "step_size": 0.04, "generator": rng(5)} | options
    with torch.no_grad():
        logits = net(pgd(net, images, targets, **options))
    return logits.argmax(1) != targets, cross_entropy(logits, targets)


@pytest.mark.parametrize("iterate", ["worst", "last"])
def test_more_restarts_are_never_worse(digits, iterate):
    fooled, loss = reached(*digits, iterate=iterate)
    more_fooled, more_loss = reached(*digits, iterate=iterate, restarts=5)
    assert (fooled <= more_fooled).all()
    assert fooled.sum() < more_fooled.sum() < len(fooled)
    if iterate == "worst":
        stands = ~more_fooled
        assert (loss[stands] <= more_loss[stands] + 1e-6).all()
        assert (loss[stands] < more_loss[stands] - 1e-6).any()


@pytest.fixture
def wavy():
    """A net whose loss goes up and down along the way, and points that it gets right."""
    waves, heads = 10 * torch.randn(5, 20, generator=rng()), torch.randn(20, 3, generator=rng(1))

    def net(images):
        return torch.sin(images @ waves) @ heads

    images = torch.rand(300, 5, generator=rng(2))
    return net, images, net(images).argmax(1)


def test_the_worst_iterate_is_never_worse_than_the_last(wavy):
    fooled, loss = reached(*wavy, iterate="worst")
    last_fooled, last_loss = reached(*wavy, iterate="last")
    assert (last_fooled <= fooled).all()
    assert last_fooled.sum() < fooled.sum() < len(fooled)
    stands = ~fooled
    assert (last_loss[stands] <= loss[stands] + 1e-6).all()
    assert (last_loss[stands] < loss[stands] - 1e-6).any()


def test_the_last_iterate_is_that_of_the_last_restart_needed(wavy):
    fooled, loss = reached(*wavy, iterate="last")
    more_fooled, more_loss = reached(*wavy, iterate="last", restarts=2)
    assert torch.equal(loss[fooled], more_loss[fooled])  # no restart for who is fooled
    stands = ~more_fooled
    assert (more_loss[stands] < loss[stands] - 1e-3).any()  # no record is kept of better restarts
    assert (more_loss[stands] > loss[stands] + 1e-3).any()


@pytest.mark.parametrize("norm", NORMS)
def test_no_example_is_better_off_attacked(digits, norm):
    net, images, targets = digits
    with torch.no_grad():
        clean = net(images)
        for step_size in (0.01, 1.0):
            attack = PGD(Threat(norm, 0.02), steps=1, step_size=step_size)
            logits = net(attack(net, images, targets, generator=rng()))
            right = logits.argmax(1) == targets
            assert (right <= (clean.argmax(1) == targets)).all()
            assert (cross_entropy(logits, targets) >= cross_entropy(clean, targets) - 1e-5)[right].all()


# The batch


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("options", [{}, {"random_start": False}, {"restarts": 3}, {"restarts": 2, "iterate": "last"}])
def test_the_split_of_the_batch_changes_nothing(net, norm, options):
    images, _ = batch()
    targets = net(images).argmax(1)
    attack = PGD(Threat(norm, 0.01 if norm == "linf" else 0.06), steps=3, **options)
    whole = attack(net, images, targets, generator=rng())
    standing = withstands(net, images, targets, attack, generator=rng())
    assert standing.tolist() == (net(whole).argmax(1) == targets).tolist()
    assert 0 < standing.sum() < len(images)
    for size in (1, 3, len(images)):
        g, parts = rng(), zip(images.split(size), targets.split(size), strict=True)
        split = torch.cat([attack(net, x, y, generator=g) for x, y in parts])
        torch.testing.assert_close(split, whole, rtol=0, atol=1e-9)
        found = withstands(net, images, targets, attack, generator=rng(), batch_size=size)
        assert torch.equal(found, standing)


class Counting(nn.Module):
    """One pixel; class 0 where it is above a half. Remembers how many images each forward pass had."""

    def __init__(self):
        super().__init__()
        self.counts = []

    def forward(self, images):
        self.counts.append(len(images))
        return torch.cat([images - 0.5, 0.5 - images], 1)


def test_fooled_examples_leave_the_batch():
    model, targets = Counting(), torch.zeros(4, dtype=torch.long)
    images = torch.tensor([[0.40], [0.55], [0.75], [0.95]])  # wrong already, then fooled by 1 step, 3 steps, never
    options = {"threat": Threat("linf", 0.35), "steps": 4, "step_size": 0.1, "random_start": False}
    found = pgd(model, images, targets, **options)
    assert model.counts == [4, 3, 3, 2, 2, 1]  # clean, a gradient a step, the last point
    torch.testing.assert_close(found, torch.tensor([[0.40], [0.45], [0.45], [0.60]]))
    model.counts.clear()
    pgd(model, images, targets, restarts=3, **options)
    assert model.counts == [4, 3, 3, 2, 2, 1] + 2 * [1, 1, 1, 1, 1]  # restarts attack who still stands
    model.counts.clear()
    pgd(model, images[:3], targets[:3], restarts=3, **options)
    assert model.counts == [3, 2, 2, 1, 1]  # nobody is left after three steps
    model.counts.clear()
    pgd(model, images[:1], targets[:1], restarts=3, **options)
    assert model.counts == [1]
    model.counts.clear()
    assert torch.equal(pgd(model, images, targets, iterate="last", **options)[3], found[3])
    assert model.counts == [4, 4, 4, 4, 4]  # the textbook attack goes on to the end


# Borders


@pytest.mark.parametrize("norm", NORMS)
def test_eps_zero_returns_its_input(net, norm):
    images, targets = batch()
    for options in ({}, {"restarts": 2}, {"random_start": False}, {"iterate": "last"}):
        found = PGD(Threat(norm, 0.0), **options)(net, images, targets)
        assert torch.equal(found, images)
        assert found.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("iterate", ["worst", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stays_in_the_ball_and_in_the_unit_cube(net, norm, iterate, dtype):
    images, targets = batch()
    images[:4].round_()
    net, images = net.to(dtype), images.to(dtype)
    attack = PGD(Threat(norm, 0.3), steps=4, step_size=0.5, restarts=2, iterate=iterate)
    found = attack(net, images, targets, generator=rng())
    assert found.dtype == dtype
    assert found.min() >= 0
    assert found.max() <= 1
    assert attack.threat.distance(found, images).max() <= 0.3 + 1e-6
    assert attack.threat.distance(found, images).max() > 0.2


@pytest.mark.parametrize("attack", [PGD, VMIFGSM])
def test_no_images_are_no_pass(attack):
    def never(x):
        raise AssertionError("the attack called the model on no images")

    assert attack(Threat("linf", 0.1))(never, torch.rand(0, 1, 4, 4), torch.zeros(0).long()).shape == (0, 1, 4, 4)


def test_small_gradients_survive_float16():
    """In float16 the gradient by a logit that is right by a probability of 1 - 1e-8 is zero; it is lifted."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.ones(16), -torch.ones(16)]))
        model[1].bias.copy_(torch.tensor([1.0, 0.0]))
    images = torch.full((8, 1, 4, 4), 0.5)
    attack = PGD(Threat("linf", 0.1), steps=2, random_start=False, iterate="last")
    with torch.autocast("cpu", torch.float16):
        assert torch.allclose(attack(model, images, torch.zeros(8).long()), images - 0.1)


def test_images_that_are_not_pixels_are_refused(net):
    images, targets = batch()
    attack = PGD(Threat("linf", 0.1))
    for wrong, message in (
        (images + 0.1, r"\[0\.1.*, 1\.\d+\]; attacks take pixels in \[0, 1\]"),
        (images - 0.1, "attacks take pixels"),
        (images.masked_fill(images > 0.9, float("nan")), "nan"),
        ((255 * images).to(torch.uint8), "torch.uint8"),
        ((images > 0.5).long(), "torch.int64"),
        (images.half(), "torch.float16, too coarse for a ball; give float32, and cast inside the model"),
        (images.bfloat16(), "torch.bfloat16, too coarse"),
    ):
        with pytest.raises(ValueError, match=message):
            attack(net, wrong, targets)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("iterate", ["worst", "last"])
def test_the_model_is_left_as_it_was(net, training, iterate):
    net[2].train(training)  # BatchNorm alone
    images, targets = batch()
    net[1].weight.requires_grad_(False)
    net[1].bias.grad = torch.ones(6, dtype=torch.float64)
    before = copy.deepcopy(net)
    attack = PGD(Threat("linf", 0.1), restarts=2, iterate=iterate)
    attack(net, images, targets)
    if not training:  # the attack runs the model in the mode it is in
        torch.testing.assert_close(net.state_dict(), before.state_dict(), rtol=0, atol=0)
    net.load_state_dict(before.state_dict())
    withstands(net, images, targets, attack)
    torch.testing.assert_close(net.state_dict(), before.state_dict(), rtol=0, atol=0)
    assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(p.grad is None for p in net.parameters() if p is not net[1].bias)
    assert torch.equal(net[1].bias.grad, torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("options", [{}, {"iterate": "last"}, {"random_start": False}])
@pytest.mark.parametrize("eps", [0.1, 0.0])
def test_the_result_is_a_plain_tensor_and_the_input_is_unchanged(net, options, eps):
    images, targets = batch()
    lent = images.clone().requires_grad_()
    found = PGD(Threat("linf", eps), **options)(net, lent, targets, generator=rng())
    assert torch.equal(lent, images)
    assert lent.grad is None
    assert not found.requires_grad


def test_randomness_is_the_generators(net):
    images, targets = batch()
    attack = PGD(Threat("linf", 0.1), steps=1, restarts=2, iterate="last")
    state = torch.get_rng_state()
    first, again, other = (attack(net, images, targets, generator=rng(seed)) for seed in (0, 0, 1))
    withstands(net, images, targets, attack, generator=rng())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"restarts": 0}, "restarts is 0"),
        ({"step_size": 0.0}, "step_size is 0.0"),
        ({"step_size": -1.0}, "step_size is -1.0"),
        ({"iterate": "best"}, "iterate is 'best'; choose from worst, last"),
        ({"objective": "both"}, r"objective is 'both'; choose from ce, margin, dlr, ce\+margin"),
        ({"eot": 0}, "eot is 0"),
    ],
)
def test_a_field_out_of_range_is_refused_by_name(net, fields, message):
    with pytest.raises(ValueError, match=message):
        PGD(Threat("linf", 0.1), **fields)
    options = {"threat": Threat("linf", 0.1), "steps": 2, "step_size": 0.1} | fields
    with pytest.raises(ValueError, match=message):
        pgd(net, *batch(), **options)


def test_the_step_size_is_madrys_unless_given(net):
    images, targets = batch()
    options = {"threat": Threat("linf", 0.1), "steps": 5, "random_start": False}
    assert torch.equal(PGD(**options)(net, images, targets), PGD(step_size=0.05, **options)(net, images, targets))
    assert not torch.equal(PGD(**options)(net, images, targets), PGD(step_size=0.04, **options)(net, images, targets))


def test_the_margin_and_its_ratio_are_what_they_say():
    logits = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(50) % 6
    for row, target, m, d in zip(logits, targets, margin(logits, targets), dlr(logits, targets), strict=True):
        others = sorted(v for i, v in enumerate(row.tolist()) if i != target)
        ranked = sorted(row.tolist())
        assert m.item() == pytest.approx(others[-1] - row[target].item())
        assert d.item() == pytest.approx((others[-1] - row[target].item()) / (ranked[-1] - ranked[-3]))
    assert torch.equal(margin(logits, targets) > 0, logits.argmax(1) != targets)
    assert torch.equal(dlr(logits[:, :3], targets % 3), margin(logits[:, :3], targets % 3))


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("scale", [0.05, 1.0, 50.0])
def test_cross_entropy_then_the_margin_breaks_all_that_either_breaks(digits, restarts, scale):
    """On logits of small, of usual and of saturated scale."""
    net, images, targets = digits
    model, options = (lambda x: scale * net(x)), {"steps": 5, "restarts": restarts}
    stand = {
        objective: withstands(
            model, images, targets, PGD(Threat("linf", 0.1), objective=objective, **options), generator=rng()
        )
        for objective in ("ce", "margin", "ce+margin")
    }
    assert (stand["ce+margin"] <= stand["ce"] & stand["margin"]).all()
    if restarts == 1:
        assert torch.equal(stand["ce+margin"], stand["ce"] & stand["margin"])
    assert stand["ce+margin"].any()
    if scale != 1.0:
        assert stand["ce+margin"].sum() < stand["ce"].sum() - 20


@pytest.mark.parametrize("iterate", ["worst", "last"])
@pytest.mark.parametrize("options", [{}, {"objective": "ce+margin"}, {"eot": 2}])
def test_a_model_without_a_gradient_path_is_attacked_by_its_start_and_says_so(net, iterate, options):
    images, targets = batch()
    attack = PGD(Threat("linf", 0.1), steps=3, iterate=iterate, **options)
    for model in (lambda x: net(x).detach(), torch.no_grad()(lambda x: net(x))):
        with pytest.warns(SuspiciousModelWarning, match=r"no gradient path to its input.* robust\.bpda"):
            found = attack(model, images, targets, generator=rng())
        moved = (found - images).flatten(1).abs().amax(1)
        assert moved.max() <= 0.1 + 1e-12
        assert moved.max() > 0.05


@pytest.mark.parametrize("objective", ["margin", "dlr"])
def test_objectives_that_do_not_saturate(objective):
    """Logits times 1000: the gradient of cross-entropy is zero in float32, that of the margin is not."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(16, 5, generator=generator)
    images = torch.rand(40, 16, generator=generator)
    model = lambda x: 1000 * (x - 0.5) @ weights  # noqa: E731
    targets = model(images).argmax(1)
    threat = Threat("linf", 0.2)
    options = {"threat": threat, "steps": 10, "step_size": 0.05, "random_start": False}
    saturated = model(pgd(model, images, targets, **options)).argmax(1) == targets
    ascended = model(pgd(model, images, targets, objective=objective, **options)).argmax(1) == targets
    assert ascended.sum() < saturated.sum()


def test_momentum_is_mim():
    """Against a textbook of MIM (Dong et al. 2018), last iterate, on a network with curved loss."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4)).double()
    x, y = torch.rand(7, 12, dtype=torch.float64), torch.arange(7) % 4
    eps, alpha, decay = 0.2, 0.04, 0.9
    point, g = x.clone(), torch.zeros_like(x)
    for _ in range(6):
        point.requires_grad_()
        (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(net(point), y, reduction="sum"), point)
        g = decay * g + gradient / gradient.abs().mean(1, keepdim=True)
        point = (x + (point.detach() + alpha * g.sign() - x).clamp(-eps, eps)).clamp(0, 1)
    options = {"steps": 6, "step_size": alpha, "random_start": False, "iterate": "last", "momentum": decay}
    assert torch.allclose(pgd(net, x, y, threat=Threat("linf", eps), **options), point, atol=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_example_whose_gradient_is_not_a_number_stays_and_spoils_no_other(norm):
    def root(x):
        """The gradient of the first example's margin is infinite at its black pixel times zero."""
        z = x[:, 0].sqrt() * 0 + x.sum(1) - 1
        return torch.stack([z, -z], 1)

    images = torch.tensor([[0.0, 0.5, 0.9], [0.3, 0.5, 0.25]])
    options = {"threat": Threat(norm, 0.1), "steps": 4, "step_size": 0.05, "random_start": False}
    found = pgd(root, images, torch.tensor([0, 0]), **options)
    assert found.isfinite().all()
    assert root(found).argmax(1).tolist() == [0, 1]
