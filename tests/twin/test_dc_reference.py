"""The textbook DC loop, class by class with one backward pass over the sum as in the official code, against ours."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from distill.data import ImageSet
from distill.methods.dc import Config, distill
from distill.models import build
from distill.runs.run import Run
from distill.training.augment import augmentation
from distill.training.matching import layerwise
from robust import CrossEntropy, CurvatureRegularizedLoss
from tests.toy import toy

IPC, OUTER, INNER, ITERATIONS = 2, 3, 2, 2


def guard(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Equation 8, weight 2 and h 1, an example at a time."""
    total = torch.zeros(())
    for image, label in zip(x, y, strict=True):

        def loss(point: torch.Tensor, label: torch.Tensor = label) -> torch.Tensor:
            return F.cross_entropy(network(point[None]), label[None])

        image = image.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(image), image, create_graph=True)
        (moved,) = torch.autograd.grad(loss(image + 1.0 * (g / g.norm()).detach()), image, create_graph=True)
        total = total + loss(image) + 2.0 * (moved - g).square().sum()
    return total / len(x)


def reference(config: Config, run: Run, real_loss) -> torch.Tensor:
    real = toy()
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (real.mean, real.std))

    def sample(c: int, n: int, *address: str | int) -> torch.Tensor:
        return (real.sample(c, n, run.generator(*address, c)) - mean) / std

    if config.init == "real":
        images = torch.cat([sample(c, IPC, "initial") for c in range(2)])
    else:
        images = torch.randn(2, IPC, 3, 8, 8, generator=run.generator("initial")).flatten(0, 1)
    images.requires_grad_()
    labels = torch.tensor([0, 0, 1, 1])
    policy = augmentation(config.augment)
    optimizer = torch.optim.SGD([images], lr=config.lr_img, momentum=0.5)
    for iteration in range(ITERATIONS):
        generator = run.generator("network", iteration)
        network = build(config.backbone, channels=3, image_size=8, num_classes=2, generator=generator)
        parameters = list(network.parameters())
        optimizer_network = torch.optim.SGD(parameters, lr=config.lr_net)
        for step in range(OUTER):
            if any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules()):
                network.train()
                network(torch.cat([sample(c, 16, "batchnorm", iteration, step) for c in range(2)]))
                for module in network.modules():
                    if isinstance(module, torch.nn.BatchNorm2d):
                        module.eval()
            total = torch.zeros(())
            for c in range(2):
                batch = sample(c, config.batch_real, "real", iteration, step)
                ours = images[c * IPC : (c + 1) * IPC]
                if policy is not None:
                    drawn = policy.sample(None, (3, 8, 8), run.generator("augment", iteration, step, c))
                    batch, ours = policy.apply(batch, drawn), policy.apply(ours, drawn)
                g_real = torch.autograd.grad(real_loss(network, batch, torch.full((len(batch),), c)), parameters)
                loss = F.cross_entropy(network(ours), torch.full((IPC,), c))
                total = total + layerwise(torch.autograd.grad(loss, parameters, create_graph=True), g_real)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            if step == OUTER - 1:
                break
            draws = run.generator("train", iteration, step)
            network.train()
            for _ in range(INNER):
                x = images.detach()
                if policy is not None:
                    x = policy.apply(x, policy.sample(len(x), (3, 8, 8), draws))
                optimizer_network.zero_grad()
                F.cross_entropy(network(x), labels).backward()
                optimizer_network.step()
    return images.detach() * std + mean


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in float64: in float32 a ReLU's kink within rounding of a point moves an image by a percent."""
    data, sample = toy(), ImageSet.sample
    monkeypatch.setattr(f"{__name__}.toy", lambda: data)
    monkeypatch.setattr(ImageSet, "sample", lambda *args: sample(*args).double())
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("together", [1, 10])
@pytest.mark.parametrize("backbone", ["convnet:width=4", "convnet:width=4,norm=batch"])
@pytest.mark.parametrize("method", ["dc", "dsa", "guard_dc", "guard_dsa"])
@pytest.mark.usefixtures("float64")
def test_ours_is_the_textbook(
    method: str, backbone: str, together: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.methods.dc.GROUP", together)
    curvature = CurvatureRegularizedLoss(weight=2.0, h=1.0)
    config = Config(
        curvature if method.startswith("guard") else CrossEntropy(),
        backbone=backbone,
        iterations=ITERATIONS,
        outer_loop=OUTER,
        inner_loop=INNER,
        batch_real=6,
        lr_net=0.1,
        init="real" if method.endswith("dsa") else "noise",
        augment="color_crop_cutout_flip_scale_rotate" if method.endswith("dsa") else "",
    )
    ours = distill(toy(), IPC, config, Run(tmp_path, None).begin()).images
    real_loss = guard if method.startswith("guard") else (lambda network, x, y: F.cross_entropy(network(x), y))
    theirs = reference(config, Run(tmp_path, None).begin(), real_loss)
    assert (ours - theirs).abs().max() < 1e-9


def test_the_loss_is_what_makes_guard(tmp_path: Path) -> None:
    options = {"backbone": "convnet:width=4", "iterations": 2, "outer_loop": 2, "inner_loop": 1, "batch_real": 6}

    def images(loss: CrossEntropy | CurvatureRegularizedLoss, name: str) -> torch.Tensor:
        return distill(toy(), IPC, Config(loss, **options), Run(tmp_path / name, None).begin()).images

    plain, without = images(CrossEntropy(), "a"), images(CurvatureRegularizedLoss(0.0), "b")
    assert torch.equal(plain, without)
    assert not torch.allclose(plain, images(CurvatureRegularizedLoss(5.0), "c"), atol=1e-3)
