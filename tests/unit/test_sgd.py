"""Our SGD takes the steps of torch.optim.SGD."""

import copy

import pytest
import torch

from distill.training.sgd import SGD


@pytest.mark.parametrize(
    "settings", [{}, {"momentum": 0.9}, {"weight_decay": 5e-4}, {"momentum": 0.9, "weight_decay": 5e-4}], ids=str
)
def test_steps_have_the_bits_of_torch(settings: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(shape, generator=generator, requires_grad=True) for shape in ((5, 3, 3, 3), (7,), (), (4,))]
    theirs = copy.deepcopy(ours)
    optimizers = SGD(ours, 0.07, **settings), torch.optim.SGD(theirs, 0.07, **settings)
    for _ in range(5):
        for p, q in zip(ours[:-1], theirs[:-1], strict=True):  # the last has no gradient
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))
        assert all(torch.equal(p.grad, q.grad) for p, q in zip(ours[:-1], theirs[:-1], strict=True))
    optimizers[0].zero_grad()
    assert all(p.grad is None for p in ours)
    optimizers[0].step()  # without gradients nothing moves
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))
