"""What a distillation consists of: its kinds of steps, and how often each is taken. The estimate of time is made of it.

A `Step` does one step on random images, so that it can be timed at the size of a run.
"""

from collections.abc import Callable

import torch
from torch import nn

from distill.training.sgd import SGD
from distill.training.students import train_epochs

__all__ = ["PROBE", "STEPS", "Step", "Work", "training_steps"]

PROBE = 32
"""images of a timed step, at most: above that, time grows with the number of images"""
STEPS = 5
"""training steps that are timed together, as one step alone has the optimizer's set-up in it"""

Step = Callable[[nn.Module, tuple[int, int, int]], None]
"""(network, (C, H, W)) -> nothing: does one step on random images"""
Work = tuple[float, Step]
"""how often a step is taken, and the step"""


def training_steps(network: nn.Module, shape: tuple[int, int, int], *, images: int, lr: float = 0.01) -> None:
    """Train a network for STEPS steps.

    Args:
        network: untrained or not; its weights change.
        shape: (C, H, W) of the random images.
        images: images of a step.
        lr: learning rate of SGD.
    """
    x, y = torch.randn(images, *shape), torch.zeros(images, dtype=torch.long)
    optimizer = SGD(network.parameters(), lr)
    train_epochs(network, x, y, optimizer, epochs=STEPS, batch_size=images, generator=torch.Generator())
