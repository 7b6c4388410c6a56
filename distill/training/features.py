"""Features that a network computes of images, which methods match."""

from torch import Tensor, nn

from distill.errors import InputError

__all__ = ["embedding", "features_and_logits", "taps"]

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Tanh, nn.ELU, nn.Hardswish, nn.ReLU6)


def embedding(network: nn.Module, images: Tensor) -> Tensor:
    """Return the input of the network's last linear layer, its classifier: (N, C, H, W) -> (N, D).

    Raises:
        InputError: the network has no such layer, or does not call it once with the images' features.
    """
    return features_and_logits(network, images)[0]


def features_and_logits(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the `embedding` of images, (N, D), and what the network returns for them, (N, K), in one pass.

    Raises:
        InputError: as `embedding`.
    """
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    seen: list[Tensor] = []
    logits = images
    if linears:
        hook = linears[-1].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        try:
            logits = network(images)
        finally:
            hook.remove()
    if len(seen) != 1 or seen[0].ndim != 2 or len(seen[0]) != len(images):
        kind = type(network).__name__
        raise InputError(f"{kind} gives no features (N, D) to one last linear layer; take another backbone: convnet")
    return seen[0], logits


def taps(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the output of each activation layer, in the order of the calls, and last the `embedding`, each (N, ...).

    An activation that is no layer (a function called in `forward`) has no tap.

    Raises:
        InputError: as `embedding`, or the network has no activation layer.
    """
    seen: list[Tensor] = []
    layers = [module for module in network.modules() if isinstance(module, ACTIVATIONS)]

    def remember(_layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output)

    hooks = [layer.register_forward_hook(remember) for layer in layers]
    try:
        last = embedding(network, images)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise InputError(
            f"{type(network).__name__} has no activation layers to look at; take another backbone: convnet"
        )
    return [*seen, last]
