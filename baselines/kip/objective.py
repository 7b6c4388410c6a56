"""What KIP minimises: the loss of kernel ridge regression (see `baselines.kip.method`)."""

import torch
from torch import Tensor

from baselines.kip.kernels import Kernel
from baselines.kip.tiles import kernels
from distill.errors import InputError
from distill.training.ridge import centred, regressed

__all__ = ["objective"]


def objective(
    kernel: Kernel, images: Tensor, labels: Tensor, targets: Tensor, truth: Tensor, ridge: float, chunk: int
) -> tuple[Tensor, Tensor]:
    """Return the loss and the accuracy, in [0, 1], of the regression on a batch.

    Args:
        kernel: the kernel of two batches of images.
        images: (S, C, H, W), the support.
        labels: (S, K), centred.
        targets: (T, C, H, W), the real batch.
        truth: (T,) classes of the targets.
        ridge: regulariser in units of the mean of the kernel's diagonal.
        chunk: pairs whose kernel is computed at once.

    Raises:
        InputError: the kernel of the support is singular.
    """
    k_ss, k_ts = kernels(kernel, images, targets, chunk)
    try:
        predicted = regressed(k_ss, k_ts, labels, ridge)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        line = f"the kernel of the {len(images)} images is not positive definite at ridge {ridge:g}"
        raise InputError(f"{line}; take a larger --ridge, a smaller --lr, or --precision float64") from None
    loss = 0.5 * (predicted - centred(truth, labels.shape[1]).to(predicted)).square().mean()
    return loss, (predicted.argmax(1) == truth).float().mean()
