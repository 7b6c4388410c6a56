"""MTT, matching training trajectories: training on synthetic images follows the trajectories of training on real data.

    min over S and alpha of  || theta_N - theta*_(t+M) ||^2 / || theta*_t - theta*_(t+M) ||^2
    theta_0 = theta*_t,   theta_(i+1) = theta_i - alpha grad_theta L(A_i(S_i), theta_i),   i = 0 ... N - 1

theta* is an expert's trajectory (`baselines.mtt.trajectories`); each iteration draws an expert and an epoch t. S_i is a
batch of the images, A_i an augmentation drawn for each image, alpha the learned learning rate, which --protocol own
uses for students. S is optimised in the input space of the networks, normalised or whitened. With learned labels, L is
the cross-entropy with softmax(Y_i), and the logits Y are optimised with S and alpha (`baselines.mtt.initial`).

MTT:       "Dataset Distillation by Matching Training Trajectories", Cazenavette et al., CVPR 2022 (arXiv 2203.11932),
           algorithm 1.
TESLA:     "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory", Cui et al., ICML 2023 (arXiv
           2211.10586).
DATM:      "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching", Guo et al., ICLR 2024
           (arXiv 2310.05773): learned labels, and start epochs t from early (easy) to late (hard).
guard_mtt: MTT whose experts are trained with GUARD's curvature-regularised loss; only the field expert_loss differs.
           Neither paper has this combination: GUARD compares with unmodified MTT and TESLA.
mat:       MTT from adversarially trained experts, whose weights are averaged (`baselines.mtt.mat`).
mtt_learned_labels, tesla_learned_labels: learned labels that start at those of an adversarially trained teacher. No
           paper has this combination.

Deviations from the official codes: the result is the last set, not the best of many on the test set; experts are drawn
with replacement (as with --load_all); K iterations, not K + 1; CIFAR-100 and Tiny ImageNet are normalised with their
own constants, not with those of CIFAR-10 and ImageNet; DSA warps as in DSA's code (MTT aligns corners); TESLA's code
omits the factor 2 in the gradient by images, so its --lr_img 1000 is 500 here; each random draw has a separate seed
(`Run.generator`), and all runs share the experts of one seed; DATM's experts are those of MTT, not of FTD (Du et al.,
CVPR 2023), and its students have the batches of MTT's.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from baselines.mtt.config import Config
from baselines.mtt.initial import initial
from baselines.mtt.matching import logits_at, match
from baselines.mtt.step_lengths import compare_step_lengths
from baselines.mtt.trajectories import Expert, Trajectories, experts
from baselines.robust_labels.labels import check_teachers, squeezes
from distill.data import ImageSet
from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.method_training import MethodTraining
from distill.methods.initial import check_initial
from distill.models import build
from distill.runs.divergence import diverged
from distill.runs.divided import from_main
from distill.runs.ranks import barrier, is_main_process
from distill.runs.run import Run
from distill.training.augment import Augmentation, augmentation
from distill.training.protocol import Protocol
from distill.training.students import Training, train_student
from distill.training.whiten import Whiten, preprocessing
from distill.training.work import PROBE, STEPS, Work, training_steps
from robust import Normalize
from sre2l.precision import Compute
from sre2l.work import squeeze_work

__all__ = ["Config", "check", "distill", "protocol", "student_work", "work"]

REMEDY = "--lr-img, --lr-lr or --max-start-epoch"
"""flags to reduce when matching diverges"""


def distill(real: ImageSet, ipc: int, config: Config, run: Run) -> DistilledSet:
    """Distil a data set; resumes from the run's checkpoint, and reuses existing experts.

    Args:
        real: the training set, on the device to work on.
        ipc: images per class.
        config: the settings.
        run: supplies random generators, checkpoints, scalars, the progress bar and stages.

    Returns:
        `ipc` images of each class, sorted by class, in pixels, on the device of `real`; `training` contains the learned
        learning rate. Labels of experts and learned labels are probabilities.

    Raises:
        InputError: the images do not fit in memory, a teacher of the labels cannot be trained or read, or an expert or
            the matching diverged.
    """
    real = real.in_memory()  # experts see all images in each epoch
    device = real.images.device
    space, whitening = _space(real, config, run)
    teachers = experts(real, space, _expert(config), config.num_experts, run)
    if config.expert_average:
        compare_step_lengths(teachers, real, space, _expert(config), config, run)
    network = build(config.backbone, like=real, generator=run.generator("network")).to(device)
    siamese = augmentation(config.augment, real.mean, real.std)
    classes = torch.arange(real.num_classes, device=device).repeat_interleave(ipc)
    state = run.restore() or initial(real, classes, space, config, teachers, network, run)
    images, velocity, lr, lr_velocity, labels = (
        state[name].to(device) for name in ("images", "velocity", "lr", "lr_velocity", "labels")
    )
    learned, empty = config.labels == "learned", torch.empty(0)  # checkpoints of earlier versions have no logits
    logits, logits_velocity = (state.get(name, empty).to(device) for name in ("logits", "logits_velocity"))

    with run.progress("distil", config.iterations, state["iteration"]) as bar:
        for iteration in range(state["iteration"], config.iterations):
            begun = time.perf_counter()
            pair = _pair(teachers, config, iteration, run.generator("expert", iteration))
            start, target = (each.to(images, non_blocking=True) for each in pair)
            labels = _soft_labels(network, target, images) if config.labels == "expert" else classes
            order = _order(len(images), config.batch_syn, config.syn_steps, run.generator("order", iteration))

            batch = partial(_batch, order, labels, siamese, partial(run.generator, "augment", iteration))
            variable = logits if learned else None
            loss, *gradients = match(
                network, start, target, images, lr, batch, config.syn_steps, config.gradient, variable
            )
            if config.threshold is None or loss <= config.threshold:
                velocity, lr_velocity = 0.5 * velocity + gradients[0], 0.5 * lr_velocity + gradients[1]
                images, lr = images - config.lr_img * velocity, lr - config.lr_lr * lr_velocity
                if learned:
                    logits_velocity = 0.9 * logits_velocity + gradients[2]
                    logits = logits - config.lr_labels * logits_velocity
            value, rate = torch.stack([loss, lr]).tolist()
            if not (value < float("inf") and rate > 0):
                raise diverged("the matching", iteration, f"loss {value:.3g}, learned learning rate {rate:.3g}", REMEDY)
            bar.set_postfix(loss=f"{value:.4g}", lr=f"{rate:.3g}", refresh=False)
            bar.update()
            run.log(iteration, loss=value, lr=rate, seconds=time.perf_counter() - begun)
            if run.due() or iteration == config.iterations - 1:
                state = {"iteration": iteration + 1, "images": images, "velocity": velocity, "labels": labels}
                state |= {"lr": lr, "lr_velocity": lr_velocity, "logits": logits, "logits_velocity": logits_velocity}
                run.save(iteration + 1, state, REMEDY)

    file = None if whitening is None else os.path.relpath(whitening, run.folder)
    training = MethodTraining(lr=lr.item(), epochs=config.student_epochs, whitening=file)
    return DistilledSet.of(
        real,
        space.inverse(images),
        logits.softmax(1) if learned else labels,
        augment=config.augment,
        backbone=config.backbone,
        teacher=_teacher(config),
        training=training,
        classes=classes,
    )


def _teacher(config: Config) -> str:
    """Return the teacher whose labels the set has: labels that were learned have none."""
    return config.label_teacher.written if config.teacher_starts and config.lr_labels == 0 else ""


def _expert(config: Config) -> Expert:
    return Expert(
        loss=config.expert_loss,
        backbone=config.backbone,
        augment=config.augment,
        zca=config.zca,
        epochs=config.train_epochs,
        lr=config.lr_expert,
        batch_size=config.batch_train,
        epoch_images=config.expert_images,
        seed=config.expert_seed,
        average=config.expert_average,
    )


def _space(real: ImageSet, config: Config, run: Run) -> tuple[Normalize | Whiten, Path | None]:
    """Return the preprocessing of pixels, and the file of the whitening, which all runs on this data share, or None."""
    if not config.zca:
        return Normalize(real.mean, real.std).to(real.images.device), None
    path = run.stage("whitening", real.identity(), seed=0).folder / "whitening.safetensors"
    if is_main_process() and not path.exists():
        Whiten.fit(real.images[:]).save(path)
    barrier()
    return Whiten.load(path).to(real.images.device), path


def _pair(teachers: Trajectories, config: Config, iteration: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the parameters of a random expert at a random start epoch of the iteration, and M epochs later."""
    number = int(torch.randint(len(teachers), (), generator=generator))
    epochs = config.start_epochs(iteration)
    epoch = int(torch.randint(epochs.start, epochs.stop, (), generator=generator))
    return teachers.snapshot(number, epoch), teachers.snapshot(number, epoch + config.expert_epochs)


