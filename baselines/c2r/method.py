"""C2R, contrastive curriculum: the distilled images with the smallest robust margins first, and a contrast of features.

    L = (1 - eta) CE(A(S)) + eta L_CRL,     batches of S in the order of falling hinge [1 - m(x + delta)]_+

m is the margin of the logits, z_y - max over other classes; delta is found by LS-PGD (`baselines.c2r.line_search`),
L_CRL is a supervised contrast of clean and attacked images (`baselines.c2r.contrast`). The networks are those of ROME's
pool, trained on attacked real images (`baselines.rome.loop`); an iteration is a pass over S with one of them.

"Mind Your Margin and Boundary: Are Your Distilled Datasets Truly Robust?", Li et al., ICML 2026 (arXiv 2605.20606). Its
code was not public on 28 November 2026; we know the method from third parties' notes. From them: eta, the curriculum,
LS-PGD, the contrast, the queue with a random projection, the threat (2/255). What the notes leave open, and our choice:

- The anchors of the contrast: distilled images, or distilled and real ones (`anchors both`, the default). With
  distilled anchors alone, real images have no part but in the pool.
- The performance term: cross-entropy of the clean distilled images, as ROME's, without its weight r.
- Temperature .1, 64 queue entries a class, 32 nearest negatives, 64 dimensions of the projection, three step lengths
  that double, from half the radius; a full queue averages old and new entries equally.
- The loss of a batch is multiplied by the number of classes, so that ROME's learning rate fits. A step moves the
  batch's stored images only.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.c2r.contrast import contrastive, enqueued, nearest_negatives
from baselines.c2r.line_search import line_search
from baselines.rome.attack import attacked
from baselines.rome.loop import (
    PoolConfig,
    Problem,
    check,
    distil_in_pool,
    drawn_batch,
    moved,
    plain_training,
    pool_work,
)
from baselines.rome.pool import Member
from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.runs.run import Run
from distill.training.features import features_and_logits
from distill.training.packing import unpacked
from distill.training.work import PROBE, Work
from robust import Threat
from robust.losses.margin import margin
from robust.ranges import Count, Positive, Range

__all__ = ["Config", "check", "distill", "hinge", "order_of", "work"]


@dataclass(frozen=True)
class Config(PoolConfig):
    """The method's settings; `attack` is the ball of LS-PGD and of the real anchors.

    Raises:
        ValueError: a field is out of its range.
    """

    eta: Annotated[float, Range(least=0, most=1)] = 0.4
    """weight of the contrast; the cross-entropy has the rest"""
    anchors: Literal["both", "synthetic"] = "both"
    """images whose features are contrasted: distilled and real ones, or distilled ones alone"""
    curriculum: bool = True
    """whether batches have the images with the smallest robust margins first; else they are in random order"""
    batch_syn: Count = 128
    """distilled images of a step"""
    batch_anchors: Count = 128
    """real anchors of a step"""
    temperature: Positive = 0.1
    """tau of the contrast"""
    queue: Annotated[int, Range(least=0, most=100_000)] = 64
    """entries of a class in the queue of negatives; 0 for no queue"""
    queue_momentum: Annotated[float, Range(least=0, most=1)] = 0.5
    """share of the old entry in the average that replaces it"""
    nearest: Count = 32
    """negatives from the queue for each anchor"""
    projection: Count = 64
    """dimensions of the random projection by which they are found"""
    trials: Count = 3
    """Z: step lengths that LS-PGD tries"""
    growth: Annotated[float, Range(least=1, most=100)] = 2.0
    """beta: ratio of consecutive step lengths; the first is half the radius"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threat is None:
            raise ValueError(f"attack is {self.attack!r} and pool_loss has no ball; c2r needs one: --attack 2/255")


