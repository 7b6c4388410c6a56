"""Composite indices: numbers worked by hand, and the cases in which they would mislead."""

from typing import Any

import pytest

from distill.evaluation.rows import Row
from distill.reports.indices import attack_efficiency, crei, improvement_over_random, indices, robustness_ratio
from tests.rows import row as any_row


def test_by_hand() -> None:
    assert robustness_ratio(70.0, [30.0, 20.0, 10.0]) == pytest.approx(100 * 10 / 60)
    assert attack_efficiency(2.0, [4.0, 12.0, 26.0]) == pytest.approx(100 * 12 / 24)
    assert crei(16.0, 50.0) == 33.0
    assert crei(16.0, 50.0, weight=1.0) == 16.0
    assert crei(16.0, 50.0, weight=0.0) == 50.0
    assert improvement_over_random(10.0, 12.5) == -2.5


def test_rr_is_beards_formula() -> None:
    """The published form: 1 - (clean - mean) / (clean - least)."""
    clean, attacked = 69.95, [38.2, 28.9, 50.8, 18.3, 8.3, 27.0]
    mean, least = sum(attacked) / 6, min(attacked)
    assert robustness_ratio(clean, attacked) == pytest.approx(100 * (1 - (clean - mean) / (clean - least)))


def test_what_rr_hides() -> None:
    """Equal accuracies give 0 however high, a weak attack raises it, and so does a lower clean accuracy."""
    assert robustness_ratio(80.0, [70.0, 70.0]) == robustness_ratio(80.0, [10.0, 10.0]) == 0.0
    assert robustness_ratio(80.0, [10.0, 20.0, 80.0]) > robustness_ratio(80.0, [10.0, 20.0])
    assert robustness_ratio(40.0, [10.0, 20.0]) > robustness_ratio(80.0, [10.0, 20.0])


def test_ae_depends_on_the_slowest_attack_alone() -> None:
    assert attack_efficiency(1.0, [2.0, 10.0]) > attack_efficiency(1.0, [2.0, 100.0])
    assert attack_efficiency(1.0, [10.0, 100.0]) == pytest.approx(attack_efficiency(5.0, [50.0, 500.0]))


@pytest.mark.parametrize(
    ("clean", "attacked", "words"),
    [
        (80.0, [], "attacked has 0 accuracies"),
        (80.0, [40.0], "attacked has 1 accuracies; RR needs two or more"),
        (80.0, [80.0, 80.0], r"no attack costs any of the clean 80\.0"),
        (80.0, [40.0, 81.0], r"attacked has 81\.0, above the clean 80\.0"),
        (101.0, [40.0, 50.0], r"accuracy is 101\.0"),
        (80.0, [-1.0, 50.0], r"accuracy is -1\.0"),
        (float("nan"), [1.0, 2.0], "accuracy is nan"),
    ],
)
def test_rr_refuses(clean: float, attacked: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        robustness_ratio(clean, attacked)


@pytest.mark.parametrize(
    ("clean", "seconds", "words"),
    [
        (1.0, [5.0], "attack_seconds has 1 times; AE needs two or more"),
        (9.0, [5.0, 9.0], r"no attack takes longer than the 9\.0 s"),
        (0.0, [5.0, 6.0], r"seconds are 0\.0"),
        (1.0, [5.0, float("inf")], "seconds are inf"),
    ],
)
def test_ae_refuses(clean: float, seconds: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attack_efficiency(clean, seconds)


def test_others_refuse() -> None:
    with pytest.raises(ValueError, match=r"weight is 1\.5"):
        crei(1.0, 2.0, weight=1.5)
    with pytest.raises(ValueError, match="ae is nan"):
        crei(1.0, float("nan"))
    with pytest.raises(ValueError, match=r"accuracy is 120\.0"):
        improvement_over_random(20.0, 120.0)


# --- rows


def row(method: str, attack: str, accuracy: float, **other: Any) -> Row:
    threat = "" if attack in ("clean", "worst") else "linf:8/255"
    common = {"dataset": "digits", "backbone": "mlp", "config": f"of {method}", "images": 100, "threat": threat}
    return any_row(**common | {"method": method, "attack": attack, "accuracy": accuracy} | other)


def values(rows: list[Row], name: str) -> list[float]:
    return [found.accuracy for found in indices(rows) if found.attack == name]


def test_ior_is_of_the_attack_without_cross_entropys_bias_where_it_is() -> None:
    both = {"random": (30.0, 25.0), "dc": (50.0, 26.0)}  # dc's logits are small: cross-entropy finds less of it
    rows = [
        row(method, attack, accuracy)
        for method, pair in both.items()
        for attack, accuracy in zip(("pgd", "pgd_ce_margin"), pair, strict=True)
    ]
    rows += [row(method, "clean", 80.0) for method in both]
    assert values(rows, "IOR pgd_ce_margin") == [1.0]
    assert values(rows, "IOR pgd") == []
    without = [each for each in rows if each.attack != "pgd_ce_margin"]
    assert values(without, "IOR pgd") == [20.0]


@pytest.mark.parametrize(
    "change",
    [
        {"threat": "linf:2/255"},
        {"how": "pgd:steps=20"},
        {"loss": "trades"},
        {"recipe": "paper"},
        {"images": 50},
        {"ipc": 10},
        {"backbone": "convnet"},
        {"dataset": "mnist"},
        {"test": "f00"},
    ],
)
def test_ior_compares_rows_of_one_attack_on_the_same_images(change: dict[str, Any]) -> None:
    rows = [row("random", "clean", 60.0), row("dc", "clean", 80.0), row("dc", "pgd", 50.0)]
    assert values([*rows, row("random", "pgd", 30.0)], "IOR pgd") == [20.0]
    assert values([*rows, row("random", "pgd", 30.0, **change)], "IOR pgd") == []
    both = [*rows, row("random", "pgd", 30.0, **change), row("random", "pgd", 34.0, student=1)]
    assert values(both, "IOR pgd") == [16.0]


def test_two_settings_of_random_have_no_mean() -> None:
    rows = [row("random", "clean", 60.0), row("dc", "clean", 80.0), row("dc", "pgd", 50.0)]
    rows += [row("random", "pgd", 30.0), row("random", "pgd", 40.0, config="other")]
    assert values(rows, "IOR pgd") == []


def test_students_of_two_sets_are_two() -> None:
    """Same seed and settings, another set (two sets judged by `evaluate`): each has an index of its own."""
    rows = []
    for name, least in (("aa", 10.0), ("bb", 30.0)):
        rows += [
            row("dc", "clean", 80.0, set=name),
            row("dc", "pgd", least, set=name),
            row("dc", "fgsm", 40.0, set=name),
        ]
    assert values(rows, "RR") == [robustness_ratio(80.0, [10.0, 40.0]), robustness_ratio(80.0, [30.0, 40.0])]


def test_an_index_of_doubtful_numbers_is_doubtful() -> None:
    doubt = "suspicious: masked"
    rows = [row("random", "clean", 60.0), row("dc", "clean", 80.0), row("random", "pgd", 30.0)]
    rows += [row("dc", "pgd", 50.0, verdict=doubt), row("dc", "fgsm", 55.0)]
    found = {(each.method, each.attack): each.verdict for each in indices(rows)}
    assert found["dc", "IOR pgd"] == found["dc", "RR"] == doubt
