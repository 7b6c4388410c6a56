"""The coordinates of images in published sets, and their conversion to pixels.

pixels       as they are
normalised   (x - mean) / std by channel; the constants differ between codes
whitened     mtt    W (x - mean), kornia's ZCA with eps 0.1 on pixels (`distill.training.whiten`)
             frepo  W ((x - mean) / std - m), W = U (S + 0.1 tr(S) / D)^(-1/2) U^T of the normalised training images
             kip    W u, where u is the normalised image minus its mean, divided by its norm; W as for frepo, of u

A whitening is fitted on the real training images. Those of mtt and frepo are affine, so that students of --protocol own
can have them as their first layer. KIP's whitening loses the mean and the contrast of each image: the conversion gives
every image the average mean and contrast of the training images, which hardly matters to a network with normalisation
layers.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.data import ImageSet, facts_named
from distill.data.facts import CODES, Constants
from distill.data.images import Images
from distill.errors import InputError
from distill.training.whiten import Whiten, ridge_zca
from robust import Normalize

__all__ = ["WHITENED", "Constants", "ambiguous_space", "constants", "contradictions", "pixels_of"]

WHITENED = ("mtt", "frepo", "kip")
"""codes that whiten"""
EXACT = ("mtt", "ours", "hf")
"""formats whose pixels may be far outside [0, 1]: images_zca_*.pt were whitened, our exports are exact"""
SMOOTH = 0.7
"""correlation of neighbouring pixels above which real images are photographs"""
LIKE_WHITENED, LIKE_NORMALISED = 0.62, 0.73
"""correlation of a set, relative to that of the real images, below which it looks whitened and above which normalised.
In 15 files of CIFAR-10 that MTT's code whitened it is .53 to .72, in 19 that DC's code normalised .73 to .98"""


def constants(source: str, real: ImageSet) -> tuple[Constants, str]:
    """Return the mean and std with which a code normalises a data set, and a description of them for a message.

    KIP uses the statistics of the training images.
    """
    if source == "kip":
        parts = [torch.var_mean(part.double(), (2, 3), correction=0) for part in real.images.split(1024)]
        variances, means = (torch.cat(one) for one in zip(*parts, strict=True))
        std = (variances.mean(0) + means.var(0, correction=0)).sqrt()
        return (tuple(means.mean(0).tolist()), tuple(std.tolist())), "the statistics of the training images"
    own = facts_named(real.name).constants
    known = own.get(source) or (own.get("dc") if source == "cafe" else None)
    if known:
        return known, f"the constants of {source}'s code"
    ours = f"our constants of {real.name}"
    return (real.mean, real.std), f"{ours}, which {source}'s code does not have" if source in CODES else ours


def pixels_of(
    images: Images, source: str, space: str, real: ImageSet, folder: Path
) -> tuple[Images, Constants, str | None, str]:
    """Return images in pixels.

    Args:
        images: (N, C, H, H) as in the file.
        source: the code that made them.
        space: "pixels", "normalised" or "whitened".
        real: the training set, at that size.
        folder: of the new set; the whitening is written there, for students of --protocol own.

    Returns:
        the pixels; mean and std of students; the name of the whitening's file, None without a whitening that a network
        can have as a layer; and a description for a message.

    Raises:
        InputError: images too large for a whitening.
    """
    if space == "pixels":
        return images, (real.mean, real.std), None, "pixels as they are"
    (mean, std), origin = constants(source, real)
    values = images[:]
    if space == "normalised":
        numbers = " and ".join(" ".join(f"{value:.4g}" for value in values) for values in (mean, std))
        return Normalize(mean, std).inverse(values), (mean, std), None, f"normalised with {origin}, {numbers}"
    fitted = f"whitened, undone by the ZCA of the {len(real):,} training images of {real.name}"
    if source == "mtt":
        layer = Whiten.fit(real.in_memory().images[:].cpu())
    elif source == "frepo":
        layer = Whiten.fit_normalised(real.images, Normalize(mean, std))
    else:
        pixels = _kip_pixels(values, real, mean, std)
        return pixels, (mean, std), None, f"{fitted}; each image got their average mean and contrast (KIP drops both)"
    layer.save(folder / "whitening.safetensors")
    return layer.inverse(values), (mean, std), "whitening.safetensors", f"{fitted} ({source}'s)"


def _kip_pixels(images: Tensor, real: ImageSet, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    normalize, norms = Normalize(mean, std), []

    def directions() -> Iterator[Tensor]:
        for part in real.images.split(1024):
            flat = normalize(part.cpu()).double().flatten(1)
            flat = flat - flat.mean(1, keepdim=True)
            norms.append(flat.norm(dim=1))
            yield flat / norms[-1][:, None].clamp(min=1e-12)

    _, unmatrix = ridge_zca(directions(), images[0].numel(), len(real))
    back = images.flatten(1).double() @ unmatrix * torch.cat(norms).mean()  # their mean is 0
    return normalize.inverse(back.float().view_as(images))


# --- contradictions -------------------------------------------------------------------------------------------------


def contradictions(
    images: Images, pixels: Images, source: str, space: str, determined: bool, real: ImageSet
) -> list[str]:
    """Return warnings that the values do not look like those of a space, each with the flag to give instead.

    Args:
        images: as in the file.
        pixels: the images after the conversion.
        source: the code that made them.
        space: in which they were read.
        determined: whether the format or the name of the file determines the space.
        real: the training set.
    """
    if not isinstance(images, Tensor) or not isinstance(pixels, Tensor):  # in files: a sample of a thousand
        images = pixels = images[torch.arange(1000) * len(images) // 1000]
    low, high = images.min().item(), images.max().item()
    if space == "pixels" and low >= 0 and high > 2:
        return [f"values go from {low:.3g} to {high:.3g}: bytes rather than pixels in [0, 1]; divide them by 255"]
    if space != "pixels" and low >= 0 and high <= 1:
        return [f"all values are in [0, 1]: pixels, not {space} images; --space pixels?"]
    outside = ((images < -0.05) | (images > 1.05)).float().mean().item()
    if space == "pixels" and outside > 0.05 and not (source in EXACT and determined):
        return [f"{outside:.0%} of the values are outside [0, 1]: no pixels; --space normalised or whitened?"]
    some = _some(real)
    ours, usual = _smoothness(images), _smoothness(some)
    far = ((pixels < -1) | (pixels > 2)).float().mean().item()
    if space != "pixels" and source == "mtt" and usual > SMOOTH:
        line = f"neighbouring values correlate by {ours:.2f}, real pixels by {usual:.2f}"
        if space == "normalised" and ours < LIKE_WHITENED * usual:
            return [f"{line}: as of whitened images; --space whitened?"]
        if space == "whitened" and ours > LIKE_NORMALISED * usual:
            return [f"{line}: as of normalised images; --space normalised?"]
    elif space != "pixels" and far > 0.25:
        return [f"{far:.0%} of the pixels are outside [-1, 2]: not {space}, or a set that diverged; --space?"]
    contrast, natural = _contrast(pixels), _contrast(some)
    if contrast < 0.4 * natural:
        return [f"pixels vary by {contrast:.2g}, real ones by {natural:.2g}: another space than {space}? See --space"]
    return []


def ambiguous_space(path: Path, images: Images, real: ImageSet, source: str) -> InputError:
    """Make the error for a set that may be in several spaces, with numbers that help to choose one."""
    values = images[:]
    span = f"from {values.min():.3g} to {values.max():.3g}"
    if source not in WHITENED:
        return InputError(
            f"{path} does not tell the scale of its images, and values {span} are "
            f"no pixels in [0, 1]: give --space normalised (by the mean and std of {real.name}) or --space pixels"
        )
    ours, usual = _smoothness(values), _smoothness(_some(real))
    return InputError(
        f"{path} does not say whether it is normalised or whitened (ZCA), and a wrong guess would spoil it: give "
        f"--space normalised or --space whitened. Neighbouring values correlate by {ours:.2f}, pixels of {real.name} "
        f"by {usual:.2f}; whitening takes about a third of that or more"
    )


def _some(real: ImageSet) -> Tensor:
    count = min(1000, len(real))
    return real.images[torch.arange(count) * len(real) // count].cpu()


def _contrast(images: Tensor) -> float:
    return images.std((0, 2, 3)).mean().item()


def _smoothness(images: Tensor) -> float:
    """Return the correlation of neighbouring values within channels, after their mean is subtracted."""
    centred = images - images.mean((2, 3), keepdim=True)
    pairs = ((centred[..., 1:], centred[..., :-1]), (centred[..., 1:, :], centred[..., :-1, :]))
    return sum(F.cosine_similarity(a.flatten(), b.flatten(), 0).item() for a, b in pairs) / 2
