"""What fewer digits change in GUARD's penalty: TF32, which a GPU takes for convolutions by default, and bfloat16.

TF32 is imitated on the CPU: the operands of each convolution are rounded to the 10 bits that TF32 keeps of a number's
23, and their products are added in float32. Data set digits, a ConvNet of width 64 after 0 and 20 epochs (docs/gpu.md).
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from distill.data import load
from distill.models import build
from distill.training.students import train_epochs
from robust import Normalize, cross_entropy, curvature_penalty
from tests.bench.side_by_side import Row

STEPS = (3.0, 0.1)
"""h, in normalised units; the papers' is 3"""


class TF32(TorchDispatchMode):
    """While entered, convolutions and their gradients see operands of 10 bits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Round the operands of convolutions."""
        if func.overloadpacket.__name__ in ("convolution", "convolution_backward"):
            args = [
                rounded(each) if isinstance(each, Tensor) and each.dtype == torch.float32 else each for each in args
            ]
        return func(*args, **(kwargs or {}))


def rounded(x: Tensor) -> Tensor:
    """Return the nearest numbers with 10 bits after the first.

    >>> rounded(torch.tensor([1 + 2**-10, 1 + 2**-12])).tolist() == [1 + 2**-10, 1.0]
    True
    """
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def _results(network: nn.Module, x: Tensor, y: Tensor, h: float, mode: AbstractContextManager[Any]) -> list[Tensor]:
    """Return the mean penalty, its gradient, and the gradient of cross-entropy."""
    parameters = [p for p in network.parameters() if p.ndim > 1]
    with mode:
        _, penalties = curvature_penalty(network, x, y, h=h)
        second = torch.autograd.grad(penalties.mean(), parameters, retain_graph=True)
        first = torch.autograd.grad(cross_entropy(network(x), y).mean(), parameters)
    return [penalties.mean().detach(), *(torch.cat([g.flatten() for g in each]).float() for each in (second, first))]


def bench() -> list[Row]:
    """Print and return the relative errors of a row a network, h and precision, in percent."""
    real = load("digits", Path())[0]
    pixels, labels = real.images[:], real.labels
    normalize, generator = Normalize(real.mean, real.std), torch.Generator().manual_seed(0)
    x, y = normalize(pixels), labels
    rows = []
    for epochs in (0, 20):
        sizes = {"channels": 1, "image_size": 8, "num_classes": 10}
        network = build("convnet:width=64,depth=2", **sizes, generator=torch.Generator().manual_seed(1))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        train_epochs(network, x, y, optimizer, epochs=epochs, batch_size=64, generator=generator)
        network.eval()
        for h in STEPS:
            exact = _results(network, x[:64], y[:64], h, nullcontext())
            for name, mode in (("tf32", TF32()), ("bf16", torch.autocast("cpu", torch.bfloat16))):
                found = _results(network, x[:64], y[:64], h, mode)
                errors = [100 * ((a - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]
                row = dict(zip(("penalty", "gradient", "cross_entropy"), errors, strict=True))
                rows.append({"epochs": epochs, "h": h, "precision": name, **row})
                print(f"| {epochs} | {h:g} | {name} | {' | '.join(f'{error:.2g}' for error in errors)} |")
    return rows
