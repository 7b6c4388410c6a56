"""Losses called as criteria, and gradients where the caller has turned them off."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robust import (
    APGD,
    CW,
    FAB,
    JSMA,
    PGD,
    TRADES,
    VMIFGSM,
    AdversarialTraining,
    AutoAttack,
    CrossEntropy,
    CurvatureRegularizedLoss,
    DeepFool,
    GaussianNoise,
    GradientNorm,
    Jitter,
    Noise,
    RobustTeacher,
    Square,
    Threat,
    Transfer,
    certify,
    cross_entropy,
    curvature_penalty,
    evaluate,
    robust_accuracy,
)
from robust.losses.named import LOSSES
from robust.theory.bounds import bound_terms
from robust.theory.hessian import hessian_vector_product
from robust.theory.landscape import loss_surface
from robust.theory.spectrum import finite_difference_curvature, gradient_cosine, top_eigenvalue

BALL, ROUND = Threat("linf", 0.1), Threat("l2", 0.3)
LOSS: dict[str, Callable[..., Tensor]] = {
    "curvature": CurvatureRegularizedLoss(h=0.1),
    "sign": CurvatureRegularizedLoss(h=0.1, direction="sign", penalty="norm"),
    "difference": CurvatureRegularizedLoss(h=0.1, penalty="loss_difference"),
    "trades": TRADES(BALL, steps=2),
    "pgd_at": AdversarialTraining(BALL, steps=2),
    "gradient_norm": GradientNorm(),
    "noise": GaussianNoise(),
    "cross_entropy": CrossEntropy(),
}
RANDOM = ("trades", "pgd_at", "noise")


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4)).eval()


def batch() -> tuple[Tensor, Tensor]:
    return torch.rand(6, 1, 8, 8, generator=rng()), torch.tensor([0, 1, 2, 3, 0, 1])


def test_every_named_loss_is_here() -> None:
    kinds = {type(loss) for loss in LOSS.values()}
    assert {type(make(BALL)) for make in LOSSES.values()} <= kinds


WRONG: dict[str, Callable[[nn.Module, Tensor, Tensor], tuple[Any, ...]]] = {
    "as a criterion": lambda net, x, y: (net(x), y),
    "images first": lambda net, x, y: (x, net, y),
    "labels before images": lambda net, x, y: (net, y, x),
    "no labels": lambda net, x, y: (net, x),
    "labels as a list": lambda net, x, y: (net, x, y.tolist()),
    "the network last": lambda net, x, y: (x, y, net),
    "nothing": lambda net, x, y: (),
}


@pytest.mark.parametrize("name", LOSS)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_loss_that_is_called_wrongly_says_the_right_call(name: str, wrong: str) -> None:
    with pytest.raises(TypeError, match=r"is called as loss\(network, images, labels\), not loss\(") as caught:
        LOSS[name](*WRONG[wrong](network(), *batch()))
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_arguments_by_name_and_targets_of_an_own_criterion_are_taken() -> None:
    net, (x, y) = network(), batch()
    loss = CurvatureRegularizedLoss(weight=0.0)
    assert loss(targets=y, model=net, inputs=x) == loss(net, x, y)
    assert loss(net, x, {"labels": y}, criterion=lambda out, t: cross_entropy(out, t["labels"])) == loss(net, x, y)


@pytest.mark.parametrize("name", LOSS)
def test_a_loss_has_its_value_where_gradients_are_off(name: str) -> None:
    net, (x, y) = network(), batch()
    options = {"generator": rng()} if name in RANDOM else {}
    expected = LOSS[name](net, x, y, **options).detach()
    for off in (torch.no_grad, torch.inference_mode):
        options = {"generator": rng()} if name in RANDOM else {}
        with off():
            made = batch()  # inference tensors in inference mode
            found = LOSS[name](net, *made, **options)
        torch.testing.assert_close(found, expected)
        assert not found.requires_grad
    options = {"generator": rng()} if name in RANDOM else {}
    LOSS[name](net, *made, **options).backward()  # inference tensors outside
    assert net[0].weight.grad.isfinite().all()


def test_a_loss_in_training_mode_works_in_inference_mode() -> None:
    net, (x, y) = network().train(), batch()
    with torch.inference_mode():
        CurvatureRegularizedLoss(h=0.1)(net, x, y)
    assert net[1].num_batches_tracked == 1
    CurvatureRegularizedLoss(h=0.1)(net, x, y).backward()


ATTACKS: dict[str, Callable[[nn.Module], Any]] = {
    "pgd": lambda net: PGD(BALL, steps=3),
    "eot": lambda net: PGD(BALL, steps=2, eot=2),
    "cw": lambda net: CW(ROUND, steps=3, search_steps=2),
    "deepfool": lambda net: DeepFool(ROUND, steps=3),
    "jsma": lambda net: JSMA(gamma=0.1),
    "noise": lambda net: Noise(BALL),
    "vmifgsm": lambda net: VMIFGSM(BALL, steps=3, neighbours=2),
    "jitter": lambda net: Jitter(BALL, steps=3),
    "apgd": lambda net: APGD(BALL, steps=3),
    "fab": lambda net: FAB(BALL, steps=2, targets=1),
    "square": lambda net: Square(BALL, queries=5),
    "autoattack": lambda net: AutoAttack(Threat("linf", 0.9)),
    "transfer": lambda net: Transfer(net, PGD(BALL, steps=2, iterate="last")),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_finds_the_same_where_gradients_are_off(name: str) -> None:
    if name in ("apgd", "fab", "square", "autoattack"):
        pytest.importorskip("torchattacks")
    net, (x, y) = network(), batch()
    y = net(x).argmax(1)
    attack = ATTACKS[name](net)
    expected = attack(net, x, y, generator=rng())
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert torch.equal(attack(net, x.clone(), y.clone(), generator=rng()), expected)


def test_evaluations_are_the_same_in_inference_mode() -> None:
    net, (x, y) = network(), batch()
    found = []
    for off in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with off():
            made, labels = x.clone(), y.clone()
            report = evaluate(net, made, labels, {"pgd": PGD(BALL, steps=3), "cw": CW(ROUND, steps=3)}, generator=rng())
            found.append([report.clean, *report.attacks.values()])
            found[-1].append(robust_accuracy(net, made, labels, PGD(BALL, steps=2), generator=rng()))
            found[-1].append(certify(net, made, sigma=0.5, n=20, generator=rng()).radius)
            v = torch.ones_like(made)
            found[-1] += [
                hessian_vector_product(net, made, labels, v),
                gradient_cosine(net, made, labels, v),
                finite_difference_curvature(net, made, labels, h=0.1),
                top_eigenvalue(net, made, labels, generator=rng())[0],
                loss_surface(net, made[0], labels[0], extent=0.1, points=3)[0],
                bound_terms(net, made, labels, 0.1, steps=2).adversarial_loss,
                *curvature_penalty(net, made, labels, h=0.1),
                *RobustTeacher(net, CurvatureRegularizedLoss(h=0.1)).gradients(made, labels),
            ]
    for a, *others in zip(*found, strict=True):
        for b in others:
            assert a == b if isinstance(a, float) else torch.allclose(a, b, equal_nan=True)


def test_a_network_of_inference_tensors_is_refused_in_words_that_help() -> None:
    with torch.inference_mode():
        net, (x, y) = network(), batch()
    for call in (CurvatureRegularizedLoss(h=0.1), PGD(BALL, steps=2), DeepFool(ROUND)):
        with pytest.raises(ValueError, match=r"^the parameters of Sequential were made inside torch.inference_mode"):
            call(net, x, y)
    with pytest.raises(ValueError, match=r"build or load the network outside of it$"):
        RobustTeacher(net).gradients(x, y)
