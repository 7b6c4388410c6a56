"""BatchNorm of all processes: two processes with the same part are BatchNorm of the part, written twice."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from sre2l import sync_batchnorm
from sre2l.sync_batchnorm import SyncBatchNorm, batch_norm_of_all, synchronised


@pytest.fixture
def two_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process whose tensors are always those of this one."""
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.mul_(2))
    monkeypatch.setattr(sync_batchnorm, "world_size", lambda: 2)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64) * 3 + 20


@pytest.mark.usefixtures("two_alike")
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (1, 3, 2, 2), (5, 3), (1, 3)])
def test_it_is_batchnorm_of_the_whole_batch_with_two_derivatives(shape: tuple[int, ...], affine: bool) -> None:
    x = drawn(*shape).requires_grad_()
    weight, bias = (drawn(3).requires_grad_() for _ in range(2)) if affine else (None, None)
    parameters = [p for p in (weight, bias) if p is not None]
    direction, outer = torch.randn_like(x), torch.randn_like(x)
    found = []
    for parts in (1, 2):
        mean, var = torch.zeros(3).double(), torch.ones(3).double()
        if parts == 1:
            y = batch_norm_of_all(x, mean, var, weight, bias, 0.3, 1e-2)
        else:  # the batch of both; the gradient in x is then the sum of the gradients in both parts
            y = F.batch_norm(torch.cat([x, x]), mean, var, weight, bias, True, 0.3, 1e-2)
        losses = (y * torch.cat([direction] * parts)).sum()
        first = torch.autograd.grad(losses, x, create_graph=True)[0] / parts
        value = (first * outer).sum()
        found.append([y[: len(x)], mean, var, first, *torch.autograd.grad(value, [x, *parameters], allow_unused=True)])
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-6)


@pytest.mark.usefixtures("two_alike")
def test_layers_stay_as_they_are() -> None:
    """Also timm's, which apply their activation themselves, and which torch's conversion replaces by plain ones."""
    from timm.layers import BatchNormAct2d  # pyright: ignore[reportPrivateImportUsage]

    layers = nn.Sequential(nn.BatchNorm2d(3), BatchNormAct2d(3, act_layer=nn.ReLU)).train()
    x = torch.randn(4, 3, 2, 2)
    with synchronised(True) as mode:
        assert isinstance(mode, SyncBatchNorm)
        found = layers(x)
    assert found.min() == 0
    assert [type(layer) for layer in layers] == [nn.BatchNorm2d, BatchNormAct2d]
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert set(layers.state_dict()) == {f"{number}.{name}" for number in range(2) for name in names}
    state = {name: tensor.clone() for name, tensor in layers.state_dict().items()}
    with synchronised(True):
        torch.testing.assert_close(layers.eval()(x), nn.Sequential(*layers)(x))
    assert all(torch.equal(state[name], tensor) for name, tensor in layers.state_dict().items())


@pytest.mark.usefixtures("two_alike")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_normalised_in_float32(dtype: torch.dtype) -> None:
    x, layer = (torch.randn(16, 3, 4, 4) + 50).to(dtype), nn.BatchNorm2d(3)
    with synchronised(True):
        found = layer(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), nn.BatchNorm2d(3)(x.float()), atol=0.02, rtol=0.01)


@pytest.mark.usefixtures("two_alike")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
def test_compiled_programs_leave_it_outside() -> None:
    """With it inside, weights compiled by inductor and eager ones of two processes differed by 0.2, else 6e-8."""
    layer, graphs = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph.code)
        return graph

    x = torch.randn(4, 3, 2, 2)
    with synchronised(True):
        found, expected = torch.compile(layer, backend=backend)(x), layer(x)
    torch.testing.assert_close(found, expected)
    assert graphs
    assert not any("autograd_function_apply" in code or "reduce" in code for code in graphs)


def test_one_process_or_no_wish_is_no_mode() -> None:
    assert not isinstance(synchronised(True), SyncBatchNorm)
    assert not isinstance(synchronised(False), SyncBatchNorm)