def distill(real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Distil a data set; arguments, result and errors as of `distil_in_pool`."""
    return distil_in_pool(real, ipc, config, run, partial(_pass, config), partial(plain_training, config))


def hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the hinge of the margin, [1 - (z_y - max over other classes)]_+, (N,).

    >>> hinge(torch.tensor([[2.0, 0.5], [0.0, 3.0]]), torch.tensor([0, 0])).tolist()
    [0.0, 4.0]
    """
    return (1 + margin(logits, labels)).clamp(min=0)


def order_of(scores: Tensor, curriculum: bool, generator: torch.Generator) -> Tensor:
    """Return the order of a pass, (N,): the largest scores first, or random without the curriculum."""
    if curriculum:
        return scores.argsort(descending=True, stable=True)
    return torch.randperm(len(scores), generator=generator).to(scores.device)


def _pass(
    config: Config, problem: Problem, member: Member, images: Tensor, velocity: Tensor, iteration: int
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Move the images in one pass over them, with one network."""
    run, network, threat = problem.run, member.network, _ball(config)
    pixels_of = nn.Sequential(problem.normalize, network)
    samples, classes = unpacked(images, problem.labels, config.factor)
    source = problem.labels.repeat(config.factor**2).argsort(stable=True) % len(images)  # stored image of each sample
    pixels, memory = problem.normalize.inverse(samples), problem.memory
    if "shift" not in memory:
        memory |= {"shift": torch.zeros_like(pixels), "losses": torch.full_like(classes, torch.inf, dtype=pixels.dtype)}
    how = {"step": threat.eps / 2, "growth": config.growth, "trials": config.trials}
    shift, losses, logits = line_search(pixels_of, pixels, classes, memory["shift"], memory["losses"], threat, **how)
    memory |= {"shift": shift, "losses": losses}
    scores = hinge(logits, classes)
    order = order_of(scores, config.curriculum, run.generator("order", iteration))
    sums = {"cross_entropy": 0.0, "contrast": 0.0}
    for number, batch in enumerate(order.split(config.batch_syn)):
        leaf = images.detach().requires_grad_()
        chosen = unpacked(leaf, problem.labels, config.factor)[0][batch]
        found = _losses(config, problem, member, chosen, shift[batch], classes[batch], (iteration, number))
        loss = (1 - config.eta) * found[0] + config.eta * found[1]
        (gradient,) = torch.autograd.grad(len(problem.real.classes) * loss, leaf)
        rows = source[batch].unique()
        images, velocity = images.clone(), velocity.clone()
        images[rows], velocity[rows] = moved(images[rows], velocity[rows], gradient[rows], config.lr_img)
        for name, value in zip(sums, found, strict=True):
            sums[name] += value.item() * len(batch) / len(order)
    return images, velocity, sums | {"hinge": scores.mean().item()}


def _ball(config: Config) -> Threat:
    threat = config.threat
    assert threat is not None  # the config was checked
    return threat


def _losses(
    config: Config,
    problem: Problem,
    member: Member,
    samples: Tensor,
    shift: Tensor,
    labels: Tensor,
    address: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of a batch of distilled images, and the contrast; with real anchors where they count.

    Args:
        config: the settings.
        problem: with the real images.
        member: the network, in evaluation mode, with frozen parameters.
        samples: (n, C, H, W), normalised, with a graph.
        shift: (n, C, H, W), their perturbations, in pixels.
        labels: (n,) classes.
        address: iteration and number of the batch.
    """
    run, network = problem.run, member.network
    std = problem.normalize.std.view(-1, 1, 1)
    companions = samples + shift / std
    if problem.siamese is not None:  # the same for an image and its companion
        drawn = problem.siamese.sample(len(samples), tuple(samples.shape[1:]), run.generator("augment", *address))
        samples, companions = (problem.siamese.apply(each, drawn) for each in (samples, companions))
    features, logits = features_and_logits(network, torch.cat([samples, companions]))
    clean, attacked_ones = features.split(len(samples))
    entropy = F.cross_entropy(logits[: len(samples)], labels)
    if config.anchors == "both":
        x, y = drawn_batch(problem, config.batch_anchors, problem.siamese, "anchors", *address)
        generator = run.generator("anchor attack", *address)
        worst = attacked(network, x, y, problem.normalize, _ball(config), config.attack_steps, generator)
        with torch.no_grad():
            of_real, of_worst = features_and_logits(network, torch.cat([x, worst]))[0].split(len(x))
        clean, attacked_ones = torch.cat([clean, of_real]), torch.cat([attacked_ones, of_worst])
        labels = torch.cat([labels, y])
    negatives = None
    if config.queue:
        negatives = _from_queue(config, problem, clean, labels)
    return entropy, contrastive(clean, attacked_ones, labels, config.temperature, negatives)


def _from_queue(config: Config, problem: Problem, anchors: Tensor, labels: Tensor) -> Tensor | None:
    """Return the similarities to the nearest negatives of the queue, then put the anchors into the queue."""
    memory, width = problem.memory, anchors.shape[1]
    classes = len(problem.real.classes)
    if "queue" not in memory:
        generator = problem.run.generator("projection")
        numbers = torch.zeros(classes, dtype=torch.long, device=anchors.device)
        memory |= {"queue": anchors.new_zeros(classes, config.queue, width), "filled": numbers, "place": numbers}
        memory |= {"projection": torch.randn(width, config.projection, generator=generator).to(anchors)}
    queue, filled = memory["queue"], memory["filled"]
    found = nearest_negatives(anchors, labels, queue, filled, memory["projection"], config.nearest)
    changed = enqueued(queue, filled, memory["place"], anchors, labels, config.queue_momentum)
    memory |= dict(zip(("queue", "filled", "place"), changed, strict=True))
    return found


def work(config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return the work of a distillation for the time estimate: each kind of step and the number of such steps."""
    samples = config.factor**2 * ipc * num_classes
    batches = -(-samples // config.batch_syn)
    synthetic = min(samples, PROBE)

    def pass_of_images(network: nn.Module, shape: tuple[int, ...]) -> None:
        leaf = torch.randn(synthetic, *shape, requires_grad=True)
        features, logits = features_and_logits(network.eval(), leaf)
        torch.autograd.grad(features.sum() + logits.sum(), leaf)

    passes = 2 + 1 + (1 + config.trials) / 3  # the pair with gradients, LS-PGD's gradient, and its forward passes
    images = passes * samples
    if config.anchors == "both":
        images += (config.attack_steps + 2 / 3) * batches * config.batch_anchors
    return [(config.iterations * images / synthetic, pass_of_images), *pool_work(config)]
