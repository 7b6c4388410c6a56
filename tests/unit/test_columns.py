"""What `--attacks`, `--threat` and `--eps` ask for."""

from pathlib import Path

import pytest
import torch
from torch import nn

from distill.errors import InputError
from distill.evaluation.column_kinds import Certification
from distill.evaluation.columns import columns
from distill.evaluation.rows import threat_text
from distill.experiment import Evaluation
from distill.runs.run import Run
from robust import ATTACKS, PGD, Threat, correct, threat_named
from robust.attacks.named import NORM
from robust.threat import family_of
from tests.attacked import attacked
from tests.toy import toy


def names(attacks: str, **options: str) -> dict[str, Threat | None]:
    return {c.name: c.threat for c in columns(Evaluation(attacks=attacks, **options), 3, 32)}


def test_the_papers_three_and_one_without_a_bias_are_the_default() -> None:
    found = columns(Evaluation(), 1, 28)
    assert [(c.name, c.threat) for c in found] == [
        ("linf_star", Threat("linf", 0.3)),
        ("linf", Threat("linf", 0.1)),
        ("l2", Threat("l2", 1.0)),
        ("pgd_ce_margin@0.1", Threat("linf", 0.1)),
    ]
    assert len({c.base for c in found[:3]}) == 1  # one attack: who falls in a small ball has fallen in the large one


def test_threats_behind_the_at_by_flag_and_by_curve() -> None:
    assert names("pgd@l2:0.5,square@2/255,fgsm") == {
        "pgd@l2:0.5": Threat("l2", 0.5),
        "square@2/255": Threat("linf", 2 / 255),
        "fgsm@8/255": Threat("linf", 8 / 255),
    }
    assert names("pgd", threat="l2") == {"pgd@l2:0.2": Threat("l2", 0.2)}
    assert names("cw,deepfool,pgd") == {
        "cw@l2:0.2": Threat("l2", 0.2),
        "deepfool@l2:0.2": Threat("l2", 0.2),
        "pgd@8/255": Threat("linf", 8 / 255),
    }
    assert names("pgd,linf,mim@1/255", eps="0,1/255,8/255") == {
        "pgd@0": Threat("linf", 0.0),
        "pgd@1/255": Threat("linf", 1 / 255),
        "pgd@8/255": Threat("linf", 8 / 255),
        "linf": Threat("linf", 2 / 255),
        "mim@1/255": Threat("linf", 1 / 255),
    }


def test_a_name_has_its_threat_in_it_however_it_was_given() -> None:
    """Results are stored by name: `pgd` at 2/255 and at 8/255 were one column, and were compared with each other."""
    spelled = [names("pgd", threat="2/255"), names("pgd@2/255"), names("pgd@linf"), names("pgd", eps="2/255")]
    assert all(found == {"pgd@2/255": Threat("linf", 2 / 255)} for found in spelled)
    with pytest.raises(InputError, match="has pgd@2/255 twice"):
        columns(Evaluation(attacks="pgd@linf,pgd@2/255"), 3, 32)
    assert list(names("jsma,corruptions")) == ["jsma@l0:0.1", "corruptions"]  # neither has a ball in linf or l2


def test_a_name_says_the_norm_of_attacks_that_are_none_at_the_threat_asked_for() -> None:
    """At --threat 8/255 nobody takes CW, a certificate or JSMA for an attack at 8/255."""
    found = columns(Evaluation(attacks="cw,deepfool,certified:sigma=0.5,jsma", threat="8/255"), 3, 32)
    assert [c.name for c in found] == [
        "cw@l2:0.2",
        "deepfool@l2:0.2",
        "certified:sigma=0.5@l2:0.2",
        "jsma@l0:0.1",
    ]
    assert [threat_text(c.limit) for c in found] == ["l2:0.2", "l2:0.2", "l2:0.2", "l0:0.1"]
    assert [threat_text(c.limit) for c in columns(Evaluation(attacks="linf_star,corruptions"), 3, 32)] == [
        "linf:8/255",
        "",
    ]


def test_jsmas_share_is_its_gamma_and_its_name_is_read_again() -> None:
    for written, name in {
        "jsma": "jsma@l0:0.1",
        "jsma@l0:0.1": "jsma@l0:0.1",
        "jsma@l0:0.05": "jsma:gamma=0.05@l0:0.05",
        "jsma:gamma=0.05": "jsma:gamma=0.05@l0:0.05",
        "jsma:goals=2@l0:0.2": "jsma:goals=2,gamma=0.2@l0:0.2",
    }.items():
        (column,) = columns(Evaluation(attacks=written), 3, 32)
        (again,) = columns(Evaluation(attacks=column.name), 3, 32)
        assert column.name == again.name == name
        assert column == again
    assert len(columns(Evaluation(attacks="jsma", eps="1/255,8/255"), 3, 32)) == 1  # no curve over balls it has not


def test_settings_tell_attacks_apart_and_are_not_the_defaults() -> None:
    def how(attacks: str, **options: object) -> list[str]:
        return [c.how for c in columns(Evaluation(attacks=attacks, **options), 3, 32)]

    assert how("pgd,pgd:steps=50,fgsm@0") == ["PGD()", "PGD(steps=50)", "PGD(steps=1, random_start=False)"]
    assert how("transfer")[0].endswith("from 10 epochs")
    assert how("transfer", surrogate_epochs=3)[0].endswith("from 3 epochs")
    assert how("transfer_student", transfer_backbone="lenet")[0].endswith("from lenet")
    assert how("certified:sigma=0.5")[0] == "Certification(sigma=0.5)"


