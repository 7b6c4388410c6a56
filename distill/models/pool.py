"""The field's pool of networks for evaluation across architectures, as the DatasetCondensation code has them.

METHODS: MLP, LeNet, AlexNet, VGG11 and ResNet-18 for images of 32 pixels (28 where grey), without or with instance norm
(a GroupNorm with one group per channel) or BatchNorm. Here the size of the classifier follows from the feature map, so
that other image sizes work too; at the original sizes the networks are the same.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import InputError
from distill.models.convnet import NORMS

__all__ = ["BACKBONES"]

Norm = Literal["instance", "batch", "none"]


def _with_classifier(features: nn.Sequential, channels: int, image_size: int, head: list[int]) -> nn.Sequential:
    """Return the features, flattened, with linear layers of the sizes `head` behind them and ReLU between.

    Raises:
        InputError: the images are too small for the features, or for an instance norm in them.
    """
    features.eval()  # so that the pass which measures the shape changes no BatchNorm
    try:
        with torch.no_grad():
            ingoing = features(torch.zeros(1, channels, image_size, image_size)).numel()
    except ValueError:  # of GroupNorm: a single value minus its mean is 0, so the logits would not depend on the image
        raise InputError(
            f"images of {image_size} px shrink to one pixel, which instance norm makes constant; "
            "take convnet, a larger --image-size, or (where one pixel is enough) norm=batch"
        ) from None
    except RuntimeError:
        ingoing = 0
    if ingoing == 0:
        raise InputError(
            f"images of {image_size} px are too small for this backbone; take convnet, or a larger --image-size"
        )
    layers: list[nn.Module] = [nn.Flatten()]
    for outgoing in head:
        layers += [nn.Linear(ingoing, outgoing), nn.ReLU(inplace=True)]
        ingoing = outgoing
    return nn.Sequential(*features, *layers[:-1]).train()


def mlp(channels: int, image_size: int, num_classes: int) -> nn.Module:
    """Return a perceptron with two hidden layers of 128."""
    return _with_classifier(nn.Sequential(nn.Identity()), channels, image_size, [128, 128, num_classes])


def lenet(channels: int, image_size: int, num_classes: int) -> nn.Module:
    """Return LeNet with ReLU and max pooling; grey images are padded by 2."""
    features = nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2 if channels == 1 else 0),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )
    return _with_classifier(features, channels, image_size, [120, 84, num_classes])


def alexnet(channels: int, image_size: int, num_classes: int, *, norm: Norm = "none") -> nn.Module:
    """Return the small AlexNet of the field: five convolutions, three poolings, no dropout."""
    padding = 4 if channels == 1 and image_size == 28 else 2
    layers: list[nn.Module] = []
    ingoing = channels
    for width, kernel, pad, pool in (
        (128, 5, padding, True),
        (192, 5, 2, True),
        (256, 3, 1, False),
        (192, 3, 1, False),
        (192, 3, 1, True),
    ):
        normalization = NORMS[norm](width, 0)
        layers.append(nn.Conv2d(ingoing, width, kernel, padding=pad))
        layers += [normalization] if normalization is not None else []
        layers.append(nn.ReLU(inplace=True))
        layers += [nn.MaxPool2d(2)] if pool else []
        ingoing = width
    return _with_classifier(nn.Sequential(*layers), channels, image_size, [num_classes])


def vgg11(channels: int, image_size: int, num_classes: int, *, norm: Norm = "instance") -> nn.Module:
    """Return VGG-11 with a norm behind each convolution and one linear layer."""
    layers: list[nn.Module] = []
    ingoing, size = channels, 32 if channels == 1 and image_size == 28 else image_size
    for width in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"):
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
            size //= 2
            continue
        widen = channels == 1 and image_size == 28 and not layers
        normalization = NORMS[norm](width, size)
        layers.append(nn.Conv2d(ingoing, width, 3, padding=3 if widen else 1))
        layers += [normalization] if normalization is not None else []
        layers.append(nn.ReLU(inplace=True))
        ingoing = width
    return _with_classifier(nn.Sequential(*layers), channels, image_size, [num_classes])


class _Block(nn.Module):
    """Basic residual block; with `average`, strides are average pooling behind a convolution of stride 1."""

    def __init__(self, ingoing: int, width: int, stride: int, norm: Norm, average: bool):
        super().__init__()

        def normalized(*layers: nn.Module) -> nn.Sequential:
            normalization = NORMS[norm](width, 0)
            return nn.Sequential(*layers, *([normalization] if normalization is not None else []))

        step = 1 if average else stride
        pool = nn.AvgPool2d(2) if average and stride > 1 else nn.Identity()
        self.first = normalized(nn.Conv2d(ingoing, width, 3, stride=step, padding=1, bias=False))
        self.pool = pool
        self.second = normalized(nn.Conv2d(width, width, 3, padding=1, bias=False))
        if stride == 1 and ingoing == width:
            self.shortcut = nn.Identity()
        else:
            self.shortcut = normalized(nn.Conv2d(ingoing, width, 1, stride=step, bias=False), pool)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (N, ingoing, H, W) -> (N, width, H / stride, W / stride)."""
        return F.relu(self.second(self.pool(F.relu(self.first(x)))) + self.shortcut(x))


def _resnet18(
    channels: int, image_size: int, num_classes: int, norm: Norm, width: int, blocks: int, average: bool, whole: bool
) -> nn.Module:
    if width < 1 or blocks < 1:
        raise InputError(f"width of resnet18 is {width}, blocks is {blocks}; both must be >= 1")
    normalization = NORMS[norm](width, 0)
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
    layers += [normalization] if normalization is not None else []
    layers.append(nn.ReLU(inplace=True))
    ingoing = width
    for outgoing, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        layers.append(_Block(ingoing, outgoing, stride, norm, average))
        layers += [_Block(outgoing, outgoing, 1, norm, average) for _ in range(blocks - 1)]
        ingoing = outgoing
    if not whole:
        layers.append(nn.AdaptiveAvgPool2d(1))
    return _with_classifier(nn.Sequential(*layers), channels, image_size, [num_classes])


def resnet18(
    channels: int, image_size: int, num_classes: int, *, norm: Norm = "instance", width: int = 64, blocks: int = 2
) -> nn.Module:
    """Return ResNet-18 with a 3x3 stem of stride 1, no max pooling, and a global average; blocks=1 is ResNet-10."""
    return _resnet18(channels, image_size, num_classes, norm, width, blocks, average=False, whole=False)


def resnet18_ap(
    channels: int,
    image_size: int,
    num_classes: int,
    *,
    norm: Norm = "instance",
    width: int = 64,
    blocks: int = 2,
    head: Literal["map", "mean"] = "map",
) -> nn.Module:
    """Return ResNet-18 with average pooling for strides, and the linear layer on the whole last map or its mean."""
    return _resnet18(channels, image_size, num_classes, norm, width, blocks, average=True, whole=head == "map")


BACKBONES = {
    "mlp": mlp,
    "lenet": lenet,
    "alexnet": alexnet,
    "vgg11": vgg11,
    "resnet18": resnet18,
    "resnet18_ap": resnet18_ap,
}
