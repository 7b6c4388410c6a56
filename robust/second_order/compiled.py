"""Parameter gradients of a loss as one compiled program, for loops that repeat the same step thousands of times.

torch.compile cannot differentiate a gradient that is taken inside a function. The eager step, with all its gradients,
is therefore first traced (make_fx) to the sequence of operators that it runs, and this sequence is compiled.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from robust.network.modes import is_training, keeping_caches
from robust.network.precision import autocast_dtype

__all__ = ["CompiledGradients"]

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


class CompiledGradients:
    """Compiles value and gradients of a loss, once for each architecture, batch shape, choice of trainable tensors and
    precision of autocast.

    Networks of one architecture share a program, whose arguments are parameters and buffers. The first call of a
    program takes half a minute (inductor stores it on disk for later processes). A loss or a model whose Python code
    branches on values of tensors cannot be traced.

    >>> network, loss = nn.Linear(4, 3).eval(), torch.nn.CrossEntropyLoss()
    >>> step = CompiledGradients(backend="eager")
    >>> value, gradients = step(lambda model, x, y: loss(model(x), y), network, torch.ones(2, 4), torch.tensor([0, 2]))
    >>> [tuple(g.shape) for g in gradients]
    [(3, 4), (3,)]
    """

    def __init__(self, backend: str = "inductor"):
        self.backend = backend
        self.programs: dict[Any, Callable[..., Any]] = {}

    def __call__(self, loss: Loss, network: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the loss and its gradient for each trainable parameter in their order, detached.

        Args:
            loss: hashable, such as a frozen dataclass of `robust.losses`.
            network: in evaluation mode.
            inputs: (N, ...), as the network takes them.
            targets: (N,) class indices or (N, K) probabilities.

        Raises:
            ValueError: a module of the network is in training mode, where buffers change.
        """
        if is_training(network):
            raise ValueError("the network is in training mode; only networks in evaluation mode can be compiled")
        trainable = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
        fixed = {name: p.detach() for name, p in network.named_parameters() if not p.requires_grad}
        fixed |= dict(network.named_buffers())
        tensors = (inputs, targets, *trainable.values(), *fixed.values())
        shapes = tuple((t.shape, t.dtype, t.device, t.stride()) for t in tensors)
        key = (loss, architecture(network), tuple(trainable), tuple(fixed), shapes, autocast_dtype(inputs))
        if key not in self.programs:
            self.programs[key] = self._program(loss, network, trainable, fixed, inputs, targets)
        with torch.no_grad():
            value, *gradients = self.programs[key](trainable, fixed, inputs, targets)
        return value, gradients

    def _program(
        self, loss: Loss, network: nn.Module, trainable: dict[str, Tensor], fixed: dict[str, Tensor], *batch: Tensor
    ) -> Callable[..., Any]:
        def step(trainable: dict[str, Tensor], fixed: dict[str, Tensor], *batch: Tensor) -> list[Tensor]:
            leaves = {name: p.detach().requires_grad_() for name, p in trainable.items()}
            model = _Bound(network, leaves | fixed)
            value = loss(model, *batch)
            gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
            return [value.detach(), *gradients]

        with torch.enable_grad(), keeping_caches(network):
            traced = make_fx(step)(trainable, fixed, *batch)
        for node in reversed(list(traced.graph.nodes)):  # checks of sizes by autograd, which compilers do not take
            if node.op == "call_function" and not node.users:
                traced.graph.erase_node(node)
        traced.recompile()
        return torch.compile(traced, backend=self.backend, fullgraph=True)


def architecture(network: nn.Module) -> tuple[Any, ...]:
    """Return a key that is equal for networks that compute the same function of inputs and tensors.

    It consists of the types of the modules and their plain attributes. Functions are compared by name, and other
    objects are ignored, so forward passes that depend on such objects must not be compiled here.

    >>> architecture(nn.LeakyReLU(0.1)) == architecture(nn.LeakyReLU(0.1)) != architecture(nn.LeakyReLU(0.2))
    True
    """
    return tuple(
        (name, type(module), *((key, _plain(value)) for key, value in vars(module).items() if key[0] != "_"))
        for name, module in network.named_modules()
    )


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    return value if isinstance(value, (int, float, str, type(None))) else getattr(value, "__qualname__", None)


class _Bound(nn.Module):
    """A network with other tensors for its parameters and buffers; a module, so that a loss can read its mode."""

    def __init__(self, network: nn.Module, tensors: dict[str, Tensor]):
        super().__init__()
        self.call = [network, tensors]  # in a list, so that they are not registered as submodules
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        network, tensors = self.call
        return functional_call(network, tensors, (inputs,))
