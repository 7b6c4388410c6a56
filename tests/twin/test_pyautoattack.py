"""The official AutoAttack (fra31/auto-attack, on the package index as `pyautoattack`) against ours, image by image.

Both run the standard version: APGD-CE, targeted APGD, targeted FAB, Square. Verdicts may differ by the random numbers
(starts of APGD, squares) on images whose nearest adversarial image lies at the ball's surface, and by one known
difference: points of FAB outside the ball are projected here and dropped there, so ours may fool a few more.

Tolerance: of 60 images, one verdict at each eps. Measured on 100 images: at 8/255, 32 withstand both, with two seeds
each, and no verdict differs; on digits of two thirds of this contrast at 2/255, 80 withstand both, with three seeds
each, and no verdict differs.
"""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from robust import APGD, FAB, AutoAttack, Square, Threat, withstands

pyautoattack = pytest.importorskip("pyautoattack", reason="optional: pip install --no-deps pyautoattack")

IMAGES = 60
DIFFER = 1
"""verdicts that may differ at each eps, of IMAGES"""


class Standardise(nn.Module):
    """Pixels between 0.35 and 0.65 to zero mean and a deviation of about one."""

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels - 0.45) / 0.1


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a trained network, and pale digits that it was not trained on: 8/255 is a tenth of their contrast."""
    data = load_digits()
    images = 0.35 + 0.3 * torch.tensor(data.images / 16.0).float().unsqueeze(1)
    targets = torch.tensor(data.target)
    torch.manual_seed(0)
    network = nn.Sequential(Standardise(), nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(15):
        for who in torch.randperm(1200).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(images[who]), targets[who]).backward()
            optimizer.step()
    return network.eval(), images[1200 : 1200 + IMAGES], targets[1200 : 1200 + IMAGES]


def official(network: nn.Module, images: Tensor, targets: Tensor, eps: float) -> Tensor:
    """Return which images withstand the official attack, bools (N,)."""
    with torch.random.fork_rng(devices=[]):
        attack = pyautoattack.AutoAttack(network, norm="Linf", eps=eps, seed=0, version="standard")
        adversarial, _ = attack.run_standard_evaluation(images, targets, batch_size=IMAGES)
    assert (adversarial - images).abs().max() <= eps + 1e-6
    with torch.no_grad():
        return (network(adversarial).argmax(1) == targets) & (network(images).argmax(1) == targets)


@pytest.mark.parametrize("levels", [2, 8])
def test_the_same_images_withstand(digits: tuple[nn.Module, Tensor, Tensor], levels: int) -> None:
    network, images, targets = digits
    theirs = official(network, images, targets, levels / 255)
    attack = AutoAttack(Threat("linf", levels / 255))
    ours = withstands(network, images, targets, attack, generator=torch.Generator().manual_seed(0))
    assert 0 < theirs.sum() < (network(images).argmax(1) == targets).sum()
    assert (ours != theirs).sum() <= DIFFER


def test_the_official_version_has_our_settings() -> None:
    theirs = pyautoattack.AutoAttack(nn.Flatten(), eps=0.1)
    assert theirs.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
    ce, targeted, fab, square = AutoAttack(Threat("linf", 0.1)).members()
    assert isinstance(ce, APGD)
    assert isinstance(targeted, APGD)
    assert isinstance(fab, FAB)
    assert isinstance(square, Square)
    assert (theirs.apgd.n_iter, theirs.apgd.n_restarts) == (ce.steps, ce.restarts)
    mine = (targeted.steps, targeted.restarts, targeted.targets)
    assert (theirs.apgd_targeted.n_iter, theirs.apgd_targeted.n_restarts, theirs.apgd_targeted.n_target_classes) == mine
    assert (theirs.fab.n_iter, theirs.fab.n_restarts, theirs.fab.n_target_classes) == (fab.steps, fab.restarts, 9)
    assert (theirs.square.n_queries, theirs.square.p_init) == (square.queries, 0.8)
    assert not theirs.square.rescale_schedule
