"""The field's composite indices: columns on request, for comparison with published tables. Nothing is ranked by them.

RR, AE and CREI: BEARD (Zhou et al., arXiv 2411.09265), as its code computes them for one ipc (`metrics_type` "beard").
IOR: improvement over random selection, DD-Ranking (arXiv 2505.13300), here of robust instead of clean accuracy.

Deviations: BEARD's code returns 0 where an index divides by zero, a number like any other in its tables; here that is a
ValueError, as are inputs for which the index is the same whatever the network does.
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

__all__ = ["UNBIASED", "attack_efficiency", "crei", "improvement_over_random", "indices", "robustness_ratio"]

UNBIASED = "pgd_ce_margin"
"""the column whose attack does not depend on the scale of a network's logits: methods are ranked by it"""
STUDENT = ("method", "dataset", "ipc", "backbone", "loss", "recipe", "config", "seed", "student", "set", "test")
"""fields that the rows of one student share"""
RIVAL = ("dataset", "ipc", "backbone", "loss", "recipe", "images", "test", "attack", "threat", "how")
"""fields that a row and a row of `random` share if they are compared"""
NO_ATTACK = ("clean", "corruptions", "certified", "worst", "noise")


def robustness_ratio(clean: float, attacked: Sequence[float]) -> float:
    """Return RR in percent: 100 (1 - (clean - mean) / (clean - least)), mean and least over the attacks.

    That is (mean - least) / (clean - least), so what it hides is robustness: it tells how far the attacks differ from
    each other. Equal accuracies under all attacks give 0, be they 70 of 80 or 10 of 80; adding a weak attack raises it;
    low clean accuracy raises it. The threats of the attacks (norms, eps) are mixed in one mean.

    Args:
        clean: clean accuracy in percent.
        attacked: accuracy in percent under each attack, two attacks or more, none above `clean`.

    Raises:
        ValueError: fewer than two attacks (RR of one is 0 always), an accuracy out of its range, or no attack that
            costs any accuracy (RR is 0 / 0).

    Mean 30 and least 20 of 80: 10 / 60. One strong attack among weak ones looks better than none:

    >>> round(robustness_ratio(80.0, [20.0, 40.0]), 2)
    16.67
    >>> robustness_ratio(80.0, [70.0, 70.0, 70.0]), robustness_ratio(80.0, [70.0, 70.0, 0.0])
    (0.0, 58.33333333333333)
    """
    for accuracy in (clean, *attacked):
        _check_percent("accuracy", accuracy)
    if len(attacked) < 2:
        raise ValueError(f"attacked has {len(attacked)} accuracies; RR needs two or more (of one it is always 0)")
    least, mean = min(attacked), sum(attacked) / len(attacked)
    if max(attacked) > clean:
        raise ValueError(f"attacked has {max(attacked)}, above the clean {clean}; an attack cannot raise accuracy")
    if least == clean:
        raise ValueError(f"no attack costs any of the clean {clean}; RR is 0 / 0")
    return 100 * (mean - least) / (clean - least)


def attack_efficiency(clean_seconds: float, attack_seconds: Sequence[float]) -> float:
    """Return AE in percent: 100 (mean - clean) / (longest - clean), mean and longest over the attacks.

    Higher is meant as better: attacks take long. What it hides: seconds are of the machine, of the implementation and
    of whether fooled examples leave the batch; the longest attack alone sets the scale, so that making it slower, or
    leaving out a fast one, changes AE while the network stays the same. Robustness is not in it.

    Args:
        clean_seconds: evaluation without attack, > 0.
        attack_seconds: evaluation under each attack, > 0, two attacks or more.

    Raises:
        ValueError: fewer than two attacks (AE of one is 100 always), a time that is not > 0, or no attack that takes
            longer than none.

    >>> attack_efficiency(1.0, [3.0, 7.0, 11.0])  # (7 - 1) / (11 - 1)
    60.0
    """
    for seconds in (clean_seconds, *attack_seconds):
        if not 0 < seconds < float("inf"):
            raise ValueError(f"seconds are {seconds}; they must be finite and > 0")
    if len(attack_seconds) < 2:
        count = len(attack_seconds)
        raise ValueError(f"attack_seconds has {count} times; AE needs two or more (of one it is always 100)")
    longest, mean = max(attack_seconds), sum(attack_seconds) / len(attack_seconds)
    if longest <= clean_seconds:
        raise ValueError(f"no attack takes longer than the {clean_seconds} s without; AE is undefined")
    return 100 * (mean - clean_seconds) / (longest - clean_seconds)


