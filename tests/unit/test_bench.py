"""How the benches time: alternating rounds, minima, an end after some seconds."""

from itertools import count

import pytest

from tests.bench.side_by_side import compare


def test_ways_alternate_and_the_minimum_counts(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []
    ticks = iter([0, 0, 0, 4, 0, 3, 0, 2, 0, 5])  # an untimed round, then 4 and 3 seconds, then 2 and 5
    ways = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    rows = compare("two ways", ways, repeats=2, goals={"b": "floor 1.0"}, clock=lambda: float(next(ticks)))
    assert calls == ["a", "b"] * 3
    assert [(row["seconds"], row["ratio"], row["repeats"], row["goal"]) for row in rows] == [
        (2.0, 1.0, 2, ""),
        (3.0, 1.5, 2, "floor 1.0"),
    ]
    assert "1.50 x   floor 1.0" in capsys.readouterr().out


def test_a_case_ends_after_its_seconds_with_one_timed_round() -> None:
    made = count()
    (row,) = compare("slow", {"a": lambda: next(made)}, repeats=50, seconds=0.0)
    assert row["repeats"] == 1
    assert next(made) == 2
