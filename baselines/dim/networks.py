"""The generator and the critic of DiM's GAN."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import InputError

__all__ = ["Critic", "Generator", "MapNorm", "plain_layers"]

SIZES = (8, 14, 16, 28, 32, 56, 64)
"""image sides, in pixels, that the generator supports"""


def plain_layers(size: int) -> list[int]:
    """Return the number of stride-1 convolutions after each doubling of the side, which starts at 4.

    Raises:
        InputError: the generator does not support the image size.

    >>> [plain_layers(size) for size in (8, 16, 28, 32, 64)]
    [[3], [3, 0], [3, 1, 0], [3, 1, 0], [3, 1, 1, 0]]
    """
    if size not in SIZES:
        known = ", ".join(map(str, SIZES))
        raise InputError(f"no generator of images of {size} px; supported sizes: {known}; take one as --image-size")
    ups = (size // 7 if size % 7 == 0 else size // 8).bit_length()
    return [3, *[1] * (ups - 2), 0][:ups]


class Generator(nn.Module):
    """Maps noise (N, dim_noise), beginning with the one-hot class, to images (N, channels, size, size) in [-1, 1]."""

    def __init__(self, channels: int, size: int, dim_noise: int, width: int):
        super().__init__()
        plain = plain_layers(size)
        self.dim_noise = dim_noise
        self.linear = nn.Sequential(nn.Linear(dim_noise, 16 * width), nn.BatchNorm1d(16 * width), nn.ReLU())
        layers: list[nn.Module] = []
        for number, count in enumerate(plain):
            kernel = 3 if number == 0 and size % 7 == 0 else 4  # 4 to 7, or to 8
            layers += [nn.ConvTranspose2d(width, width, kernel, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            for _ in range(count):
                layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1), nn.Tanh())

    def forward(self, noise: Tensor) -> Tensor:
        """Return generated images in [-1, 1]."""
        return self.layers(self.linear(noise).view(len(noise), -1, 4, 4))


class MapNorm(nn.Module):
    """Layer norm over a whole map (C, H, W), with a gain and an offset for each entry.

    Implemented as a group norm with one group, for which `SecondOrder` has a fast second derivative.
    """

    def __init__(self, width: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, size, size))
        self.bias = nn.Parameter(torch.zeros(width, size, size))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map."""
        ones = x.new_ones(x.shape[1])
        return F.group_norm(x, 1, ones, torch.zeros_like(ones), 1e-5) * self.weight + self.bias


class Critic(nn.Module):
    """Maps images (N, channels, size, size) in [-1, 1] to realness scores (N,) and class logits (N, num_classes)."""

    def __init__(self, channels: int, size: int, num_classes: int, width: int):
        super().__init__()
        layers: list[nn.Module] = []

        def add(ingoing: int, stride: int) -> None:
            layers.extend([nn.Conv2d(ingoing, width, 3, stride, 1), MapNorm(width, size), nn.LeakyReLU()])

        plain = plain_layers(size)
        add(channels, 1)
        for count in reversed(plain):
            for _ in range(count):
                add(width, 1)
            size = (size + 1) // 2
            add(width, 2)
        self.features = nn.Sequential(*layers, nn.MaxPool2d(4), nn.Flatten())
        self.source = nn.Linear(width, 1)
        self.classes = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return realness scores and class logits."""
        features = self.features(images)
        return self.source(features)[:, 0], self.classes(features)
