"""Corruptions: closed forms where there are some; range, determinism, and damage that grows with severity."""

import pytest
import torch

from robust.evaluation.corruptions import COMMON, CORRUPTIONS, SEVERITIES, corrupt, corruptions_for
from robust.evaluation.corruptions.sampling import affine_grid, warped


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int, channels: int, side: int) -> torch.Tensor:
    """Smooth shapes with some texture: noise alone is what blurs change most."""
    base = torch.rand(n, channels, 4, 4, generator=rng())
    smooth = torch.nn.functional.interpolate(base, (side, side), mode="bicubic").clamp(0, 1)
    return (0.85 * smooth + 0.15 * torch.rand(n, channels, side, side, generator=rng(1))).clamp(0, 1)


@pytest.mark.parametrize("shape", [(1, 8), (1, 28), (3, 16), (3, 32), (3, 64)])
@pytest.mark.long
def test_every_corruption_changes_pictures_and_stays_in_the_unit_cube(shape: tuple[int, int]) -> None:
    images = pictures(4, *shape)
    state = torch.get_rng_state()
    for name in corruptions_for(shape[0]):
        for severity in SEVERITIES:
            damaged = corrupt(images, name, severity, rng())
            assert damaged.shape == images.shape
            assert damaged.dtype == images.dtype
            assert 0 <= damaged.min() <= damaged.max() <= 1, name
            changed = (damaged - images).flatten(1).abs().amax(1) > 1e-3
            assert changed.all() or (name == "impulse_noise" and changed.any()), (name, severity)
            assert torch.equal(damaged, corrupt(images, name, severity, rng())), name
            assert torch.equal(damaged[:2], corrupt(images[:2], name, severity, rng())), name
    assert torch.equal(torch.get_rng_state(), state)


def test_damage_grows_with_severity() -> None:
    """Elastic, saturation, glass and frost go several ways at once, as in the original, and pixelate depends on how
    blocks fall: glass blur's levels blur more, then swap twice; frost's ice grows stronger, and then darkens the image.
    """
    images = pictures(50, 3, 32)
    for name in CORRUPTIONS:
        far = [(corrupt(images, name, severity, rng()) - images).square().mean().item() for severity in SEVERITIES]
        if name == "saturate":
            assert far[0] < far[1]
            assert far[2] < far[3] < far[4]
        elif name == "pixelate":
            assert far[0] < far[4]
        elif name == "glass_blur":
            assert far[0] < far[3]
        elif name == "frost":
            assert far[0] < far[1] < far[2]
        elif name != "elastic_transform":
            assert far == sorted(far), (name, far)


def test_brightness_contrast_saturation_in_closed_form() -> None:
    images = pictures(5, 3, 16)
    value = images.amax(1, keepdim=True)
    brighter = corrupt(images, "brightness", 3)
    assert torch.allclose(brighter.amax(1, keepdim=True), (value + 0.15).clamp_max(1), atol=1e-6)
    assert torch.allclose(brighter / brighter.amax(1, keepdim=True), images / value, atol=1e-5)  # hue and saturation
    flat = corrupt(images, "contrast", 4)
    assert torch.allclose(flat.mean((2, 3)), images.mean((2, 3)), atol=1e-6)
    assert torch.allclose(flat.std((2, 3)), 0.3 * images.std((2, 3)), atol=1e-5)
    dull = corrupt(images, "saturate", 1)
    assert torch.allclose(dull.amax(1, keepdim=True), value)
    spread, before = dull.amax(1) - dull.amin(1), images.amax(1) - images.amin(1)
    assert torch.allclose(spread, 0.3 * before, atol=1e-6)
    black = torch.zeros(1, 3, 8, 8)
    assert torch.allclose(corrupt(black, "brightness", 5), torch.full_like(black, 0.3))


def test_noise_has_its_moments() -> None:
    grey = torch.full((20, 3, 32, 32), 0.5)
    for severity, sigma in zip(SEVERITIES, (0.04, 0.06, 0.08, 0.09, 0.10), strict=True):
        assert (corrupt(grey, "gaussian_noise", severity, rng()) - grey).std().item() == pytest.approx(sigma, rel=0.02)
    shot = corrupt(grey, "shot_noise", 5, rng())
    assert shot.mean().item() == pytest.approx(0.5, abs=0.002)
    assert shot.std().item() == pytest.approx((0.5 / 50) ** 0.5, rel=0.02)
    impulse = corrupt(grey, "impulse_noise", 5, rng())
    assert (impulse != 0.5).double().mean().item() == pytest.approx(0.07, abs=0.003)
    assert (impulse == 1).double().mean().item() == pytest.approx(0.035, abs=0.002)