def crei(rr: float, ae: float, weight: float = 0.5) -> float:
    """Return CREI in percent: weight RR + (1 - weight) AE.

    What it hides: all that RR and AE hide, and that half of it is seconds: two machines give two indices for the same
    network.

    Args:
        rr: `robustness_ratio`.
        ae: `attack_efficiency`.
        weight: of RR, in [0, 1].

    Raises:
        ValueError: weight is out of its range, or rr or ae is no finite number.

    >>> crei(16.0, 60.0)
    38.0
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight}; it must be in [0, 1]")
    for name, value in (("rr", rr), ("ae", ae)):
        if not abs(value) < float("inf"):
            raise ValueError(f"{name} is {value}; it must be a finite number")
    return weight * rr + (1 - weight) * ae


def improvement_over_random(robust: float, random_robust: float) -> float:
    """Return the robust accuracy less that of as many random real images, in percentage points.

    What it hides: where both are, 2 -> 5 and 52 -> 55 being one; the noise of the random draw (take the mean of several
    draws); and whether both were trained alike: DD-Ranking searches the learning rate for each.

    Args:
        robust: robust accuracy in percent of students of the distilled set.
        random_robust: the same, under the same attack, of students of random real images at the same ipc.

    Raises:
        ValueError: an accuracy out of its range.

    >>> improvement_over_random(21.5, 14.0)
    7.5
    """
    for accuracy in (robust, random_robust):
        _check_percent("accuracy", accuracy)
    return robust - random_robust


def _check_percent(name: str, value: float) -> None:
    if not 0 <= value <= 100:
        raise ValueError(f"{name} is {value}; it must be in percent, from 0 to 100")


def indices(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with the indices of each student as `accuracy`, their names as `attack`; an undefined one has no row.

    IOR is of the column `pgd_ce_margin` where a student has it: under an attack by cross-entropy alone a network gains
    by the scale of its logits. Students without it have an IOR for each attack.

    Args:
        rows: of results.jsonl. IOR compares with the students of the method `random` on the same test images, with the
            same ipc, network, loss and recipe, under the same attack at the same threat (RIVAL). It is undefined where
            there are none, and where those of `random` themselves differ in a setting.

    Returns:
        rows whose verdict is "ok" or all that is suspicious of the numbers that an index is made of.
    """
    students: dict[tuple, list[dict[str, Any]]] = {}
    rivals: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        students.setdefault(tuple(row.get(name) for name in STUDENT), []).append(row)
        if row["method"] == "random":
            rivals.setdefault(tuple(row.get(name) for name in RIVAL), []).append(row)
    found: list[dict[str, Any]] = []
    for mine in students.values():
        clean = next((row for row in mine if row["attack"] == "clean"), None)
        if clean is None:
            continue
        attacked = [row for row in mine if _base(row) not in NO_ATTACK]
        rr = _defined(lambda c=clean, a=attacked: robustness_ratio(c["accuracy"], [row["accuracy"] for row in a]))
        ae = _defined(lambda c=clean, a=attacked: attack_efficiency(c["seconds"], [row["seconds"] for row in a]))
        mixed = {"threat": "", "how": ""}  # all attacks of the student together
        for name, value in {"RR": rr, "AE": ae, "CREI": None if rr is None or ae is None else crei(rr, ae)}.items():
            if value is not None:
                found.append(clean | mixed | _index(name, value, [clean, *attacked]))
        if clean["method"] != "random":
            for row in [row for row in attacked if _base(row) == UNBIASED] or attacked:
                random = rivals.get(tuple(row.get(name) for name in RIVAL), [])
                if len({each["config"] for each in random}) == 1:
                    value = improvement_over_random(row["accuracy"], fmean(each["accuracy"] for each in random))
                    found.append(row | _index(f"IOR {row['attack']}", value, [row, *random]))
    return found


def _base(row: dict[str, Any]) -> str:
    """Return the name of a row's attack without threat and fields."""
    return row["attack"].partition("@")[0].partition(":")[0]


def _index(name: str, value: float, of: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the fields of an index's row; its verdict is what is suspicious of any row that it is made of."""
    doubts = dict.fromkeys(row["verdict"] for row in of if row["verdict"] != "ok")
    unknown = {"low": None, "high": None, "median_distance": None, "advised": "", "advised_accuracy": None}
    return unknown | {"attack": name, "accuracy": value, "verdict": "; ".join(doubts) or "ok"}


def _defined(index: Callable[[], float]) -> float | None:
    try:
        return index()
    except ValueError:
        return None
