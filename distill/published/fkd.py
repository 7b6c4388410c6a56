"""Soft labels of FKD as the official code of SRe2L, CDA and GUARD stores them, made into a store of ours.

    epoch_E/batch_B.tar    torch.save of [coords (n, 4), flips (n,), partners (n,), lambda, rectangle, logits (n, K)]

coords are top, left, height and width of a crop as shares of the image's side; partners are positions in the batch,
None where nothing is mixed; the rectangle that CutMix takes from them is first row, first column, last row, last
column, None for MixUp, of which lambda is what stays of the image.

No file says which images a batch has. The official code draws them by torch's RandomSampler of seed 42 from the images
in ImageFolder's order (folders by name, then files), once in saving and again in loading: epoch E has permutation 2E of
the sampler's generator, as torch draws a second one at the end of an epoch, of which it takes nothing, or permutation E
where it draws none. Neither is believed: the class of the highest logit must be the image's (its partner's, where that
has most of the picture) far more often than by chance, in all epochs together and in each that has many images.

Deviation: the official loader cuts bytes, and rounds to bytes after each direction of a crop; ours are floats.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.published.unpickled import as_tensor, read_pickle
from distill.runs.files import write_tensors, write_text
from distill.runs.progress import progress
from sre2l.precision import Compute
from sre2l.relabel import FORMAT, digest, epoch_file
from sre2l.validate import Validate

__all__ = ["agreement", "orders", "with_labels"]

SEED = 42
"""of the official samplers"""
DRAWS = (2, 1)
"""permutations that an epoch takes from the sampler's generator"""
EARLY = 10
"""epochs by which the order is found"""
CLEAR = 0.15
"""a label says whose it is where one image has this much more than half of the picture"""
MANY = 100
"""clear labels by which a single epoch is judged"""
KAPPA, SIGMAS = 0.2, 3.0
"""least agreement beyond chance: as a share of what is possible, and in standard deviations of chance"""
WHOLE = 0.01
"""pixels by which a crop's edge may miss one"""


@dataclass(frozen=True)
class _Epoch:
    """What the files of an epoch say."""

    mix: str
    """"cutmix", "mixup" or "none" """
    batch_size: int
    """of all batches but the last"""
    tensors: dict[str, Tensor]
    """as in a store of ours (`sre2l.relabel`), but for the order"""


def with_labels(distilled: DistilledSet, source: Path, folder: Path, say: Callable[[str], None]) -> DistilledSet:
    """Read the soft labels of a set of pictures.

    Args:
        distilled: the set, its images in ImageFolder's order, with classes.
        source: the folder that has epoch_0, epoch_1, ..., or one above it with no other store.
        folder: where the store of ours goes, as `fkd`.
        say: is told what was assumed, and how well it fits.

    Returns:
        the set, of which students of --protocol own train on the labels.

    Raises:
        InputError: files are missing, extra, damaged or would run something, or labels are not of these images.
    """
    if distilled.labels.ndim != 1 or distilled.method not in ("", "sre2l"):
        raise InputError(f"--fkd is for folders of pictures with classes, not for a set of {distilled.method or 'own'}")
    place = _store_in(source)
    places, reader = _numbered(place, r"epoch_(\d+)"), _Reader(distilled)
    head = reader.epoch(places[0], None)
    draws = _draws(place, places, head, reader)
    table = torch.zeros(reader.k, reader.k, dtype=torch.long)
    with progress("FKD labels", len(places), unit="epoch") as bar:
        for number, (path, order) in enumerate(zip(places, orders(reader.count, draws), strict=False)):
            found = reader.epoch(path, head)
            of_epoch = reader.table(found, order)
            if of_epoch.sum() >= MANY and agreement(of_epoch)[2] < KAPPA / 2:
                raise _strangers(path, of_epoch)
            table += of_epoch
            write_tensors(epoch_file(folder / "fkd", number), found.tensors | {"order": order.int()})
            bar.update()
    facts = {"format": FORMAT, "images": reader.count, "digest": digest(distilled.images), "epochs": len(places)}
    facts |= {"batch_size": head.batch_size, "mix": head.mix, "read_from": str(place.absolute()), "draws": draws}
    write_text(folder / "fkd" / "labels.json", json.dumps(facts, indent=2))
    seen, chance, _, _ = agreement(table)
    say(
        f"FKD labels of {place}: {len(places)} epochs in batches of {head.batch_size}, mixed by {head.mix}; images in "
        f"the order of files, then of RandomSampler, seed {SEED} (permutations drawn an epoch: {draws}); the teacher's "
        f"class is the image's for {100 * seen:.1f}% of {int(table.sum()):,} labels, {100 * chance:.1f}% by chance; "
        "students of --protocol own train on them"
    )
    if _few(table):
        say(f"warning: {int(table.sum())} labels are too few to tell whether they belong to these images in this order")
    kept = {"labels": "fkd", "validate": vars(Validate()), "compute": vars(Compute())}
    return replace(distilled, method="sre2l", training=distilled.training | kept)


