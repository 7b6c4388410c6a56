"""One student under the columns: which images are attacked, what is saved, what a killed evaluation does again."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from distill.data.image_files import ImageFiles
from distill.evaluation import column_kinds, student_results
from distill.evaluation.columns import columns
from distill.evaluation.student_results import StudentResults
from distill.experiment import Evaluation
from distill.runs.run import Run
from robust import PGD, withstands
from robust.evaluation.checks import ImpossibleResult
from tests.attacked import attacked, judged
from tests.toy import toy, write_toy


class Bright(nn.Module):
    """Tells the toy's classes apart by the brightness of the halves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        above, below = x[:, :, :4].mean((1, 2, 3)), x[:, :, 4:].mean((1, 2, 3))
        return 4 * torch.stack([above, below], 1)


def evaluated(
    tmp_path: Path, attacks: str, model: nn.Module | None = None, **options: str
) -> tuple[StudentResults, list]:
    """Return the results of a student, evaluated as a run does, and the columns."""
    test, run, model = toy(), Run(tmp_path, None), model or Bright()
    requested = columns(Evaluation(attacks=attacks, **options), 3, 8)
    results = attacked(model, test, run, requested, model)
    return results, requested


def test_every_column_is_at_most_clean_and_a_curve_never_rises(tmp_path: Path) -> None:
    names = "fgsm,pgd,mim,noise,transfer"
    results, requested = evaluated(tmp_path, names, eps="0,0.05,0.1,0.2,0.4")
    bools = results.bools
    assert bools["clean"].all()
    for name in names.split(","):
        curve = [bools[f"{name}@{eps}"] for eps in ("0", "0.05", "0.1", "0.2", "0.4")]
        assert torch.equal(curve[0], bools["clean"])
        assert all((large <= small).all() for small, large in pairwise(curve))
    assert bools["pgd@0.4"].double().mean() == 0.0
    assert 0.0 < bools["pgd@0.2"].double().mean() < 1.0
    assert bools["noise@0.2"].double().mean() == 1.0
    assert set(judged(bools, requested, Bright(), toy(), torch.Generator().manual_seed(0)).values()) == {"ok"}


def test_who_fell_in_a_smaller_ball_is_not_attacked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def counted(model, x, y, attack, *, standing, generator):
        seen.append(int(standing.sum()))
        return withstands(model, x, y, attack, standing=standing, generator=generator)

    monkeypatch.setattr(column_kinds, "withstands", counted)
    results, _ = evaluated(tmp_path, "pgd@0.2,pgd@0.1,fgsm@0.2")
    fell = int((~results.bools["pgd@0.1"]).sum())
    assert seen == [40, 40 - fell, 40]  # pgd at 0.1, then at 0.2 who is left; another attack starts anew


def test_worst_is_who_withstands_all_at_its_threat_or_a_smaller(tmp_path: Path) -> None:
    results, _ = evaluated(tmp_path, "pgd@0.2,fgsm@0.15,worst@0.2,worst@0.15,pgd@l2:9")
    bools = results.bools
    assert torch.equal(bools["worst@0.2"], bools["pgd@0.2"] & bools["fgsm@0.15"])
    assert torch.equal(bools["worst@0.15"], bools["fgsm@0.15"])
    assert not torch.equal(bools["worst@0.2"], bools["worst@0.2"] & bools["pgd@l2:9"])


def test_worst_joins_attacks_alone(tmp_path: Path) -> None:
    """An abstention is no adversarial image, nor is damage; and attacks of another norm are another column's."""
    cw, smoothed = "cw:search_steps=4,steps=30@l2:2.72", "certified:sigma=2,n=20,n0=5@l2:1"
    names = f"pgd@l2:0.5,{cw},{smoothed},corruptions,pgd@0.15"
    results, _ = evaluated(tmp_path, f"{names},worst@l2:3,worst@l2:1.5,worst@0.2")
    bools = results.bools
    assert not (bools["pgd@l2:0.5"] <= bools[smoothed]).all()  # some abstain that no attack fools
    assert torch.equal(bools["worst@l2:3"], bools["pgd@l2:0.5"] & bools[cw])
    assert 0 < bools[cw].double().mean() < 1
    assert torch.equal(bools["worst@l2:1.5"], bools["pgd@l2:0.5"])
    assert torch.equal(bools["worst@0.2"], bools["pgd@0.15"])


def test_certified_accuracy_is_that_of_the_smoothed_student(tmp_path: Path) -> None:
    """A student that is wrong on every image of [0, 1], and right on noisy ones: clean 0, certified 100 percent."""

    class WrongInside(Bright):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inside = ((x >= 0) & (x <= 1)).flatten(1).all(1)
            return super().forward(x) * torch.where(inside, -1.0, 1.0)[:, None]

    results, requested = evaluated(tmp_path, "certified:n=200@l2:0.1,noise@l2:0.1,worst@l2:0.5", WrongInside())
    assert not results.bools["clean"].any()
    assert results.bools["certified:n=200@l2:0.1"].all()
    assert not results.bools["worst@l2:0.5"].any()
    found = judged(results.bools, requested, WrongInside(), toy(), torch.Generator().manual_seed(0))  # refuses nothing
    assert "certified:n=200@l2:0.1" not in found


def test_corruptions_are_fifteen_kinds_of_grey_and_colour_images(tmp_path: Path) -> None:
    results, _ = evaluated(tmp_path, "corruptions")
    assert results.bools["corruptions"].shape == (15 * 5, 40)


