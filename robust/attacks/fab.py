"""FAB (Croce & Hein 2020, arXiv 1907.02044): single runs of torchattacks 3.5.1 with own restarts and targets.

Differences from torchattacks' FAB (`torchattacks_runner` lists those that all its attacks share): its `n_classes` means
one target class less; and it discards points outside the ball, which are projected on the ball here. Projection can
only find more adversarial images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor, nn

from robust.attacks.torchattacks_runner import NORMS, SingleRun, TorchattacksAttack
from robust.ranges import Count
from robust.registry import Named

__all__ = ["FAB"]


@dataclass(frozen=True)
class FAB(TorchattacksAttack):
    """FAB as an `Attack`: projects on the linearised boundary and pulls back towards the image, for a near point.

    A point outside the ball is projected on the ball and succeeds if it is still misclassified. Inputs of any shape.

    Raises:
        ValueError: a field is out of its range.
    """

    steps: Count = 100
    """gradient steps of a restart"""
    restarts: Count = 1
    """restarts (for each target class) on the examples that are not fooled yet; the first begins at the image"""
    targeted: bool = True
    """the boundary to one wrong class after another, else to the nearest (a gradient for each of the K classes)"""
    targets: Count = 9
    """wrong classes if `targeted`, those of the highest logits; all where the model has fewer"""

    def single_runs(self, library: ModuleType, network: nn.Module, classes: int, random: bool) -> Iterator[SingleRun]:
        """Yield the restarts, for each target class in turn where the attack is targeted."""
        attack = library.FAB(
            network,
            norm=NORMS[self.threat.norm],
            eps=self.threat.eps,
            steps=self.steps,
            multi_targeted=self.targeted,
        )

        def run_of(rank: int, restart: int) -> SingleRun:
            def run(images: Tensor, targets: Tensor) -> Tensor:
                attack.target_class = rank + 1  # torchattacks counts from the end of the sorted logits
                inner = attack.attack_single_run_targeted if rank else attack.attack_single_run
                return inner(images, targets, use_rand_start=restart > 0)

            return run

        for rank in range(1, 1 + min(self.targets, classes - 1)) if self.targeted else (0,):
            for restart in range(self.restarts):
                yield run_of(rank, restart)


NAMED: Named = {"fab": FAB}
