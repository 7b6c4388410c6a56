"""Coresets: subsets of the real images, a baseline that a distilled set must beat.

random   random images of each class.
herding  repeatedly adds the image that brings the mean feature of the subset nearest to the mean of the class (Welling
         2009; without replacement, as in iCaRL, Rebuffi et al. 2017, arXiv 1611.07725, algorithm 4).
kcenter  starts with the image nearest to the mean of the class, then repeatedly adds the image that is farthest from
         the subset (Sener & Savarese 2018, arXiv 1708.00489, algorithm 1), separately in each class.

mfc      covers each class by balls of one radius around few images, in pixels: repeatedly adds the image whose ball
         has the most images that no ball has yet (Chen & Selvan 2024, arXiv 2402.05675; their demo takes
         the first uncovered image instead). The radius is the smallest for which ipc balls suffice, by bisection.
         The adversarial loss of the class is at most that of the centres with balls enlarged by the radius.

Features are the input of the last layer of a network that was trained on the real data. Papers that compare with
coresets do not say how long they trained that network; here it is `extractor_epochs` of SGD (momentum 0.9, weight decay
5e-4).

With `factor` f, f² times as many images are selected, and f² of them share the storage of one, as in IDC
(`distill.training.packing`): a control that tells the effect of smaller images from that of their optimisation.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Literal, get_args

import torch
import tyro
from torch import Tensor, nn

from distill.data import Facts, ImageSet
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.experiment import LATER, Evaluation, Recipe
from distill.method_training import MethodTraining
from distill.methods.method import Method, presets
from distill.models import build
from distill.models.convnet import convnet_for
from distill.runs.divergence import check_finite
from distill.runs.locks import locked
from distill.runs.run import Run
from distill.training.features import embedding
from distill.training.packing import check_factor, packed, unpacked
from distill.training.students import train_epochs
from distill.training.work import PROBE, STEPS, Work, training_steps
from robust import Normalize
from robust.ranges import Count, Positive, Range, check_ranges

__all__ = ["METHODS", "Config", "distill", "finite_cover", "herding", "k_center", "work"]

EXACT = 10**6
"""pairs of points up to which every distance is tried as a radius; above, a thousand evenly spaced radii"""
Choice = Literal["random", "herding", "kcenter", "mfc"]


@dataclass(frozen=True)
class Config:
    """How images are selected.

    Raises:
        ValueError: a field is out of its range.
    """

    choice: Annotated[Choice, tyro.conf.Suppress]
    """random, herding, kcenter or mfc"""
    backbone: str = "convnet"
    """network that extracts features, and network of the students"""
    extractor_epochs: Count = 20
    """training epochs of the feature extractor on the real data; `random` and `mfc` have none"""
    batch_train: Count = 256
    """real images per training step of the extractor"""
    lr_net: Positive = 0.01
    """learning rate of the extractor (SGD, momentum 0.9)"""
    augment: str = ""
    """augmentation for training students: "" for none, a DSA strategy, or kornia:..."""
    factor: Annotated[int, Range(least=1, most=16)] = field(default=1, metadata=LATER)
    """images along a side of a stored image, as in IDC: with 2, --ipc 10 selects 40 images of each class, and each has
    a quarter of the pixels; students see them enlarged to the full size. 1 for whole images"""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.choice not in get_args(Choice):
            raise ValueError(f"choice is {self.choice!r}; choose from {', '.join(get_args(Choice))}")


def distill(real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Select `ipc` real images of each class; an interrupted training of the extractor resumes.

    Args:
        real: the training set, on the device to work on.
        ipc: stored images per class; the set has factor² times as many.
        config: the settings.
        run: supplies random generators, the progress bar and stages.

    Returns:
        the images, sorted by class, in pixels, on the device of `real`, as students see them.

    Raises:
        InputError: the backbone has no features before a linear classifier.
    """
    classes, n = range(real.num_classes), config.factor**2 * ipc
    if config.choice == "random":
        images = [real.sample(c, n, run.generator("random", c)) for c in classes]
    else:
        members = [(real.labels == c).nonzero().flatten() for c in classes]
        if config.choice == "mfc":
            chosen = [finite_cover(real.images[indices].flatten(1), n) for indices in members]
        else:
            features = _features(real, config, run)
            choose = herding if config.choice == "herding" else k_center
            chosen = [choose(features[indices], n) for indices in members]
        images = [real.images[indices[mine]] for indices, mine in zip(members, chosen, strict=True)]
    labels = torch.arange(real.num_classes, device=real.images.device)
    if config.factor == 1:
        selected, labels = torch.cat(images), labels.repeat_interleave(ipc)
    else:
        stored = torch.cat([packed(of_class, config.factor) for of_class in images])
        selected, labels = unpacked(stored, labels.repeat_interleave(ipc), config.factor)
    return DistilledSet.of(
        real,
        selected,
        labels,
        augment=config.augment,
        backbone=config.backbone,
        training=MethodTraining(factor=config.factor if config.factor > 1 else None),
    )


