"""Kernel ridge regression of KIP and FRePo, and labels for regression.

    f(T) = K_ts (K_ss + ridge tr(K_ss) / n I)^-1 Y_s

Nguyen et al., "Dataset Meta-Learning from Kernel Ridge-Regression", ICLR 2021 (arXiv 2011.00050), equation 3; Zhou et
al., "Dataset Distillation using Neural Feature Regression", NeurIPS 2022 (arXiv 2206.00719), equation 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["centred", "probabilities", "regressed"]


def centred(labels: Tensor, num_classes: int) -> Tensor:
    """Return classes (N,) as one-hot vectors less their mean, (N, K): rows sum to 0.

    >>> centred(torch.tensor([1]), 4)
    tensor([[-0.2500,  0.7500, -0.2500, -0.2500]])
    """
    return F.one_hot(labels, num_classes).float() - 1 / num_classes


def regressed(k_ss: Tensor, k_ts: Tensor, targets: Tensor, ridge: float = 1e-6) -> Tensor:
    """Return the predictions of the support for other points, (T, K).

    Args:
        k_ss: (S, S) kernel of the support with itself, positive semi-definite.
        k_ts: (T, S) kernel of the points with the support.
        targets: (S, K) of the support.
        ridge: in units of the mean of the kernel's diagonal.

    Raises:
        torch.linalg.LinAlgError: the regularised kernel is not positive definite.

    >>> k = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    >>> regressed(k, k, torch.tensor([[3.0], [6.0]]), ridge=0.5)  # 2 / (2 + 0.5 * 2) of each
    tensor([[2.0000],
            [4.0000]])
    """
    scale = ridge * k_ss.diagonal().mean()
    factor = torch.linalg.cholesky(k_ss + scale * torch.eye(len(k_ss), dtype=k_ss.dtype, device=k_ss.device))
    return k_ts @ torch.cholesky_solve(targets, factor)


def probabilities(labels: Tensor) -> Tensor:
    """Return the nearest probability vectors (rows >= 0 that sum to 1, Euclidean) of uncentred labels (N, K).

    For students whose loss is cross-entropy, which has no minimum where a label is negative (Duchi et al., ICML 2008,
    figure 1).

    >>> probabilities(torch.tensor([[0.9, 0.3, -0.1], [0.0, 1.0, 0.0]]))
    tensor([[0.8000, 0.2000, 0.0000],
            [0.0000, 1.0000, 0.0000]])
    """
    labels = labels - labels.amax(1, keepdim=True)  # same nearest vectors, and a 1 is not lost beside large numbers
    falling = labels.sort(1, descending=True).values
    excess = (falling.cumsum(1) - 1) / torch.arange(1, labels.shape[1] + 1, device=labels.device)
    last = (falling > excess).sum(1, keepdim=True) - 1
    return (labels - excess.gather(1, last)).clamp(min=0)