def _order(count: int, batch: int | None, steps: int, generator: torch.Generator) -> list[Tensor]:
    """Return the image indices of each step: batches of successive permutations, each from its end, as in MTT."""
    if batch is None or batch >= count:
        return [torch.arange(count)] * steps  # a mean loss does not depend on the order
    batches: list[Tensor] = []
    while len(batches) < steps:
        batches += reversed(torch.randperm(count, generator=generator).split(batch))
    return batches[:steps]


def _batch(
    order: list[Tensor],
    labels: Tensor,
    siamese: Augmentation | None,
    generator: Callable[[int], torch.Generator],
    step: int,
    images: Tensor,
    logits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the augmented images of a step and their labels; with logits (N, K), their probabilities."""
    indices = order[step].to(images.device, non_blocking=True)
    x = images[indices]
    if siamese is not None:
        x = siamese.apply(x, siamese.sample(len(x), tuple(x.shape[1:]), generator(step)))
    return x, labels[indices] if logits is None else logits[indices].softmax(1)


@torch.no_grad()
def _soft_labels(network: nn.Module, parameters: Tensor, images: Tensor) -> Tensor:
    """Return the class probabilities (N, K) of a network with `parameters`, from the main process."""
    return from_main(logits_at(network.train(), parameters, images).softmax(1))


def check(real: ImageSet, ipc: int, config: Config, processes: int) -> None:
    """Refuse before any work initial images that do not fit, and teachers of learned labels that cannot be trained.

    Raises:
        InputError: as of `check_initial` and `check_teachers`.
    """
    check_initial(real, ipc, config, processes)
    if config.teacher_starts:
        check_teachers(real, config.backbone, config.label_teacher)


# --- students with the authors' protocol -------------------------------------------------------------------------


def protocol(distilled: DistilledSet, folder: Path, run: Run) -> Protocol:
    """Return the authors' protocol: the usual student training, with the learned learning rate.

    Args:
        distilled: the set, on the device to work on; its `training` has lr and epochs.
        folder: the folder of the set's file.
        run: the evaluation, which supplies random generators.

    Returns:
        the protocol.

    Raises:
        InputError: the set lacks the learning rate or epochs, or the file of the whitening is missing.
    """
    lr, epochs = distilled.training.lr, distilled.training.epochs
    if lr is None or epochs is None:
        raise InputError("the set lacks the learned learning rate of mtt's students; give --lr, or --protocol standard")
    space = preprocessing(distilled, folder).to(distilled.labels.device)
    images, siamese = space(distilled.images[:]), augmentation(distilled.augment, distilled.mean, distilled.std)
    training = Training(epochs=epochs, lr=lr)

    def train(network: nn.Module, name: str) -> None:
        generator = run.generator("student", name, "training")
        train_student(network, images, distilled.labels, training, generator, siamese)

    return Protocol(train, training.epochs + 1, preprocess=space)


# --- time estimate -----------------------------------------------------------------------------------------------


def work(config: Config, ipc: int, num_classes: int, examples: int) -> list[Work]:
    """Return the work of a distillation for the time estimate: each kind of step and the number of such steps.

    All experts and teachers are counted, even if some exist already.
    """
    real, synthetic = min(config.batch_train, PROBE), min(config.batch_syn or ipc * num_classes, ipc * num_classes)
    probe, expert_images = min(synthetic, PROBE), min(config.expert_images or examples, examples)

    def expert_step(network: nn.Module, shape: tuple[int, ...]) -> None:
        x, y = torch.randn(real, *shape), torch.zeros(real, dtype=torch.long)
        torch.autograd.grad(config.expert_loss(network.train(), x, y), list(network.parameters()))

    def matching_step(network: nn.Module, shape: tuple[int, ...]) -> None:
        start = nn.utils.parameters_to_vector(network.parameters()).detach()
        labels = torch.zeros(probe, dtype=torch.long)
        images, lr = torch.randn(probe, *shape), torch.tensor(config.lr_init)
        logits = torch.zeros(probe, num_classes) if config.labels == "learned" else None
        batch = partial(_batch, [torch.arange(probe)], labels, None, torch.Generator().manual_seed)
        match(network, start, start + 0.1, images, lr, batch, 1, config.gradient, logits)

    teachers = squeezes(config.label_teacher) if config.teacher_starts else []
    return [
        (config.num_experts * config.train_epochs * expert_images / real, expert_step),
        (config.iterations * config.syn_steps * synthetic / probe, matching_step),
        *(squeeze_work(each, Compute(), examples) for each in teachers if each.epochs),
    ]


def student_work(config: Config, ipc: int, num_classes: int) -> list[Work]:
    """Return the work of training one student with the authors' protocol."""
    batch = min(256, ipc * num_classes, PROBE)
    steps = (config.student_epochs + 1) * ipc * num_classes / batch
    return [(steps / STEPS, partial(training_steps, images=batch))]
