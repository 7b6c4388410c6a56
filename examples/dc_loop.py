"""A loop in the style of DatasetCondensation's main.py, on generated images. GUARD changes one line.

python examples/dc_loop.py --steps 3
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from robust import CurvatureRegularizedLoss

guard = CurvatureRegularizedLoss(weight=1.0, h=3.0)  # h is a length in the space of the network's inputs


def make_network() -> nn.Module:
    """Return a small version of the field's ConvNet, with instance norm."""
    layers: list[nn.Module] = []
    for channels in (3, 16, 16):
        layers += [nn.Conv2d(channels, 16, 3, padding=1), nn.GroupNorm(16, 16), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(4))


def distance(gradients_syn, gradients_real):
    """Return the sum over output units of 1 - cosine between two gradients of a unit's weights, without biases."""
    total = 0.0
    for a, b in zip(gradients_syn, gradients_real, strict=True):
        if a.ndim > 1:
            a, b = a.flatten(1), b.flatten(1)
            total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    return total


def matching_loss(net, real_batches, image_syn):
    """Return the distance of gradients, summed over classes, for synthetic images (classes, ipc, C, H, W)."""
    parameters, loss = list(net.parameters()), 0.0
    for c, (real, syn) in enumerate(zip(real_batches, image_syn, strict=True)):
        lab_real, lab_syn = torch.full((len(real),), c), torch.full((len(syn),), c)
        loss_real = guard(net, real, lab_real)  # GUARD, was: F.cross_entropy(net(real), lab_real)
        gw_real = torch.autograd.grad(loss_real, parameters)
        loss_syn = F.cross_entropy(net(syn), lab_syn)
        gw_syn = torch.autograd.grad(loss_syn, parameters, create_graph=True)
        loss = loss + distance(gw_syn, gw_real)
    return loss


def main(steps: int) -> None:
    """Distil four classes; the images of a class are one pattern with noise."""
    torch.manual_seed(0)
    patterns = torch.randn(4, 1, 3, 16, 16)
    images_all = patterns + 0.5 * torch.randn(4, 64, 3, 16, 16)  # 64 images of each class, already normalised
    image_syn = torch.randn(4, 2, 3, 16, 16, requires_grad=True)
    optimizer_img = torch.optim.SGD([image_syn], lr=0.1, momentum=0.5)
    for it in range(steps):
        net = make_network()
        net(images_all[0, :1])  # sets the size of the lazy layer
        loss = matching_loss(net, [images[torch.randperm(64)[:16]] for images in images_all], image_syn)
        optimizer_img.zero_grad()
        loss.backward()
        optimizer_img.step()
        print(f"step {it}: loss {loss.item():.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    main(parser.parse_args().steps)
