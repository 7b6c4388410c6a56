"""BatchNorm with the statistics of the batches of all processes together, on any device and differentiable twice.

torch.nn.SyncBatchNorm refuses CPU tensors (torch 2.14), its backward pass has no derivative (gradient_norm, and guard
with batchnorm=train, need one), and its conversion replaces subclasses of BatchNorm2d such as timm's BatchNormAct2d,
whose activation is then lost. Here the layers stay as they are and their calls of `batch_norm` are replaced, so a saved
network is a plain one.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from distill.runs.ranks import world_size

__all__ = ["SyncBatchNorm", "batch_norm_of_all", "synchronised"]


def synchronised(wanted: bool) -> AbstractContextManager[Any]:
    """Return a block in which BatchNorm uses the batches of all processes; with one process, or unless wanted, as ever.

    Args:
        wanted: whether the statistics are synchronised.
    """
    return SyncBatchNorm() if wanted and world_size() > 1 else nullcontext()


class SyncBatchNorm(TorchFunctionMode):
    """While entered, `batch_norm` in training mode is `batch_norm_of_all`. All processes must make the same calls."""

    def __init__(self) -> None:
        super().__init__()
        # never compiled: in a program of inductor (torch 2.14) the statistics are not synchronised
        self.of_all: Callable[..., Tensor] = torch.compiler.disable(batch_norm_of_all)  # pyright: ignore[reportAttributeAccessIssue]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace calls in training mode."""
        return (self._batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,  # the names are those of F.batch_norm, as calls may use keywords
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        return self.of_all(input, running_mean, running_var, weight, bias, momentum, eps)


def batch_norm_of_all(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """Return the batch of this process, normalised by mean and variance of the batches of all processes.

    The statistics are computed in float32 or float64. As in F.batch_norm, the variance of the normalisation is biased,
    the running variance unbiased. A gradient is of the sum of the losses of all processes.

    Args:
        x: (N, C, ...); N may differ between processes.
        running_mean: (C,), updated in place; None if there is none.
        running_var: (C,), updated in place; None if there is none.
        weight: (C,), None for 1.
        bias: (C,), None for 0.
        momentum: share of this batch in the updated running statistics.
        eps: added to the variance.

    Returns:
        shape and dtype of `x`.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    axes = [axis for axis in range(x.ndim) if axis != 1]
    own_var, own_mean = torch.var_mean(wide, axes, correction=0)
    own_count = own_mean.new_full((1,), x.numel() // x.shape[1])
    count, mean = _summed(torch.cat([own_count, own_count * own_mean])).split([1, len(own_mean)])
    count, mean = count.detach(), mean / count
    # deviations from the common mean: a mean of squares minus the square of the mean would lose digits
    var = _summed(own_count * (own_var + (own_mean - mean).square())) / count
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.detach().to(running_mean.dtype), momentum)
        running_var.lerp_((var.detach() * count / (count - 1)).to(running_var.dtype), momentum)
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else weight * scale
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = [1, -1] + [1] * (x.ndim - 2)
    return torch.addcmul(shift.view(shape), wide, scale.view(shape)).to(x.dtype)


def _summed(tensor: Tensor) -> Tensor:
    return _Sum.apply(tensor)  # pyright: ignore[reportReturnType]


class _Sum(Function):
    """Sum over all processes, whose gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor:
        return _summed(grad_outputs[0])
