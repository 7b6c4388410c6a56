"""Dataset condensation with distribution matching: DM, and GUARD's negative result on it.

DM: "Dataset Condensation with Distribution Matching", Zhao & Bilen, WACV 2023 (arXiv 2110.04181), algorithm 1:

    min over S of  sum over classes c of  || mean psi(A(T_c)) - mean psi(A(S_c)) ||^2

psi is the input of the classifier layer of a network; each iteration uses a new random network, and no network is
trained. A is an augmentation, drawn once for both batches of a class. S is optimised in normalised space, unclamped.

guard_dm: psi is a network trained on the real data with the curvature-regularised loss, as in appendix B of GUARD (Xue
et al., arXiv 2403.10045). The appendix reports that matching features of a robust extractor does not make the distilled
set robust. We could not read its text and chose these settings: one extractor per run, trained from scratch with SGD
(momentum 0.9, weight decay 5e-4, constant learning rate) on individually augmented images, then frozen. The control is
`dm` with --extractor-epochs above 0, whose extractor is trained without the penalty.

Deviations from the official code of DM: K iterations, not K + 1; the network is in evaluation mode except BatchNorm,
which uses, as in the official code, the statistics of the batches of all classes in one pass (a trained extractor uses
its running statistics); each random draw has a separate seed (`Run.generator`).

Several processes divide the classes. Each step gathers the gradient of the images: four bytes for each of their
numbers, and with fewer groups of classes than processes four more for each number of the K mean features. With
BatchNorm in untrained networks one process has all classes, and the others wait. All processes train the extractor
(`baselines.dm.extractor`).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from baselines.dm.extractor import steps_of, train_extractor
from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.methods.initial import init_with_digest, initial_images
from distill.models import build
from distill.runs.divergence import check_finite
from distill.runs.divided import block, blocks, gathered
from distill.runs.ranks import world_size
from distill.runs.run import Run
from distill.training.augment import Augmentation, augmentation
from distill.training.features import embedding
from distill.training.real_side import siamese_view
from distill.training.students import overhead_bound
from distill.training.work import PROBE, Work
from robust import Loss, Normalize
from robust.ranges import Count, Positive, Whole, check_ranges

__all__ = ["Config", "distill", "match", "work"]

GROUP = 5
"""most classes whose synthetic images go through the network in one pass; processes divide groups"""


@dataclass(frozen=True)
class Config:
    """The method's settings, named as in the official code where possible.

    Raises:
        ValueError: a field is out of its range, or real_loss is robust but no extractor is trained.
    """

    real_loss: Loss
    """loss for training the extractor; h in normalised units, eps and sigma in pixels of [0, 1]"""
    extractor_epochs: Whole = 0
    """training epochs of the extractor; 0 is DM: no training, each iteration uses a new random network"""
    backbone: str = "convnet"
    """network for matching and for students: a name from `bash run.sh list`, options after a colon"""
    iterations: Count = 20_000
    """K: steps of the images"""
    batch_real: Count = 256
    """real images per class in a step of the images"""
    batch_train: Count = 256
    """real images per training step of the extractor"""
    lr_img: Positive = 1.0
    """learning rate of the images (SGD, momentum 0.5), normalised units"""
    lr_net: Positive = 0.01
    """learning rate of the extractor (SGD, momentum 0.9)"""
    init: str = "real"
    """initial synthetic images: noise (standard normal, in normalised space), real (random images of the class), or
    those of the distilled set in a folder, such as runs/dc/cifar10/ipc10/seed0"""
    augment: str = ""
    """siamese augmentation: "" for none, a DSA strategy, or kornia:... (see distill/training/augment.py)"""

    def __post_init__(self) -> None:
        check_ranges(self)
        object.__setattr__(self, "init", init_with_digest(self.init))
        if self.extractor_epochs == 0 and self.real_loss.traits.strength:
            raise ValueError("extractor_epochs is 0, so no network is trained with real_loss; it must be >= 1")
        augmentation(self.augment)


def distill(real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Distil a data set; continues from the run's checkpoint.

    Args:
        real: the training set, on the device to work on.
        ipc: images per class.
        config: the settings.
        run: supplies random generators, checkpoints, scalars and the progress bar; its steps count the steps of the
            extractor, then the iterations.

    Returns:
        `ipc` images of each class, sorted by class, in pixels, on the device of `real`.

    Raises:
        InputError: the backbone has no features before a linear classifier.
    """
    normalize = Normalize(real.mean, real.std).to(real.images.device)
    siamese = augmentation(config.augment, real.mean, real.std)
    labels = torch.arange(real.num_classes, device=real.images.device).repeat_interleave(ipc)

    def sample(class_: int, n: int, *address: str | int) -> Tensor:
        return normalize(real.sample(class_, n, run.generator(*address, class_)))

    def untrained(*address: str | int) -> nn.Module:
        return build(config.backbone, like=real, generator=run.generator(*address)).to(normalize.mean)

    state = run.restore() or {"iteration": 0}
    extractor = None
    if config.extractor_epochs:
        options = {"loss": config.real_loss, "epochs": config.extractor_epochs, "batch_size": config.batch_train}
        network = untrained("extractor")
        extractor = train_extractor(network, real, normalize, siamese, run, state, lr=config.lr_net, **options)
    if "images" not in state:
        images = initial_images(config.init, real, ipc, normalize, run.generator)
        state |= {"images": images, "velocity": torch.zeros_like(images)}
    images, velocity = (state[name].to(real.images.device) for name in ("images", "velocity"))

    before = steps_of(config.extractor_epochs, config.batch_train, real)
    with run.progress("distil", config.iterations, state["iteration"]) as bar:
        for iteration in range(state["iteration"], config.iterations):
            start = time.perf_counter()
            network = _frozen_random(untrained("network", iteration)) if extractor is None else extractor
            gradient, distance = match(
                network,
                images,
                real_batch=lambda c, here=iteration: sample(c, config.batch_real, "real", here),
                siamese=siamese,
                generator=lambda c, here=iteration: run.generator("augment", here, c),
            )
            velocity = 0.5 * velocity + gradient
            images = images - config.lr_img * velocity
            loss = distance.item() / real.num_classes
            check_finite("the matching", iteration, {"loss": loss}, "--lr-img")
            bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            bar.update()
            run.log(before + iteration, loss=loss, seconds=time.perf_counter() - start)
            if run.due() or iteration == config.iterations - 1:
                state |= {"iteration": iteration + 1, "images": images, "velocity": velocity}
                run.save(before + iteration + 1, state, "--lr-img")

    return DistilledSet.of(
        real, normalize.inverse(images.flatten(0, 1)), labels, augment=config.augment, backbone=config.backbone
    )