def test_minimum_norm_attacks_measure_once_and_are_cut_at_eps(tmp_path: Path) -> None:
    results, _ = evaluated(tmp_path, "cw:search_steps=6,steps=50@l2:0.5,cw:search_steps=6,steps=50@l2:2")
    small, large = (results.bools[f"cw:search_steps=6,steps=50@l2:{eps}"] for eps in ("0.5", "2"))
    margin = (Bright()(toy().images)[:, 0] - Bright()(toy().images)[:, 1]).abs()
    exact = margin / (4 * 2 * 192**-0.5)  # the two halves' weights are 4/96 on 96 pixels each, of opposite sign
    assert torch.equal(large, exact > 2)
    assert (small >= large).all()
    name = "cw:search_steps=6,steps=50"
    assert results.median_distance(name) == pytest.approx(exact.median().item(), rel=0.05)


def test_parts_are_kept_and_give_the_same_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student_results, "PART", 16)
    whole, _ = evaluated(tmp_path / "whole", "pgd@0.2,noise@0.2")
    calls = []

    def dies(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return withstands(*arguments, **options)

    monkeypatch.setattr(column_kinds, "withstands", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path / "cut", "pgd@0.2,noise@0.2")
    calls.clear()
    calls += [0] * 10
    cut, _ = evaluated(tmp_path / "cut", "pgd@0.2,noise@0.2")
    assert len(calls) == 10 + 6 - 2  # three parts of two columns, two of them done
    assert cut.bools.keys() == whole.bools.keys()
    assert all(torch.equal(cut.bools[name], whole.bools[name]) for name in whole.bools)


def test_impossible_results_are_refused(tmp_path: Path) -> None:
    results, requested = evaluated(tmp_path, "pgd@0.1,pgd@0.2")
    wrong = results.bools | {"pgd@0.1": torch.zeros(40, dtype=torch.bool)}
    with pytest.raises(ImpossibleResult, match="eps"):
        judged(wrong, requested, Bright(), toy(), torch.Generator())
    unclean = results.bools | {"clean": torch.zeros(40, dtype=torch.bool)}
    with pytest.raises(ImpossibleResult, match="misclassified clean"):
        judged(unclean, requested, Bright(), toy(), torch.Generator())


def test_masked_students_are_suspicious(tmp_path: Path) -> None:
    class Rounded(Bright):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward((x * 32).round() / 32)

    test = toy()
    requested = columns(Evaluation(attacks="pgd@0.1"), 3, 8)
    run = Run(tmp_path, None)
    results = attacked(Rounded(), test, run, requested, Rounded())
    found = judged(results.bools, requested, Rounded(), test, torch.Generator().manual_seed(0))
    assert found["pgd@0.1"].startswith("suspicious: input gradient is zero")
    assert requested[0].attack == PGD(requested[0].threat)


@pytest.mark.long
def test_a_test_set_in_files_is_judged_as_one_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Rounded(Bright):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward((x * 32).round() / 32)

    write_toy(tmp_path / "data")
    paths = np.array(sorted(str(path) for path in (tmp_path / "data" / "val").rglob("*.png")))
    labels = torch.tensor(["below" in path for path in paths]).long()
    files = replace(toy(), images=ImageFiles(paths, 8, "square"), labels=labels)
    memory = replace(files, images=files.images[:])
    decoded, seen = [], ImageFiles._pixels
    requested = columns(Evaluation(attacks="pgd@0.1,noise@0.2"), 3, 8)
    for model in (Bright(), Rounded()):
        found = []
        for name, test in (("files", files), ("memory", memory)):
            run = Run(tmp_path / name / type(model).__name__, None)
            results = attacked(model, test, run, requested, model)
            found.append(judged(results.bools, requested, model, test, torch.Generator().manual_seed(0)))
        assert found[0] == found[1]
    assert found[0]["pgd@0.1"].startswith("suspicious")

    monkeypatch.setattr("distill.evaluation.verdicts.EXAMINED", 8)
    monkeypatch.setattr(ImageFiles, "_pixels", lambda self, paths: decoded.append(len(paths)) or seen(self, paths))
    judged(results.bools, requested, model, files, torch.Generator().manual_seed(0))
    assert decoded[0] == 8


def test_the_fields_of_an_attack_seed_nothing(tmp_path: Path) -> None:
    """`pgd` takes ten steps: written or not, it draws the same starts."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(288, 2)).eval()
    attacks = "pgd@0.02,pgd:steps=10@0.02,noise@0.3,noise:draws=10@0.3"
    results, _ = evaluated(tmp_path, "pgd@0.02,pgd:steps=10@0.02", model)
    assert torch.equal(results.bools["pgd@0.02"], results.bools["pgd:steps=10@0.02"])
    drawn: dict[str, list[int]] = {}
    generator, test = Run(tmp_path, None).generator, toy()

    class Noting(Run):
        def generator(self, *address: str | int) -> torch.Generator:
            drawn.setdefault(address[2], []).append(1)
            return generator(*address)

    requested = columns(Evaluation(attacks=f"{attacks},linf,jsma:gamma=0.2"), 3, 8)
    attacked(model, test, Noting(tmp_path / "other", None), requested, model)
    assert set(drawn) == {"pgd", "noise", "pgd, the paper's", "jsma"}
