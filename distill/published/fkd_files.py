"""The files of FKD's soft labels, as the official code of SRe2L, CDA and GUARD writes them.

    epoch_E/batch_B.tar    torch.save of [coords (n, 4), flips (n,), partners (n,), lambda, rectangle, logits (n, K)]

coords are top, left, height and width of a crop as shares of the image's side. partners are positions in the batch,
None where nothing is mixed. The rectangle that CutMix takes from the partners is first row, first column, last row,
last column; it is None for MixUp, of which lambda is the weight of the image.

Deviation: the official loader crops bytes, and rounds to bytes after each direction of a crop; our crops are floats.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.published.unpickled import as_tensor, read_pickle

__all__ = ["Epoch", "EpochReader", "epoch_folders", "store_in"]

WHOLE = 0.01
"""pixels by which a crop's edge may miss a whole pixel"""


@dataclass(frozen=True)
class Epoch:
    """The labels of one epoch."""

    mix: str
    """"cutmix", "mixup" or "none" """
    batch_size: int
    """of all batches but the last"""
    tensors: dict[str, Tensor]
    """as in a store of ours (`distill.training.crop_labels`), without the order"""


def store_in(source: Path) -> Path:
    """Return the folder of epochs: the given folder, or the one inside it, as FKD_cutmix_fp16/imagenette/NAME.

    Raises:
        InputError: there is none, or there are several.
    """
    found = sorted({path.parent for depth in ("", "*/", "*/*/") for path in source.glob(f"{depth}epoch_0")})
    if not found:
        raise InputError(f"{source} has no FKD labels: expected epoch_0/batch_0.tar, ...")
    if len(found) > 1:
        raise InputError(f"{source} has several stores of FKD labels: give one of {', '.join(map(str, found))}")
    return found[0]


def epoch_folders(store: Path) -> list[Path]:
    """Return the folders epoch_0, epoch_1, ... of a store.

    Raises:
        InputError: one is missing, or the store cannot be read.
    """
    return _numbered(store, r"epoch_(\d+)")


def _numbered(folder: Path, name: str) -> list[Path]:
    """Return the paths in a folder whose names match a pattern, by number from 0.

    Raises:
        InputError: one is missing, or the folder cannot be read.
    """
    try:
        found = {int(match[1]): path for path in folder.iterdir() if (match := re.fullmatch(name, path.name))}
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror})") from None
    kind = re.sub(r"\(.*?\)", "{}", name).replace("\\", "")
    missing = next((number for number in range(max(found, default=0) + 1) if number not in found), None)
    if missing is not None:
        raise InputError(f"{folder} lacks {kind.format(missing)}")
    return [found[number] for number in sorted(found)]