def match(
    network: nn.Module,
    images: Tensor,
    *,
    real_batch: Callable[[int], Tensor],
    siamese: Augmentation | None,
    generator: Callable[[int], torch.Generator],
) -> tuple[Tensor, Tensor]:
    """Return the squared distance of mean features, summed over classes, and its gradient by the synthetic images.

    Args:
        network: with frozen parameters; classes go through the network in groups, which the processes divide, or all
            at once if BatchNorm is in training mode.
        images: (K, ipc, C, H, W), normalised.
        real_batch: class -> real images of the class (N, C, H, W), normalised.
        siamese: augmentation of both batches of a class, or None.
        generator: class -> generator for the parameters of the augmentation.

    Returns:
        the gradient, shaped like `images`, and the distance (a scalar), the same in every process.

    Raises:
        InputError: the network has no features before a linear classifier.
    """
    at_once = any(isinstance(module, _BatchNorm) and module.training for module in network.modules())
    groups = torch.arange(len(images)).split(len(images) if at_once else GROUP if overhead_bound(images[0]) else 1)

    def means(classes: Sequence[int], batch: Callable[[int], Tensor]) -> Tensor:
        """Return the mean features of each class, (classes, D), computed in one forward pass."""
        batches = [siamese_view(c, batch(c), siamese, generator) for c in classes]
        features = embedding(network, torch.cat(batches)).split([len(each) for each in batches])
        return torch.stack([each.mean(0) for each in features])

    @torch.no_grad()
    def targets(classes: Sequence[int]) -> Tensor:
        return torch.cat([means(each, real_batch) for each in ([classes] if at_once else [[c] for c in classes])])

    targets_of = targets
    if len(groups) < world_size() and not at_once:  # so that every process has real batches
        units = range(len(images))
        mine = targets(block(units)) if block(units) else embedding(network, images[0, :1])[:0].detach()
        everything = gathered(mine, [len(each) for each in blocks(units)])
        targets_of = everything.__getitem__
    gradients, distances = [images[:0]], [images.new_zeros(0)]
    for group in block(groups):
        classes = group.tolist()
        leaf = images[classes[0] : classes[-1] + 1].detach().requires_grad_()
        synthetic = dict(zip(classes, leaf, strict=True))
        value = (means(classes, synthetic.__getitem__) - targets_of(classes)).square().sum()
        gradients += torch.autograd.grad(value, leaf)
        distances.append(value.detach().view(1))
    distance = sum(gathered(torch.cat(distances), [len(each) for each in blocks(groups)]), images.new_zeros(()))
    return gathered(torch.cat(gradients), [sum(map(len, each)) for each in blocks(groups)]), distance


def _frozen_random(network: nn.Module) -> nn.Module:
    """Freeze an untrained network; its BatchNorm uses the statistics of each batch, as it has no running statistics."""
    network.eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    return network


def work(config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return the work of a distillation for the time estimate: each kind of step and the number of such steps.

    `examples` is the number of real images; the extractor of guard_dm sees each image once per epoch.
    """
    real, group = min(config.batch_real, PROBE), min(GROUP, num_classes)
    training = min(config.batch_train, PROBE)

    @torch.no_grad()
    def features_of_real(network: nn.Module, shape: tuple[int, ...]) -> None:
        embedding(network.eval(), torch.randn(real, *shape))

    def gradient_of_images(network: nn.Module, shape: tuple[int, ...]) -> None:
        match(
            network.eval(),
            torch.randn(group, ipc, *shape),
            real_batch=lambda c: torch.randn(1, *shape),
            siamese=None,
            generator=lambda c: torch.Generator(),
        )

    def extractor_step(network: nn.Module, shape: tuple[int, ...]) -> None:
        x, y = torch.randn(training, *shape), torch.zeros(training, dtype=torch.long)
        torch.autograd.grad(config.real_loss(network.train(), x, y), list(network.parameters()))

    return [
        (config.iterations * num_classes * config.batch_real / real, features_of_real),
        (config.iterations * num_classes / group, gradient_of_images),
        (config.extractor_epochs * examples / training, extractor_step),
    ]