def check(real: ImageSet, ipc: int, config: Config, _: int) -> None:
    """Refuse a factor that does not fit the images; arguments as of `distill`.

    Raises:
        InputError: factor does not divide the size of the images, or a class has too few images.
    """
    check_factor(config.factor, real.image_shape[1])
    n = config.factor**2 * ipc
    smallest = int(real.labels.bincount(minlength=real.num_classes).min())
    if n > smallest:
        text = f"--factor {config.factor} with ipc {ipc} takes {n} images of each class"
        raise InputError(f"{text}; the smallest class of {real.name} has {smallest}")


def herding(features: Tensor, n: int) -> Tensor:
    """Return the indices (n,) of the selected images of a class, in herding's order, from features (N, D).

    >>> herding(torch.tensor([[0.0], [1.0], [5.0], [6.0]]), 2).tolist()  # the mean is 3: 1 is nearest, then (1 + 5) / 2
    [1, 2]
    """
    mean, total, selected = features.mean(0), torch.zeros_like(features[0]), []
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    for k in range(1, n + 1):
        distance = (mean - (total + features) / k).square().sum(1)
        selected.append(distance.where(free, torch.inf).argmin())
        free[selected[-1]] = False
        total = total + features[selected[-1]]
    return torch.stack(selected)


def k_center(features: Tensor, n: int) -> Tensor:
    """Return the indices (n,) of the selected images of a class, in greedy k-center order, from features (N, D).

    >>> k_center(torch.tensor([[0.0], [1.0], [5.0], [9.0]]), 3).tolist()  # the mean is 3.75: 5, then 0, then 9
    [2, 0, 3]
    """
    selected = [(features - features.mean(0)).square().sum(1).argmin()]
    nearest = torch.full_like(features[:, 0], torch.inf)
    for _ in range(n - 1):
        nearest = torch.minimum(nearest, (features - features[selected[-1]]).square().sum(1))
        nearest[selected[-1]] = -1.0  # identical images are not selected twice
        selected.append(nearest.argmax())
    return torch.stack(selected)


def finite_cover(points: Tensor, n: int) -> Tensor:
    """Return the indices (n,) of the centres of the smallest equal balls that cover all points (N, D), greedily chosen.

    Needs 4 N^2 bytes. Where fewer than n balls suffice, the points farthest from the centres fill up.

    >>> finite_cover(torch.tensor([[0.0], [1.0], [2.0], [8.0], [9.0]]), 2).tolist()  # radius 1, around 1 and 8
    [1, 3]
    """
    distances = torch.cdist(points, points).fill_diagonal_(0.0)
    radii = distances.flatten().unique() if distances.numel() <= EXACT else _quantiles(distances)
    low, high = 0, len(radii) - 1  # the largest radius covers all points by one ball
    best = _cover(distances, radii[high], n)
    while low < high:
        middle = (low + high) // 2
        found = _cover(distances, radii[middle], n)
        if found is None:
            low = middle + 1
        else:
            high, best = middle, found
    assert best is not None
    nearest = distances[best].amin(0)
    nearest[best] = -1.0
    while len(best) < n:
        best = torch.cat([best, nearest.argmax()[None]])
        nearest = torch.minimum(nearest, distances[best[-1]])
        nearest[best[-1]] = -1.0
    return best


def _cover(distances: Tensor, radius: Tensor, most: int) -> Tensor | None:
    """Return the centres of a greedy cover by balls of a radius; None where `most` balls do not suffice."""
    inside, centres = distances <= radius, []
    gains = inside.sum(1)  # points in a ball that no chosen ball has
    left = torch.ones(len(distances), dtype=torch.bool, device=distances.device)
    while left.any():
        if len(centres) == most:
            return None
        centres.append(gains.argmax())
        new = inside[centres[-1]] & left
        gains, left = gains - inside[:, new].sum(1), left & ~new
    return torch.stack(centres)