class EpochReader:
    """Reads epochs of labels for the images of a set.

    Args:
        distilled: the set, with classes (N,) as labels.
    """

    def __init__(self, distilled: DistilledSet):
        self.count, self.size, self.k = len(distilled.images), distilled.image_shape[-1], distilled.num_classes
        self.classes = distilled.labels.cpu()

    def epoch(self, folder: Path, like: Epoch | None) -> Epoch:
        """Return the labels of an epoch.

        Args:
            folder: of the epoch's files.
            like: an epoch with the same mixture and batch size; None for the first.

        Raises:
            InputError: files are missing, extra or damaged, or not of as many images.
        """
        paths = _numbered(folder, r"batch_(\d+)\.tar")
        mixes, batches = zip(*(self._batch(path) for path in paths), strict=True)
        lengths = [len(batch["flips"]) for batch in batches]
        size = lengths[0]
        odd = next((n for n, length in enumerate(lengths) if length > size or (length < size and paths[n + 1 :])), None)
        if odd is not None:
            raise InputError(f"{paths[odd]} has {lengths[odd]} labels, {paths[0].name} {size}")
        if sum(lengths) != self.count:
            raise InputError(
                f"{folder} has labels of {sum(lengths):,} images ({len(paths)} batches of {size}), the set "
                f"{self.count:,}: a batch is missing or extra, or they are of another set"
            )
        differs = next((n for n, mix in enumerate(mixes) if mix != (like.mix if like else mixes[0])), None)
        if differs is not None or (like and size != like.batch_size):
            line = f"batches of {size} mixed by {mixes[differs or 0]}"
            raise InputError(f"{paths[differs or 0]} has {line}, the first epoch others")
        tensors = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        return Epoch(mixes[0], size, tensors)

    def _batch(self, path: Path) -> tuple[str, dict[str, Tensor]]:
        """Return how a file's batch is mixed, and its tensors as in a store of ours."""
        content = read_pickle(path)
        if not isinstance(content, (list, tuple)) or len(content) != 6:
            raise InputError(
                f"{path} is no batch of FKD's: expected [coords, flips, partners, lambda, rectangle, logits]"
            )
        coords, flips, logits = (
            as_tensor(content[at], f"{path}: {name}") for at, name in ((0, "coords"), (1, "flips"), (5, "logits"))
        )
        n = len(coords)
        if n == 0 or coords.shape != (n, 4) or flips.shape != (n,) or logits.ndim != 2 or len(logits) != n:
            shapes = ", ".join(str(tuple(each.shape)) for each in (coords, flips, logits))
            raise InputError(f"{path}: coords, flips and logits are {shapes}; expected (n, 4), (n,) and (n, K)")
        if logits.shape[1] != self.k:
            raise InputError(f"{path} has logits of {logits.shape[1]} classes, the set {self.k}: of another teacher")
        mix, partners, share, mixed = self._mixture(path, content, n)
        return mix, {
            "boxes": self._boxes(path, coords.double()),
            "flips": flips.bool(),
            "partners": partners.int(),
            "shares": torch.tensor([share], dtype=torch.float32),
            "mixed": torch.tensor([mixed], dtype=torch.int16),
            "logits": logits.half() if content[5].dtype == torch.float16 else logits.float(),
        }

    def _boxes(self, path: Path, coords: Tensor) -> Tensor:
        """Return crops in pixels (n, 4) of crops as shares of the image's side, in float64."""
        edges = self.size * torch.cat([coords[:, :2], coords[:, :2] + coords[:, 2:]], 1)
        pixels = edges.round()
        if (edges - pixels).abs().max() > WHOLE:
            raise InputError(f"{path}: crops do not end at whole pixels of {self.size}: of images of another size")
        corners, ends = pixels[:, :2], pixels[:, 2:]
        if corners.min() < 0 or ends.max() > self.size or (ends - corners).min() < 1:
            raise InputError(f"{path}: crops reach beyond the image, or are empty")
        return torch.cat([corners, ends - corners], 1).short()

    def _mixture(self, path: Path, content: Any, n: int) -> tuple[str, Tensor, float, tuple[int, ...]]:
        """Return how a batch is mixed: kind, partners, share and rectangle."""
        _, _, partners, share, mixed, _ = content
        if partners is None and share is None and mixed is None:
            return "none", torch.arange(n), 1.0, (0, 0, 0, 0)
        partners = as_tensor(partners, f"{path}: partners")
        if partners.shape != (n,) or partners.is_floating_point() or partners.min() < 0 or partners.max() >= n:
            raise InputError(f"{path}: partners are no {n} positions in the batch")
        share = share.item() if isinstance(share, Tensor) and share.numel() == 1 else share
        if not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise InputError(f"{path}: lambda is no number from 0 to 1")
        if mixed is None:
            return "mixup", partners, float(share), (0, 0, 0, 0)
        rows = mixed.tolist() if isinstance(mixed, Tensor) else mixed
        if not isinstance(rows, (list, tuple)) or len(rows) != 4 or not all(isinstance(at, int) for at in rows):
            raise InputError(f"{path}: the rectangle of CutMix is no four whole numbers")
        top, left, bottom, right = rows
        if not (0 <= top <= bottom <= self.size and 0 <= left <= right <= self.size):
            raise InputError(f"{path}: the rectangle {rows} of CutMix is not in {self.size} pixels: of another size")
        return "cutmix", partners, float(share), (top, left, bottom, right)
