import pytest
import torch
import torch.nn.functional as F

from robust import PAPER_THREATS, THREATS, Threat, threat_named

NORMS = ["linf", "l2"]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def streams(seeds):
    return [rng(seed) for seed in seeds]


def cases(norm):
    """Images, far points and threats: some balls reach over the border of [0, 1], some do not."""
    g = rng()
    for case in range(50):
        images = torch.rand(8, 3, 4, 4, generator=g, dtype=torch.float64)
        images[0].round_()  # saturated pixels
        points = images + 10 ** (case % 5 - 3) * torch.randn(images.shape, generator=g, dtype=torch.float64)
        yield images, points, Threat(norm, [0.0, 0.01, 0.3, 1.0 if norm == "linf" else 2.0][case % 4])


def length(vectors, norm):
    return vectors.flatten(1).abs().amax(1) if norm == "linf" else vectors.flatten(1).square().sum(1).sqrt()


@pytest.mark.parametrize("norm", NORMS)
def test_projection_lands_in_the_ball_and_in_the_unit_cube(norm):
    for images, points, threat in cases(norm):
        projected = threat.project(points, images)
        assert length(projected - images, norm).max() <= threat.eps + 1e-12
        assert projected.min() >= 0
        assert projected.max() <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_idempotent(norm):
    for images, points, threat in cases(norm):
        projected = threat.project(points, images)
        torch.testing.assert_close(threat.project(projected, images), projected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_points_inside_do_not_move(norm):
    g = rng()
    for images, points, threat in cases(norm):
        shift = points - images
        share = torch.rand(8, 1, 1, 1, generator=g, dtype=torch.float64)  # of the way to the border of the ball
        inside = images + shift * share * threat.eps / length(shift, norm).view(-1, 1, 1, 1)
        inside = inside.clamp(0, 1)
        torch.testing.assert_close(threat.project(inside, images), inside, rtol=0, atol=1e-12)


def test_the_linf_projection_is_the_nearest_point_of_ball_and_cube():
    g = rng()
    for images, points, threat in cases("linf"):
        nearest = length(points - threat.project(points, images), "l2")
        for _ in range(50):
            noise = torch.rand(images.shape, generator=g, dtype=torch.float64) * 2 - 1
            other = (images + threat.eps * noise).clamp(0, 1)
            assert (length(points - other, "l2") >= nearest - 1e-12).all()


def test_the_l2_projection_is_the_nearest_point_of_the_ball():
    g, images, threat = rng(), torch.full((8, 3, 4, 4), 0.5, dtype=torch.float64), Threat("l2", 0.4)
    for scale in (0.01, 0.1, 1.0, 10.0):
        shift = scale * torch.randn(images.shape, generator=g, dtype=torch.float64)
        projected = threat.project(images + shift, images)
        outside = length(shift, "l2") > 0.4
        torch.testing.assert_close(
            length(projected - images, "l2"), torch.where(outside, 0.4, length(shift, "l2")), rtol=1e-12, atol=0
        )
        nearest = length(images + shift - projected, "l2")
        for _ in range(50):  # points of the ball, many of them close to the projection
            other = projected - images + 0.1 * torch.randn(images.shape, generator=g, dtype=torch.float64)
            other = other * (0.4 / length(other, "l2")).clamp_max(1).view(-1, 1, 1, 1)
            assert (length(shift - other, "l2") >= nearest - 1e-12).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_ascent_is_the_steepest_direction_of_length_one(norm, scale):
    g = rng()
    gradients = scale * torch.randn(8, 3, 4, 4, generator=g)
    direction = Threat(norm, 0.1).ascent(gradients)
    torch.testing.assert_close(length(direction, norm), torch.ones(8))
    gradients, direction = gradients.double() / scale, direction.double()
    slope = (gradients * direction).flatten(1).sum(1)
    dual = gradients.flatten(1).norm(p=1 if norm == "linf" else 2, dim=1)
    torch.testing.assert_close(slope, dual, rtol=1e-6, atol=0)
    for _ in range(100):
        other = direction + 0.3 * torch.randn(direction.shape, generator=g, dtype=torch.float64)
        other = other / length(other, norm).view(-1, 1, 1, 1)
        assert ((gradients * other).flatten(1).sum(1) <= slope + 1e-6).all()


@pytest.mark.parametrize("norm", NORMS)
def test_no_gradient_no_direction(norm):
    gradients = torch.zeros(2, 5)
    gradients[1, 2] = -3.0
    assert Threat(norm, 0.1).ascent(gradients).tolist() == [[0, 0, 0, 0, 0], [0, 0, -1, 0, 0]]


def largest_gap(values):
    """The Kolmogorov-Smirnov distance of values to the uniform distribution on [0, 1]."""
    steps = torch.arange(len(values) + 1) / len(values)
    values = values.sort().values
    return torch.maximum(values - steps[:-1], steps[1:] - values).max().item()


def test_an_linf_start_is_uniform_in_the_box():
    noise = Threat("linf", 0.4).random_start(torch.full((4000, 5), 0.5), streams(range(4000))) - 0.5
    assert noise.abs().max() <= 0.4
    assert largest_gap((noise.flatten() / 0.4 + 1) / 2) < 1.63 / 20000**0.5  # the 1 % bound
    covariance = torch.cov(noise.T)
    torch.testing.assert_close(covariance, 0.16 / 3 * torch.eye(5), rtol=0, atol=4 * 0.16 / 3 / 4000**0.5)


def test_an_l2_start_is_uniform_in_the_ball():
    noise = Threat("l2", 0.4).random_start(torch.full((4000, 5), 0.5), streams(range(4000))) - 0.5
    radii = length(noise, "l2") / 0.4
    assert radii.max() <= 1 + 1e-6
    assert largest_gap(radii**5) < 1.63 / 4000**0.5
    directions = F.normalize(noise)
    assert directions.mean(0).abs().max() < 4 / (5 * 4000) ** 0.5
    torch.testing.assert_close(directions.T @ directions / 4000, torch.eye(5) / 5, rtol=0, atol=0.02)
    assert torch.corrcoef(torch.stack([radii, directions[:, 0]]))[0, 1].abs() < 4 / 4000**0.5


@pytest.mark.parametrize("norm", NORMS)
def test_a_start_is_cut_to_the_unit_cube(norm):
    images = torch.rand(20, 3, 4, 4, generator=rng(100)).round()
    starts = Threat(norm, 0.5).random_start(images, streams(range(20)))
    assert starts.min() >= 0
    assert starts.max() <= 1
    assert length(starts - images, norm).max() <= 0.5 + 1e-6
    assert length(starts - images, norm).min() > 0


@pytest.mark.parametrize("norm", NORMS)
def test_a_start_does_not_depend_on_the_rest_of_the_batch(norm):
    images, threat = torch.rand(6, 3, 4, 4, generator=rng(100)), Threat(norm, 0.2)
    together = threat.random_start(images, streams(range(6)))
    for i in range(6):
        assert torch.equal(threat.random_start(images[i : i + 1], streams([i])), together[i : i + 1])
    again = threat.random_start(images, streams(range(6, 12)))
    assert (again - together).flatten(1).abs().amax(1).min() > 0
    stream = streams([0])
    first, second = (threat.random_start(images[:1], stream) for _ in range(2))
    assert not torch.equal(first, second)  # the stream goes on


@pytest.mark.parametrize("norm", NORMS)
def test_a_ball_of_radius_zero_is_its_centre(norm):
    images, threat = torch.rand(4, 3, 4, 4, generator=rng()), Threat(norm, 0.0)
    assert torch.equal(threat.project(torch.randn(images.shape, generator=rng()), images), images)
    assert torch.equal(threat.random_start(images, streams(range(4))), images)


@pytest.mark.parametrize("norm", NORMS)
def test_distance_is_the_norm(norm):
    for images, points, threat in cases(norm):
        torch.testing.assert_close(threat.distance(points, images), length(points - images, norm))


@pytest.mark.parametrize(
    ("norm", "eps", "message"),
    [
        ("l1", 0.1, "norm is 'l1'; choose from linf, l2"),
        ("linf", -0.1, "eps is -0.1"),
        ("linf", 8, r"eps is 8; pixels are in \[0, 1\].*: write 8/255$"),
        ("l2", 1e5, r"eps is 100000.0; it must be in \[0, 10000\]"),
        ("l2", float("inf"), "eps is inf"),
        ("l2", float("nan"), "eps is nan"),
    ],
)
def test_a_field_out_of_range_is_refused_by_name(norm, eps, message):
    with pytest.raises(ValueError, match=message):
        Threat(norm, eps)


def test_the_papers_threats():
    assert {
        "mnist": {"linf_star": Threat("linf", 0.3), "linf": Threat("linf", 0.1), "l2": Threat("l2", 1.0)},
        "cifar10": {"linf_star": Threat("linf", 8 / 255), "linf": Threat("linf", 2 / 255), "l2": Threat("l2", 0.2)},
    } == PAPER_THREATS


def test_threats_by_name_and_as_written():
    assert threat_named("linf_star", "mnist") == Threat("linf", 0.3)
    assert threat_named("standard", "imagenet") == Threat("linf", 4 / 255)
    assert threat_named("aaai25", "cifar10") == Threat("linf", 1 / 255)
    assert threat_named("linf:0.03") == Threat("linf", 0.03)
    assert threat_named("0") == Threat("linf", 0.0)
    assert all(PAPER_THREATS[family].items() <= THREATS[family].items() for family in PAPER_THREATS)
    for text in ("", "l3:1", "8/0", "linf:", "standard_l2"):
        with pytest.raises(ValueError, match=r"threat is .*; choose from linf_star, linf, l2, aaai25, standard, or"):
            threat_named(text, "mnist")
    with pytest.raises(ValueError, match="no threats for 'svhn'; choose from mnist, cifar10, imagenet"):
        threat_named("8/255", "svhn")
