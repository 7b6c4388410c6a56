"""APGD (Croce & Hein 2020, arXiv 2003.01690): single runs of torchattacks 3.5.1 with own restarts and targets.

Differences from torchattacks' APGD (`torchattacks_runner` lists those that all its attacks share):

  - Its targeted APGD in l2 gives every example the step size of the first example of the batch. Here, targeted APGD is
    plain APGD with the targeted loss (eq. 7): the same attack without that error. In linf both are equal.
  - Its targeted losses index the fourth largest logit and fail below four classes. There, cross-entropy is used here.
  - Its `eot_iter` averages gradients, but compares losses of single passes, and counts one misclassified pass as a
    success (the official code does too). Here, the loss of the expected answer over `eot` passes is ascended and
    compared, and the point of the highest loss is returned.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, get_args

from torch import Tensor, nn

from robust.attacks.torchattacks_runner import NORMS, SingleRun, TorchattacksAttack, class_of_rank
from robust.network.expectation import Expected
from robust.network.modes import Model
from robust.ranges import Count
from robust.registry import Named

__all__ = ["APGD", "targeted_difference_of_logits_ratio"]

Loss = Literal["ce", "dlr", "targeted"]

FEWEST = 4
"""classes that the difference of logits ratio needs"""
LAST_MISCLASSIFIED, HIGHEST_LOSS = 3, 0
"""positions of both points in the tuple that a single run of torchattacks returns"""


def targeted_difference_of_logits_ratio(logits: Tensor, targets: Tensor, goals: Tensor) -> Tensor:
    """Return the goal's logit minus the target's over the scale of the logits: targeted DLR.

    Equation 7 of Croce & Hein 2020 (arXiv 2003.01690), with their code's 1e-12 in the denominator.

    Args:
        logits: (N, K), K >= 4.
        targets: (N,) true classes.
        goals: (N,) wrong classes.

    Returns:
        (N,).

    >>> import torch
    >>> targeted_difference_of_logits_ratio(torch.tensor([[4.0, 3.0, 2.0, 0.0]]), torch.tensor([0]), torch.tensor([2]))
    tensor([-0.6667])
    """
    first, _, third, fourth = logits.topk(4, 1).values.unbind(1)
    difference = (logits.gather(1, goals[:, None]) - logits.gather(1, targets[:, None]))[:, 0]
    return difference / (first - (third + fourth) / 2 + 1e-12)


@dataclass(frozen=True)
class APGD(TorchattacksAttack):
    """APGD as an `Attack`: PGD of step 2 eps with momentum, which halves its step where the loss stalls.

    Below four classes "dlr" and "targeted" are "ce", as the ratio of logits is not defined. Inputs of any shape.

    Raises:
        ValueError: a field is out of its range.
    """

    loss: Loss = "ce"
    """"ce" cross-entropy, "dlr" difference of logits ratio, "targeted" that ratio for one wrong class after another"""
    steps: Count = 100
    """gradient steps of a restart"""
    restarts: Count = 1
    """random starts (for each target class), each on the examples that are not fooled yet"""
    targets: Count = 9
    """wrong classes of "targeted", those of the highest logits; all where the model has fewer"""
    eot: Count = 1
    """forward passes that each gradient is averaged over, for models with random answers"""

    def __post_init__(self) -> None:
        if self.loss not in get_args(Loss):
            raise ValueError(f"loss is {self.loss!r}; choose from {', '.join(get_args(Loss))}")
        super().__post_init__()

    def attacked_model(self, model: Model) -> Model:
        """Return the model, or its expected answer over `eot` passes."""
        return Expected(model, self.eot) if self.eot > 1 and not isinstance(model, Expected) else model

    def single_runs(self, library: ModuleType, network: nn.Module, classes: int, random: bool) -> Iterator[SingleRun]:
        """Yield the restarts, for each target class in turn where the loss is targeted."""
        point = HIGHEST_LOSS if random else LAST_MISCLASSIFIED
        loss = self.loss if classes >= FEWEST else "ce"
        attack = library.APGD(
            network,
            norm=NORMS[self.threat.norm],
            eps=self.threat.eps,
            steps=self.steps,
            loss="ce" if loss == "ce" else "dlr",
        )

        def towards(rank: int) -> SingleRun:
            def run(images: Tensor, targets: Tensor) -> Tensor:
                goals = class_of_rank(network(images), rank)
                attack.dlr_loss = lambda logits, y: targeted_difference_of_logits_ratio(logits, y, goals)
                return attack.attack_single_run(images, targets)[point]

            return run

        def untargeted(images: Tensor, targets: Tensor) -> Tensor:
            return attack.attack_single_run(images, targets)[point]

        for rank in range(1, 1 + min(self.targets, classes - 1)) if loss == "targeted" else (0,):
            for _ in range(self.restarts):
                yield towards(rank) if rank else untargeted


NAMED: Named = {
    "apgd_ce": APGD,
    "apgd_dlr": lambda threat: APGD(threat, loss="dlr"),
    "apgd_t": lambda threat: APGD(threat, loss="targeted"),
}
