"""A pool of networks of all ages, which distillation draws from: IDM's queue, trained on attacked images by ROME.

The pool starts with a few untrained networks; a new one is added every so many iterations, and the oldest leaves when
the pool is full. In each iteration some members take a few steps of SGD on real images, so that the pool has untrained,
half trained and trained networks at any time.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from distill.training.sgd import SGD

__all__ = ["Member", "Pool", "Train"]

Fresh = Callable[[int], nn.Module]
"""number of a network -> the network, untrained, on the device of the images"""
Train = Callable[[nn.Module, int, int], tuple[Tensor, Tensor]]
"""(network, its number, number of its step) -> the loss of a batch, with a graph, and the share of it that the network
classifies correctly"""


@dataclass
class Member:
    """A network of the pool."""

    number: int
    """how many networks were added before it"""
    network: nn.Module
    optimizer: SGD
    steps: int = 0
    """training steps so far"""
    right: float = 0.0
    """share of its last batches that it classified correctly, in [0, 1]; 0 before its first step"""


@dataclass
class Pool:
    """The networks.

    Args:
        fresh: makes a network.
        most: largest number of networks, >= 1.
        lr: learning rate of SGD (momentum 0.9, weight decay 5e-4).
    """

    fresh: Fresh
    most: int
    lr: float
    members: list[Member] = field(default_factory=list)
    added: int = 0

    def add(self) -> None:
        """Add an untrained network; the oldest leaves a full pool."""
        self.members = [*self.members, self._member(self.added)][-self.most :]
        self.added += 1

    def draw(self, generator: torch.Generator, count: int = 1) -> list[Member]:
        """Return `count` random members, all of a smaller pool; none twice."""
        return [self.members[number] for number in torch.randperm(len(self.members), generator=generator)[:count]]

    def train(self, member: Member, count: int, step: Train) -> float:
        """Train a member for `count` steps, in training mode; return the mean loss."""
        losses, right = [], []
        member.network.train().requires_grad_(True)
        for _ in range(count):
            member.optimizer.zero_grad()
            loss, share = step(member.network, member.number, member.steps)
            loss.backward()
            member.optimizer.step()
            member.steps += 1
            losses.append(loss.detach())
            right.append(share)
        member.optimizer.zero_grad()
        member.right = torch.stack(right).mean().item()
        return torch.stack(losses).mean().item()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the pool."""
        return {"added": self.added, "members": [_state(member) for member in self.members]}

    def restore(self, state: dict[str, Any]) -> None:
        """Take the networks of a checkpoint."""
        self.members, self.added = [], state["added"]
        for saved in state["members"]:
            member = self._member(saved["number"])
            member.network.load_state_dict(saved["network"])
            pairs = zip(saved["velocities"], member.network.parameters(), strict=False)  # none before the first step
            member.optimizer.velocities = [velocity.to(parameter) for velocity, parameter in pairs]
            member.steps, member.right = saved["steps"], saved["right"]
            self.members.append(member)

    def _member(self, number: int) -> Member:
        network = self.fresh(number)
        return Member(number, network, SGD(network.parameters(), self.lr, momentum=0.9, weight_decay=5e-4))


def _state(member: Member) -> dict[str, Any]:
    return {
        "number": member.number,
        "network": member.network.state_dict(),
        "velocities": list(member.optimizer.velocities),
        "steps": member.steps,
        "right": member.right,
    }
