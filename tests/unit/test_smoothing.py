"""Certificates against the closed form of linear models, CERTIFY and PREDICT against slow ones, the bound exactly."""

import math
from statistics import NormalDist

import pytest
import torch
from torch import nn

from robust.evaluation.certificates import ABSTAIN, certified, certify, lower_bound, smoothed_predict

W = torch.tensor([3.0, -1.0, 2.0])
IMAGES = torch.tensor([[0.9, 0.1, 0.8], [0.6, 0.2, 0.3], [0.1, 0.9, 0.2], [0.5, 0.5, 0.5]])
DISTANCES = ((IMAGES @ W - 2.0) / W.norm()).tolist()  # to the boundary; the last image is on it
RIGHT = torch.tensor([0, 0, 1, ABSTAIN])


def linear(x: torch.Tensor) -> torch.Tensor:
    """Two classes, the boundary where x @ W = 2."""
    return torch.stack([x @ W - 2.0, torch.zeros(len(x))], 1)


def voting(*passes: list[int]):
    """A model whose noisy copies get as many answers of each class as is said, one list for each pass."""
    waiting = [torch.cat([torch.full((k,), c) for c, k in enumerate(votes)]) for votes in passes]

    def model(x: torch.Tensor) -> torch.Tensor:
        answers = waiting.pop(0)
        assert len(x) == len(answers)
        return nn.functional.one_hot(answers, len(passes[0])).float()

    return model


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ONE = torch.full((1, 3), 0.5)


# Known answers


def test_radii_of_a_linear_model_come_near_the_distance_from_below() -> None:
    """The smoothed class has probability Phi(distance / sigma), so the true radius is the distance."""
    assert abs(DISTANCES[3]) < 1e-6
    found = certify(linear, IMAGES, sigma=0.5, n=20_000, generator=rng())
    assert torch.equal(found.prediction, RIGHT)
    for distance, radius in zip(DISTANCES[:3], found.radius.tolist(), strict=False):
        p = NormalDist().cdf(abs(distance) / 0.5)
        deviation = math.sqrt(p * (1 - p) / 20_000)  # of the share of votes
        lowest = NormalDist().inv_cdf(p - (3.1 + 4) * deviation)  # the bound is 3.1 below the share, that 4 below p
        assert 0.5 * lowest < radius < abs(distance)
    assert found.radius[3] == 0


@pytest.mark.parametrize(("sigma", "abstained"), [(0.1, 1), (2.0, 4)])
def test_certificates_are_those_of_the_paper(sigma: float, abstained: int) -> None:
    """CERTIFY copy by copy, with SciPy's exact interval and quantile."""
    from scipy.stats import binomtest, norm

    weights = torch.randn(3, 4, generator=rng(5))
    net = lambda x: (x - 0.5) @ weights  # noqa: E731
    n0, n, alpha = 20, 150, 0.01
    found = certify(net, IMAGES, sigma=sigma, n0=n0, n=n, alpha=alpha, batch_size=64, generator=rng())
    seeds = torch.randint(2**62, (4,), generator=rng()).tolist()
    expected = []
    for image, seed in zip(IMAGES, seeds, strict=True):
        stream = rng(seed)
        answers = [net(image + sigma * torch.randn(3, generator=stream)).argmax().item() for _ in range(n0 + n)]
        guess = max(range(4), key=answers[:n0].count)
        hits = answers[n0:].count(guess)
        low = binomtest(hits, n).proportion_ci(1 - 2 * alpha, method="exact").low
        expected.append((guess, sigma * norm.ppf(low)) if low > 0.5 else (ABSTAIN, 0.0))
    assert found.prediction.tolist() == [prediction for prediction, _ in expected]
    assert found.radius.tolist() == pytest.approx([radius for _, radius in expected], rel=1e-9)
    assert [prediction for prediction, _ in expected].count(ABSTAIN) == abstained


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_draws_that_all_agree_certify_as_much_as_n_allows(n: int) -> None:
    found = certify(lambda x: torch.tensor([[0.0, 1.0]]).expand(len(x), 2), ONE, sigma=2.0, n=n)
    p = 0.001 ** (1 / n)
    assert found.radius.dtype == torch.float64
    assert found.radius.item() == pytest.approx(2.0 * NormalDist().inv_cdf(p) if p > 0.5 else 0.0, rel=1e-12)
    assert found.prediction.item() == (1 if p > 0.5 else ABSTAIN)


