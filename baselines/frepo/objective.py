"""What FRePo minimises: the loss of ridge regression on features (see `baselines.frepo.method`)."""

import torch
from torch import Tensor, nn

from baselines.frepo.config import Config
from baselines.frepo.features import features_of
from baselines.frepo.students import squared
from distill.training.ridge import regressed

__all__ = ["margin", "objective"]


def objective(
    network: nn.Module, images: Tensor, labels: Tensor, x: Tensor, y: Tensor, config: Config
) -> tuple[Tensor, Tensor]:
    """Return the loss and the accuracy of the regression on real images.

    Args:
        network: a network of the pool; its mode becomes evaluation.
        images: (N, C, H, W), normalised or whitened.
        labels: (N, K), learned.
        x: (B, C, H, W) real images, normalised or whitened.
        y: (B, K) centred labels of x.
        config: only use_flip and ridge are used.

    Returns:
        the loss, a scalar with the graph to images and labels, and the accuracy on the real images, in [0, 1].

    Raises:
        torch.linalg.LinAlgError: the regularised kernel is not positive definite.
        InputError: the network has no features before a linear classifier.
    """
    network.eval()
    with torch.no_grad():
        real_features = features_of(network, x)
    if config.use_flip:
        images, labels = torch.cat([images, images.flip(3)]), torch.cat([labels, labels])
    features = features_of(network, images)
    predicted = regressed(features @ features.T, real_features @ features.T, labels, config.ridge)
    with torch.no_grad():
        accuracy = (predicted.argmax(1) == y.argmax(1)).float().mean()
    return squared(predicted, y), accuracy


def margin(labels: Tensor) -> Tensor:
    """Return the largest minus the second largest entry of each row of (N, K), at most 1 / K, averaged over rows.

    >>> margin(torch.tensor([[0.5, 0.3, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])).item()  # 0.2, and 1 limited to 0.25
    0.22499999403953552
    """
    first, second = labels.topk(2, dim=1).values.unbind(1)
    return (first - second).clamp(max=1 / labels.shape[1]).mean()
