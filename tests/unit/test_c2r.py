"""C2R: its contrast against a slow form, the queue of negatives, LS-PGD, and the curriculum."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.c2r.contrast import contrastive, enqueued, nearest_negatives
from baselines.c2r.line_search import line_search
from baselines.c2r.method import Config, hinge, order_of
from robust import AdversarialTraining, CrossEntropy, Threat

BOX = Threat("linf", 0.1)


def slow_contrast(clean: Tensor, companions: Tensor, labels: list[int], tau: float, more: Tensor | None) -> float:
    """Return the loss by the sums of its definition."""

    def similar(a: Tensor, b: Tensor) -> float:
        return float((a @ b) / (a.norm() * b.norm()))

    total = 0.0
    for i, label in enumerate(labels):
        positive = [similar(clean[i], companions[i])]
        negative = []
        for j, other in enumerate(labels):
            if j != i:
                both = [similar(clean[i], clean[j]), similar(clean[i], companions[j])]
                (positive if other == label else negative).extend(both)
        further = [] if more is None else more[i].tolist()
        whole = sum(math.exp(value / tau) for value in (*positive, *negative, *further))
        total -= sum(math.log(math.exp(value / tau) / whole) for value in positive) / len(positive)
    return total / len(labels)


@pytest.mark.parametrize("with_queue", [False, True])
def test_the_contrast_is_that_of_the_definition(with_queue: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, companions = (torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([0, 1, 1, 2, 0, 1, 3])
    more = torch.rand(7, 4, generator=generator, dtype=torch.float64) if with_queue else None
    found = contrastive(clean, companions, labels, 0.3, more)
    assert found.item() == pytest.approx(slow_contrast(clean, companions, labels.tolist(), 0.3, more), rel=1e-10)
    leaves = clean.requires_grad_(), companions.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: contrastive(a, b, labels, 0.3, more), leaves)


def test_the_nearest_negatives_are_of_other_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    queue = F.normalize(torch.randn(3, 4, 6, generator=generator), dim=2)
    anchors, labels = torch.randn(5, 6, generator=generator), torch.tensor([0, 1, 2, 0, 1])
    filled = torch.tensor([4, 2, 3])
    found = nearest_negatives(anchors, labels, queue, filled, torch.eye(6), 3)
    assert found is not None
    for anchor, label, mine in zip(anchors, labels.tolist(), found, strict=True):
        others = torch.cat([queue[c, : filled[c]] for c in range(3) if c != label])
        expected = (F.normalize(anchor, dim=0) @ others.T).sort(descending=True).values[:3]
        torch.testing.assert_close(mine, expected)
    assert nearest_negatives(anchors, labels, queue, torch.tensor([4, 0, 0]), torch.eye(6), 3) is None
    few = nearest_negatives(anchors, labels, queue, torch.tensor([1, 1, 1]), torch.eye(6), 3)
    assert few is not None
    assert few.shape == (5, 2)


def test_the_queue_keeps_the_last_entries_of_a_class() -> None:
    queue, zeros = torch.zeros(2, 2, 3), torch.zeros(2, dtype=torch.long)
    entries, labels = torch.eye(3)[[0, 1, 2, 0]] * 5, torch.tensor([0, 0, 0, 1])
    queue, filled, place = enqueued(queue, zeros, zeros, entries, labels, momentum=0.0)
    assert filled.tolist() == [2, 1]
    assert place.tolist() == [1, 1]
    torch.testing.assert_close(queue[0], torch.eye(3)[[2, 1]])  # the third took the place of the first, at length 1
    torch.testing.assert_close(queue[1, 0], torch.eye(3)[0])
    mixed, _, _ = enqueued(queue, filled, place, torch.eye(3)[:1], torch.tensor([0]), momentum=0.5)
    torch.testing.assert_close(mixed[0, 1], F.normalize(torch.tensor([1.0, 1.0, 0.0]), dim=0))


def linear(x: Tensor) -> Tensor:
    total = x.flatten(1).sum(1)
    return torch.stack([total, -total], 1)


def test_line_search_finds_the_worst_corner_of_a_linear_model() -> None:
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.tensor([0, 1, 0])
    none = torch.zeros_like(x), torch.full((3,), torch.inf)
    shift, losses, logits = line_search(linear, x, y, *none, BOX, step=0.05, growth=2.0, trials=3)
    sign = torch.tensor([-1.0, 1.0, -1.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(shift, (0.1 * sign).expand_as(x))
    torch.testing.assert_close(losses, F.cross_entropy(linear(x + shift), y, reduction="none"))
    torch.testing.assert_close(logits, linear(x + shift))
    one, *_ = line_search(linear, x, y, *none, BOX, step=0.01, growth=2.0, trials=2)
    torch.testing.assert_close(one.abs(), torch.full_like(x, 0.02))  # the longer of the two steps


def test_a_perturbation_that_still_works_is_kept() -> None:
    calls = []

    def model(x: Tensor) -> Tensor:
        calls.append(x.requires_grad)
        return linear(x)

    x, y = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 0])
    shift = torch.full_like(x, -0.03)
    losses = F.cross_entropy(linear(x + shift), y, reduction="none")
    kept, same, _ = line_search(model, x, y, shift, losses, BOX, step=0.05, growth=2.0, trials=3)
    assert torch.equal(kept, shift)
    assert torch.equal(same, losses)
    assert calls == [False]
    before = losses + torch.tensor([0.0, 1.0])  # the loss of the second image has fallen
    moved, higher, _ = line_search(model, x, y, shift, before, BOX, step=0.05, growth=2.0, trials=3)
    assert torch.equal(moved[0], shift[0])
    torch.testing.assert_close(moved[1], torch.full_like(x[1], -0.1))
    assert higher[1] > losses[1]


def test_pixels_do_not_leave_the_range() -> None:
    x, y = torch.tensor([[[[0.02, 0.98], [1.2, 0.5]]]]), torch.tensor([1])
    none = torch.zeros_like(x), torch.full((1,), torch.inf)
    shift, *_ = line_search(linear, x, y, *none, BOX, step=0.05, growth=2.0, trials=3)
    torch.testing.assert_close(x + shift, torch.tensor([[[[0.12, 1.0], [1.2, 0.6]]]]))


def test_the_smallest_margins_come_first() -> None:
    logits, labels = torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 0.5]]), torch.tensor([0, 0, 0])
    scores = hinge(logits, labels)
    assert scores.tolist() == [0.0, 2.0, 0.5]
    generator = torch.Generator().manual_seed(0)
    assert order_of(scores, True, generator).tolist() == [1, 2, 0]
    assert sorted(order_of(torch.arange(50.0), False, generator).tolist()) == list(range(50))


def test_a_ball_is_needed() -> None:
    with pytest.raises(ValueError, match="c2r needs one: --attack 2/255"):
        Config(CrossEntropy())
    assert Config(AdversarialTraining(BOX)).threat == BOX
