"""Whether a loss is convex, as Proposition 1 of the GUARD paper assumes: a test by midpoints, which can only refute it.

A function l is convex only if l((a + b) / 2) <= (l(a) + l(b)) / 2 for all a and b. A pair with a larger loss at the
midpoint refutes it; pairs without one prove nothing.
"""

import torch
from torch import Tensor

from robust.losses.cross_entropy import cross_entropy
from robust.losses.curvature import Criterion
from robust.network.batches import images_at_once
from robust.network.inference import outside_inference
from robust.network.modes import Model, evaluating
from robust.ranges import Count, check_number

__all__ = ["midpoint_gaps"]


@outside_inference
def midpoint_gaps(
    model: Model,
    images: Tensor,
    targets: Tensor,
    *,
    pairs: int = 1000,
    criterion: Criterion = cross_entropy,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Return (l(a) + l(b)) / 2 - l((a + b) / 2) for pairs of images of one class: negative refutes convexity.

    Args:
        model: maps (N, ...) to outputs that `criterion` takes; in evaluation mode meanwhile.
        images: (N, ...), floating point.
        targets: (N,) class indices.
        pairs: pairs at most, drawn without repetition from all pairs within classes.
        criterion: (outputs, targets) -> loss of each example (N,).
        generator: CPU generator of the draw; None is a generator of seed 0.
        batch_size: examples of one pass; None follows from the network.

    Returns:
        (P,) in nats, P the number of pairs; empty where no class has two images.

    Raises:
        ValueError: `pairs` is no whole number >= 1.

    >>> x = torch.tensor([[0.0], [2.0], [5.0]])
    >>> loss = {"criterion": lambda outputs, _: outputs}
    >>> midpoint_gaps(lambda x: x.square().sum(1), x, torch.tensor([0, 0, 1]), **loss).tolist()
    [1.0]
    """
    check_number("pairs", pairs, Count)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    kinds = targets.cpu()
    first, second = torch.triu_indices(len(kinds), len(kinds), 1)
    within = (kinds[first] == kinds[second]).nonzero()[:, 0]
    drawn = within[torch.randperm(len(within), generator=generator)[:pairs]].to(images.device)
    a, b = first.to(images.device)[drawn], second.to(images.device)[drawn]
    batch_size = images_at_once(model, images, batch_size)
    with evaluating(model), torch.no_grad():

        def losses(x: Tensor, y: Tensor) -> Tensor:
            parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
            return torch.cat([criterion(model(x), y) for x, y in parts])

        if not len(drawn):
            return images.new_zeros(0)
        ends = losses(images, targets)
        return (ends[a] + ends[b]) / 2 - losses((images[a] + images[b]) / 2, targets[a])
