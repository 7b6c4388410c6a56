"""DC's augmentation of students against one image after another, with scipy's rotation and torch's interpolation."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from distill.errors import InputError
from distill.training.augment import augmentation
from distill.training.augment_dc import DC_GROUPS, NOISE, DCAugmentation


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, channels: int = 1, size: int = 28) -> torch.Tensor:
    return torch.randn(n, channels, size, size, generator=generator(1)) + 0.5


def middle(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = int((picture.shape[1] - height) / 2), int((picture.shape[2] - width) / 2)
    return picture[:, top : top + height, left : left + width]


def crop(picture: np.ndarray, means: np.ndarray, top: int, left: int) -> np.ndarray:
    channels, height, width = picture.shape
    pad = int(0.125 * height + 0.5)
    larger = np.broadcast_to(means[:, None, None], (channels, height + 2 * pad, width + 2 * pad)).copy()
    larger[:, pad : pad + height, pad : pad + width] = picture
    return larger[:, top : top + height, left : left + width]


def scale(picture: np.ndarray, means: np.ndarray, height: int, width: int) -> np.ndarray:
    small = F.interpolate(torch.from_numpy(picture)[None], [height, width], mode="nearest")[0].numpy()
    side = max(height, width, *picture.shape[1:])
    canvas = np.zeros((len(picture), side, side), dtype=np.float32)
    top, left = int((side - height) / 2), int((side - width) / 2)
    canvas[:, top : top + height, left : left + width] = small
    return middle(canvas, *picture.shape[1:])


def rotate(picture: np.ndarray, means: np.ndarray, angle: int) -> np.ndarray:
    turned = ndimage.rotate(picture, angle=angle, axes=(-2, -1), cval=means.mean())
    return middle(turned, *picture.shape[1:])


REFERENCE = {"crop": crop, "scale": scale, "rotate": rotate}
DRAWS = {"crop": ("top", "left"), "scale": ("height", "width"), "rotate": ("angle",)}


def ranges(group: str, size: int) -> list[tuple[int, ...]]:
    """Every draw of rotate; of the others every first with a few second."""
    if group == "rotate":
        return [(angle,) for angle in range(-45, 45)]
    low, high = (0, 2 * int(0.125 * size + 0.5)) if group == "crop" else (int(0.8 * size), int(1.2 * size) + 1)
    return [(a, b) for a in range(low, high) for b in {low, high - 1, (low + high) // 2, a}]


@pytest.mark.parametrize("size", [8, 16, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("group", REFERENCE)
def test_each_group_is_the_slow_one(group: str, channels: int, size: int) -> None:
    draws = ranges(group, size)
    x = images(len(draws), channels, size)
    drawn = {name: torch.tensor([draw[k] for draw in draws]) for k, name in enumerate(DRAWS[group])}
    changed = DCAugmentation(group).apply(x, drawn | {"group": torch.zeros(len(draws), dtype=torch.long)})
    means = x.mean((0, 2, 3)).numpy()
    expected = np.stack([REFERENCE[group](one.numpy(), means, *draw) for one, draw in zip(x, draws, strict=True)])
    torch.testing.assert_close(changed, torch.from_numpy(expected), atol=2e-5, rtol=1e-5)


def test_an_image_has_one_group_and_all_are_as_likely() -> None:
    x, policy = images(3000, size=8), DCAugmentation("crop_scale_rotate")
    drawn = policy.sample(3000, (1, 8, 8), generator())
    counts = Counter(drawn["group"].tolist())
    assert set(counts) == {0, 1, 2}
    assert min(counts.values()) > 900
    changed, means = policy.apply(x, drawn), x.mean((0, 2, 3)).numpy()
    for number in range(100):
        group = ("crop", "scale", "rotate")[drawn["group"][number]]
        draw = [int(drawn[name][number]) for name in DRAWS[group]]
        expected = torch.from_numpy(REFERENCE[group](x[number].numpy(), means, *draw))
        torch.testing.assert_close(changed[number], expected, atol=2e-5, rtol=1e-5)


def test_draws_have_the_official_ranges_and_frequencies() -> None:
    drawn = DCAugmentation("crop_scale_rotate").sample(40000, (1, 28, 28), generator())
    assert set(drawn["top"].tolist()) == set(drawn["left"].tolist()) == set(range(8))
    assert set(drawn["angle"].tolist()) == set(range(-45, 45))
    heights = Counter(drawn["height"].tolist())
    assert set(heights) == set(range(22, 34))  # int(U[0.8, 1.2) * 28): the ends are cut, 22.4 and 33.6
    share = {side: heights[side] * 11.2 / 40000 for side in heights}
    assert abs(share[22] - 0.6) < 0.05
    assert abs(share[33] - 0.6) < 0.05
    assert all(abs(share[side] - 1) < 0.1 for side in range(23, 33))


def test_noise_is_small_and_the_images_own() -> None:
    x, policy = images(200, 3, 8), augmentation("dc:crop_noise")
    drawn = policy.sample(200, (3, 8, 8), generator())
    difference = (policy.apply(x, drawn) - x)[drawn["group"] == 1] / NOISE
    assert 70 < len(difference) < 130
    assert abs(difference.std() - 1) < 0.05
    assert abs(difference.mean()) < 0.05


@pytest.mark.parametrize("strategy", ["crop_scale_rotate", "crop_noise"])
def test_one_draw_serves_all_and_gradients_pass(strategy: str) -> None:
    policy, x = DCAugmentation(strategy), images(4, size=8).double().requires_grad_()
    same = policy.apply(x[:1].expand(4, -1, -1, -1), policy.sample(None, (1, 8, 8), generator(3)))
    assert torch.equal(same, same[:1].expand_as(same))
    before = x.detach().clone()
    changed = policy.apply(x, policy.sample(4, (1, 8, 8), generator(0)))
    assert torch.equal(x, before)
    assert changed.dtype == x.dtype
    assert torch.autograd.grad(changed.square().sum(), x)[0].abs().flatten(1).amax(1).min() > 0


def test_an_unknown_group_is_named() -> None:
    with pytest.raises(InputError, match=r"'flip'.*Known: crop, scale, rotate, noise"):
        augmentation("dc:crop_flip")
    assert set(DC_GROUPS) == {"crop", "scale", "rotate", "noise"}
