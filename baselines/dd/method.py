"""Dataset distillation (DD): a few images and learning rates for one short training.

    min over x, eta of  E over theta_0 and real batches B of  L_B(theta_S)
    theta_(s+1) = theta_s - eta_s grad_theta L(x_(s mod T), y_(s mod T); theta_s),   s = 0 ... S - 1,   S = T E

The training is S steps of plain gradient descent: T steps with different images, repeated E times. Each of the S steps
has a separate learning rate eta = softplus(raw) > 0. L is the mean cross-entropy; theta_0 is drawn anew in each
iteration (or is one of a few fixed networks). Adam optimises the images, the raw learning rates and, in SLDD, the
labels, in normalised space without clamping. `--ipc` counts the images of a class in the whole set. `distill_steps` T
divides them among the steps: the paper's ten images are ten steps with one image of each class.

DD:   "Dataset Distillation", Wang, Zhu, Torralba, Efros, 2018 (arXiv 1811.10959), algorithm 1.
at_dd: the loss of the real batch is that of adversarial training, L_B at the points that PGD finds under theta_S; the
      attack is a constant of the gradient. "Robust Dataset Learning" (Wu et al., 2022, arXiv 2211.10752) states this
      problem: data on which plain training gives a robust network.
SLDD: "Soft-Label Dataset Distillation and Text Dataset Distillation", Sucholutsky & Schonlau, IJCNN 2021 (arXiv
      1910.02551): labels are learned too. They start one-hot and are unconstrained: they may be negative or above 1.

The gradient is exact. Backwards from the last step, the cotangent lambda of theta_(s+1) is turned into the cotangent of
theta_s:

    lambda = grad L_B(theta_S);   with g_s = grad_theta L(x, y; theta_s), for s = S - 1 ... 0:
    d eta_s = -<lambda, g_s>,   d(x, y) += -eta_s d<lambda, g_s>/d(x, y),   lambda += -eta_s d<lambda, g_s>/d theta_s

The backward pass recomputes each step, so that memory holds the graph of one step. Keeping all graphs, as the official
code does, would save 15 to 20 % of the time (LeNet and ConvNet at 16 px, S = 10).

`training` of a set stores what `protocol` needs: `order`, the indices of the images of each of the T steps; `lrs` and
`weights`; `fixed`, the seeds of known networks, empty if each student starts from different weights. SLDD's learned
labels are stored in `training_tensors["labels"]`; students of the standard protocol use the nearest probabilities.

Deviations from the official codes: images are normalised with the mean and std of our data sets (the official std for
CIFAR-10 is .247 .243 .261); the whole network is in evaluation mode, hence without dropout, and BatchNorm is rejected;
two classes are two logits, not one; images are sorted by class; each random draw has a separate seed (`Run.generator`).
Not implemented: networks from files, SLDD's other initial labels and its softmax.
"""

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.dd.unrolled import cross_entropy_of, descent, drawn, hypergradient, untrained
from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.experiment import LATER
from distill.method_training import MethodTraining
from distill.runs.divergence import check_finite
from distill.runs.run import Run
from distill.training.protocol import Protocol
from distill.training.ridge import probabilities
from distill.training.work import PROBE, STEPS, Work, training_steps
from robust import CrossEntropy, Loss, Normalize
from robust.losses import drawing_from, on_inputs
from robust.ranges import Count, Positive, Range, check_ranges

__all__ = ["Config", "distill", "protocol", "student_work", "work"]

REMEDY = "--distill-lr or --lr"
"""flags to reduce when the distillation diverges"""


@dataclass(frozen=True)
class Config:
    """The method's settings, named as in the official code where possible.

    Raises:
        ValueError: a field is out of its range.
    """

    backbone: str = "lenet"
    """network for distillation and for students: a name from `bash run.sh list`, options after a colon"""
    distill_steps: Count | None = None
    """T: steps with different images, a divisor of ipc; None: the largest divisor up to 10"""
    distill_epochs: Count = 3
    """E: repetitions of the T steps, with new learning rates in each repetition"""
    distill_lr: Positive = 0.02
    """initial value of all learned learning rates"""
    labels: Literal["hard", "learned"] = "hard"
    """hard: classes; learned: a vector per image, optimised like the image and initially one-hot (SLDD)"""
    train_nets_type: Literal["unknown_init", "known_init"] = "unknown_init"
    """unknown_init: new networks in each iteration; known_init: fixed networks, from whose weights students start"""
    n_nets: Count = 1
    """networks per iteration, whose gradients are averaged; with known_init, the number of fixed networks"""
    weights: Literal["xavier", "backbone"] = "xavier"
    """initial weights: xavier (normal with Xavier's variance, biases 0), or the backbone's initialisation"""
    epochs: Count = 400
    """epochs of the optimisation of the images"""
    epoch_iterations: Count | None = None
    """iterations per epoch; None: one pass over the real data"""
    batch_size: Count = 1024
    """real images per iteration"""
    lr: Positive = 0.01
    """learning rate of Adam (betas 0.5 and 0.999) for images, raw learning rates and labels, normalised units"""
    decay_epochs: Count = 40
    """lr is multiplied by decay_factor every so many epochs"""
    decay_factor: Annotated[float, Range(above=0, most=1)] = 0.5
    """factor of the decay of lr, in (0, 1]"""
    outer_loss: Loss = field(default=CrossEntropy(), metadata=LATER)
    """loss of the real batch; h in normalised units, eps and sigma in pixels of [0, 1]"""
    crop_flip: bool = False
    """shift real images by up to 4 pixels (reflected border) and mirror them at random, as in DD's code for CIFAR-10"""

    def __post_init__(self) -> None:
        check_ranges(self)