def orders(count: int, draws: int) -> Iterator[Tensor]:
    """Yield the order of the images in each epoch, (count,), as RandomSampler of seed 42 has it.

    Args:
        count: images.
        draws: permutations that an epoch takes; the first is its order.
    """
    generator = torch.Generator().manual_seed(SEED)
    while True:
        order, *_ = [torch.randperm(count, generator=generator) for _ in range(draws)]
        yield order


def agreement(table: Tensor) -> tuple[float, float, float, float]:
    """Return how often two judgements agree, how often by chance, and Cohen's kappa with its deviations from chance.

    Args:
        table: (K, K) counts, a judgement along each side.

    Returns:
        share that agrees, share by chance, kappa = (share - chance) / (1 - chance), and the deviations.

    >>> agreement(torch.tensor([[40, 10], [10, 40]]))
    (0.8, 0.5, 0.6, 6.0)
    """
    n = max(int(table.sum()), 1)
    seen = table.trace().item() / n
    chance = float((table.sum(0).double() @ table.sum(1).double()) / n**2)
    left = max(1 - chance, 1e-12)
    deviation = max(chance * left / n, 1e-12) ** 0.5
    return seen, chance, round((seen - chance) / left, 12), round((seen - chance) / deviation, 12)


def _few(table: Tensor) -> bool:
    """Return whether not even labels that all agree would stand out from chance."""
    return agreement(torch.diag(table.sum(1)))[3] < SIGMAS


def _draws(place: Path, places: list[Path], head: _Epoch, reader: "_Reader") -> int:
    """Return how many permutations an epoch takes, by the labels of the first epochs.

    Raises:
        InputError: no number fits.
    """
    early = [head, *(reader.epoch(path, head) for path in places[1:EARLY])]
    tables = {}
    for draws in DRAWS:
        found = zip(early, orders(reader.count, draws), strict=False)
        tables[draws] = torch.stack([reader.table(epoch, order) for epoch, order in found]).sum(0)
    best = max(DRAWS, key=lambda draws: agreement(tables[draws])[0])  # the first of equal ones
    _, _, kappa, deviations = agreement(tables[best])
    if (kappa < KAPPA or deviations < SIGMAS) and not _few(tables[best]):
        raise _strangers(place, tables[best])
    return best


def _strangers(path: Path, table: Tensor) -> InputError:
    seen, chance, _, _ = agreement(table)
    return InputError(
        f"{path}: these labels do not belong to these images in this order: the teacher's class is the image's for "
        f"{100 * seen:.1f}% of {int(table.sum()):,} labels, {100 * chance:.1f}% by chance (files by name, then "
        f"RandomSampler of seed {SEED})"
    )


# --- files -------------------------------------------------------------------------------------------------------


