"""AlexCifarNet, the network of Dataset Distillation on CIFAR-10, taken from cuda-convnet.

METHODS: two convolutions of 64 channels with overlapping max pooling and local response normalisation, three linear
layers. Here the size of the first linear layer follows from the feature map, so that other image sizes and grey images
work too; for colour images of 32 px the network is the original.
"""

from torch import nn

from distill.errors import InputError

__all__ = ["BACKBONES"]


def alexcifarnet(channels: int, image_size: int, num_classes: int) -> nn.Module:
    """Return AlexCifarNet.

    Args:
        channels: of the images.
        image_size: side of the images in pixels, >= 4.
        num_classes: length of the logits.

    Raises:
        InputError: the images are too small.
    """
    if image_size < 4:
        raise InputError(f"images of {image_size} px are too small for this backbone; take a larger --image-size")
    side = (image_size + 3) // 4  # each pooling halves, rounding up
    return nn.Sequential(
        nn.Conv2d(channels, 64, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.LocalResponseNorm(4, alpha=0.001 / 9, beta=0.75, k=1),
        nn.Conv2d(64, 64, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.LocalResponseNorm(4, alpha=0.001 / 9, beta=0.75, k=1),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(64 * side * side, 384),
        nn.ReLU(inplace=True),
        nn.Linear(384, 192),
        nn.ReLU(inplace=True),
        nn.Linear(192, num_classes),
    )


BACKBONES = {"alexcifarnet": alexcifarnet}
