"""Common corruptions at five severities: the kinds of CIFAR-10-C (Hendrycks & Dietterich 2019, arXiv 1903.12261).

`COMMON` names the fifteen of the benchmark; `saturate`, one of the authors' four extra kinds, is here too, for colour
images. Levels are those of the authors' code for 32 px (hendrycks/robustness, make_cifar_c.py). Lengths (radii,
displacements, flakes) grow with the side of the image above that. Each example has its own random stream, so that its
damage does not depend on the batch.

Deviations: frost is a texture made here, not one of the authors' pictures of ice (see `frost`); the blurs' kernels are
sampled bilinearly; fog is a sum of octaves of noise in place of the diamond-square fractal; nothing is rounded to 8
bits between two steps; a grey pixel stays grey when saturated (theirs turns red); JPEG is Pillow's.
"""

import io
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from robust.attacks.pgd import check_pixels

__all__ = ["COMMON", "CORRUPTIONS", "SEVERITIES", "corrupt", "corruptions_for"]

SEVERITIES = (1, 2, 3, 4, 5)

Streams = Sequence[torch.Generator]


def corrupt(images: Tensor, name: str, severity: int, generator: torch.Generator | None = None) -> Tensor:
    """Return damaged images.

    Args:
        images: (N, C, H, W) pixels in [0, 1].
        name: of CORRUPTIONS.
        severity: 1 to 5.
        generator: CPU generator of the damage; None is torch's default.

    Returns:
        (N, C, H, W) in [0, 1].

    Raises:
        ValueError: an unknown name or severity, images outside [0, 1] or not (N, C, H, W), or saturation of grey ones.
        ModuleNotFoundError: `jpeg` without Pillow.

    >>> grey = torch.full((1, 1, 2, 2), 0.5)
    >>> round(corrupt(grey, "brightness", 5).max().item(), 3)
    0.8
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"unknown corruption {name!r}; choose from {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity is {severity}; choose from {', '.join(map(str, SEVERITIES))}")
    check_pixels(images)
    if images.ndim != 4:
        raise ValueError(f"images are {tuple(images.shape)}; corruptions take (N, C, H, W)")
    if name not in corruptions_for(images.shape[1]):
        raise ValueError(f"{name} does nothing to grey images; choose from {', '.join(corruptions_for(1))}")
    seeds = torch.randint(2**62, (len(images),), generator=generator).tolist()
    if not seeds:
        return images.clone()
    damage, levels = CORRUPTIONS[name]
    with torch.no_grad():
        return damage(images, [torch.Generator().manual_seed(s) for s in seeds], *levels[severity - 1]).clamp(0.0, 1.0)


def corruptions_for(channels: int) -> tuple[str, ...]:
    """Return the names of those that change images of so many channels."""
    return tuple(name for name in CORRUPTIONS if name != "saturate" or channels > 1)


# --- noise


def gaussian_noise(images: Tensor, streams: Streams, sigma: float) -> Tensor:
    """Add normal noise of standard deviation sigma."""
    return images + sigma * _normal(images, streams)


def shot_noise(images: Tensor, streams: Streams, photons: float) -> Tensor:
    """Count photons: Poisson with mean pixel x photons, over photons."""
    counts = [torch.poisson(x * photons, generator=g) for x, g in zip(images.cpu(), streams, strict=True)]
    return torch.stack(counts).to(images) / photons


def impulse_noise(images: Tensor, streams: Streams, share: float) -> Tensor:
    """Set a share of the values to 0 or 1, salt and pepper."""
    draws = _uniform(images, streams)
    return torch.where(draws < share, (draws < share / 2).to(images), images)


# --- blur


def defocus_blur(images: Tensor, streams: Streams, radius: float, soft: float) -> Tensor:
    """Blur by a disk whose edge is softened by a normal kernel of three pixels."""
    radius = radius * _scale(images)
    reach = math.ceil(radius)
    at = torch.arange(-reach, reach + 1, dtype=torch.float32)
    disk = (at[:, None].square() + at.square() <= radius**2).float()
    kernel = F.conv2d((disk / disk.sum())[None, None], _normal_kernel(1, soft)[None, None], padding=2)[0, 0]
    return _filter(images, kernel)


def glass_blur(images: Tensor, streams: Streams, sigma: float, reach: int, passes: int) -> Tensor:
    """Blur, let pixels take the value of a random pixel up to `reach` away, blur again.

    As in the authors' data: their loop means to swap two pixels, but for colour images it copies one over the other
    (both sides of the assignment are views of one array), displacements run from -reach to reach - 1, and a border of
    `reach` pixels stays. Deviation above 32 px, where reach > 1: all pixels of a pass take their values at once.

    Returns:
        (N, C, H, W).
    """
    scale, (height, width) = _scale(images), images.shape[2:]
    reach, sigma = round(reach * scale), sigma * scale
    kernel = _normal_kernel(max(1, int(4 * sigma + 0.5)), sigma)
    result = _filter(images, kernel)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    inner = (rows > reach) & (rows <= height - reach) & (columns > reach) & (columns <= width - reach)
    for _ in range(passes):
        moves = torch.stack([torch.randint(-reach, reach, (2, height, width), generator=g) for g in streams]) * inner
        source = (rows + moves[:, 0]) * width + columns + moves[:, 1]
        at = source.flatten(1)[:, None].expand(-1, images.shape[1], -1).to(images.device)
        result = result.flatten(2).gather(2, at).view_as(images)
    return _filter(result, kernel)


def motion_blur(images: Tensor, streams: Streams, radius: float, sigma: float) -> Tensor:
    """Drag each image one way, at an angle of -45 to 45 degrees, with weights that fall off by sigma."""
    angles = torch.stack([torch.rand((), generator=g) for g in streams]).to(images) * math.pi / 2 - math.pi / 4
    return _drag(images, angles, math.ceil(radius * _scale(images)), sigma * _scale(images))


def zoom_blur(images: Tensor, streams: Streams, largest: float, step: float) -> Tensor:
    """Average the image with itself enlarged in steps."""
    factors = torch.arange(1.0, largest + step / 2, step).tolist()
    zoomed = sum(_warp(images, _affine(images, zoom=factor)) for factor in factors)
    return (images + zoomed) / (1 + len(factors))


# --- weather and light


def snow(
    images: Tensor,
    streams: Streams,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    share: float,
) -> Tensor:
    """Whiten the image and let flakes fall over it, dragged down at an angle of -135 to -45 degrees.

    Flakes are normal noise, enlarged by `zoom`, where it is above the threshold; they are added twice, once turned by
    180 degrees. Each pixel keeps `share` of itself; the rest is the brighter of itself and 1.5 x its grey value + 0.5.

    Returns:
        (N, C, H, W).
    """
    scale, (height, width) = _scale(images), images.shape[2:]
    noise = [torch.randn(1, height, width, generator=g) for g in streams]
    angles = -torch.stack([torch.rand((), generator=g) for g in streams]).to(images) * math.pi / 2 - math.pi / 4
    layer = mean + deviation * torch.stack(noise).to(images)
    layer = _warp(layer, _affine(layer, zoom=zoom * scale))
    layer = torch.where(layer < threshold, 0.0, layer).clamp(0.0, 1.0)
    layer = _drag(layer, angles, 2 * math.ceil(radius * scale), sigma * scale)
    white = share * images + (1 - share) * torch.maximum(images, 1.5 * _grey(images) + 0.5)
    return white + layer + layer.flip(2, 3)


def frost(images: Tensor, streams: Streams, share: float, ice: float) -> Tensor:
    """Dim the image to a share and add ice: share x image + ice x texture.

    The weights are the authors', the texture is not: theirs is a random crop of one of five photographs, ours is made
    here, so that nothing has to be downloaded. It is noise in streaks, with what was measured on their pictures at
    their scale for 32 px: mean grey 0.48 to 0.81, standard deviation within 32 x 32 pixels 0.04 to 0.11, power that
    falls with an exponent of 2.0 to 2.8, blue above red by 0.05 to 0.35.

    Returns:
        (N, C, H, W).
    """
    channels, height, width = images.shape[1:]
    texture = torch.stack([_ice(channels, height, width, g) for g in streams]).to(images)
    return share * images + ice * texture


def fog(images: Tensor, streams: Streams, strength: float, decay: float) -> Tensor:
    """Lay a cloud over the image and scale its brightest value back to where it was."""
    side = images.shape[-1]
    cloud, size, weight = torch.zeros(len(images), 1, *images.shape[2:]), 2, 1.0
    while size <= side:
        noise = torch.stack([torch.rand(1, size, size, generator=g) for g in streams])
        cloud += weight * F.interpolate(noise, images.shape[2:], mode="bilinear", align_corners=True)
        size, weight = 2 * size, weight / decay
    low, high = cloud.amin((1, 2, 3), keepdim=True), cloud.amax((1, 2, 3), keepdim=True)
    brightest = images.amax((1, 2, 3), keepdim=True)
    foggy = images + strength * ((cloud - low) / (high - low).clamp_min(1e-12)).to(images)
    return foggy * brightest / (brightest + strength)


def brightness(images: Tensor, streams: Streams, more: float) -> Tensor:
    """Add to the value of HSV, hue and saturation kept."""
    value = images.amax(1, keepdim=True)
    return torch.where(value > 0, images / value.clamp_min(1e-12), 1.0) * (value + more).clamp_max(1.0)


def contrast(images: Tensor, streams: Streams, factor: float) -> Tensor:
    """Pull each channel towards its mean."""
    mean = images.mean((2, 3), keepdim=True)
    return mean + factor * (images - mean)


def saturate(images: Tensor, streams: Streams, factor: float, more: float) -> Tensor:
    """Scale and shift the saturation of HSV, hue and value kept."""
    value, least = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    saturation = (value - least) / value.clamp_min(1e-12)
    wanted = (factor * saturation + more).clamp(0.0, 1.0)
    ratio = torch.where(saturation > 0, wanted / saturation.clamp_min(1e-12), 1.0)
    return value - ratio * (value - images)


# --- digital


def elastic_transform(images: Tensor, streams: Streams, strength: float, smooth: float, corner: float) -> Tensor:
    """Move three corners at random, and every pixel by a smooth random field; all in shares of the side."""
    n, side = len(images), images.shape[-1]
    moves = torch.stack([torch.rand(3, 2, generator=g) for g in streams]).to(images) * 2 - 1
    grid = _affine(images, corners=2 * corner * moves)
    if strength:
        field = torch.stack([torch.rand(2, *images.shape[2:], generator=g) for g in streams]).to(images) * 2 - 1
        sigma = max(smooth * side, 0.3)
        field = _filter(field, _normal_kernel(math.ceil(3 * sigma), sigma))
        grid = grid + 2 * strength * field.permute(0, 2, 3, 1)
    return _warp(images, grid.view(n, *images.shape[2:], 2))


def pixelate(images: Tensor, streams: Streams, share: float) -> Tensor:
    """Shrink to a share of the side and enlarge again, without smoothing."""
    small = [max(1, int(side * share)) for side in images.shape[2:]]
    return F.interpolate(F.interpolate(images, small, mode="area"), images.shape[2:], mode="nearest")


def jpeg(images: Tensor, streams: Streams, quality: int) -> Tensor:
    """Encode as JPEG and decode."""
    import numpy  # optional, with Pillow
    from PIL import Image

    decoded = []
    for x in (255 * images).round().byte().cpu():
        file = io.BytesIO()
        picture = Image.fromarray(x[0].numpy() if len(x) == 1 else x.permute(1, 2, 0).numpy())
        picture.save(file, "JPEG", quality=quality)
        pixels = torch.from_numpy(numpy.array(Image.open(file)))
        decoded.append(pixels[None] if len(x) == 1 else pixels.permute(2, 0, 1))
    return torch.stack(decoded).to(images) / 255


Levels = Sequence[Sequence[float]]

COMMON = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg",
)
"""the fifteen kinds that a mean corruption error is over, in the order of the paper's tables"""

