"""Images that stay in their files until they are used: what an ImageSet holds where memory is too small."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info
from tqdm import tqdm

from distill.data.decode import Paths, as_bytes, decode_file, reason, scaled
from distill.errors import InputError
from distill.runs.files import hash_of
from distill.runs.progress import progress

__all__ = [
    "ENDINGS",
    "LIMIT",
    "ImageFiles",
    "View",
    "cores",
    "find_damaged",
    "read_all",
    "refusal",
]

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
"""of names of image files, in lower case"""
View = Literal["crop", "square"]
"""what is seen of an image: ImageNet's evaluation, or the central square by the mean over areas (Pillow's BOX)"""

LIMIT = 8 * 2**30
"""bytes that images may take in memory"""
_CPU = torch.device("cpu")
_MOST_THREADS = 16
"""beyond it they wait for each other's Python"""
_CHUNK = 256
"""blocks of files handed to the threads at a time, so that a list of millions costs no memory"""
_MANY = 2000
"""files that are worth a progress bar"""
_ALL = 20_000
"""files, at most, that are read whole to tell a set from others"""
_SAMPLE = 2000
"""files that are read of a larger set: all of ImageNet would take as long as an epoch"""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files as one array (N, channels, size, size) of float32 pixels in [0, 1], where a tensor may stand.

    Only the paths are in memory: one flat array, which forked workers share and spawned ones receive in one piece.
    Indexing decodes, in a few threads (in a worker of a DataLoader, in that one). A file that is a square of `size`
    already is not touched by any view; elsewhere "crop" is torchvision's Resize(round(size / 0.875)), bilinear with
    antialias on bytes, and CenterCrop(size).

    Raises:
        ValueError: paths, size, view or channels are not as said.
    """

    paths: np.ndarray
    """(N,) bytes or str"""
    size: int
    """height and width in pixels, >= 1"""
    view: View
    """what is seen of an image"""
    device: torch.device = _CPU
    """of what is decoded"""
    channels: int = 3
    """3 for RGB; 1 where all files are grey (`all_grey`)"""

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

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> torch.Size:
        """(N, channels, size, size)."""
        return torch.Size([len(self), self.channels, self.size, self.size])

    def numel(self) -> int:
        """Return how many numbers there are."""
        return self.shape.numel()

    def __getitem__(self, which: int | slice | Tensor) -> Tensor:
        chosen = self.paths[which.cpu().numpy() if isinstance(which, Tensor) else which]
        if isinstance(chosen, (bytes, str)):
            return self._pixels([chosen])[0]
        return self._pixels(chosen)

    def _pixels(self, paths: Paths) -> Tensor:
        as_floats = self.device.type == "cpu"  # bytes are a quarter to copy to a device
        out, deep = np.empty((len(paths), *self.shape[1:]), np.float32 if as_floats else np.uint8), {}
        for path, why in zip(paths, self._read(paths, out, deep), strict=True):
            if why:
                raise refusal([(path, why)])
        images = torch.from_numpy(out).to(self.device)
        if as_floats:
            return images
        images = images.float().div_(255)
        for place, pixels in deep.items():
            images[place] = torch.from_numpy(pixels).to(self.device)
        return images

    def _read(self, paths: Paths, out: np.ndarray, deep: dict[int, np.ndarray]) -> Iterator[str]:
        """Decode into an array and return of each image why it cannot be decoded, "" where it can.

        Args:
            paths: n of them.
            out: (n, channels, size, size), filled: float32 with pixels in [0, 1], uint8 with 0 to 255.
            deep: gets the images of 16 bits that `out` of uint8 cannot hold: index -> float32 in [0, 1].

        Returns:
            n reasons, in order, each after its image was decoded.
        """

        def read(place: int) -> str:
            try:
                image = decode_file(paths[place])
            except Exception as error:  # as of `decode_file`
                return reason(error)
            seen = self._through_view(image)[: self.channels]
            if out.dtype == np.float32:
                out[place] = scaled(seen) if seen.dtype == np.uint8 else seen
            elif seen.dtype == np.uint8:
                out[place] = seen
            else:
                deep[place] = seen
            return ""

        return _in_threads(read, range(len(paths)))

    def _through_view(self, image: np.ndarray) -> np.ndarray:
        """Return the view of decoded pixels (H, W, 3): (3, size, size), uint8 of uint8, float32 in [0, 1] of uint16."""
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
        """Decode one image as it is in its file, for random crops.

        Args:
            index: of the image.

        Returns:
            (channels, H, W) uint8, on the CPU; 16 bits a channel are rounded to 8.

        Raises:
            InputError: the file is damaged, or an image that is not read.
        """
        try:
            return torch.from_numpy(as_bytes(decode_file(self.paths[index]))).permute(2, 0, 1)[: self.channels]
        except Exception as error:  # as of `decode_file`
            raise refusal([(self.paths[index], reason(error))]) from None

    def take(self, indices: Tensor) -> "ImageFiles":
        """Return some of the files, by index (n,) int64 or mask (N,) bool."""
        return replace(self, paths=self.paths[indices.cpu().numpy()])

    def fingerprint(self, folder: bytes | str = "") -> str:
        """Return a hash of the files, 64 hex digits: of all their names and, up to 20,000 files, of all their bytes; of
        more files, of the bytes of 2,000, evenly spread.

        Args:
            folder: above them, which is no part of their names: a set that was moved is the same set.
        """
        found = hashlib.sha256()
        names = [os.path.relpath(path, folder or None) if folder else path for path in self.paths.tolist()]
        found.update(b"\0".join(os.fsencode(name) for name in names))
        few = self.paths if len(self) <= _ALL else self.paths[np.arange(_SAMPLE) * len(self) // _SAMPLE]
        for content in _in_threads(_hash_of, few):
            found.update(content)
        return found.hexdigest()

    def to(self, device: torch.device | str) -> "ImageFiles":
        """Return the same files, decoded to a device."""
        return replace(self, device=torch.device(device))

    def resized(self, size: int) -> "ImageFiles":
        """Return the same files, seen at another size."""
        return replace(self, size=size)

    def split(self, n: int) -> Iterator[Tensor]:
        """Yield the images in parts of n."""
        for begin in range(0, len(self), n):
            yield self[begin : begin + n]

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Tensor:
        """Refuse what takes the whole as a tensor.

        Raises:
            InputError: always.
        """
        raise InputError(
            "this needs all images in memory at once, but they are so large that they stay in their files: "
            "give a smaller --image-size, or take another method"
        )


def _hash_of(path: bytes | str) -> bytes:
    """Return the sha256 of a file's bytes; nothing for an unreadable file, which is named when it is decoded."""
    try:
        return bytes.fromhex(hash_of(path))
    except OSError:
        return b""


