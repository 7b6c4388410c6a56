"""Verdicts on the columns of a table, on a report, and the warning of `robust_accuracy`."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from distill.data import ImageSet
from distill.evaluation.advised import advised_columns
from distill.evaluation.column_kinds import Column
from distill.evaluation.columns import columns
from distill.evaluation.results import row_of
from distill.evaluation.rows import StudentDescription
from distill.evaluation.student_results import StudentResults
from distill.experiment import Evaluation
from distill.runs.run import Run
from robust import (
    APGD,
    CW,
    FAB,
    JSMA,
    PGD,
    DeepFool,
    Noise,
    Square,
    SuspiciousModelWarning,
    Threat,
    evaluate,
    robust_accuracy,
    withstands,
)
from robust.evaluation.advice import advised
from tests.attacked import attacked, judged
from tests.toy import toy

BOX = Threat("linf", 0.1)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Bright(nn.Module):
    """Tells the toy's classes apart by the brightness of the halves; what is done to the images comes first."""

    def __init__(self, first=None, last=None):
        super().__init__()
        self.first, self.last = first or (lambda x: x), last or (lambda z: z)
        self.scale = nn.Parameter(torch.tensor(4.0))

    def forward(self, x):
        x = self.first(x)
        return self.last(self.scale * torch.stack([x[:, :, :4].mean((1, 2, 3)), x[:, :, 4:].mean((1, 2, 3))], 1))


def coarse(x):
    return (x * 32).round() / 32


def evaluated(
    folder: Path, model: nn.Module, attacks: str, test: ImageSet | None = None
) -> tuple[StudentResults, list[Column]]:
    """Return the results of a student, evaluated as a run does, and the columns."""
    requested = columns(Evaluation(attacks=attacks), 3, 8)
    return attacked(model, test or toy(), Run(folder, None), requested, Bright()), requested


def verdicts_on(folder: Path, model: nn.Module, attacks: str, test: ImageSet | None = None) -> dict[str, str]:
    """Return the verdicts on a student."""
    results, requested = evaluated(folder, model, attacks, test)
    return judged(results.bools, requested, model, test or toy(), rng())


def test_an_ordinary_student_is_ok(tmp_path: Path) -> None:
    names = "pgd@0.1,pgd_ce_margin@0.1,noise@0.1,transfer@0.1,worst@0.1,corruptions"
    assert verdicts_on(tmp_path, Bright(), names) == dict.fromkeys(["clean", *names.split(",")[:-1]], "ok")


def test_worst_takes_the_verdicts_of_its_members(tmp_path: Path) -> None:
    found = verdicts_on(tmp_path, Bright(coarse), "pgd@0.1,noise@0.1,noise@0.05,worst@0.1,worst@0.05")
    assert found["pgd@0.1"].startswith("suspicious: input gradient is zero on ")
    assert found["worst@0.1"] == found["pgd@0.1"]
    assert found["worst@0.05"] == found["noise@0.1"] == "ok"  # pgd at 0.1 is no member
    assert advised(found["worst@0.1"]) == "square"


def test_worst_is_in_doubt_where_only_results_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "robust.evaluation.verdicts"
    monkeypatch.setattr(f"{module}.suspect_model", lambda *arguments, **options: ())
    monkeypatch.setattr(f"{module}.unbounded", lambda *arguments, **options: ())
    found = verdicts_on(tmp_path, Bright(coarse), "pgd@0.2,transfer@0.2,worst@0.2")
    assert "black-box transfer@0.2 beats it" in found["pgd@0.2"] or "black-box transfer beats it" in found["pgd@0.2"]
    assert found["transfer@0.2"] == "ok"
    assert found["worst@0.2"] == found["pgd@0.2"]