def test_fields_keep_their_commas() -> None:
    first, second = columns(Evaluation(attacks="pgd:steps=50,restarts=5@1/255,noise"), 3, 32)
    assert first.attack == PGD(Threat("linf", 1 / 255), steps=50, restarts=5)
    assert first.base == "pgd:steps=50,restarts=5"
    assert second.name == "noise@8/255"


def test_an_attack_of_another_package_is_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`package.module:name` with fields and a threat; its name is read again, as results of a run are."""
    package = tmp_path / "somebody"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "bright.py").write_text(
        "from dataclasses import dataclass\n"
        "from robust import Threat\n"
        "@dataclass(frozen=True)\n"
        "class Brighten:\n"
        "    threat: Threat\n"
        "    share: float = 1.0\n"
        "    def __call__(self, model, images, targets, *, generator=None):\n"
        "        return (images + self.share * self.threat.eps).clamp(0, 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    written = "somebody.bright:Brighten:share=0.5@0.1,somebody.bright:Brighten@l2:0.5"
    found = columns(Evaluation(attacks=written), 3, 8)
    assert [c.name for c in found] == written.split(",")
    assert [threat_text(c.limit) for c in found] == ["linf:0.1", "l2:0.5"]
    assert [c.how for c in found] == ["Brighten(share=0.5)", "Brighten()"]
    test, run = toy(), Run(tmp_path / "run", None)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    found_bools = attacked(model, test, run, found[:1], model).bools
    bools = found_bools[found[0].name]
    expected = correct(model, (test.images + 0.05).clamp(0, 1), test.labels) & found_bools["clean"]
    assert torch.equal(bools, expected)
    with pytest.raises(InputError, match="somebody"):
        columns(Evaluation(attacks="somebody.bright:Darken@0.1"), 3, 8)


def test_every_attack_is_made_at_every_eps_with_zero() -> None:
    for name in ATTACKS:
        for eps in ("0", "1/255", "l2:0.5"):
            if name == "jsma" or NORM.get(name, threat_named(eps).norm) != threat_named(eps).norm:
                continue
            (column,) = columns(Evaluation(attacks=f"{name}@{eps}"), 1, 8)
            assert callable(column.attack)


@pytest.mark.parametrize("flag", ["threat", "eps"])
@pytest.mark.parametrize("text", ["1e400", "9" * 20, "9" * 5000, "8", "nan", "-1", "some", "l1:1"])
def test_a_threat_that_is_none_is_refused_by_the_flag_in_one_short_line(flag: str, text: str) -> None:
    with pytest.raises(InputError, match=rf"^--{flag}: threat is ") as caught:
        names("pgd", **{flag: text})
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_families() -> None:
    assert [family_of(*shape) for shape in ((1, 28), (3, 32), (3, 64), (3, 224))] == [
        "mnist",
        "cifar10",
        "imagenet",
        "imagenet",
    ]
    assert names("certified:sigma=0.5") == {"certified:sigma=0.5@l2:0.2": Threat("l2", 0.2)}
    (column,) = columns(Evaluation(attacks="certified:sigma=0.5,n=200@l2:0.9"), 3, 32)
    assert column.certification == Certification(sigma=0.5, n=200)


@pytest.mark.parametrize(
    ("attacks", "line"),
    [
        ("pgdd", "unknown attack 'pgdd'; did you mean 'pgd'?"),
        ("pgd:steps=0", "steps is 0"),
        ("pgd:threat=1", "attack pgd has no field 'threat'"),
        ("pgd:steps", "'steps' is not field=value"),
        ("pgd:steps=1,steps=2", "'steps' is given twice"),
        ("pgd@-1/255", "threat is '-1/255'"),
        ("pgd@l3:1", "threat is 'l3:1'"),
        ("cw@8/255", "norm"),
        ("jsma@8/255", r"JSMA changes few values by any amount.*write the share of values, such as jsma@l0:0.1"),
        ("jsma@l2:1", "JSMA changes few values by any amount"),
        ("jsma@l0:2", r"gamma is 2.0; it must be in \[0, 1\]"),
        ("jsma@l0:nan", "gamma is nan"),
        ("jsma@l0:some", "it takes a number"),
        ("jsma:gamma=0.1@l0:0.2", "give one of them"),
        ("pgd@1e400", "eps is inf; it must be a finite number"),
        ("pgd@8", "write 8/255"),
        ("pgd@99999999999999999999", "must be in"),
        ("certified:sigma=nan", "sigma is nan; it must be a finite number > 0"),
        ("certified:n=99999999999999999999", "n is 99999999999999999999; it must be .*at most 2147483648"),
        ("certified@8/255", "smoothing certifies l2 balls"),
        ("certified:sigma=0.5,n=200@l2:1", "certify 0.913 at most, less than the threat's 1; take a larger sigma or n"),
        ("certified:alpha=2", r"alpha is 2.0; it must be in \(0, 1\)"),
        ("worst:steps=3", "worst has no options"),
        ("worst", "worst@8/255 joins the attacks in this ball, and there is none; name one too"),
        ("l2,worst@2/255", "worst@2/255 joins the attacks in this ball, and there is none"),
        ("corruptions@8/255", "corruptions has no options"),
        ("transfer:iterate=worst", "transfer has no field 'iterate'"),
        ("linf,linf", "--attacks has linf twice"),
    ],
)
def test_what_is_wrong_is_said(attacks: str, line: str) -> None:
    with pytest.raises(InputError, match=line) as error:
        columns(Evaluation(attacks=attacks), 3, 32)
    assert "\n" not in str(error.value)


def test_sizes_that_square_cannot_cut_are_refused_before_hours_of_work() -> None:
    with pytest.raises(InputError, match="images are 14x14; Square's l2 start takes squares"):
        columns(Evaluation(attacks="autoattack@l2"), 1, 14)
    assert columns(Evaluation(attacks="autoattack@linf"), 1, 14)
