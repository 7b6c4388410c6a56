"""SGD without torch.optim, whose first optimizer imports torch._dynamo: a second of CPU in every process."""

# torch documents its functions of lists (torch._foreach_add) but does not export them
# pyright: reportPrivateImportUsage=false

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["SGD"]


class SGD:
    """Gradient descent with momentum: the same steps, bit for bit, as torch.optim.SGD, in about half the time.

    A parameter has a gradient in every step or in none, as those of a network whose layers do not change.

    Args:
        parameters: changed in place by `step`.
        lr: learning rate.
        momentum: share of the last step's direction that is added to the gradient; 0 for none.
        weight_decay: factor of the parameters that is added to their gradients.

    >>> weight = torch.ones(2, requires_grad=True)
    >>> optimizer = SGD([weight], lr=0.5)
    >>> weight.sum().backward()
    >>> optimizer.step()
    >>> weight.tolist()
    [0.5, 0.5]
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, *, momentum: float = 0.0, weight_decay: float = 0.0):
        self.parameters = list(parameters)
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.velocities: list[Tensor] = []

    def zero_grad(self) -> None:
        """Remove all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by one step."""
        pairs = [(p, p.grad) for p in self.parameters if p.grad is not None]
        if not pairs:
            return
        moving, steps = map(list, zip(*pairs, strict=True))
        if self.weight_decay:
            steps = torch._foreach_add(steps, moving, alpha=self.weight_decay)
        if self.momentum and not self.velocities:
            steps = self.velocities = [step.clone() for step in steps]
        elif self.momentum:
            torch._foreach_mul_(self.velocities, self.momentum)
            torch._foreach_add_(self.velocities, steps)
            steps = self.velocities
        torch._foreach_add_(moving, steps, alpha=-self.lr)