def test_a_weak_cross_entropy_is_the_doubt_of_those_who_ascend_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak = "cross-entropy PGD is weak here: the margin loss breaks more, 33 to 0: attack the margin or DLR, "
    weak += "use pgd_ce_margin"
    monkeypatch.setattr("robust.evaluation.verdicts.suspect_model", lambda *arguments, **options: (weak,))
    found = verdicts_on(
        tmp_path / "a", Bright(), "pgd@0.1,pgd_ce_margin@0.1,transfer@0.1,worst@0.1,pgd@0.05,worst@0.05"
    )
    doubted = {name for name, verdict in found.items() if verdict == f"suspicious: {weak}"}
    assert doubted == {"pgd@0.1", "pgd@0.05", "worst@0.05"}  # at 0.1 the worst has the margin among its members
    assert {verdict for name, verdict in found.items() if name not in doubted} == {"ok"}
    assert advised(found["pgd@0.1"]) == "pgd_ce_margin"


def test_logits_that_are_not_finite_leave_no_figure(tmp_path: Path) -> None:
    model = Bright(last=lambda z: z / (z[:, :1] > 1.5))
    share = int((~model(toy().images).isfinite().all(1)).sum())
    assert share > 5
    found = verdicts_on(tmp_path / "a", model, "pgd@0.1,noise@0.1,corruptions,worst@0.1")
    assert found == dict.fromkeys(found, f"suspicious: logits are not finite on {share} of 40 images")
    assert list(found) == ["clean", "pgd@0.1", "noise@0.1", "corruptions", "worst@0.1"]
    assert advised(found["clean"]) is None
    assert verdicts_on(tmp_path / "b", model, "corruptions")["clean"] == found["clean"]
    assert verdicts_on(tmp_path / "c", Bright(), "corruptions") == {"clean": "ok"}


def test_a_column_that_follows_the_advice_is_not_in_doubt(tmp_path: Path) -> None:
    found = verdicts_on(tmp_path, Bright(coarse), "pgd@0.1,square:queries=50@0.1,apgd_ce:steps=5@0.1")
    assert found["square:queries=50@0.1"] == "ok"
    assert found["pgd@0.1"].endswith("masked gradients")
    assert found["apgd_ce:steps=5@0.1"].startswith("suspicious: input gradient is zero")


# Users of the library


def test_robust_accuracy_warns_once_in_a_line(recwarn: pytest.WarningsRecorder) -> None:
    test = toy()
    model, images, targets = Bright(coarse), test.images, test.labels
    with pytest.warns(SuspiciousModelWarning) as caught:
        first = robust_accuracy(model, images, targets, PGD(BOX), generator=rng())
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith("robust accuracy is suspicious: input gradient is zero on 40 of 40 images")
    assert "\n" not in message
    assert caught[0].filename == __file__
    bools = withstands(model, images, targets, PGD(BOX), generator=rng())
    assert first == 100 * bools.double().mean().item()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert robust_accuracy(model, images, targets, PGD(BOX), generator=rng()) == first  # said already
        assert robust_accuracy(Bright(coarse), images, targets, PGD(BOX), generator=rng(), checks=False) == first
        robust_accuracy(Bright(), images, targets, PGD(BOX), generator=rng())
        robust_accuracy(Bright(coarse), images, targets, Square(BOX, queries=20), generator=rng())  # heeds the advice
        robust_accuracy(Bright(coarse), images, targets, Noise(BOX), generator=rng())
        robust_accuracy(Bright(coarse), images[:0], targets[:0], PGD(BOX))


