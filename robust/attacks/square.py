"""Square (Andriushchenko et al. 2020, arXiv 1912.00049): single runs of torchattacks 3.5.1 with own restarts.

Differences from torchattacks' Square (`torchattacks_runner` lists those that all its attacks share): it rescales its
schedule to the number of queries, which the official evaluation does not do, so that is turned off; it writes into the
logits that the model returns, so it gets a copy; it counts an exact tie of logits as a success, so all successes are
classified again.

Unchanged, since the official code has it too: the smallest squares never reach the last row and column, which keep
their first stripes in linf; all examples of a batch share the position of the squares, so that a result depends on the
batch; the l2 start is not defined for images that are not square or for some sizes (an error names them here).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

from torch import Tensor, nn

from robust.attacks.torchattacks_runner import NORMS, SingleRun, TorchattacksAttack
from robust.ranges import Count
from robust.registry import Named

__all__ = ["Square"]


@dataclass(frozen=True)
class Square(TorchattacksAttack):
    """The Square attack as an `Attack`: random search over squares, with the margin as its loss; takes no gradients.

    Settings of AutoAttack: p = 0.8 at first, on the schedule of 10,000 queries for any number of queries. Takes only
    images (N, C, H, W).

    Raises:
        ValueError: a field is out of its range.
    """

    flattens: ClassVar[bool] = False

    queries: Count = 5000
    """forward passes of a restart, besides the first"""
    restarts: Count = 1
    """random starts, each on the examples that are not fooled yet"""

    def check_shape(self, images: Tensor) -> None:
        """Refuse images that Square cannot cut into squares.

        Raises:
            ValueError: not (N, C, H, W), or of a height and width on which its l2 start is not defined.
        """
        if images.ndim != 4:
            raise ValueError(f"images are {tuple(images.shape)}; Square takes (N, C, H, W)")
        height, width = images.shape[2:]
        tile = height // 5
        fits = tile == 1 or (tile > 1 and (height - 5 * tile) // 2 + height // tile * tile <= height)
        if self.threat.norm == "l2" and not (height == width and fits):
            raise ValueError(
                f"images are {height}x{width}; Square's l2 start takes squares of 5 and more pixels, "
                "but not of 12, 14, 18, 19 or 24"
            )

    def single_runs(self, library: ModuleType, network: nn.Module, classes: int, random: bool) -> Iterator[SingleRun]:
        """Yield the restarts."""
        attack = library.Square(
            network,
            norm=NORMS[self.threat.norm],
            eps=self.threat.eps,
            n_queries=self.queries,
            p_init=0.8,
            loss="margin",
            resc_schedule=False,
        )

        def run(images: Tensor, targets: Tensor) -> Tensor:
            attack.init_hyperparam(images)
            return attack.attack_single_run(images, targets)[1]

        for _ in range(self.restarts):
            yield run


NAMED: Named = {"square": Square}