def _store_in(source: Path) -> Path:
    """Return the folder of epochs: the one given, or the one in it, as FKD_cutmix_fp16/imagenette/NAME.

    Raises:
        InputError: there is none, or there are several.
    """
    found = sorted({path.parent for depth in ("", "*/", "*/*/") for path in source.glob(f"{depth}epoch_0")})
    if not found:
        raise InputError(f"{source} has no FKD labels: expected epoch_0/batch_0.tar, ...")
    if len(found) > 1:
        raise InputError(f"{source} has several stores of FKD labels: give one of {', '.join(map(str, found))}")
    return found[0]


def _numbered(folder: Path, name: str) -> list[Path]:
    """Return what is named in a folder, by number from 0.

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


class _Reader:
    """Reads epochs for a set's images.

    Args:
        distilled: the set.
    """

    def __init__(self, distilled: DistilledSet):
        self.count, self.size, self.k = len(distilled.images), distilled.images.shape[-1], len(distilled.classes)
        self.classes = distilled.labels.cpu()

    def epoch(self, folder: Path, like: _Epoch | None) -> _Epoch:
        """Return what the files of an epoch say.

        Args:
            folder: of the files.
            like: an epoch that it is like; None for the first.

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
        stranger = next((n for n, mix in enumerate(mixes) if mix != (like.mix if like else mixes[0])), None)
        if stranger is not None or (like and size != like.batch_size):
            line = f"batches of {size} mixed by {mixes[stranger or 0]}"
            raise InputError(f"{paths[stranger or 0]} has {line}, the first epoch others")
        tensors = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        return _Epoch(mixes[0], size, tensors)

    def table(self, epoch: _Epoch, order: Tensor) -> Tensor:
        """Return how often which class of an image, (K, K) rows, has which highest logit, of clear labels."""
        tensors, size = epoch.tensors, epoch.batch_size
        own = self.classes[order]
        mate = torch.cat([a[b] for a, b in zip(own.split(size), tensors["partners"].long().split(size), strict=True)])
        top, left, bottom, right = tensors["mixed"].double().T
        shares = tensors["shares"].double()
        if epoch.mix == "cutmix":
            shares = 1 - (bottom - top) * (right - left) / self.size**2
        shares = shares.repeat_interleave(size)[: self.count]
        meant, said = torch.where(shares >= 0.5, own, mate), tensors["logits"].argmax(1)
        clear = ((shares - 0.5).abs() >= CLEAR) | (own == mate)
        return torch.bincount((meant * self.k + said)[clear], minlength=self.k**2).view(self.k, self.k)

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
        mix, partners, kept, mixed = self._mixture(path, content, n)
        return mix, {
            "boxes": self._boxes(path, coords.double()),
            "flips": flips.bool(),
            "partners": partners.int(),
            "shares": torch.tensor([kept], dtype=torch.float32),
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
        _, _, partners, kept, mixed, _ = content
        if partners is None and kept is None and mixed is None:
            return "none", torch.arange(n), 1.0, (0, 0, 0, 0)
        partners = as_tensor(partners, f"{path}: partners")
        if partners.shape != (n,) or partners.is_floating_point() or partners.min() < 0 or partners.max() >= n:
            raise InputError(f"{path}: partners are no {n} positions in the batch")
        kept = kept.item() if isinstance(kept, Tensor) and kept.numel() == 1 else kept
        if not isinstance(kept, (int, float)) or not 0 <= kept <= 1:
            raise InputError(f"{path}: lambda is no number from 0 to 1")
        if mixed is None:
            return "mixup", partners, float(kept), (0, 0, 0, 0)
        rows = mixed.tolist() if isinstance(mixed, Tensor) else mixed
        if not isinstance(rows, (list, tuple)) or len(rows) != 4 or not all(isinstance(at, int) for at in rows):
            raise InputError(f"{path}: the rectangle of CutMix is no four whole numbers")
        top, left, bottom, right = rows
        if not (0 <= top <= bottom <= self.size and 0 <= left <= right <= self.size):
            raise InputError(f"{path}: the rectangle {rows} of CutMix is not in {self.size} pixels: of another size")
        return "cutmix", partners, float(kept), (top, left, bottom, right)