CORRUPTIONS: dict[str, tuple[Callable[..., Tensor], Levels]] = {
    "gaussian_noise": (gaussian_noise, [(0.04,), (0.06,), (0.08,), (0.09,), (0.10,)]),
    "shot_noise": (shot_noise, [(500,), (250,), (100,), (75,), (50,)]),
    "impulse_noise": (impulse_noise, [(0.01,), (0.02,), (0.03,), (0.05,), (0.07,)]),
    "defocus_blur": (defocus_blur, [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)]),
    "glass_blur": (glass_blur, [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)]),
    "motion_blur": (motion_blur, [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)]),
    "zoom_blur": (zoom_blur, [(1.05, 0.01), (1.10, 0.01), (1.15, 0.01), (1.20, 0.01), (1.25, 0.01)]),
    "snow": (
        snow,
        [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
    ),
    "frost": (frost, [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)]),
    "fog": (fog, [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)]),
    "brightness": (brightness, [(0.05,), (0.10,), (0.15,), (0.20,), (0.30,)]),
    "contrast": (contrast, [(0.75,), (0.50,), (0.40,), (0.30,), (0.15,)]),
    "saturate": (saturate, [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)]),
    "elastic_transform": (
        elastic_transform,
        [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
    ),
    "pixelate": (pixelate, [(0.95,), (0.90,), (0.85,), (0.75,), (0.65,)]),
    "jpeg": (jpeg, [(80,), (65,), (58,), (50,), (40,)]),
}
"""name -> (damage, its parameters at severities 1 to 5)"""


