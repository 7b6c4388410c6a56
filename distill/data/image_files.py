"""Images that stay in their files until they are used, for sets that are too large for memory."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill.data.blur import blurred
from distill.data.damaged import refusal
from distill.data.decode import Paths, as_bytes, decode_file, reason, scaled
from distill.data.threads import file_bar, in_threads
from distill.errors import InputError
from distill.runs.files import hash_of

__all__ = [
    "ENDINGS",
    "LIMIT",
    "ImageFiles",
    "View",
    "read_all",
]

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
"""suffixes of image files, in lower case"""
View = Literal["crop", "square"]
"""how an image is cropped and resized: crop as in ImageNet's evaluation; square is the central square, resized by the
mean over areas (Pillow's BOX)"""

LIMIT = 8 * 2**30
"""largest size in bytes of images in memory"""
_CPU = torch.device("cpu")
_ALL = 20_000
"""largest number of files of which all contents are hashed"""
_SAMPLE = 2000
"""number of files whose contents are hashed in a larger set: all of ImageNet would take as long as an epoch"""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files used like a tensor (N, channels, size, size) of float32 pixels in [0, 1].

    Only the paths are in memory, in a flat array, which forked workers share and spawned workers receive in one piece.
    Indexing decodes in several threads (in a DataLoader worker, in its single thread). A file that is already a square
    of `size` is not changed by any view; otherwise "crop" is torchvision's Resize(round(size / 0.875)), bilinear with
    antialias on bytes, and CenterCrop(size).

    Raises:
        ValueError: paths, size, view or channels are invalid.
    """

    paths: np.ndarray
    """(N,) bytes or str"""
    size: int
    """height and width in pixels, >= 1"""
    view: View
    """how an image is cropped and resized"""
    device: torch.device = _CPU
    """device of the decoded tensors"""
    channels: int = 3
    """3 for RGB; 1 if all files are grey (`all_grey`)"""
    blur: float = 0.0
    """standard deviation in pixels of a Gaussian blur of the decoded images; 0 for none"""

    dtype = torch.float32
    ndim = 4

    def __post_init__(self) -> None:
        if not isinstance(self.paths, np.ndarray) or self.paths.ndim != 1 or self.paths.dtype.kind not in "SU":
            raise ValueError(f"paths are {type(self.paths).__name__}; they must be a flat numpy array of bytes or str")
        if self.size < 1:
            raise ValueError(f"size is {self.size}; it must be >= 1")
        if self.view not in get_args(View):
            raise ValueError(f"view is {self.view!r}; it must be one of {', '.join(get_args(View))}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels}; it must be 1 or 3")
        if not self.blur >= 0:
            raise ValueError(f"blur is {self.blur}; it must be >= 0")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> torch.Size:
        """(N, channels, size, size)."""
        return torch.Size([len(self), self.channels, self.size, self.size])

    def numel(self) -> int:
        """Return N * channels * size * size."""
        return self.shape.numel()

    def __getitem__(self, which: int | slice | Tensor) -> Tensor:
        paths = self.paths[which.cpu().numpy() if isinstance(which, Tensor) else which]
        if isinstance(paths, (bytes, str)):
            return self._pixels([paths])[0]
        return self._pixels(paths)

    def _pixels(self, paths: Paths) -> Tensor:
        images = self._decoded(paths)
        return blurred(images, self.blur) if self.blur else images

    def _decoded(self, paths: Paths) -> Tensor:
        as_floats = self.device.type == "cpu"  # for other devices bytes are copied, a quarter of the size
        out, deep = np.empty((len(paths), *self.shape[1:]), np.float32 if as_floats else np.uint8), {}
        for path, why in zip(paths, self._read(paths, out, deep), strict=True):
            if why:
                raise refusal([(path, why)])
        images = torch.from_numpy(out).to(self.device)
        if as_floats:
            return images
        images = images.float().div_(255)
        for index, pixels in deep.items():
            images[index] = torch.from_numpy(pixels).to(self.device)
        return images

    def _read(self, paths: Paths, out: np.ndarray, deep: dict[int, np.ndarray]) -> Iterator[str]:
        """Decode files into an array; yield for each file why it cannot be decoded, or "".

        Args:
            paths: the n files.
            out: (n, channels, size, size), filled here: float32 with pixels in [0, 1], uint8 with 0 to 255.
            deep: filled here with 16-bit images if `out` is uint8: index -> float32 in [0, 1].

        Returns:
            n reasons, in order; each follows after the file was decoded.
        """

        def read(index: int) -> str:
            try:
                image = decode_file(paths[index])
            except Exception as error:  # as in `decode_file`
                return reason(error)
            pixels = self._through_view(image)[: self.channels]
            if out.dtype == np.float32:
                out[index] = scaled(pixels) if pixels.dtype == np.uint8 else pixels
            elif pixels.dtype == np.uint8:
                out[index] = pixels
            else:
                deep[index] = pixels
            return ""

        return in_threads(read, range(len(paths)))

    def _through_view(self, image: np.ndarray) -> np.ndarray:
        """Crop and resize pixels (H, W, 3) to (3, size, size): uint8 stays uint8, uint16 becomes float32 in [0, 1]."""
        size, (height, width, _) = self.size, image.shape
        image = image if image.dtype == np.uint8 else scaled(image)
        if (height, width) == (size, size):
            return image.transpose(2, 0, 1)
        if self.view == "square":
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            box = (left, top, left + side, top + side)
            if image.dtype == np.uint8:
                small = Image.fromarray(image).resize((size, size), Image.Resampling.BOX, box)
                return np.array(small).transpose(2, 0, 1)
            planes = [Image.fromarray(plane) for plane in np.ascontiguousarray(image.transpose(2, 0, 1))]
            return np.stack([np.array(plane.resize((size, size), Image.Resampling.BOX, box)) for plane in planes])
        from torchvision.transforms.v2 import functional as TF

        pixels = TF.resize(torch.from_numpy(image).permute(2, 0, 1), [round(size / 0.875)], antialias=True)
        return TF.center_crop(pixels, [size]).numpy()

    def decode(self, index: int) -> Tensor:
        """Decode one image at the size of its file and without `blur`, for random crops.

        Args:
            index: index of the image.

        Returns:
            (channels, H, W) uint8, on the CPU; 16 bits per channel are rounded to 8.

        Raises:
            InputError: the file is damaged, or its format is not supported.
        """
        try:
            return torch.from_numpy(as_bytes(decode_file(self.paths[index]))).permute(2, 0, 1)[: self.channels]
        except Exception as error:  # as of `decode_file`
            raise refusal([(self.paths[index], reason(error))]) from None

    def take(self, indices: Tensor) -> "ImageFiles":
        """Return some of the files, by index (n,) int64 or mask (N,) bool."""
        return replace(self, paths=self.paths[indices.cpu().numpy()])

    def fingerprint(self, folder: bytes | str = "") -> str:
        """Return a hash of the files, 64 hex digits.

        It covers all names and, for up to 20,000 files, all contents; for more files, the contents of 2,000 evenly
        spaced files.

        Args:
            folder: a folder above all files; names are relative to it, so that a moved set has the same hash.
        """
        found = hashlib.sha256()
        names = [os.path.relpath(path, folder or None) if folder else path for path in self.paths.tolist()]
        found.update(b"\0".join(os.fsencode(name) for name in names))
        sample = self.paths if len(self) <= _ALL else self.paths[np.arange(_SAMPLE) * len(self) // _SAMPLE]
        for content in in_threads(_hash_of, sample):
            found.update(content)
        return found.hexdigest()

    def to(self, device: torch.device | str) -> "ImageFiles":
        """Return the same files, with decoded tensors on another device."""
        return replace(self, device=torch.device(device))

    def resized(self, size: int) -> "ImageFiles":
        """Return the same files, decoded at another size."""
        return replace(self, size=size)

    def split(self, n: int) -> Iterator[Tensor]:
        """Yield the images in chunks of n."""
        for begin in range(0, len(self), n):
            yield self[begin : begin + n]

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Tensor:
        """Refuse torch functions, which need all images as a tensor.

        Raises:
            InputError: always.
        """
        raise InputError(
            "this step needs all images in memory, but they are so large that they stay in their files: "
            "give a smaller --image-size, or use another method"
        )


def _hash_of(path: bytes | str) -> bytes:
    """Return the sha256 of a file; b"" for an unreadable file, for which decoding raises the error."""
    try:
        return bytes.fromhex(hash_of(path))
    except OSError:
        return b""


def read_all(parts: Sequence[ImageFiles]) -> list[Tensor]:
    """Decode all images of several sets into memory, directly into the returned tensors.

    Args:
        parts: the files of each set.

    Returns:
        for each set (N, channels, size, size) float32, pixels in [0, 1], on the CPU.

    Raises:
        InputError: files are damaged; all files are tried, and the message names the first three.
    """
    damaged, total, tensors = [], sum(map(len, parts)), []
    with file_bar("reading images", total) as bar:
        for part in parts:
            images = torch.empty(part.shape)
            for path, why in zip(part.paths, part._read(part.paths, images.numpy(), {}), strict=True):
                if why:
                    damaged.append((path, why))
                bar.update()
            tensors.append(images)
    if damaged:
        raise refusal(damaged, total)
    return tensors
