"""Features of images, of which the processes compute a part each, and their gradient."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from distill.runs.divided import block, blocks, gathered
from distill.training.features import embedding

__all__ = ["features_of"]

CHUNK_ON_CPU, CHUNK = 32, 256
"""images that go through the network in one pass, on a CPU and elsewhere; processes divide chunks"""


def features_of(network: nn.Module, images: Tensor) -> Tensor:
    """Return the `embedding` of images, once differentiable by them, the same in every process.

    Args:
        network: in evaluation mode, so that an image's features do not depend on the others; its parameters get no
            gradient.
        images: (N, C, H, W), N >= 1.

    Returns:
        (N, D); 4 N D bytes are gathered, and in the backward pass 4 N C H W bytes.

    Raises:
        InputError: the network has no features before a linear classifier.
    """
    return _Features.apply(images, network)


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, network: nn.Module) -> Tensor:
        chunk = CHUNK_ON_CPU if images.device.type == "cpu" else CHUNK
        ctx.chunks = [range(len(images))[start : start + chunk] for start in range(0, len(images), chunk)]
        ctx.shape, ctx.kept, found = images.shape, [], []
        for numbers in block(ctx.chunks):
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                leaf = images[numbers[0] : numbers[-1] + 1].detach().requires_grad_(ctx.needs_input_grad[0])
                found.append(embedding(network, leaf))
            ctx.kept.append((leaf, found[-1]))
        mine = torch.cat(found).detach() if found else embedding(network, images[:1])[:0]
        return gathered(mine, [sum(map(len, each)) for each in blocks(ctx.chunks)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_features: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients = [by_features.new_zeros(0, *ctx.shape[1:])]
        for numbers, (leaf, features) in zip(block(ctx.chunks), ctx.kept, strict=True):
            gradients += torch.autograd.grad(features, leaf, by_features[numbers[0] : numbers[-1] + 1])
        return gathered(torch.cat(gradients), [sum(map(len, each)) for each in blocks(ctx.chunks)]), None