def _scale(images: Tensor) -> float:
    """Return how much longer lengths are than on 32 px; on smaller images they stay, or nothing would be left."""
    return max(1.0, images.shape[-1] / 32)


def _grey(images: Tensor) -> Tensor:
    """Return (N, 1, H, W): luma of three channels, else their mean."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def _ice(channels: int, height: int, width: int, stream: torch.Generator) -> Tensor:
    """Return a texture of ice (channels, height, width) in [0, 1]; see `frost`."""
    level, contrast, tint, angle = torch.rand(4, generator=stream).tolist()
    noise = torch.randn(height, width, generator=stream)
    down = torch.fft.fftfreq(height)[:, None] * max(height, width)
    across = torch.fft.rfftfreq(width) * max(height, width)
    turn = math.pi * angle
    along, over = across * math.cos(turn) + down * math.sin(turn), down * math.cos(turn) - across * math.sin(turn)
    distance = ((2 * along).square() + (over / 2).square()).sqrt().clamp_min(1.0)  # streaks, four times as long as wide
    field = torch.fft.irfft2(torch.fft.rfft2(noise) * distance**-1.1, s=(height, width))  # the power falls by 2.2
    field = (field - field.mean()) / field.std().clamp_min(1e-12)
    grey = (0.48 + 0.33 * level) + (0.04 + 0.07 * contrast) * field
    if channels == 3:
        grey = grey + (0.05 + 0.3 * tint) * torch.tensor([-0.6, 0.2, 0.4])[:, None, None]
    return grey.expand(channels, height, width).clamp(0.0, 1.0)


def _normal(images: Tensor, streams: Streams) -> Tensor:
    return torch.stack([torch.randn(images.shape[1:], generator=g) for g in streams]).to(images)


def _uniform(images: Tensor, streams: Streams) -> Tensor:
    return torch.stack([torch.rand(images.shape[1:], generator=g) for g in streams]).to(images)


def _normal_kernel(reach: int, sigma: float) -> Tensor:
    at = torch.arange(-reach, reach + 1, dtype=torch.float32)
    line = torch.exp(-at.square() / (2 * sigma**2))
    kernel = line[:, None] * line
    return kernel / kernel.sum()


def _filter(images: Tensor, kernel: Tensor) -> Tensor:
    """Return every channel filtered, the border repeated, (N, C, H, W) -> (N, C, H, W)."""
    reach = len(kernel) // 2
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    weight = kernel.to(images).expand(images.shape[1], 1, *kernel.shape)
    return F.conv2d(padded, weight, groups=images.shape[1])


def _drag(images: Tensor, angles: Tensor, reach: int, sigma: float) -> Tensor:
    """Return each image dragged by 0 to `reach` pixels along its angle (N,), with weights of a half normal."""
    weights = torch.exp(-(torch.arange(reach + 1) ** 2) / (2 * sigma**2))
    result = torch.zeros_like(images)
    for step, weight in enumerate((weights / weights.sum()).tolist()):
        result += weight * _warp(images, _affine(images, shift=step * torch.stack([angles.cos(), angles.sin()], 1)))
    return result


def _affine(images: Tensor, *, shift: Tensor | None = None, zoom: float = 1.0, corners: Tensor | None = None) -> Tensor:
    """Return a sampling grid (N, H, W, 2): enlarged, shifted by pixels (N, 2), or three corners moved (N, 3, 2)."""
    n, side = len(images), images.shape[-1]
    theta = torch.eye(2, 3, device=images.device, dtype=images.dtype).repeat(n, 1, 1) / zoom
    if shift is not None:
        theta[:, :, 2] += 2 * shift / side
    if corners is not None:  # of the map that takes (-1, -1), (1, -1), (-1, 1) to themselves, moved
        theta[:, :, 0] += (corners[:, 1] - corners[:, 0]) / 2
        theta[:, :, 1] += (corners[:, 2] - corners[:, 0]) / 2
        theta[:, :, 2] += (corners[:, 1] + corners[:, 2]) / 2
    return F.affine_grid(theta, list(images.shape), align_corners=False)


def _warp(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
