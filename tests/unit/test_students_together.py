"""Students trained together are those trained singly."""

import copy

import pytest
import torch
from torch import Tensor

from distill.models import build
from distill.training.augment import augmentation
from distill.training.students import Training, fits_together, train_student, train_together

TRAINING = Training(epochs=4, lr=0.05, batch_size=5)


def students(n: int = 3, spec: str = "convnet:width=4,depth=2") -> list[torch.nn.Module]:
    generators = [torch.Generator().manual_seed(k) for k in range(n)]
    return [build(spec, channels=3, image_size=8, num_classes=3, generator=g).double() for g in generators]


def generators(n: int = 3) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + k) for k in range(n)]


@pytest.mark.parametrize("n", [4, 12])  # one batch; three, shuffled
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("policy", ["", "color_crop_cutout_flip_scale_rotate"])
def test_together_is_singly(n: int, soft: bool, policy: str) -> None:
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(n, 3, 8, 8, generator=draws, dtype=torch.double)
    labels: Tensor = torch.rand(n, 3, generator=draws, dtype=torch.double).softmax(1) if soft else torch.arange(n) % 3
    together, singly, ours, theirs = students(), students(), generators(), generators()
    train_together(together, images, labels, TRAINING, ours, augmentation(policy))
    for network, generator in zip(singly, theirs, strict=True):
        train_student(network, images, labels, TRAINING, generator, augmentation(policy))
    for a, b, start in zip(together, singly, students(), strict=True):
        for p, q, before in zip(a.parameters(), b.parameters(), start.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10)
            assert not torch.equal(p, before)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.get_state(), b.get_state())


@pytest.mark.parametrize(("device", "fits"), [("meta", True), ("cpu", False)])  # meta stands for a GPU
def test_what_fits_together(device: str, fits: bool) -> None:
    (network,), images = students(1), torch.zeros(10, 3, 8, 8, device=device)
    assert fits_together(network, images, 256) == fits
    assert not fits_together(students(1, "convnet:width=4,depth=2,norm=batch")[0], images, 256)
    dropping = torch.nn.Sequential(copy.deepcopy(network), torch.nn.Dropout(0.5))
    assert not fits_together(dropping, images, 256)
