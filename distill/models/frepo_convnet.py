"""The network of FRePo: `depth` blocks of convolution, ReLU and 2x2 average pooling; each doubles the width.

"Dataset Distillation using Neural Feature Regression" (Zhou et al., NeurIPS 2022), `Conv` of its code: widths 128, 256,
512; a norm, if any, stands before each convolution but the first; weights from a normal of variance 1 / fan in, cut at
two standard deviations and rescaled (LeCun, as in Flax); biases 0. BatchNorm keeps a tenth of its running statistics in
each step (momentum 0.1 of Flax is 0.9 of PyTorch).

Deviations: running variances are unbiased; grey images are padded by 3 only if they have 28 px, as in
`distill.models.convnet`, not at all sizes; norms other than BatchNorm are those of `distill.models.convnet`.
"""

import math

from torch import nn

from distill.errors import InputError
from distill.models.convnet import NORMS, Norm

__all__ = ["BACKBONES"]

CUT = 0.87962566103423978  # standard deviation of a standard normal that is cut at two standard deviations


def frepo_convnet(
    channels: int, image_size: int, num_classes: int, *, width: int = 128, depth: int = 3, norm: Norm = "none"
) -> nn.Module:
    """Return the network for images (N, channels, image_size, image_size), to logits (N, num_classes)."""
    if width < 1 or depth < 1:
        raise InputError(f"width is {width} and depth is {depth}; both must be >= 1")
    if norm == "group" and width % 4:
        raise InputError(f"width is {width}; norm=group has 4 groups, so it must be divisible by 4")
    layers: list[nn.Module] = []
    widen = channels == 1 and image_size == 28
    ingoing, size = channels, 32 if widen else image_size
    for block in range(depth):
        normalization = NORMS[norm](ingoing, size) if block else None
        if isinstance(normalization, nn.BatchNorm2d):
            normalization.momentum = 0.9
        layers += [normalization] if normalization is not None else []
        outgoing = width * 2**block
        layers.append(nn.Conv2d(ingoing, outgoing, 3, padding=3 if widen and block == 0 else 1))
        layers += [nn.ReLU(inplace=True), nn.AvgPool2d(2)]
        ingoing, size = outgoing, size // 2
        if size < 1:
            raise InputError(f"images of {image_size} px are halved to nothing by depth {depth}; take a smaller one")
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(ingoing * size * size, num_classes))
    for layer in network:
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
            std = 1 / (CUT * math.sqrt(layer.weight[0].numel()))
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(layer.bias)
    return network


BACKBONES = {"frepo_convnet": frepo_convnet}
