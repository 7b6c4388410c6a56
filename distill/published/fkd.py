"""Soft labels of FKD as the official code of SRe2L, CDA and GUARD publishes them, converted to our stored labels.

No file says which images a batch has. The official code draws them by torch's RandomSampler of seed 42 from the images
in ImageFolder's order (folders by name, then files), once when saving and again when loading. Epoch E has permutation
2E of the sampler's generator, because torch draws a second permutation at the end of an epoch and uses nothing of it;
where torch draws no second one, epoch E has permutation E. Both orders are checked: the class of the teacher's highest
logit must equal the image's class (its partner's class, where the partner fills most of the picture) far more often
than by chance, over all epochs together and in each epoch that has many images.

The files themselves are read by `distill.published.fkd_files`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.published.fkd_files import Epoch, EpochReader, epoch_folders, store_in
from distill.runs.progress import progress
from distill.training.crop_labels import write_epoch, write_facts

__all__ = ["agreement", "orders", "with_labels"]

METHOD = "sre2l"
"""method whose protocol trains students on stored labels"""
STORE = "fkd"
"""folder of the store, in the folder of the set"""
SEED = 42
"""of the official samplers"""
DRAWS = (2, 1)
"""permutations that an epoch takes from the sampler's generator: numbers to try"""
EARLY = 10
"""epochs by which the order is found"""
CLEAR = 0.15
"""a label counts for one image if this image has this much more than half of the picture"""
MANY = 100
"""counted labels from which a single epoch is checked"""
KAPPA, SIGMAS = 0.2, 3.0
"""least agreement beyond chance: as a share of the possible, and in standard deviations of chance"""


def with_labels(
    distilled: DistilledSet, source: Path, folder: Path, notify: Callable[[str], None], settings: MethodTraining
) -> DistilledSet:
    """Read the soft labels of a set of pictures.

    Args:
        distilled: the set, with its images in ImageFolder's order, and with classes.
        source: the folder that has epoch_0, epoch_1, ..., or one above it with no other store.
        folder: of the set; the labels are stored in `fkd` in it.
        notify: takes a line about what was assumed and how well the labels fit, and a warning.
        settings: `validate` and `compute`, with which students are trained on the labels.

    Returns:
        the set; students of --protocol own train on the labels.

    Raises:
        InputError: files are missing, extra, damaged or would execute code, or labels are not of these images.
    """
    if distilled.labels.ndim != 1 or distilled.method not in ("", METHOD):
        raise InputError(f"--fkd is for folders of pictures with classes, not for a set of {distilled.method or 'own'}")
    store = store_in(source)
    folders, reader = epoch_folders(store), EpochReader(distilled)
    head = reader.epoch(folders[0], None)
    draws = _draws(store, folders, head, reader)
    table = torch.zeros(reader.k, reader.k, dtype=torch.long)
    with progress("FKD labels", len(folders), unit="epoch") as bar:
        for number, (path, order) in enumerate(zip(folders, orders(reader.count, draws), strict=False)):
            epoch = reader.epoch(path, head)
            of_epoch = _class_table(epoch, order, reader)
            if of_epoch.sum() >= MANY and agreement(of_epoch)[2] < KAPPA / 2:
                raise _mismatch(path, of_epoch)
            table += of_epoch
            write_epoch(folder / STORE, number, epoch.tensors | {"order": order.int()})
            bar.update()
    origin = {"read_from": str(store.absolute()), "draws": draws}
    write_facts(folder / STORE, distilled.images, len(folders), head.batch_size, head.mix, origin)
    observed, chance, _, _ = agreement(table)
    notify(
        f"FKD labels of {store}: {len(folders)} epochs in batches of {head.batch_size}, mixed by {head.mix}; images in "
        f"the order of files, then of RandomSampler, seed {SEED} (permutations drawn an epoch: {draws}); the teacher's "
        f"class is the image's for {100 * observed:.1f}% of {int(table.sum()):,} labels, {100 * chance:.1f}% by "
        "chance; students of --protocol own train on them"
    )
    if _too_few(table):
        notify(
            f"warning: {int(table.sum())} labels are too few to tell whether they belong to these images in this order"
        )
    training = replace(distilled.training, labels=STORE, validate=settings.validate, compute=settings.compute)
    return replace(distilled, method=METHOD, training=training)


