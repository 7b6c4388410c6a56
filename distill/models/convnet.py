"""The ConvNet of the field: `depth` blocks of convolution, norm, activation and 2x2 pooling, then one linear layer.

The network of "Dataset Condensation with Gradient Matching" (Zhao et al., ICLR 2021), section 4, as its code builds it:
instance norm is a GroupNorm with one group per channel (no running statistics), initialisation is PyTorch's, or, with
init=he, that of "Delving Deep into Rectifiers" (He et al., ICCV 2015), which GUARD's paper names (section 7.1).

Deviation: the code pads the first convolution of every one-channel network by 3; here only for images of 28 px, for
which this padding is made (28 -> 32). Grey images of other sizes are padded by 1, as colour images are.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from distill.errors import InputError

__all__ = ["ACTIVATIONS", "BACKBONES", "NORMS", "POOLINGS", "ConvNet", "convnet_for"]

Norm = Literal["instance", "batch", "layer", "group", "none"]
Activation = Literal["relu", "sigmoid", "leakyrelu", "swish"]
Pooling = Literal["avg", "max", "none"]
Init = Literal["torch", "he"]
"""torch: weights and biases uniform, of standard deviation 1/sqrt(3 inputs); he: weights normal, of sqrt(2/inputs), and
biases 0 (He et al., equation 10), in the convolutions and the linear layer"""

NORMS: dict[str, Callable[[int, int], nn.Module | None]] = {
    "instance": lambda width, size: nn.GroupNorm(width, width),
    "batch": lambda width, size: nn.BatchNorm2d(width),
    "layer": lambda width, size: nn.LayerNorm([width, size, size]),
    "group": lambda width, size: nn.GroupNorm(4, width),
    "none": lambda width, size: None,
}
"""name -> layer for (channels, side in pixels)"""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "sigmoid": nn.Sigmoid,
    "leakyrelu": lambda: nn.LeakyReLU(0.01),
    "swish": nn.SiLU,
}

POOLINGS: dict[str, Callable[[], nn.Module] | None] = {
    "avg": lambda: nn.AvgPool2d(2),
    "max": lambda: nn.MaxPool2d(2),
    "none": None,
}


class ConvNet(nn.Module):
    """ConvNet for images (N, channels, image_size, image_size), to logits (N, num_classes).

    Raises:
        InputError: the images are too small for the depth, or a width that the norm cannot divide.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        num_classes: int,
        *,
        width: int = 128,
        depth: int = 3,
        norm: Norm = "instance",
        activation: Activation = "relu",
        pooling: Pooling = "avg",
        init: Init = "torch",
    ):
        super().__init__()
        if width < 1 or depth < 1:
            raise InputError(f"width is {width} and depth is {depth}; both must be >= 1")
        if norm == "group" and width % 4:
            raise InputError(f"width is {width}; norm=group has 4 groups, so it must be divisible by 4")
        layers: list[nn.Module] = []
        pool, size, ingoing = POOLINGS[pooling], image_size, channels
        for block in range(depth):
            widen = channels == 1 and image_size == 28 and block == 0
            layers.append(nn.Conv2d(ingoing, width, 3, padding=3 if widen else 1))
            size, ingoing = 32 if widen else size, width
            normalization = NORMS[norm](width, size)
            layers += [normalization] if normalization is not None else []
            layers.append(ACTIVATIONS[activation]())
            if pool is not None:
                layers.append(pool())
                size //= 2
            if size < 1:
                raise InputError(
                    f"images of {image_size} px are halved to nothing by depth {depth}; take a smaller one"
                )
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.classifier = nn.Linear(width * size * size, num_classes)
        if init == "he":
            for layer in self.modules():
                if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                    nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (N, C, H, W) -> (N, K)."""
        return self.classifier(self.features(images))


BACKBONES = {"convnet": ConvNet}


def convnet_for(depth: int, width: int = 128) -> str:
    """Return the name of the field's ConvNet, as recipes write it.

    Args:
        depth: blocks; `Facts.depth` of a data set is the field's.
        width: channels.

    >>> convnet_for(3), convnet_for(3, 32), convnet_for(4)
    ('convnet', 'convnet:width=32', 'convnet:width=128,depth=4')
    """
    named = "" if depth == 3 else f",depth={depth}"
    return "convnet" if width == 128 and not named else f"convnet:width={width}{named}"
