"""Composite indices of the field, to compare with published tables: columns on request, by which no method is ranked.

RR, AE and CREI: BEARD (Zhou et al., arXiv 2411.09265), as its code computes them for one ipc (`metrics_type` "beard").
IOR: improvement over random selection, DD-Ranking (arXiv 2505.13300), here of robust instead of clean accuracy, and
over random images under the same labels: a set with the labels of a teacher gains by the teacher, whatever its images.
DR: drop rate, DD-RobustBench (arXiv 2403.13322), of the mean over the attacks.

Deviations: BEARD's code returns 0 where an index divides by zero, a number like any other in its tables; here that is a
ValueError, as are inputs for which the index is the same whatever the network does.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

from distill.evaluation.rows import ColumnKey, Row
from distill.reports.rivals import is_rival, rival_key
from distill.reports.summary import headings

__all__ = [
    "UNBIASED",
    "attack_efficiency",
    "crei",
    "drop_rate",
    "improvement_over_random",
    "index_row",
    "indices",
    "robustness_ratio",
]

UNBIASED = "pgd_ce_margin"
"""the column whose attack does not depend on the scale of a network's logits: methods are ranked by it"""
NO_ATTACK = ("clean", "corruptions", "certified", "worst", "noise")


def robustness_ratio(clean: float, attacked: Sequence[float]) -> float:
    """Return RR in percent: 100 (1 - (clean - mean) / (clean - least)), mean and least over the attacks.

    RR is (mean - least) / (clean - least): it measures how far the attacks differ from each other, and hides the level
    of robustness. Equal accuracies under all attacks give 0, be they 70 of 80 or 10 of 80; an additional weak attack
    raises RR, and so does a low clean accuracy. The threats of the attacks (norms, eps) are mixed in one mean.

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

    Higher is meant as better: attacks take long. AE depends on the machine, on the implementation and on whether fooled
    examples leave the batch. The longest attack alone sets the scale: AE of the same network changes when this attack
    becomes slower, or when a fast attack is left out. AE does not depend on robustness.

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

    CREI hides what RR and AE hide. Half of it is measured in seconds, so two machines give two indices for one network.

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

    IOR hides the level (2 -> 5 and 52 -> 55 give 3), the noise of the random draw (take the mean of several draws), and
    whether both were trained alike: DD-Ranking searches the learning rate for each.

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


def drop_rate(clean: float, robust: float) -> float:
    """Return the share of the clean accuracy that attacks take, in percent: 100 (clean - robust) / clean.

    The drop rate is meant as better where it is lower, and rewards a low clean accuracy: a network that is right on 10
    % of the images, and on all of these under attack, has the best of all drop rates. It hides the level: 80 -> 40 and
    20 -> 10 are both 50. Compare it only at equal clean accuracy, where the robust accuracy itself says the same.

    Args:
        clean: clean accuracy in percent, > 0.
        robust: accuracy in percent under an attack, or a mean over several, not above `clean`.

    Raises:
        ValueError: an accuracy out of its range, a clean accuracy of 0, or a robust one above it.

    >>> drop_rate(80.0, 20.0), drop_rate(12.0, 9.0)  # the first network withstands more attacks
    (75.0, 25.0)
    """
    for accuracy in (clean, robust):
        _check_percent("accuracy", accuracy)
    if clean == 0:
        raise ValueError("the clean accuracy is 0; no share of it can be lost")
    if robust > clean:
        raise ValueError(f"robust is {robust}, above the clean {clean}; an attack cannot raise accuracy")
    return 100 * (clean - robust) / clean


def _check_percent(name: str, value: float) -> None:
    if not 0 <= value <= 100:
        raise ValueError(f"{name} is {value}; it must be in percent, from 0 to 100")


def indices(rows: Sequence[Row]) -> list[Row]:
    """Return rows with the indices of each student as `accuracy`, their names as `attack`; an undefined one has no row.

    RR, AE, CREI and DR join all attacks of a student; `how` of their rows names these attacks with their threats, so
    that indices of other attacks or threats are another column. IOR is of the column `pgd_ce_margin` where a student
    has it: under an attack by cross-entropy alone a network gains by the scale of its logits. Students without it have
    an IOR for each attack.

    Args:
        rows: of results.jsonl. IOR compares with students of random images under the same labels, on the same test
            images, with the same ipc, network, loss and recipe, under the same attack at the same threat
            (`distill.reports.rivals`). It is undefined where there are none, and where those of random images
            themselves differ in a setting.

    Returns:
        rows whose verdict is "ok" or all that is suspicious of the numbers that an index is made of.
    """
    students: dict[tuple, list[Row]] = {}
    rivals: dict[tuple, list[Row]] = {}
    for row in rows:
        students.setdefault((row.line, row.student_key, row.test), []).append(row)
        if is_rival(row):
            rivals.setdefault(rival_key(row), []).append(row)
    found: list[Row] = []
    for mine in students.values():
        clean = next((row for row in mine if row.attack == "clean"), None)
        if clean is None:
            continue
        attacked = [row for row in mine if row.attack_kind not in NO_ATTACK]
        found += _joint(clean, attacked)
        if is_rival(clean):
            continue
        for row in [row for row in attacked if row.attack_kind == UNBIASED] or attacked:
            random = rivals.get(rival_key(row), [])
            if len({each.config for each in random}) == 1:
                value = improvement_over_random(row.accuracy, fmean(each.accuracy for each in random))
                found.append(index_row(row, f"IOR {row.attack}", value, [row, *random]))
    return found


def _joint(clean: Row, attacked: Sequence[Row]) -> list[Row]:
    """Return the rows of the indices that join all attacks of a student."""
    rr = _defined(lambda: robustness_ratio(clean.accuracy, [row.accuracy for row in attacked]))
    ae = _defined(lambda: attack_efficiency(clean.seconds, [row.seconds for row in attacked]))
    dr = _defined(lambda: drop_rate(clean.accuracy, fmean(row.accuracy for row in attacked)))
    values = {"RR": rr, "AE": ae, "CREI": None if rr is None or ae is None else crei(rr, ae), "DR": dr}
    joined = replace(clean, threat=None, how=f"of {', '.join(_attack_names([row.column for row in attacked]))}")
    numbers = [clean, *attacked]
    return [index_row(joined, name, value, numbers) for name, value in values.items() if value is not None]


def _attack_names(columns: Sequence[ColumnKey]) -> list[str]:
    """Return the attacks with their threats; the name of a transfer does not say where its surrogate comes from."""
    transfers = {column: column.how for column in columns if column.attack.startswith("transfer")}
    return sorted(f"{name} {transfers.get(column, '')}".strip() for column, name in headings(columns).items())


def index_row(like: Row, name: str, value: float, of: Sequence[Row]) -> Row:
    """Return the row of an index; its verdict is what is suspicious of any row that the index is made of."""
    doubts = dict.fromkeys(row.verdict for row in of if row.verdict != "ok")
    verdict = "; ".join(doubts) or "ok"
    unknown = {"low": None, "high": None, "median_distance": None, "advised": "", "advised_accuracy": None}
    return replace(like, **unknown, attack=name, accuracy=value, verdict=verdict)


def _defined(index: Callable[[], float]) -> float | None:
    try:
        return index()
    except ValueError:
        return None