def _quantiles(distances: Tensor) -> Tensor:
    """Return a thousand radii, evenly spaced, up to the largest distance."""
    return torch.linspace(0, float(distances.max()), 1001, device=distances.device)[1:]


def _features(real: ImageSet, config: Config, run: Run) -> Tensor:
    """Return features (N, D) of the real images; runs with any ipc and choice share the trained extractor."""
    fields = {name: value for name, value in vars(config).items() if name not in ("choice", "augment", "factor")}
    stage = run.stage("extractor", {"data": real.identity(), "extractor": fields})
    network = build(config.backbone, like=real, generator=stage.generator("network")).to(real.images.device)
    embedding(network.eval(), real.images[:2])  # rejects a network without features before hours of training
    images = Normalize(real.mean, real.std).to(real.images.device)(real.in_memory().images)
    name = "extractor.safetensors"
    with locked(stage.folder, wait=True):
        if (stored := stage.read_tensors(name)) is None:
            _train(network, images, real.labels, config, stage)
            stage.write_tensors(name, network.state_dict(), {"backbone": config.backbone})
            stage.finish()
        else:
            network.load_state_dict(stored[0])
    network.eval()
    with torch.no_grad():
        return torch.cat([embedding(network, part) for part in images.split(500)])


def _train(network: nn.Module, images: Tensor, labels: Tensor, config: Config, stage: Run) -> None:
    """Train the extractor in place; resumes from its checkpoint."""
    optimizer = torch.optim.SGD(network.parameters(), lr=config.lr_net, momentum=0.9, weight_decay=5e-4)
    done = 0
    if (state := stage.restore()) is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["epoch"]
    with stage.progress("extractor", config.extractor_epochs, done, unit="epoch") as bar:
        for epoch in range(done, config.extractor_epochs):
            options = {"epochs": 1, "batch_size": config.batch_train, "generator": stage.generator("order", epoch)}
            train_epochs(network, images, labels, optimizer, **options)
            check_finite("the extractor", epoch, {"weights": network.state_dict()}, "--lr-net", "epoch")
            bar.update()
            if stage.due():
                state = {"epoch": epoch + 1, "network": network.state_dict(), "optimizer": optimizer.state_dict()}
                stage.save(epoch + 1, state)


def work(config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return the work of the selection for the time estimate: the training steps of the extractor."""
    if config.choice in ("random", "mfc"):
        return []
    small = min(config.batch_train, PROBE)
    steps = config.extractor_epochs * examples / small
    return [(steps / STEPS, partial(training_steps, images=small, lr=config.lr_net))]


def _recipe(name: str, choice: Choice, facts: Facts, ipc: int) -> Recipe:
    if name == "paper":  # the students' protocol of the DC family, without augmentation
        return Recipe(Config(choice, convnet_for(facts.depth)), Evaluation(students=50))
    backbone = convnet_for(facts.depth, 64 if ipc == 1 else 32)
    return Recipe(Config(choice, backbone, extractor_epochs=5), Evaluation(students=3, test_images=2000))


_smoke = partial(
    replace,
    extractor_epochs=1,
    batch_train=16,
    backbone="convnet:width=8,depth=2",
)

_method = partial(Method, distill=distill, work=work, check=check, why_one="selecting images takes seconds")

METHODS = (
    _method(
        "random",
        "random real images",
        "no paper: a baseline",
        "coresets",
        presets(_recipe, "random", smoke=_smoke),
    ),
    _method(
        "herding",
        "real images whose mean features follow those of the class",
        "Welling, ICML 2009",
        "coresets",
        presets(_recipe, "herding", smoke=_smoke),
    ),
    _method(
        "kcenter",
        "real images that cover the features of the class",
        "Sener, Savarese, ICLR 2018, arXiv 1708.00489",
        "coresets",
        presets(_recipe, "kcenter", smoke=_smoke),
    ),
    _method(
        "mfc",
        "real images whose balls, of one radius in pixels, cover all images of the class",
        "Chen, Selvan 2024, arXiv 2402.05675",
        "coresets",
        presets(_recipe, "mfc", smoke=_smoke),
        in_benchmark=False,
    ),
)
