"""Files that a setting names: their content, not their path alone, tells runs apart."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.robust_features.inversion import RobustFeatures
from baselines.robust_labels.labels import RobustLabels, check_teachers, teacher_with_digest
from distill.data.pictures import write_pictures
from distill.errors import InputError
from distill.models import build
from distill.runs.description import describe
from distill.runs.files import hash_of, write_tensors
from distill.runs.named_files import path_of, unchanged, with_digest
from sre2l.pipeline import Config, check
from sre2l.recover import Recover
from sre2l.relabel import Relabel
from sre2l.squeeze import Squeeze
from tests.toy import toy

BACKBONE = "convnet:width=4,depth=2,norm=batch"


def weights(path: Path, seed: int) -> str:
    network = build(BACKBONE, like=toy(), generator=torch.Generator().manual_seed(seed))
    write_tensors(path, network.state_dict(), {"backbone": BACKBONE})
    return str(path)


def pictures(path: Path, seed: int) -> str:
    real = toy(seed=seed)
    for old in path.rglob("*.png"):
        old.unlink()
    write_pictures(real.images, real.labels, real.classes, path)
    return str(path)


def _sre2l(config: Config) -> None:
    check(toy(), 2, replace(config, backbone=BACKBONE, relabel=Relabel(batch_size=4)), 1)


NAMING: dict[str, tuple[Callable[[Path, int], str], Callable[[str], Any], Callable[[Any], None]]] = {
    "squeeze.start": (weights, lambda name: Config(Squeeze(epochs=0, start=name)), _sre2l),
    "recover.images": (
        pictures,
        lambda name: Config(Squeeze(epochs=1, batch_size=8), Recover(images=name)),
        _sre2l,
    ),
    "--teacher": (
        weights,
        lambda name: RobustLabels(f"cross_entropy,{name}", teacher_batch_size=8),
        lambda config: check_teachers(toy(), BACKBONE, config),
    ),
    "--teacher ": (  # of robust features
        weights,
        RobustFeatures,
        lambda config: check_teachers(toy(), BACKBONE, config.labels),
    ),
}
"""setting -> writer of the file of a seed, the settings that name it, and their check"""


@pytest.mark.parametrize("setting", NAMING)
def test_other_content_under_the_same_path_is_another_run(tmp_path: Path, setting: str) -> None:
    write, settings, refuse = NAMING[setting]
    name = write(tmp_path / "named.safetensors", 0)
    first = settings(name)
    refuse(first)
    assert describe(first) == describe(settings(name))
    write(tmp_path / "named.safetensors", 1)
    second = settings(name)
    assert describe(second) != describe(first)
    refuse(second)
    with pytest.raises(
        InputError, match=rf"^{setting.strip()} is \S+/named.safetensors: it has changed since this run"
    ):
        refuse(first)


def test_a_digest_is_added_once_and_only_to_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a file.pt"
    path.write_bytes(b"1")
    named = with_digest(str(path))
    assert named == f"{path}@{hash_of(path)[:12]}" == with_digest(named)
    assert path_of(named) == unchanged(named, "x") == path
    path.unlink()
    assert unchanged(named, "x") == path  # whoever reads it says that it is missing
    assert with_digest(str(path)) == str(path)
    assert with_digest("") == ""


def test_teachers_that_are_losses_keep_their_text(tmp_path: Path) -> None:
    for text in ("pgd_at:steps=3@4/255", "trades:beta=3,steps=5@2/255, cross_entropy", "gone.pt"):
        assert teacher_with_digest(text) == RobustLabels(text).teacher == text
    file = weights(tmp_path / "t.safetensors", 0)
    config = RobustLabels(f"pgd_at@2/255, {file}")
    assert config.teachers == ("pgd_at@2/255", f"{file}@{hash_of(file)[:12]}")
    assert config.written == "pgd_at@2/255,t.safetensors"