def test_a_model_is_examined_once_until_its_parameters_change(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("robust.evaluation.verdicts.examine", lambda *arguments, **options: calls.append(1) or ())
    test, model = toy(), Bright()
    run = lambda model=model, threat=BOX: robust_accuracy(model, test.images, test.labels, PGD(threat), generator=rng())  # noqa: E731
    run(), run()
    assert len(calls) == 1
    run(threat=Threat("linf", 0.2))
    assert len(calls) == 2
    with torch.no_grad():
        model.scale.mul_(1e-5)
    run()
    assert len(calls) == 3
    model.scale = nn.Parameter(torch.tensor(3.0))
    run(), run()
    assert len(calls) == 4
    function = lambda x: model(x)  # noqa: E731
    run(function), run(function)  # its parameters may have changed unseen
    run(threat=Threat("linf", 0.0))
    assert len(calls) == 6


def test_a_report_has_verdicts() -> None:
    test = toy()
    attacks = {"pgd": PGD(BOX), "square": Square(BOX, queries=20), "jsma": JSMA(), "nothing": PGD(Threat("linf", 0.0))}
    report = evaluate(Bright(coarse), test.images, test.labels, attacks, generator=rng())
    assert list(report.verdicts) == ["clean", *attacks]
    doubted = {name for name, verdict in report.verdicts.items() if verdict.startswith("suspicious: ")}
    assert doubted == {"pgd", "jsma"}
    assert {verdict for name, verdict in report.verdicts.items() if name not in doubted} == {"ok"}
    report = evaluate(Bright(), test.images, test.labels, attacks, generator=rng())
    assert set(report.verdicts.values()) == {"ok"}
    assert evaluate(Bright(coarse), test.images, test.labels, attacks, generator=rng(), checks=False).verdicts == {}
    none = evaluate(Bright(), test.images[:0], test.labels[:0], attacks)
    assert set(none.verdicts.values()) == {"ok"}


@pytest.mark.parametrize(
    "attack",
    [
        CW(Threat("l2", 0.5), search_steps=2, steps=3),
        DeepFool(Threat("l2", 0.5)),
        JSMA(),
        APGD(BOX, steps=3),
        FAB(BOX, steps=3),
    ],
)
def test_a_model_without_a_gradient_path_is_in_doubt_under_every_attack(attack) -> None:
    test, model = toy(), Bright(last=lambda z: z.detach())
    report = evaluate(model, test.images[:10], test.labels[:10], {"it": attack}, generator=rng())
    assert report.verdicts["it"].startswith("suspicious: input gradient is zero on 10 of 10 images")
    assert report.verdicts["it"].endswith("masked gradients")


def test_the_advised_attack_is_run_and_its_figure_stands_beside_the_one_in_doubt(tmp_path: Path) -> None:
    """Pixels in five steps hide the gradient: PGD breaks nothing, Square does, and the table shows both figures."""
    attacks = "pgd@0.4,square:queries=50@0.4,worst@0.4,noise@0.4"
    model = Bright(coarse)
    results, requested = evaluated(tmp_path, model, attacks)
    found = judged(results.bools, requested, model, toy(), rng())
    assert found["pgd@0.4"] != "ok"
    others = advised_columns(found, requested, Evaluation(attacks=attacks), 3, 8)
    results = attacked(model, toy(), results.run, [*requested, others["pgd@0.4"]], Bright())
    bools = results.bools
    advised_attacks = {name: (c.name, bools[name] & bools[c.name]) for name, c in others.items()}
    name, standing = advised_attacks["pgd@0.4"]
    assert name == "square:queries=500@0.4"
    assert torch.equal(standing, results.bools["pgd@0.4"] & results.bools[name])
    assert standing.sum() < results.bools["pgd@0.4"].sum()
    assert advised_attacks.keys() == {column.name for column in requested if found[column.name] != "ok"}
    whose = {"method": "dc", "dataset": "toy", "ipc": 1, "seed": 0, "backbone": "mlp", "loss": "cross_entropy"}
    whose |= {"recipe": "quick", "config": "12ab", "test": "images", "student": 0}
    rows = {
        c.name: row_of(
            c, requested, results, found[c.name], advised_attacks.get(c.name), 0.0, StudentDescription(**whose)
        )
        for c in requested
    }
    assert rows["pgd@0.4"].advised == name
    assert rows["pgd@0.4"].advised_accuracy == 100 * standing.double().mean().item()
    assert rows["pgd@0.4"].threat == Threat("linf", 0.4)
    assert (rows["noise@0.4"].advised, rows["noise@0.4"].advised_accuracy) == ("", None)
    assert rows["worst@0.4"].how == "of noise@0.4, pgd@0.4, square:queries=50@0.4"