def read_all(parts: Sequence[ImageFiles]) -> list[Tensor]:
    """Decode everything into memory, each part straight into the tensor it becomes.

    Args:
        parts: the files.

    Returns:
        for each part (N, channels, size, size) float32, pixels in [0, 1], on the CPU.

    Raises:
        InputError: files are damaged; all are tried, the first are named.
    """
    damaged, total, tensors = [], sum(map(len, parts)), []
    with _bar("reading images", total) as bar:
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


def find_damaged(paths: np.ndarray) -> list[tuple[int, str]]:
    """Decode every file and return those that cannot be: (index, reason)."""

    def why(path: bytes | str) -> str:
        try:
            decode_file(path)
        except Exception as error:  # as of `decode_file`
            return reason(error)
        return ""

    with _bar("checking images", len(paths)) as bar:
        found = []
        for index, fault in enumerate(_in_threads(why, paths)):
            if fault:
                found.append((index, fault))
            bar.update()
    return found


def refusal(damaged: Sequence[tuple[bytes | str, str]], total: int = 0) -> InputError:
    """Make the error for damaged files.

    Args:
        damaged: paths and reasons, at least one.
        total: files that were tried.

    Returns:
        the error, to be raised; it names the first three.

    >>> print(refusal([(b"a.jpg", "it is empty")]))
    a.jpg cannot be read as an image (it is empty): mend or remove it, or give --damaged skip
    """
    named = [f"{os.fsdecode(path)} ({why})" for path, why in damaged[:3]]
    if len(damaged) == 1:
        path, why = damaged[0]
        return InputError(
            f"{os.fsdecode(path)} cannot be read as an image ({why}): mend or remove it, or give --damaged skip"
        )
    more = ", ..." if len(damaged) > 3 else ""
    return InputError(
        f"{len(damaged):,} of {total:,} files cannot be read as images: {', '.join(named)}{more}: "
        "mend or remove them, or give --damaged skip"
    )


def _bar(description: str, total: int) -> tqdm:
    return progress(description, total, unit="file") if total > _MANY else tqdm(disable=True)


def _in_threads(function: Callable, items: Sequence[Any] | np.ndarray) -> Iterator:
    """Yield a function of each item, in order, computed in threads where there are several cores to use."""
    count = min(_threads(), len(items))
    if count <= 1:
        yield from map(function, items)
        return
    block = max(1, min(16, len(items) // (4 * count)))  # handing over small images one by one costs more than decoding

    def of_block(begin: int) -> list:
        return [function(item) for item in items[begin : begin + block]]

    begins = range(0, len(items), block)
    with ThreadPoolExecutor(count) as pool:
        for at in range(0, len(begins), _CHUNK):
            for done in pool.map(of_block, begins[at : at + _CHUNK]):
                yield from done


def _threads() -> int:
    """Return how many threads may decode."""
    return 1 if get_worker_info() is not None else min(_MOST_THREADS, cores())


def cores() -> int:
    """Return how many cores are this process's share, at least 1: those that it may use, among torchrun's processes."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