def orders(count: int, draws: int) -> Iterator[Tensor]:
    """Yield the order of the images in each epoch, (count,), as RandomSampler of seed 42 gives it.

    Args:
        count: images.
        draws: permutations that an epoch takes; the first is its order.
    """
    generator = torch.Generator().manual_seed(SEED)
    while True:
        order, *_ = [torch.randperm(count, generator=generator) for _ in range(draws)]
        yield order


def agreement(table: Tensor) -> tuple[float, float, float, float]:
    """Return how often two classifications agree, how often by chance, and Cohen's kappa.

    Args:
        table: (K, K) counts, a classification along each side.

    Returns:
        share that agrees, share by chance, kappa = (share - chance) / (1 - chance), and how many standard deviations
        of chance the share is above chance.

    >>> agreement(torch.tensor([[40, 10], [10, 40]]))
    (0.8, 0.5, 0.6, 6.0)
    """
    n = max(int(table.sum()), 1)
    observed = table.trace().item() / n
    chance = float((table.sum(0).double() @ table.sum(1).double()) / n**2)
    left = max(1 - chance, 1e-12)
    deviation = max(chance * left / n, 1e-12) ** 0.5
    return observed, chance, round((observed - chance) / left, 12), round((observed - chance) / deviation, 12)


def _too_few(table: Tensor) -> bool:
    """Return whether not even labels that all agree would stand out from chance."""
    return agreement(torch.diag(table.sum(1)))[3] < SIGMAS


def _class_table(epoch: Epoch, order: Tensor, reader: EpochReader) -> Tensor:
    """Count the classes of images (rows) by the class of the highest logit (columns), (K, K), of clear labels."""
    tensors, size, k = epoch.tensors, epoch.batch_size, reader.k
    classes = reader.classes[order]
    partners = tensors["partners"].long().split(size)
    mates = torch.cat([batch[which] for batch, which in zip(classes.split(size), partners, strict=True)])
    top, left, bottom, right = tensors["mixed"].double().T
    shares = tensors["shares"].double()
    if epoch.mix == "cutmix":
        shares = 1 - (bottom - top) * (right - left) / reader.size**2
    shares = shares.repeat_interleave(size)[: reader.count]
    expected, predicted = torch.where(shares >= 0.5, classes, mates), tensors["logits"].argmax(1)
    clear = ((shares - 0.5).abs() >= CLEAR) | (classes == mates)
    return torch.bincount((expected * k + predicted)[clear], minlength=k**2).view(k, k)


def _draws(store: Path, folders: list[Path], head: Epoch, reader: EpochReader) -> int:
    """Return how many permutations an epoch takes, by the labels of the first epochs.

    Raises:
        InputError: the labels fit no number of permutations.
    """
    early = [head, *(reader.epoch(path, head) for path in folders[1:EARLY])]
    tables = {}
    for draws in DRAWS:
        ordered = zip(early, orders(reader.count, draws), strict=False)
        tables[draws] = torch.stack([_class_table(epoch, order, reader) for epoch, order in ordered]).sum(0)
    best = max(DRAWS, key=lambda draws: agreement(tables[draws])[0])  # the first of equal ones
    _, _, kappa, deviations = agreement(tables[best])
    if (kappa < KAPPA or deviations < SIGMAS) and not _too_few(tables[best]):
        raise _mismatch(store, tables[best])
    return best


def _mismatch(path: Path, table: Tensor) -> InputError:
    observed, chance, _, _ = agreement(table)
    return InputError(
        f"{path}: these labels do not belong to these images in this order: the teacher's class is the image's for "
        f"{100 * observed:.1f}% of {int(table.sum()):,} labels, {100 * chance:.1f}% by chance (files by name, then "
        f"RandomSampler of seed {SEED})"
    )
