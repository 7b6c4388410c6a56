"""Compiled and chunked gradients are the eager ones of the whole batch."""

from functools import partial
from pathlib import Path

import pytest
import torch

from distill.methods import dc
from distill.models import build
from distill.runs.run import Run
from robust import CompiledGradients, CrossEntropy, CurvatureRegularizedLoss, RobustTeacher
from tests.toy import toy

pytestmark = pytest.mark.long

LOSSES = [CrossEntropy(), CurvatureRegularizedLoss(weight=5.0, h=0.5)]
TRACED = partial(CompiledGradients, backend="aot_eager")  # inductor takes half a minute


def network(seed: int, norm: str = "instance") -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    spec = f"convnet:width=4,depth=2,norm={norm}"
    return build(spec, channels=3, image_size=8, num_classes=2, generator=generator).double().eval()


@pytest.mark.parametrize("norm", ["instance", "batch", "layer"])
@pytest.mark.parametrize("loss", LOSSES)
def test_one_program_serves_all_networks_of_an_architecture(loss: object, norm: str) -> None:
    compiled, data = TRACED(), toy(7)
    x, y = data.images.double(), data.labels
    for seed in range(3):
        net = network(seed, norm)
        expected, gradients = RobustTeacher(net, loss).value_and_gradients(x, y)
        found, ours = RobustTeacher(net, loss, compiled=compiled).value_and_gradients(x, y)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(ours, gradients)
        assert not any(g.requires_grad for g in ours)
        assert all(p.grad is None for p in net.parameters())
    assert len(compiled.programs) == 1


def test_a_program_is_of_one_precision_and_one_choice_of_trainable_tensors() -> None:
    compiled, data = TRACED(), toy(7)
    x, y, net = data.images, data.labels, network(0).float()
    with torch.autocast("cpu", torch.bfloat16):
        coarse = RobustTeacher(net, LOSSES[0], compiled=compiled).value_and_gradients(x, y)[0]
    exact = RobustTeacher(net, LOSSES[0]).value_and_gradients(x, y)[0]
    torch.testing.assert_close(RobustTeacher(net, LOSSES[0], compiled=compiled).value_and_gradients(x, y)[0], exact)
    assert coarse != exact
    assert len(compiled.programs) == 2
    for number, parameter in enumerate(net.parameters()):
        parameter.requires_grad_(number != 1)
    found = RobustTeacher(net, LOSSES[0], compiled=compiled).gradients(x, y)
    torch.testing.assert_close(found, RobustTeacher(net, LOSSES[0]).gradients(x, y))
    assert len(compiled.programs) == 3


class Scaled(torch.nn.Module):
    def __init__(self, act, scale):
        super().__init__()
        self.line, self.act, self.scale = torch.nn.Linear(4, 2), act, scale

    def forward(self, x):
        return self.line(self.scale * self.act(x))


def test_networks_that_print_alike_and_differ_are_other_programs() -> None:
    compiled, x, y = TRACED(), torch.rand(3, 4, dtype=torch.float64), torch.tensor([0, 1, 1])
    for act, scale in ((torch.relu, 1.0), (torch.tanh, 1.0), (torch.tanh, 10.0)):
        net = Scaled(act, scale).double().eval()
        expected = RobustTeacher(net, LOSSES[1]).gradients(x, y)
        torch.testing.assert_close(RobustTeacher(net, LOSSES[1], compiled=compiled).gradients(x, y), expected)
    assert len(compiled.programs) == 3


def test_frozen_parameters_and_other_shapes_are_other_programs() -> None:
    compiled, data, net = TRACED(), toy(6), network(0)
    x, y = data.images.double(), data.labels
    net.features[0].weight.requires_grad_(False)
    expected = RobustTeacher(net, LOSSES[1]).gradients(x, y)
    torch.testing.assert_close(RobustTeacher(net, LOSSES[1], compiled=compiled).gradients(x, y), expected)
    net.features[0].weight.requires_grad_(True)
    assert len(RobustTeacher(net, LOSSES[1], compiled=compiled).gradients(x, y)) == len(expected) + 1
    RobustTeacher(net, LOSSES[1], compiled=compiled).gradients(x[:4], y[:4])
    assert len(compiled.programs) == 3


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("chunk", [1, 3, 7, 8])
@pytest.mark.parametrize("compiled", [None, TRACED()])
def test_chunks_are_the_whole(loss: object, chunk: int, compiled: CompiledGradients | None) -> None:
    data, net = toy(7), network(1)
    x, y = data.images.double(), data.labels
    expected, gradients = RobustTeacher(net, loss).value_and_gradients(x, y)
    found, ours = RobustTeacher(net, loss, chunk, compiled).value_and_gradients(x, y)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours, gradients)


def test_what_cannot_be_is_refused() -> None:
    data, net = toy(4), network(0, "batch").float().train()
    with pytest.raises(ValueError, match=r"training mode.*statistics"):
        RobustTeacher(net, LOSSES[0], chunk=2).gradients(data.images, data.labels)
    with pytest.raises(ValueError, match=r"training mode.*compiled"):
        RobustTeacher(net, LOSSES[0], compiled=TRACED()).gradients(data.images, data.labels)
    with pytest.raises(ValueError, match="chunk is 0"):
        RobustTeacher(net, chunk=0)
    with pytest.raises(ValueError, match="chunk is 0"):
        dc.Config(LOSSES[0], chunk=0)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_distillation_is_the_same_compiled_and_in_chunks(
    norm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dc, "CompiledGradients", TRACED)
    small = {"backbone": f"convnet:width=4,depth=2,norm={norm}", "iterations": 2, "outer_loop": 2, "inner_loop": 1}

    def images(name: str, **how: object) -> torch.Tensor:
        config = dc.Config(LOSSES[1], **small, batch_real=6, **how)
        return dc.distill(toy(), 2, config, Run(tmp_path / name, None).begin()).images

    plain = images("plain")
    for name, how in {"compiled": {"compile": True}, "chunks": {"chunk": 4}}.items():
        torch.testing.assert_close(images(name, **how), plain, rtol=1e-3, atol=1e-3)


def test_without_a_compiler_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
    config = dc.Config(LOSSES[0], backbone="convnet:width=4", iterations=1, compile=True)
    with pytest.raises(dc.InputError, match="--compile needs a C"):
        dc.distill(toy(), 1, config, Run(tmp_path, None).begin())


def test_the_loss_works_inside_torch_func() -> None:
    data, net = toy(5), network(2)
    x, y = data.images.double(), data.labels

    def value(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return LOSSES[1](lambda v: torch.func.functional_call(net, parameters, (v,)), x, y)

    found = torch.func.grad(value)({name: p.detach() for name, p in net.named_parameters()})
    torch.testing.assert_close(tuple(found.values()), RobustTeacher(net, LOSSES[1]).gradients(x, y))
