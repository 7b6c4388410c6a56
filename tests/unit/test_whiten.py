"""ZCA whitening: what it makes of the covariance, its inverse, the official formula, its file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from distill.errors import InputError
from distill.training.whiten import Whiten
from robust import Normalize


def images(n: int = 300, channels: int = 2, size: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return pixels that are correlated with one another, and of unlike variances."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(n, channels, size, size, generator=generator, dtype=torch.float64)
    mixed = pixels.flatten(1) @ torch.randn(pixels[0].numel(), pixels[0].numel(), generator=generator).double()
    return (mixed / mixed.std(0).max()).sigmoid().view_as(pixels).to(dtype)


def covariance(x: Tensor) -> Tensor:
    return x.flatten(1).T.cov()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_whitened_covariance_is_the_identity(channels: int) -> None:
    x = images(channels=channels)
    layer = Whiten.fit(x, eps=0.0)
    assert layer(x).shape == x.shape
    assert layer(x).mean(0).abs().max() < 1e-9
    assert (covariance(layer(x)) - torch.eye(16 * channels)).abs().max() < 1e-8
    assert (covariance(x) - torch.eye(16 * channels)).abs().max() > 0.9


def test_eps_damps_small_variances() -> None:
    """The whitened covariance has the eigenvalues S / (S + eps)."""
    x = images()
    variances = torch.linalg.eigvalsh(covariance(x))
    found = torch.linalg.eigvalsh(covariance(Whiten.fit(x, eps=0.1)(x)))
    assert torch.allclose(found, variances / (variances + 0.1))
    assert found.max() < 0.7


@pytest.mark.parametrize("n", [300, 20])  # 20 images of 32 pixels: most variances are 0
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_inverse_inverts(n: int, dtype: torch.dtype) -> None:
    x = images(n, dtype=dtype)
    layer, others = Whiten.fit(x), images(7).to(dtype) * 3 - 1  # pixels need not be in [0, 1]
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    assert layer(others).dtype == dtype
    assert (layer.inverse(layer(others)) - others).abs().max() < tolerance
    assert (layer(layer.inverse(others)) - others).abs().max() < tolerance
    assert (layer.matrix - layer.matrix.T).abs().max() < tolerance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_the_official_formula(dtype: torch.dtype) -> None:
    """MTT: kornia.enhance.ZCAWhitening(eps=0.1, compute_inv=True), fitted on raw pixels."""
    from kornia.enhance import ZCAWhitening

    x = images(dtype=dtype)
    ours, theirs = Whiten.fit(x), ZCAWhitening(eps=0.1, compute_inv=True).fit(x)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    assert (ours(x) - theirs(x)).abs().max() < tolerance
    assert (ours.inverse(x) - theirs.inverse_transform(x)).abs().max() < tolerance


def test_a_file_gives_the_same_layer(tmp_path: Path) -> None:
    x = images(dtype=torch.float32)
    layer = Whiten.fit(x)
    layer.save(tmp_path / "a.safetensors")
    again = Whiten.load(tmp_path / "a.safetensors")
    assert torch.equal(again(x), layer(x))
    assert torch.equal(again.inverse(x), layer.inverse(x))
    assert again.to(torch.float64)(x.double()).dtype == torch.float64
    assert [name for name, _ in again.named_parameters()] == []
    assert set(again.state_dict()) == {"mean", "matrix", "unmatrix"}


def test_gradients_pass() -> None:
    """The layer is linear: <v, W x> has the gradient W^T v."""
    x, v = images(5).requires_grad_(), images(5) - 0.5
    layer = Whiten.fit(images())
    (gradient,) = torch.autograd.grad((layer(x) * v).sum(), x)
    assert torch.allclose(gradient.flatten(1), v.flatten(1) @ layer.matrix)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"eps is -1\.0"):
        Whiten.fit(images(), eps=-1.0)
    with pytest.raises(InputError, match="at least 2 images"):
        Whiten.fit(images()[:1])
    with pytest.raises(InputError, match="at least 2 images"):
        Whiten.fit_normalised(images()[:1], Normalize([0.5] * 2, [0.2] * 2))
    with pytest.raises(InputError, match="ZCA of 3x65x65 images needs a matrix of 12675"):
        Whiten.fit(torch.zeros(2, 3, 65, 65))
    with pytest.raises(InputError, match="there is no file"):
        Whiten.load(tmp_path / "none.safetensors")
    from distill.runs.files import write_tensors

    write_tensors(tmp_path / "other.safetensors", {"mean": torch.zeros(3)})
    with pytest.raises(InputError, match="is no whitening: it has mean"):
        Whiten.load(tmp_path / "other.safetensors")
