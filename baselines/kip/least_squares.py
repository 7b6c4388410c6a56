"""KIP's protocol for students: finite networks trained by least squares on centred labels.

The weights of a student are drawn from N(0, w_std^2 / fan in), the biases from N(0, b_std^2). SGD minimises half the
mean squared error. The learning rate decays as a cosine to 0; it starts at the largest value at which gradient descent
on the tangent kernel of the initial weights converges. The authors use `--backbone convnet:width=1024,norm=none` (their
"ConvNet3"), 100 images per step, 5000 steps.

Source: nn_training.ipynb of google-research/kip, for Nguyen et al. 2021 (arXiv 2107.13034). Deviations: the largest
learning rate is estimated on distilled images, not on held-out real images, and by power iteration; for a set of fewer
than 100 images, a batch contains each image once.
"""

from math import cos, pi
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.runs.run import Run
from distill.training.protocol import Protocol
from distill.training.whiten import preprocessing

__all__ = ["BATCH", "largest_rate", "protocol"]

BATCH, MOMENTUM, L2, INPUTS = 100, 0.9, 1e-3, 50
"""from nn_training.ipynb: images per step, momentum of SGD, l2_regularization and empirical_ntk_num_inputs"""


def protocol(distilled: DistilledSet, folder: Path, run: Run) -> Protocol:
    """Return the authors' protocol.

    Args:
        distilled: the set, on the device to work on.
        folder: the folder of the set's file.
        run: the evaluation, which supplies random generators.

    Raises:
        InputError: the set lacks fields of this protocol, or the file of the whitening is missing.
    """
    training, labels = distilled.training, distilled.training_tensors.get("labels")
    steps, w_std, b_std = training.steps, training.w_std, training.b_std
    if steps is None or w_std is None or b_std is None or labels is None:
        missing = training.missing("steps", "w_std", "b_std") + ["labels"] * (labels is None)
        raise InputError(f"the set lacks {', '.join(sorted(missing))} of kip's training; take --protocol standard")
    space = preprocessing(distilled, folder).to(distilled.labels.device)
    images = space(distilled.images[:])
    steps_per_epoch = -(-len(images) // BATCH)
    seen = images[torch.linspace(0, len(images) - 1, min(INPUTS, len(images))).long()]

    def train(network: nn.Module, name: str) -> None:
        _draw(network, w_std, b_std, run.generator("student", name, "initial"))
        lr = largest_rate(network, seen)
        optimizer = torch.optim.SGD(network.train().parameters(), lr=lr, momentum=MOMENTUM, weight_decay=L2)
        generator, batches = run.generator("student", name, "order"), []
        for step in range(steps):
            batches = batches or list(torch.randperm(len(images), generator=generator).to(images.device).split(BATCH))
            batch = batches.pop(0)
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + cos(pi * step / steps))
            optimizer.zero_grad(set_to_none=True)
            (0.5 * (network(images[batch]) - labels[batch]).square().mean()).backward()
            optimizer.step()

    return Protocol(train, -(-steps // steps_per_epoch), preprocess=space)


@torch.no_grad()
def _draw(network: nn.Module, w_std: float, b_std: float, generator: torch.Generator) -> None:
    """Initialise kernels, matrices and their biases at random, in place."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            drawn = torch.randn(module.weight.shape, generator=generator)
            module.weight.copy_(drawn * (w_std / module.weight[0].numel() ** 0.5))
            if module.bias is not None:
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * b_std)


def largest_rate(network: nn.Module, images: Tensor, rounds: int = 30) -> float:
    """Return the largest learning rate at which gradient descent on the linearised mean squared error converges.

    The rate is 2 N K divided by the largest eigenvalue of the tangent kernel of the sum of the logits over sqrt(K). In
    wide networks this kernel equals the kernel of each logit. The matrix is not built: J J^T is applied to a vector by
    one backward and one forward pass.

    Args:
        network: its gradients and mode do not change.
        images: (N, C, H, W), normalised or whitened.
        rounds: rounds of power iteration from the vector of ones, which is close to the first eigenvector of such
            kernels.
    """
    training, weights = network.training, list(network.parameters())
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        logits = network.eval()(images)
        summed = logits.sum(1) / logits.shape[1] ** 0.5
        vector = torch.ones_like(summed, requires_grad=True)
        back = torch.autograd.grad(summed, weights, vector, create_graph=True, materialize_grads=True)  # J^T vector
        point = vector
        for _ in range(rounds):
            point = point.detach() / point.detach().norm()
            along = torch.autograd.grad(summed, weights, point, retain_graph=True, materialize_grads=True)
            (point,) = torch.autograd.grad(back, vector, along, retain_graph=True)  # the derivative by the vector: J
    network.train(training)
    return 2 * logits.numel() / point.norm().item()