def test_blurs_keep_flat_images_and_the_mean_of_a_dot() -> None:
    flat = torch.full((3, 1, 32, 32), 0.4)
    dot = torch.zeros(1, 1, 33, 33)
    dot[..., 16, 16] = 1.0
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform"):
        assert torch.allclose(corrupt(flat, name, 5, rng()), flat, atol=1e-5), name
    for name in ("defocus_blur", "motion_blur"):
        blurred = corrupt(dot, name, 5, rng())
        assert blurred.sum().item() == pytest.approx(1.0, abs=0.02), name
        assert blurred.max() < 0.7, name


def test_pixelate_makes_blocks() -> None:
    images = pictures(2, 1, 40)
    blocks = corrupt(images, "pixelate", 5)
    assert blocks[0, 0].unique(dim=0).shape[0] == 26  # of 40 rows, 0.65 * 40 differ
    assert blocks[0, 0].unique(dim=1).shape[1] == 26


def test_elastic_moves_points_a_third_of_the_side_off_the_centre() -> None:
    """As OpenCV's map of the authors' three points does, on an image that is wider than high too."""
    for height, width in ((32, 32), (16, 64)):
        images = torch.rand(3, 1, height, width, generator=rng())
        moves = 0.1 * torch.randn(3, 3, 2, generator=rng(1))
        grid = affine_grid(images, corners=moves).view(3, height, width, 2)
        at = [((x + 0.5) * 2 / width - 1, (y + 0.5) * 2 / height - 1) for y in range(height) for x in range(width)]
        x, y = torch.tensor(at).T.reshape(2, height, width)
        across, down = 2 * (width // 3) / width, 2 * (height // 3) / height
        for number, (sx, sy) in enumerate(((-1, -1), (1, -1), (-1, 1))):
            shift = (grid - torch.stack([x, y], 2)).double()
            design = torch.stack([torch.ones_like(x), x, y], 2).view(1, -1, 3).double().expand(3, -1, -1)
            affine = torch.linalg.lstsq(design, shift.view(3, -1, 2)).solution  # (3, 3, 2)
            point = torch.tensor([1.0, sx * across, sy * down]).double()
            torch.testing.assert_close((point @ affine).float(), moves[:, number], atol=1e-4, rtol=0)


def test_a_shift_is_in_pixels_of_both_sides() -> None:
    images = torch.rand(1, 1, 8, 32, generator=rng())
    moved = warped(images, affine_grid(images, shift=torch.tensor([[3.0, 2.0]])))
    torch.testing.assert_close(moved[..., :6, :29], images[..., 2:, 3:])


def test_zoom_blur_averages_the_factors_of_the_authors_code() -> None:
    counts = [len(torch.arange(1.0, end, step, dtype=torch.float64)) for end, step in CORRUPTIONS["zoom_blur"][1]]
    assert counts == [7, 12, 16, 21, 26]  # of numpy.arange(1, 1.06, 0.01) and so on, the first two with their ends


def test_the_column_is_of_the_fifteen_kinds_of_the_benchmark() -> None:
    assert len(COMMON) == len(set(COMMON)) == 15
    assert set(CORRUPTIONS) - set(COMMON) == {"saturate"}
    assert corruptions_for(1) == tuple(name for name in CORRUPTIONS if name != "saturate")
    assert set(COMMON) <= set(corruptions_for(1))  # grey and colour images have the same mean


def test_other_kinds_have_the_values_that_they_had() -> None:
    """Means of three kinds as they were before glass, snow and frost: kinds draw from nothing but their own streams."""
    images = pictures(3, 3, 16)
    found = [corrupt(images, name, 3, rng()).double().sum().item() for name in ("motion_blur", "fog", "saturate")]
    assert found == pytest.approx([1133.795963447541, 1141.068720780313, 960.1511448100209], rel=1e-5)


def test_glass_moves_each_pixel_to_the_right_and_down_by_one_at_most() -> None:
    """Severity 1 hardly blurs (sigma 0.05): each pixel is the one at (0 or 1 up, 0 or 1 left), and a border stays."""
    images = pictures(4, 3, 32)
    glass = corrupt(images, "glass_blur", 1, rng())
    near = torch.stack([images.roll((up, left), (2, 3)) for up in (0, 1) for left in (0, 1)])
    same = (near - glass).abs().amax(2) < 1e-6  # (4 places, N, H, W), all channels together
    assert same[:, :, 2:, 2:].any(0).all()
    assert torch.equal(glass[:, :, :2], images[:, :, :2])
    assert torch.equal(glass[:, :, :, :2], images[:, :, :, :2])
    assert same[:, :, 2:, 2:].float().mean((1, 2, 3)).tolist() == pytest.approx([0.25] * 4, abs=0.03)
    ramp = torch.arange(32.0).expand(1, 1, 32, 32) / 31
    twice = 31 * (ramp - corrupt(ramp, "glass_blur", 4, rng()))[..., 4:-4, 4:-4]
    assert 0.9 < twice.mean().item() < 1.1  # two passes, half a pixel each
    assert -0.2 < twice.min() < twice.max() < 2.2


def test_snow_whitens_and_falls_twice() -> None:
    """A black image shows the whitening, 1.5 x grey + 0.5, and flakes that look the same turned by 180 degrees."""
    black = torch.zeros(40, 3, 32, 32)
    for severity, share in zip(SEVERITIES, (0.95, 0.9, 0.9, 0.85, 0.8), strict=True):
        snow = corrupt(black, "snow", severity, rng()) - (1 - share) * 0.5
        assert snow.min().item() == pytest.approx(0.0, abs=1e-6)
        assert torch.allclose(snow, snow.flip(2, 3), atol=1e-6)
        assert torch.equal(snow[:, :1].expand_as(snow), snow)
        assert 0.003 < snow.mean() < 0.5
    light = torch.full((1, 3, 16, 16), 0.9)
    assert (corrupt(light, "snow", 1, rng()) >= 0.9).all()
    green = torch.zeros(1, 3, 16, 16)
    green[:, 1] = 0.4
    least = corrupt(green, "snow", 1, rng()).amin((2, 3))[0]  # where no flake is
    white = 0.05 * (1.5 * 0.587 * 0.4 + 0.5)
    assert least.tolist() == pytest.approx([white, 0.95 * 0.4 + 0.05 * (1.5 * 0.587 * 0.4 + 0.5), white], abs=1e-5)


def test_frost_is_the_authors_mixture_with_ice_of_ours() -> None:
    """share x image + ice x texture, with a texture in the range that was measured on the authors' pictures."""
    weights = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
    black, grey = torch.zeros(60, 3, 32, 32), torch.full((60, 3, 32, 32), 0.3)
    for severity, (share, ice) in zip(SEVERITIES, weights, strict=True):
        texture = corrupt(black, "frost", severity, rng()) / ice
        assert torch.allclose(corrupt(grey, "frost", severity, rng()), share * 0.3 + ice * texture, atol=1e-6)
    level = texture.mean(1)
    assert 0.45 < level.mean((1, 2)).min() < 0.55 < 0.75 < level.mean((1, 2)).max() < 0.85
    assert level.flatten(1).std(1).mean().item() == pytest.approx(0.074, abs=0.015)
    assert (texture[:, 2] > texture[:, 0]).float().mean() > 0.98  # ice is blue
    smooth = (level[:, 1:] - level[:, :-1]).square().mean() / level.flatten(1).var(1).mean()
    assert smooth < 0.8  # of white noise 2
    assert not torch.equal(texture[0], texture[1])


def test_what_is_wrong_is_said() -> None:
    images = pictures(1, 1, 8)
    for arguments, line in (
        ((images, "rain", 1), "unknown corruption 'rain'; choose from gaussian_noise"),
        ((images, "jpeg", 6), "severity is 6; choose from 1, 2, 3, 4, 5"),
        ((images, "saturate", 1), "saturate does nothing to grey images"),
        ((images + 1, "jpeg", 1), "attacks take pixels"),
        ((images[0], "jpeg", 1), "corruptions take"),
    ):
        with pytest.raises(ValueError, match=line):
            corrupt(*arguments)
    assert corrupt(images[:0], "fog", 1).shape == (0, 1, 8, 8)