def test_more_draws_certify_more() -> None:
    bounds = [lower_bound(4 * n, 5 * n, 0.001) for n in (1, 2, 10, 100, 1000, 100_000)]
    assert bounds == sorted(bounds)
    assert bounds[-1] < 0.8 < bounds[-1] + 0.005
    radii = [certify(linear, IMAGES[:1], sigma=0.5, n=n, generator=rng()).radius.item() for n in (50, 500, 5000)]
    assert radii[0] < radii[1] < radii[2]


# The bound


@pytest.mark.parametrize(("k", "n", "alpha"), [(5, 10, 0.05), (80, 100, 0.001), (1, 3, 0.1), (30, 30, 0.001)])
def test_the_bound_solves_the_binomial_tail(k: int, n: int, alpha: float) -> None:
    """The p at which P(Binomial(n, p) >= k) is alpha, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        tail = math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
        low, high = (p, high) if tail < alpha else (low, p)
    assert lower_bound(k, n, alpha) == pytest.approx(low, rel=1e-9)


def test_no_votes_no_bound() -> None:
    assert lower_bound(0, 10, 0.05) == 0.0


@pytest.mark.parametrize("alpha", [0.2, 0.01])
def test_the_bound_is_too_high_with_probability_alpha_at_most(alpha: float) -> None:
    """Summed exactly over the binomial; and it is not slack, as a bound for another alpha would be."""
    n, worst = 60, 0.0
    bounds = [lower_bound(k, n, alpha) for k in range(n + 1)]
    for p in torch.linspace(0.02, 0.98, 193, dtype=torch.float64).tolist():
        wrong = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1) if bounds[k] > p)
        assert wrong <= alpha
        worst = max(worst, wrong)
    assert worst > 0.9 * alpha


def test_too_large_a_radius_is_as_rare_as_alpha_says() -> None:
    """400 certificates at alpha = 0.2: how many claim more than the truth, and it is not none."""
    found = certify(linear, IMAGES[1:2].expand(400, 3), sigma=0.5, n=60, n0=40, alpha=0.2, generator=rng(1))
    wrong = (found.radius > abs(DISTANCES[1])) | (found.prediction == 1)
    assert 20 < int(wrong.sum()) <= 0.2 * 400 + 3 * math.sqrt(400 * 0.2 * 0.8)


# Who abstains


def test_a_class_chosen_in_error_is_not_certified() -> None:
    """n0 draws say class 1, n draws class 0: neither is certain."""
    found = certify(voting([2, 8], [95, 5]), ONE, sigma=0.5, n0=10, n=100, batch_size=100)
    assert (found.prediction.item(), found.radius.item()) == (ABSTAIN, 0.0)


def test_a_radius_takes_more_than_half() -> None:
    least = next(k for k in range(101) if lower_bound(k, 100, 0.01) > 0.5)
    for k, prediction in ((least - 1, ABSTAIN), (least, 2)):
        found = certify(voting([1, 1, 8], [0, 100 - k, k]), ONE, sigma=0.5, n0=10, n=100, alpha=0.01, batch_size=100)
        assert found.prediction.item() == prediction
        assert (found.radius.item() > 0) == (prediction == 2)


@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_predict_is_the_binomial_test_of_the_two_classes_with_most_votes(alpha: float) -> None:
    n = 40
    answers = set()
    for third in (0, 10):
        rest = n - third
        for k in range(rest // 2, rest + 1):
            if rest - k < third:  # the third class would be one of the two
                continue
            p = min(1.0, 2 * sum(math.comb(rest, i) for i in range(k, rest + 1)) / 2**rest)
            found = smoothed_predict(
                voting([third, rest - k, k]), ONE, sigma=0.5, n=n, alpha=alpha, batch_size=n
            ).item()
            assert found == (2 if p <= alpha else ABSTAIN)
            answers.add(found)
    assert answers == {2, ABSTAIN}


def test_predictions_of_a_linear_model() -> None:
    found = smoothed_predict(linear, IMAGES, sigma=0.1, n=500, generator=rng())
    assert torch.equal(found, RIGHT)


def test_who_is_certified() -> None:
    found = certify(linear, IMAGES, sigma=0.5, n=2000, generator=rng())
    radius = found.radius[0].item()
    targets = torch.tensor([0, 1, 1, 0])  # the second is certain and wrong, the fourth uncertain
    assert certified(found, targets, 0.0).tolist() == [True, False, True, False]
    assert certified(found, targets, radius).tolist()[0]
    assert not certified(found, targets, radius + 1e-9).any() or found.radius[2] > radius
    assert certified(found, targets, 10.0).tolist() == [False] * 4
    assert certified(found, targets, 0.1).dtype == torch.bool


# What nothing depends on


@pytest.mark.parametrize("batch_size", [1, 7, 64, 10_000])
def test_neither_the_batch_size_nor_the_other_examples_matter(batch_size: int) -> None:
    options = {"sigma": 0.5, "n0": 30, "n": 200}
    whole = certify(linear, IMAGES, **options, generator=rng())
    found = certify(linear, IMAGES, **options, generator=rng(), batch_size=batch_size)
    first = certify(linear, IMAGES[:2], **options, generator=rng(), batch_size=batch_size)
    other = certify(linear, IMAGES, **options, generator=rng(1))
    assert torch.equal(whole.radius, found.radius)
    assert torch.equal(whole.prediction, found.prediction)
    assert torch.equal(whole.radius[:2], first.radius)
    assert not torch.equal(whole.radius, other.radius)
    answers = [
        smoothed_predict(linear, IMAGES, sigma=0.5, n=55, alpha=0.1, batch_size=size, generator=rng())
        for size in (55, batch_size)
    ]
    assert torch.equal(*answers)


def test_noise_has_the_standard_deviation_asked_for_and_is_not_clamped() -> None:
    seen = []

    def model(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return torch.zeros(len(x), 2)

    image = torch.linspace(0, 1, 24, dtype=torch.float64).view(1, 2, 3, 4)
    certify(model, image, sigma=0.7, n=2000, generator=rng())
    noise = torch.cat(seen) - image
    assert noise.dtype == torch.float64
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(0.7, rel=0.02)
    assert noise.flatten(1).T.corrcoef().fill_diagonal_(0).abs().max() < 0.1


def test_the_model_evaluates_meanwhile_and_comes_back_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    net[2].eval()
    modes = []
    net.register_forward_pre_hook(lambda module, _: modes.append((module.training, torch.is_grad_enabled())))
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    state = torch.get_rng_state()
    for call in (certify, smoothed_predict):
        call(net, IMAGES, sigma=0.5, n=20, generator=rng(), batch_size=20)
    assert set(modes) == {(False, False)}
    assert [m.training for m in net] == [True, True, False, True]
    assert all(torch.equal(b, buffers[name]) for name, b in net.named_buffers())
    assert torch.equal(state, torch.get_rng_state())


def test_no_images_no_certificates() -> None:
    found = certify(linear, IMAGES[:0], sigma=0.5)
    assert found.prediction.shape == found.radius.shape == (0,)
    assert smoothed_predict(linear, IMAGES[:0], sigma=0.5).shape == (0,)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"sigma": 0.0}, "sigma is 0.0; it must be > 0"),
        ({"sigma": float("inf")}, "sigma is inf"),
        ({"n": 0}, "n is 0; it must be >= 1"),
        ({"n0": 0}, "n0 is 0; it must be >= 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be >= 1"),
        ({"alpha": 1.0}, "alpha is 1.0; it must be in"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"images": IMAGES + 1}, "attacks take pixels"),
        ({"model": lambda x: x[:, :1]}, r"the model gives \(100, 1\); logits are"),
    ],
)
def test_values_out_of_range_are_refused(options: dict, line: str) -> None:
    options = {"model": linear, "images": IMAGES, "sigma": 0.5, "n": 100} | options
    with pytest.raises(ValueError, match=line):
        certify(**options)
    if "n0" not in options:
        with pytest.raises(ValueError, match=line):
            smoothed_predict(**options)
