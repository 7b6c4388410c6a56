"""ZCA whitening as the first layer of a model, so that images outside it are pixels in [0, 1].

    whitened = W (x - mean),   W = U (S + eps)^(-1/2) U^T,   covariance of the training pixels = U S U^T

As in the official code of MTT, by kornia with eps 0.1: whole images as vectors of C H W pixels, covariance over N - 1,
no normalisation before. The whitened covariance is S / (S + eps). This is the identity only for a small eps; at 0.1, in
pixels, most directions are merely stretched by 1 / sqrt(0.1) = 3.2.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.data.images import Images
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.runs.files import read_tensors, write_tensors
from distill.runs.foreign import brief
from distill.runs.own_files import companion_path
from robust import Normalize

__all__ = ["Whiten", "preprocessing", "ridge_zca"]

LARGEST = 3 * 64 * 64
"""most numbers of an image, for which the square matrix (600 MB) and its eigenvectors are affordable"""
RIDGE = 0.1
"""regularisation of FRePo and KIP, in units of the mean variance"""
PART = 1024
"""images that are normalised at a time"""


class Whiten(nn.Module):
    """W (x - mean) for images (N, C, H, W); made by `fit` or `load`.

    Args:
        mean: (D,), D = C H W, pixels.
        matrix: (D, D), by which images, as rows, are multiplied; symmetric if `fit` made it.
        unmatrix: (D, D), the inverse of `matrix`.

    >>> import torch
    >>> generator = torch.Generator().manual_seed(0)
    >>> x = torch.rand(100, 1, 2, 2, generator=generator, dtype=torch.float64)
    >>> layer = Whiten.fit(x, eps=0.0)
    >>> bool(torch.allclose(layer(x).flatten(1).T.cov(), torch.eye(4, dtype=torch.float64)))
    True
    >>> bool(torch.allclose(layer.inverse(layer(x)), x))
    True
    """

    mean: Tensor
    matrix: Tensor
    unmatrix: Tensor

    def __init__(self, mean: Tensor, matrix: Tensor, unmatrix: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("matrix", matrix)
        self.register_buffer("unmatrix", unmatrix)

    @classmethod
    def fit(cls, images: Tensor, eps: float = 0.1) -> "Whiten":
        """Return the whitening of a training set.

        Args:
            images: (N, C, H, W) pixels in [0, 1], N >= 2.
            eps: added to the variances, squared pixels, >= 0.

        Returns:
            the layer, with the device and dtype of the images.

        Raises:
            ValueError: eps is negative.
            InputError: too few images, or images too large for a matrix of all their pixels.
        """
        if not eps >= 0:
            raise ValueError(f"eps is {eps}; it must be >= 0")
        _check(len(images), images[0].numel(), f"{'x'.join(map(str, images.shape[1:]))} images")
        from kornia.enhance import zca_mean  # slow to import, and only needed here

        matrix, mean, unmatrix = zca_mean(images, eps=float(eps), return_inverse=True)
        assert unmatrix is not None  # because of return_inverse
        return cls(mean[0], matrix, unmatrix)

    @classmethod
    def fit_normalised(cls, images: Images, normalize: Normalize) -> "Whiten":
        """Return normalisation by channel and then the whitening of FRePo's official code, as one layer.

        Args:
            images: (N, C, H, W) pixels in [0, 1], a tensor or in files.
            normalize: the normalisation, (x - m) / s.

        Returns:
            (x - m) / s, less its mean, times W of `ridge_zca`; on the CPU, with the dtype of the normalised images.

        Raises:
            InputError: too few images, or images too large for a matrix of all their pixels.
        """
        count, device, sample = len(images), normalize.mean.device, images[:1]

        def rows() -> Iterator[Tensor]:
            return (normalize(part.to(device)).cpu().double().flatten(1) for part in images.split(PART))

        centre = sum(part.sum(0) for part in rows()) / count
        matrix, unmatrix = ridge_zca((part - centre for part in rows()), sample.numel(), count)
        std = normalize.std.cpu().double().expand(sample.shape[1:]).flatten()
        mean = centre * std + normalize.mean.cpu().double().expand(sample.shape[1:]).flatten()
        return cls(*(t.to(sample.dtype) for t in (mean, matrix / std[:, None], unmatrix * std)))

    def forward(self, images: Tensor) -> Tensor:
        """Return whitened images, (N, C, H, W) -> (N, C, H, W)."""
        return ((images.flatten(1) - self.mean) @ self.matrix).view_as(images)

    def inverse(self, whitened: Tensor) -> Tensor:
        """Return the pixels of whitened images, not clamped."""
        return (whitened.flatten(1) @ self.unmatrix + self.mean).view_as(whitened)

    def extra_repr(self) -> str:
        """Show the size."""
        return f"pixels={len(self.mean)}"

    def save(self, path: Path) -> None:
        """Write the layer as safetensors, atomically."""
        write_tensors(path, dict(self.named_buffers()), {"whiten": json.dumps({"pixels": len(self.mean)})})

    @classmethod
    def load(cls, path: Path) -> "Whiten":
        """Return the layer of a file, on the CPU.

        Raises:
            InputError: there is no such file, or it holds something else.
        """
        tensors, _ = read_tensors(path)
        if set(tensors) != {"mean", "matrix", "unmatrix"}:
            raise InputError(f"{path} is no whitening: it has {brief(', '.join(sorted(tensors))) or 'no tensors'}")
        shapes, size = {name: tuple(tensor.shape) for name, tensor in tensors.items()}, tensors["mean"].numel()
        if shapes != {"mean": (size,), "matrix": (size, size), "unmatrix": (size, size)}:
            raise InputError(f"{path} is no whitening: mean, matrix and unmatrix are {list(shapes.values())}")
        return cls(**tensors)


def ridge_zca(parts: Iterator[Tensor], size: int, count: int) -> tuple[Tensor, Tensor]:
    """Return W = U (S + 0.1 tr(S) / D)^(-1/2) U^T and its inverse, of centred rows: the ZCA of FRePo's and KIP's code.

    Args:
        parts: the rows in batches, (n, D) float64.
        size: D.
        count: N, the number of rows, by which the covariance is divided; for N < D, directions without data are not
            scaled.

    Returns:
        two matrices (D, D), float64.

    Raises:
        InputError: too few rows, or rows too long for such a matrix.
    """
    _check(count, size, f"images of {size:,} numbers")
    covariance = torch.zeros(size, size, dtype=torch.float64)
    for part in parts:
        covariance.addmm_(part.T, part)
    covariance /= count
    covariance.diagonal().add_(RIDGE * covariance.trace() / size)
    values, vectors = torch.linalg.eigh(covariance)
    if count < size:
        values[: size - count] = 1.0
    return (vectors * values.rsqrt()) @ vectors.T, (vectors * values.sqrt()) @ vectors.T


def _check(count: int, size: int, what: str) -> None:
    """Refuse images without a covariance, or with one that is too large."""
    if count < 2:
        raise InputError(f"ZCA needs at least 2 images to have a covariance, but there is {count}")
    if size > LARGEST:
        raise InputError(f"ZCA of {what} needs a matrix of {size}²; take --no-zca or another --image-size")


def preprocessing(distilled: DistilledSet, folder: Path) -> Normalize | Whiten:
    """Return the first layer of students that are trained by the protocol of the method which made a set.

    Args:
        distilled: the set; its `training.whitening` may name the file of a `Whiten`.
        folder: of the set's file, to which that name is relative.

    Returns:
        from pixels to the input of a student's network: that whitening, on the CPU, or the set's normalisation.

    Raises:
        InputError: the file is missing, holds something else, or is neither in that folder nor a stage of our runs.
    """
    if distilled.training.whitening is not None:
        path = companion_path(folder, distilled.training.whitening, "whitening")
        layer = Whiten.load(path)
        if len(layer.mean) != distilled.images.shape[1:].numel():
            raise InputError(f"{path} is a whitening of {len(layer.mean)} numbers, which the images do not have")
        return layer
    return Normalize(distilled.mean, distilled.std)
