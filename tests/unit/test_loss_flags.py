"""Flags that take a loss: what they mean for each method, and that recipes are what they were."""

from pathlib import Path

import pytest

from distill.app.distil import resolve_flags
from distill.app.flags import flags_of
from distill.app.registry import find_methods
from distill.data import facts_named
from distill.experiment import Experiment
from distill.runs.run import Run
from robust import TRADES, CrossEntropy, CurvatureRegularizedLoss, GaussianNoise, Loss, Threat

METHODS = find_methods()
REAL = [
    name
    for name, method in METHODS.items()
    if hasattr(method.recipes["quick"](facts_named("digits"), 1).config, "real_loss")
]

HASHES = {  # of the quick recipes at the commit before `--real-loss` took a text
    ("dc", "digits", 1): "8e292e61",
    ("guard_dc", "digits", 1): "1fa70466",
    ("guard_dc", "cifar10", 10): "bd534949",
    ("guard_dsa", "cifar10", 10): "6f9d5852",
    ("guard_dcc", "digits", 1): "44e65b8a",
    ("guard_cafe", "digits", 1): "5995ac87",
    ("guard_dm", "digits", 1): "f0161eef",
    ("mtt", "digits", 1): "d495f0c1",
    ("guard_mtt", "cifar10", 10): "c0816dc5",
    ("sre2l", "digits", 1): "180f853c",
    ("sre2l", "cifar10", 10): "2a8fde05",
    ("guard_sre2l", "digits", 1): "e823e4af",
    ("guard_sre2l", "cifar10", 10): "389460ac",
}


def resolved(method: str, dataset: str, *flags: str) -> Experiment:
    return resolve_flags(METHODS[method], dataset, ["--recipe", "quick", *flags])[0]


def hash_of(experiment: Experiment, folder: Path) -> str:
    return Run(folder, experiment).config_hash()


@pytest.mark.parametrize(("method", "dataset", "ipc"), HASHES)
def test_runs_of_before_are_the_same_runs(method: str, dataset: str, ipc: int, tmp_path: Path) -> None:
    experiment = resolved(method, dataset, "--ipc", str(ipc))
    assert hash_of(experiment, tmp_path) == HASHES[method, dataset, ipc]


@pytest.mark.parametrize(
    ("method", "dataset", "ipc", "flags"),
    [
        ("guard_dc", "cifar10", 10, ["--real-loss", "guard:weight=3"]),
        ("guard_dc", "digits", 1, ["--real-loss", "guard:weight=1,h=3"]),
        ("guard_mtt", "cifar10", 10, ["--expert-loss", "guard:weight=0.1,fraction=0.25"]),
        ("dc", "digits", 1, ["--real-loss", "cross_entropy"]),
    ],
)
def test_a_recipe_written_out_is_the_recipe(
    method: str, dataset: str, ipc: int, flags: list[str], tmp_path: Path
) -> None:
    assert hash_of(resolved(method, dataset, "--ipc", str(ipc), *flags), tmp_path) == HASHES[method, dataset, ipc]


def test_every_method_that_sees_real_images_through_a_loss_takes_every_loss() -> None:
    assert {"dc", "dsa", "guard_dc", "guard_dsa", "dcc", "dsac", "guard_dcc", "cafe", "guard_cafe", "dm"} <= set(REAL)
    for method in REAL:
        more = ["--extractor-epochs", "1"] if method == "dm" else []
        for text, loss in {
            "guard:weight=3": CurvatureRegularizedLoss(3.0, h=3.0),
            "cure": CurvatureRegularizedLoss(4.0, 3.0, "sign", "norm"),
            "trades:beta=1,steps=2@2/255": TRADES(Threat("linf", 2 / 255), 1.0, 2),
            "noise:sigma=0.1": GaussianNoise(0.1),
        }.items():
            assert resolved(method, "digits", "--real-loss", text, *more).config.real_loss == loss
    assert resolved("tesla", "digits", "--expert-loss", "guard").config.expert_loss == CurvatureRegularizedLoss(
        1.0, 3.0
    )


@pytest.mark.parametrize(
    ("dataset", "flags", "eps"),
    [
        ("digits", [], 0.3),
        ("mnist", [], 0.3),
        ("cifar10", [], 8 / 255),
        ("imagenette", [], 8 / 255),
    ],
)
def test_names_of_threats_are_those_of_the_data_set(dataset: str, flags: list[str], eps: float) -> None:
    assert resolved("dc", dataset, "--real-loss", "trades", *flags).config.real_loss.threat == Threat("linf", eps)
    assert resolved("dc", dataset, "--real-loss", "trades@linf_star", *flags).config.real_loss.threat.eps == eps


def test_the_size_of_the_images_decides_the_names_too() -> None:
    flags = ["--real-loss", "trades@standard"]
    assert resolved("dc", "imagenette", *flags).config.real_loss.threat.eps == 4 / 255
    assert resolved("dc", "imagenette", *flags, "--image-size", "32").config.real_loss.threat.eps == 8 / 255
    assert resolved("dc", "cifar10", *flags, "--image-size=64").config.real_loss.threat.eps == 4 / 255


def test_help_has_the_default_in_the_grammar(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        resolved("guard_mtt", "digits", "--help-all")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--expert-loss NAME:field=value@THREAT" in text
    assert "(default: guard:weight=0.1,fraction=0.25)" in text
    assert "--student.loss NAME:field=value@THREAT" in text


@pytest.mark.parametrize("loss", ["trades:beta=1,steps=2@l2:0.5", "guard:weight=10,h_warmup=0.1:1.0", "cross_entropy"])
def test_flags_say_what_a_loss_says(loss: str) -> None:
    config = resolved("guard_mtt", "digits", "--expert-loss", loss).config
    words = flags_of(config)
    assert words[:2] == ["--expert-loss", loss]
    assert isinstance(config.expert_loss, Loss)
    assert config.expert_loss != CrossEntropy() or loss == "cross_entropy"
