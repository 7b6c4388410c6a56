"""Attack objectives that do not saturate as cross-entropy does: the margin, and the margin over the logits' scale."""

import torch
from torch import Tensor

__all__ = ["difference_of_logits_ratio", "margin"]


def margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the largest other logit minus the target's logit: above zero if the example is misclassified.

    Args:
        logits: (N, K), K >= 2.
        targets: (N,) class indices.

    Returns:
        (N,).

    >>> margin(torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 0.0]]), torch.tensor([0, 0])).tolist()
    [-1.0, 5.0]
    """
    target_logits = logits.gather(1, targets[:, None])
    others = logits.scatter(1, targets[:, None], -torch.inf)
    return others.amax(1) - target_logits[:, 0]


def difference_of_logits_ratio(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the DLR, the margin over the difference of the first and the third largest logit: invariant to scaling.

    Equation 6 of Croce & Hein 2020 (arXiv 2003.01690). DLR needs three logits, and its targeted form four; below four
    classes the margin is returned.

    Args:
        logits: (N, K), K >= 2.
        targets: (N,) class indices.

    Returns:
        (N,).

    >>> logits = torch.tensor([[3.0, 1.0, 2.0, -1.0]])
    >>> [difference_of_logits_ratio(s * logits, torch.tensor([0])).item() for s in (1, 100)]
    [-0.5, -0.5]
    """
    if logits.shape[1] < 4:
        return margin(logits, targets)
    first, _, third = logits.topk(3, 1).values.unbind(1)
    return margin(logits, targets) / (first - third + 1e-12)