def steps(config: Config, ipc: int) -> int:
    """Return T, the number of steps with different images.

    Raises:
        InputError: distill_steps does not divide ipc.

    >>> [steps(Config(), ipc) for ipc in (1, 7, 10, 11, 50)]
    [1, 7, 10, 1, 10]
    """
    count = config.distill_steps or max(count for count in range(1, 11) if ipc % count == 0)
    if ipc % count:
        raise InputError(f"distill_steps is {count}; it must divide ipc, which is {ipc}")
    return count


def distill(real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Distil a data set; continues from the run's checkpoint.

    Args:
        real: the training set, on the device to work on.
        ipc: images per class, summed over all steps.
        config: the settings.
        run: supplies random generators, checkpoints, scalars and the progress bar.

    Returns:
        `ipc` images of each class, sorted by class, in pixels, on the device of `real`.

    Raises:
        InputError: distill_steps does not divide ipc, the network has BatchNorm, or the loss became NaN.
    """
    device, normalize = real.images.device, Normalize(real.mean, real.std).to(real.images.device)
    count, of_pixels = steps(config, ipc), on_inputs(config.outer_loss, normalize)
    classes = torch.arange(real.num_classes).repeat_interleave(ipc // count).repeat(count, 1)  # (T, n) of the images
    state = run.restore() or _initial(real, classes, config, run)
    images, raw_lrs, labels = (state[name].to(device) for name in ("images", "raw_lrs", "labels"))
    learned = [images, raw_lrs.requires_grad_()] + ([labels] if config.labels == "learned" else [])
    optimizer = torch.optim.Adam(learned, lr=config.lr, betas=(0.5, 0.999))
    if "optimizer" in state:
        optimizer.load_state_dict(state["optimizer"])

    def network(*address: str | int) -> nn.Module:
        return untrained(config.backbone, config.weights, real, run.generator("network", *address)).to(device)

    fixed = [network(number) for number in range(config.n_nets if config.train_nets_type == "known_init" else 0)]
    steps_per_pass = -(-len(real) // config.batch_size)
    steps_per_epoch = config.epoch_iterations or steps_per_pass
    total, first = config.epochs * steps_per_epoch, state["iteration"]
    batches: tuple[Tensor, ...] = ()
    with run.progress("distil", total, first) as bar:
        for iteration in range(first, total):
            start = time.perf_counter()
            passes, batch = divmod(iteration, steps_per_pass)
            if batch == 0 or iteration == first:
                shuffled = torch.randperm(len(real), generator=run.generator("order", passes)).to(device)
                batches = shuffled.split(config.batch_size)
            x, y = normalize(real.images[batches[batch]]), real.labels[batches[batch]]
            if config.crop_flip:
                x = cropped_and_flipped(x, run.generator("crop and flip", iteration))
            lrs = F.softplus(raw_lrs)
            nets = fixed or [network(number, iteration) for number in range(config.n_nets)]
            outer = cross_entropy_of
            if config.outer_loss != CrossEntropy():
                outer = drawing_from(of_pixels, run.generator("outer_loss", iteration))
            each = [hypergradient(net, images, labels, lrs.detach(), x, y, outer) for net in nets]
            loss, by_images, by_lrs, *by_labels = (torch.stack(same).mean(0) for same in zip(*each, strict=True))
            found = {"loss": loss, "gradient of the images": by_images, "of the learning rates": by_lrs}
            check_finite("the distillation", iteration, found, REMEDY)
            by_raw = torch.autograd.grad(lrs, raw_lrs, by_lrs)
            for parameter, gradient in zip(learned, (by_images, *by_raw, *by_labels), strict=True):
                parameter.grad = gradient
            for group in optimizer.param_groups:
                group["lr"] = config.lr * config.decay_factor ** (iteration // steps_per_epoch // config.decay_epochs)
            optimizer.step()
            bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            bar.update()
            run.log(iteration, loss=loss, lr=lrs.detach().mean(), seconds=time.perf_counter() - start)
            if run.due() or iteration == total - 1:
                state = {"iteration": iteration + 1, "images": images, "raw_lrs": raw_lrs.detach(), "labels": labels}
                run.save(iteration + 1, state | {"optimizer": optimizer.state_dict()}, REMEDY)

    seeds = [run.generator("network", number).initial_seed() for number in range(len(fixed))]
    by_class = classes.flatten().argsort(stable=True)
    order, labels = by_class.argsort().view(len(labels), -1).tolist(), labels.flatten(0, 1)[by_class]
    return DistilledSet.of(
        real,
        normalize.inverse(images.flatten(0, 1)[by_class]),
        probabilities(labels) if labels.is_floating_point() else labels,
        backbone=config.backbone,
        training=MethodTraining(order=order, lrs=F.softplus(raw_lrs).tolist(), weights=config.weights, fixed=seeds),
        training_tensors={"labels": labels} if labels.is_floating_point() else {},
        classes=classes.flatten()[by_class],
    )


def _initial(real: ImageSet, classes: Tensor, config: Config, run: Run) -> dict[str, Any]:
    images = torch.randn(*classes.shape, *real.image_shape, generator=run.generator("initial"))
    lr = torch.full((len(classes) * config.distill_epochs,), config.distill_lr)  # inverse softplus is applied below
    labels = F.one_hot(classes, real.num_classes).float() if config.labels == "learned" else classes
    return {"iteration": 0, "images": images, "raw_lrs": lr + (-(-lr).expm1()).log(), "labels": labels}


def cropped_and_flipped(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (N, C, H, H), each shifted by up to 4 pixels (reflected border) and mirrored at random."""
    size, pad = x.shape[3], min(4, x.shape[3] - 1)
    down, across = torch.randint(2 * pad + 1, (2, len(x), 1), generator=generator) + torch.arange(size)
    mirrored = torch.rand(len(x), 1, generator=generator) < 0.5
    across = torch.where(mirrored, across.flip(1), across)
    image, channel = torch.arange(len(x)).view(-1, 1, 1, 1), torch.arange(x.shape[1]).view(-1, 1, 1)
    at = (image, channel, down[:, None, :, None], across[:, None, None, :])
    return F.pad(x, (pad,) * 4, mode="reflect")[tuple(index.to(x.device, non_blocking=True) for index in at)]


# --- students ----------------------------------------------------------------------------------------------------


def protocol(distilled: DistilledSet, folder: Path, run: Run) -> Protocol:
    """Return the authors' protocol: students take only the distilled steps.

    With N known networks, student k starts from the weights of network k mod N.

    Args:
        distilled: the set, on the device to work on.
        folder: not used.
        run: the evaluation, which supplies random generators.

    Raises:
        InputError: the set lacks fields of this protocol.
    """
    training, device = distilled.training, distilled.labels.device
    weights, seeds = training.weights, training.fixed
    if training.order is None or training.lrs is None or weights is None or seeds is None:
        missing = training.missing("order", "lrs", "weights", "fixed")
        raise InputError(f"the set lacks {', '.join(missing)} of dd's training; take --protocol standard")
    order, lrs = (torch.tensor(values, device=device) for values in (training.order, training.lrs))
    images = Normalize(distilled.mean, distilled.std).to(lrs)(distilled.images[:])[order]
    labels = distilled.training_tensors.get("labels", distilled.labels)[order]

    def train(network: nn.Module, name: str) -> None:
        drawn(network, weights, run.generator("student", name, "initial"))
        if seeds:
            number = int(name) if name.isdecimal() else 0
            if number == len(seeds):
                run.notify(
                    f"the set is for {number} known networks: student {number} and all later ones repeat earlier ones"
                )
            generator = torch.Generator().manual_seed(seeds[number % len(seeds)])
            known = untrained(distilled.backbone, weights, distilled, generator).state_dict()
            if {key: v.shape for key, v in known.items()} != {k: v.shape for k, v in network.state_dict().items()}:
                raise InputError(f"the set is for a known {distilled.backbone}; take this, or --protocol standard")
            network.load_state_dict(known)
        *_, last = descent(network.eval(), images, labels, lrs)
        network.load_state_dict(last, strict=False)

    return Protocol(train, len(lrs) // len(order))


def work(config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return the work of a distillation for the time estimate: each kind of step and the number of such steps."""
    probe, real = min(ipc // steps(config, ipc) * num_classes, PROBE), min(config.batch_size, examples)
    batch = min(real, PROBE)
    networks = config.epochs * (config.epoch_iterations or -(-examples // config.batch_size)) * config.n_nets

    def forward_and_backward(network: nn.Module, shape: tuple[int, ...]) -> None:
        images, labels = torch.randn(1, probe, *shape), torch.zeros(1, probe, dtype=torch.long)
        hypergradient(network, images, labels, torch.full((STEPS,), config.distill_lr), images[0, :1], labels[0, :1])

    distilled_steps = networks * config.distill_epochs * ipc * num_classes / probe / STEPS
    return [
        (distilled_steps, forward_and_backward),
        (networks * config.outer_loss.passes * real / batch / STEPS, partial(training_steps, images=batch)),
    ]


def student_work(config: Config, ipc: int, num_classes: int) -> list[Work]:
    """Return the work of training one student with the distilled steps."""
    probe = min(ipc // steps(config, ipc) * num_classes, PROBE)
    return [(config.distill_epochs * ipc * num_classes / probe / STEPS, partial(training_steps, images=probe))]
