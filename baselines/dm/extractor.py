"""The extractor of guard_dm: a network trained on the real data, from which DM takes its features.

Several processes divide the chunks of each batch. Each step gathers one gradient a chunk, hence
4 * (batch_size / CHUNK) * (number of weights) bytes. The main process alone trains a network with BatchNorm or dropout,
because its gradients depend on the whole batch, or on torch's random numbers.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from distill.data import ImageSet
from distill.runs.divergence import check_finite, remedy_of
from distill.runs.divided import network_from_main
from distill.runs.ranks import alone, is_main_process
from distill.runs.run import Run
from distill.training.augment import Augmentation
from distill.training.real_side import of_all
from robust import Loss, Normalize
from robust.losses import drawing_from, on_inputs

__all__ = ["steps_of", "train_extractor"]

CHUNK = 32
"""images of a batch whose gradient is computed at once"""


def steps_of(epochs: int, batch_size: int, real: ImageSet) -> int:
    """Return the number of training steps of the extractor."""
    return epochs * -(-len(real) // batch_size)


def train_extractor(
    network: nn.Module,
    real: ImageSet,
    normalize: Normalize,
    augment: Augmentation | None,
    run: Run,
    state: dict[str, Any],
    *,
    loss: Loss,
    epochs: int,
    batch_size: int,
    lr: float,
) -> nn.Module:
    """Train a network on the real data; continues from the state of a checkpoint.

    Args:
        network: untrained, on the device of `real`; changed in place.
        real: the training set.
        normalize: from pixels to what the network takes.
        augment: augmentation, drawn for each image, or None.
        run: supplies random generators, checkpoints, scalars and the progress bar.
        state: of the checkpoint, or {"iteration": 0}; updated in place.
        loss: of the training; h in normalised units, eps and sigma in pixels of [0, 1].
        epochs: passes over the real data, >= 1.
        batch_size: images per step.
        lr: learning rate of SGD.

    Returns:
        the network, frozen and in evaluation mode, the same in every process.

    Raises:
        InputError: the training diverged.
    """
    whole = any(isinstance(module, (_BatchNorm, _DropoutNd)) for module in network.modules())
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    done, total = state.get("trained", 0), steps_of(epochs, batch_size, real)
    if done:
        network.load_state_dict(state["network"])
        if done < total:
            optimizer.load_state_dict(state["optimizer"])
    network.train()

    def train() -> None:
        remedy, per_epoch = remedy_of(("--lr-net",), "--real-loss", loss), total // epochs
        batches, of_epoch = (), loss
        with run.progress("extractor", total, done) as bar:
            for step in range(done, total):
                start = time.perf_counter()
                epoch, number = divmod(step, per_epoch)
                if number == 0 or step == done:
                    order = torch.randperm(len(real), generator=run.generator("extractor order", epoch))
                    batches = order.to(real.labels.device, non_blocking=True).split(batch_size)
                    of_epoch = on_inputs(loss.at(epoch), normalize)
                x, y = normalize(real.images[batches[number]]), real.labels[batches[number]]
                if augment is not None:
                    drawn = augment.sample(len(x), tuple(x.shape[1:]), run.generator("extractor augment", step))
                    x = augment.apply(x, drawn)
                draws = partial(run.generator, "real_loss", step)
                value = _gradients(network, x, y, of_epoch, batch_size if whole else CHUNK, draws)
                check_finite("the extractor", step, {"loss": value}, remedy, "step")
                optimizer.step()
                bar.set_postfix(loss=f"{value:.4g}", refresh=False)
                bar.update()
                run.log(step, extractor_loss=value, seconds=time.perf_counter() - start)
                if run.due() or step == total - 1:
                    state.update(trained=step + 1, network=network.state_dict(), optimizer=optimizer.state_dict())
                    if step == total - 1:
                        del state["optimizer"]
                    run.save(step + 1, state, remedy)

    if is_main_process() or not whole:
        with alone() if whole else nullcontext():
            train()
    network_from_main(network)
    return network.eval().requires_grad_(False)


def _gradients(
    network: nn.Module, x: Tensor, y: Tensor, loss: Loss, chunk: int, draws: Callable[[int], torch.Generator]
) -> float:
    """Set the `.grad` of the network's parameters to the gradient of the mean loss.

    Args:
        network: to train.
        x: (N, C, H, W), what the network takes.
        y: (N,) classes.
        loss: mean loss.
        chunk: images whose gradient is computed at once; the processes divide the chunks.
        draws: number of a chunk -> generator of a random loss.

    Returns:
        the loss.
    """
    chunks, parameters = list(zip(x.split(chunk), y.split(chunk), strict=True)), list(network.parameters())

    def of_chunk(number: int) -> tuple[Tensor, Sequence[Tensor]]:
        inputs, targets = chunks[number]
        value = len(inputs) / len(x) * drawing_from(loss, draws(number))(network, inputs, targets)
        return value.detach(), torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)

    found = of_all(of_chunk, network, len(chunks))
    total, sums = found(0)
    for number in range(1, len(chunks)):
        value, gradients = found(number)
        total, sums = total + value, [s + g for s, g in zip(sums, gradients, strict=True)]
    for parameter, gradient in zip(parameters, sums, strict=True):
        parameter.grad = gradient
    return total.item()
