"""C2R's supervised contrast of clean and attacked images, and its queue of negatives.

With e the features, g the cosine similarity, x~ the attacked companion of x, and tau a temperature:

    P(i) = {x~_i} + {x_j, x~_j : y_j = y_i, j != i},     A(i) = P(i) + {x_k, x~_k : y_k != y_i} + negatives of the queue
    L = mean over i of  -1/|P(i)| sum over a in P(i) of  log( exp(g_ia / tau) / sum over b in A(i) of exp(g_ib / tau) )
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["contrastive", "enqueued", "nearest_negatives"]


def contrastive(
    clean: Tensor, companions: Tensor, labels: Tensor, temperature: float, negatives: Tensor | None = None
) -> Tensor:
    """Return the loss of a batch of anchors, a scalar.

    Args:
        clean: (M, D) features of the anchors.
        companions: (M, D) features of their attacked companions.
        labels: (M,) classes.
        temperature: tau, > 0.
        negatives: (M, k) similarities of each anchor to further images of other classes; None for none.

    >>> e = torch.eye(4)[:2]  # two anchors of two classes, and companions that equal them: exp(1), against two exp(0)
    >>> round(contrastive(e, e, torch.tensor([0, 1]), 1.0).item(), 4)
    0.5514
    """
    count = len(labels)
    every = F.normalize(torch.cat([clean, companions]), dim=1)
    similar = every[:count] @ every.T / temperature  # (M, 2 M)
    same = labels[:, None] == labels.repeat(2)[None]
    itself = torch.zeros_like(same)
    itself[:, :count].fill_diagonal_(True)
    positive = same & ~itself
    logits = similar.masked_fill(itself, -torch.inf)
    if negatives is not None:
        logits = torch.cat([logits, negatives / temperature], 1)
    log_share = similar - logits.logsumexp(1, keepdim=True)
    return -(log_share.masked_fill(~positive, 0.0).sum(1) / positive.sum(1)).mean()


def nearest_negatives(
    anchors: Tensor, labels: Tensor, queue: Tensor, filled: Tensor, projection: Tensor, count: int
) -> Tensor | None:
    """Return the cosine similarities of each anchor to the nearest entries of other classes, (M, at most count).

    Args:
        anchors: (M, D) features.
        labels: (M,) classes.
        queue: (K, Q, D) unit features by class.
        filled: (K,) number of entries of each class.
        projection: (D, r), by which the nearest are found; the similarities are those of whole features.
        count: number of entries for each anchor.

    Returns:
        None while no other class has an entry for every anchor.
    """
    classes, size, width = queue.shape
    there = torch.arange(size, device=queue.device)[None] < filled[:, None]  # (K, Q)
    other = torch.arange(classes, device=queue.device)[None, :, None] != labels[:, None, None]
    allowed = (other & there[None]).flatten(1)  # (M, K Q)
    count = min(count, int(allowed.sum(1).min()))
    if count == 0:
        return None
    unit, entries = F.normalize(anchors, dim=1), queue.view(-1, width)
    with torch.no_grad():
        near = F.normalize(unit @ projection, dim=1) @ F.normalize(entries @ projection, dim=1).T
        chosen = near.masked_fill(~allowed, -torch.inf).topk(count, 1).indices
    return (unit[:, None] * entries[chosen]).sum(2)


def enqueued(
    queue: Tensor, filled: Tensor, place: Tensor, features: Tensor, labels: Tensor, momentum: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the queue with new features, its numbers of entries (K,), and the next place of each class (K,).

    A class has Q entries; a new feature goes to the oldest place. In a full queue it is averaged with what was there:
    momentum times the old entry, and the rest the new one.

    Args:
        queue: (K, Q, D) unit features by class.
        filled: (K,) number of entries of each class.
        place: (K,) next place of each class.
        features: (N, D), of any length.
        labels: (N,) classes.
        momentum: in [0, 1).
    """
    queue, size = queue.clone(), queue.shape[1]
    entries, places = filled.tolist(), place.tolist()  # read once: each reading waits for a GPU
    for feature, label in zip(F.normalize(features.detach(), dim=1), labels.tolist(), strict=True):
        at = places[label]
        if at < entries[label]:
            feature = F.normalize(momentum * queue[label, at] + (1 - momentum) * feature, dim=0)
        queue[label, at] = feature
        entries[label] = max(entries[label], at + 1)
        places[label] = (at + 1) % size
    return queue, filled.new_tensor(entries), place.new_tensor(places)
