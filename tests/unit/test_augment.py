"""Siamese augmentation: each group of DSA against its formula written with loops, and kornia's policies."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from distill.errors import InputError
from distill.training.augment import DSA, GROUPS, augmentation
from distill.training.augment_kornia import NOT_SIAMESE, Kornia

CIFAR = "color_crop_cutout_flip_scale_rotate"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 3, channels: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randn(n, channels, size, size, dtype=torch.float64, generator=generator(1))


def color(x, i, d):
    x = x + (d["brightness"][i] - 0.5) * 1.0
    mean = x.mean(0, keepdim=True)
    x = (x - mean) * (d["saturation"][i] * 2.0) + mean
    return (x - x.mean()) * (d["contrast"][i] + 0.5) + x.mean()


def crop(x, i, d):
    pad = 10
    padded = F.pad(x, (pad, pad, pad, pad))
    top, left = pad + int(d["down"][i]), pad + int(d["right"][i])
    return padded[:, top : top + x.shape[1], left : left + x.shape[2]]


def cutout(x, i, d):
    out, side = x.clone(), int(x.shape[1] * 0.5 + 0.5)
    for a in range(side):
        for b in range(side):
            row, column = int(d["row"][i]) + a - side // 2, int(d["column"][i]) + b - side // 2
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                out[:, row, column] = 0
    return out


def flip(x, i, d):
    return torch.stack([x[:, :, x.shape[2] - 1 - k] for k in range(x.shape[2])], 2) if d["flip"][i] < 0.5 else x


def warp(x, matrix):
    """Bilinear sampling by hand: output pixel -> source, coordinates in [-1, 1] over pixel areas, zeros outside."""
    size = x.shape[1]
    out = torch.zeros_like(x)
    centre = lambda k: (2 * k + 1) / size - 1  # noqa: E731
    for r in range(size):
        for c in range(size):
            u, v = centre(c), centre(r)
            sx, sy = matrix[0][0] * u + matrix[0][1] * v, matrix[1][0] * u + matrix[1][1] * v
            px, py = ((sx + 1) * size - 1) / 2, ((sy + 1) * size - 1) / 2
            for row in (math.floor(py), math.floor(py) + 1):
                for column in (math.floor(px), math.floor(px) + 1):
                    if 0 <= row < size and 0 <= column < size:
                        out[:, r, c] += (1 - abs(py - row)) * (1 - abs(px - column)) * x[:, row, column]
    return out


def scale(x, i, d):
    low = 1 / 1.2
    sx, sy = (float(d[name][i]) * (1.2 - low) + low for name in ("x", "y"))
    return warp(x, [[sx, 0.0], [0.0, sy]])


def rotate(x, i, d):
    angle = (float(d["angle"][i]) - 0.5) * 2 * 15 * math.pi / 180
    return warp(x, [[math.cos(angle), math.sin(-angle)], [math.sin(angle), math.cos(angle)]])


FORMULAS = {"color": color, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate}


@pytest.mark.parametrize("size", [9, 16])
@pytest.mark.parametrize("group", GROUPS)
def test_each_group_is_its_formula(group: str, size: int) -> None:
    x, dsa = images(size=size), DSA(group)
    for seed in range(5):
        name, drawn = parameters = dsa.sample(len(x), (3, size, size), generator(seed))
        assert name == group
        expected = torch.stack([FORMULAS[group](image, i, drawn) for i, image in enumerate(x)])
        # float32 draws: angles and scales are good to 1e-7
        torch.testing.assert_close(dsa.apply(x, parameters), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("group", "drawn"),
    [
        ("color", {"brightness": 0.5, "saturation": 0.5, "contrast": 0.5}),
        ("crop", {"down": 0, "right": 0}),
        ("flip", {"flip": 0.5}),  # flipped below one half
        ("scale", {"x": (1 - 1 / 1.2) / (1.2 - 1 / 1.2), "y": (1 - 1 / 1.2) / (1.2 - 1 / 1.2)}),
        ("rotate", {"angle": 0.5}),
    ],
)
def test_some_draws_change_nothing(group: str, drawn: dict[str, float]) -> None:
    x = images()
    changed = DSA(group).apply(x, (group, {name: torch.tensor([value]) for name, value in drawn.items()}))
    torch.testing.assert_close(changed, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("group", GROUPS)
def test_one_draw_serves_every_image_of_any_batch(group: str) -> None:
    x, dsa = images(5), DSA(group)
    parameters = dsa.sample(None, (3, 32, 32), generator(2))
    whole = dsa.apply(x, parameters)
    for i in range(5):
        torch.testing.assert_close(dsa.apply(x[i : i + 1], parameters), whole[i : i + 1])
    same = dsa.apply(x[:1].expand(5, -1, -1, -1), parameters)
    assert torch.equal(same, same[:1].expand_as(same))


@pytest.mark.parametrize("group", GROUPS)
def test_draws_of_its_own_differ_between_images(group: str) -> None:
    x, dsa = images(1).expand(16, -1, -1, -1), DSA(group)
    changed = dsa.apply(x, dsa.sample(16, (3, 32, 32), generator(0)))
    assert len({tuple(image.flatten().tolist()) for image in changed}) > 1


@pytest.mark.parametrize("group", GROUPS)
def test_draws_repeat_and_touch_no_global_randomness(group: str) -> None:
    dsa, before = DSA(group), torch.get_rng_state()
    x = images()
    results = [dsa.apply(x, dsa.sample(3, (3, 32, 32), generator(7))) for _ in range(2)]
    assert torch.equal(*results)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("size", "shift", "side"), [(32, 4, 16), (28, 4, 14), (8, 1, 4)])
def test_ranges_are_the_official_ones(size: int, shift: int, side: int) -> None:
    _, drawn = DSA("crop").sample(5000, (3, size, size), generator())
    assert set(drawn["down"].tolist()) == set(drawn["right"].tolist()) == set(range(-shift, shift + 1))
    _, drawn = DSA("cutout").sample(5000, (3, size, size), generator())
    assert set(drawn["row"].tolist()) == set(range(size + 1 - side % 2))
    ones = torch.ones(1, 1, size, size)
    hole = {"row": torch.tensor([size // 2]), "column": torch.tensor([size // 2])}
    assert (DSA("cutout").apply(ones, ("cutout", hole)) == 0).sum() == side**2


def test_each_side_has_a_range_of_its_own() -> None:
    _, drawn = DSA("crop").sample(2000, (3, 32, 8), generator())
    assert (drawn["down"].abs().max(), drawn["right"].abs().max()) == (4, 1)
    _, drawn = DSA("cutout").sample(2000, (3, 32, 8), generator())
    assert (drawn["row"].max(), drawn["column"].max()) == (32, 8)


@pytest.mark.parametrize("group", ["color", "flip", "scale", "rotate"])
def test_other_draws_fill_the_unit_interval(group: str) -> None:
    _, drawn = DSA(group).sample(5000, (3, 8, 8), generator())
    for values in drawn.values():
        assert values.shape == (5000,)
        assert 0 <= values.min() < 0.01
        assert 0.99 < values.max() < 1
        assert abs(values.mean() - 0.5) < 0.02  # five standard deviations


def test_groups_are_drawn_alike() -> None:
    dsa, draws = DSA(CIFAR), generator(3)
    counts = Counter(dsa.sample(None, (3, 32, 32), draws)[0] for _ in range(6000))
    assert set(counts) == set(GROUPS)
    assert all(abs(count - 1000) < 150 for count in counts.values())  # five standard deviations


@pytest.mark.parametrize("group", GROUPS)
def test_twice_differentiable(group: str) -> None:
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, generator=generator(4)).requires_grad_()
    dsa = DSA(group)
    parameters = dsa.sample(None, (2, 5, 5), generator(5))
    assert gradcheck(lambda t: dsa.apply(t, parameters), x)
    assert gradgradcheck(lambda t: dsa.apply(t, parameters), x)


def test_names() -> None:
    assert augmentation("") is None
    assert augmentation("none") is None
    assert augmentation(CIFAR) == DSA(CIFAR)
    assert augmentation("kornia:RandomHorizontalFlip(p=1.0)", (0.5,), (0.2,)) == Kornia(
        "RandomHorizontalFlip(p=1.0)", (0.5,), (0.2,)
    )


POLICY = "kornia:RandomAffine(15, p=1.0)+ColorJiggle(0.1, 0.1, p=1.0)+RandomHorizontalFlip()"


def test_a_kornia_policy_shares_its_draw_between_batches() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    policy = augmentation(POLICY, mean, std)
    assert policy is not None
    shape = torch.tensor(std).view(-1, 1, 1)
    x = (torch.rand(7, 3, 16, 16, generator=generator()) - torch.tensor(mean).view(-1, 1, 1)) / shape
    before = torch.get_rng_state()
    parameters = policy.sample(None, (3, 16, 16), generator(1))
    whole = policy.apply(x, parameters)
    torch.testing.assert_close(policy.apply(x[:4], parameters), whole[:4])
    same = policy.apply(x[:1].expand(5, -1, -1, -1), parameters)
    torch.testing.assert_close(same, same[:1].expand_as(same))
    each = policy.apply(x[:1].expand(5, -1, -1, -1), policy.sample(5, (3, 16, 16), generator(1)))
    assert not torch.allclose(each, each[:1].expand_as(each))
    assert torch.equal(before, torch.get_rng_state())
    pixels = whole * shape + torch.tensor(mean).view(-1, 1, 1)
    assert pixels.min() >= -1e-5
    assert pixels.max() <= 1 + 1e-5  # the colour operation saw pixels, not normalised values


def test_a_kornia_policy_is_the_named_operation_and_differentiable() -> None:
    policy = augmentation("kornia:RandomHorizontalFlip(p=1.0)")
    assert policy is not None
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    flipped = policy.apply(x, policy.sample(None, (3, 8, 8), generator()))
    assert torch.equal(flipped, x.flip(3))
    (gradient,) = torch.autograd.grad((flipped * torch.arange(8.0)).sum(), x)
    assert torch.equal(gradient, torch.arange(8.0).flip(0).expand_as(x))


def test_a_kornia_policy_is_twice_differentiable_and_keeps_the_type() -> None:
    policy = augmentation("kornia:RandomAffine(15, p=1.0)+ColorJiggle(0.1, 0.1, p=1.0)", (0.5,), (0.25,))
    assert policy is not None
    x = images(2, size=8).div(4).requires_grad_()
    changed = policy.apply(x, policy.sample(None, (3, 8, 8), generator()))
    assert changed.dtype == torch.float64
    (gradient,) = torch.autograd.grad(changed.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert second.isfinite().all()
    assert second.abs().max() > 0


@pytest.mark.parametrize(
    ("policy", "channels", "words"),
    [
        ("RandomCrop((4, 4))", 3, "makes images of 3x4x4 from 3x8x8; sizes must stay"),
        ("ColorJiggle(hue=0.1, p=1.0)", 1, "refuses these images"),
    ],
)
def test_images_that_a_kornia_policy_cannot_serve_are_told(policy: str, channels: int, words: str) -> None:
    kornia, before = Kornia(policy), torch.get_rng_state()
    with pytest.raises(InputError, match=words):
        kornia.apply(torch.rand(2, channels, 8, 8, generator=generator()), (True, 0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("colour", "unknown augmentation 'colour'; did you mean 'color'"),
        ("color_flop", "unknown augmentation 'flop'"),
        ("kornia:RandomAfine(15)", "did you mean 'RandomAffine'"),
        ("kornia:nn", "no sum of calls"),
        ("kornia:Module()", "unknown augmentation of kornia 'Module'. Known: ColorJiggle, "),
        ("kornia:AugmentationBase2D()", "unknown augmentation of kornia"),
        ("kornia:RandomMixUpV2()", "unknown augmentation of kornia 'RandomMixUpV2'; did you mean 'RandomCrop'"),
        ("kornia:RandomAffine(__import__('os'))", "no sum of calls"),
        ("kornia:RandomAffine(15", "no sum of calls"),
        ("kornia:RandomAffine(p=1.0)", "refuses its arguments"),
        *((f"kornia:{name}()", "cannot share its draw") for name in NOT_SIAMESE),
        ("kornia:RandomPlasmaBrightness()", "cannot share its draw"),
        ("kornia:RandomClahe()", "passes no gradient"),
    ],
)
def test_other_policies_are_refused(policy: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        augmentation(policy)
